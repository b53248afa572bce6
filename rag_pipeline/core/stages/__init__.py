"""The five stages, one file each, named after their assets: select what is missing, make it, commit each batch."""
