"""Documents in, a pgvector index that is always true, answers with exact citations out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rag_pipeline.client import Rag

__all__ = ["Rag"]


def __getattr__(name: str) -> object:
    # At its first use: the commands and Dagster import this package and wait for nothing else.
    if name == "Rag":
        from rag_pipeline.client import Rag

        return Rag
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
