"""The five stages, one file each, named after their assets: select what is missing, make it in batches, commit each batch."""
