"""The commands of `rag`, by what they are about; each a thin skin over the pipeline."""
