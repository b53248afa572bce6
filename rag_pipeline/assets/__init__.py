"""The five assets, from the file to what readers see. Each is a paragraph: run the stage, say what it did."""

from rag_pipeline.assets.cached_embeddings import cached_embeddings
from rag_pipeline.assets.faces import with_face
from rag_pipeline.assets.parsed_text import parsed_text
from rag_pipeline.assets.stages import pgvector_index, raw_files, token_chunks

ASSETS = [with_face(asset) for asset in (raw_files, parsed_text, token_chunks, cached_embeddings, pgvector_index)]
