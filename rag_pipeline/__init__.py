"""Documents in, a pgvector index that is always true, answers with exact citations out."""

from rag_pipeline.client import Rag

__all__ = ["Rag"]
