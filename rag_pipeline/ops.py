"""Asking in Dagster: `retrieve` finds the passages, `generate` answers from them.

A question and its answer stand in the run's own record and nowhere else, and go with it; what passes from one op to
the other stays in memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from dagster import (
    Config,
    Failure,
    MetadataValue,
    Out,
    Output,
    ResourceParam,
    TableColumn,
    TableRecord,
    TableSchema,
    op,
)
from pydantic import Field

from rag_pipeline.client import Rag
from rag_pipeline.core.answering import Answer
from rag_pipeline.core.collections import split_names
from rag_pipeline.core.errors import RagError
from rag_pipeline.core.retrieval import Hits


class Asked(Config):
    """What is asked, and of which collection."""

    question: str = Field(description="What to answer from the documents alone.")
    collection: str = Field(description="The collection to ask; several, with commas between them, are ranked alone.")
    k: int = Field(default=5, ge=1, le=1000, description="From how many hits to answer.")


@op(out=Out(Hits, io_manager_key="in_memory", description="The passages, best first."))
def retrieve(config: Asked, rag: ResourceParam[Rag]) -> Hits:
    """The passages that have most to do with the question."""
    with one_line():
        return rag.retrieve(split_names(config.collection), config.question, config.k)


@op(out=Out(Answer, io_manager_key="in_memory", description="The answer and its sources."))
def generate(hits: Hits, rag: ResourceParam[Rag]) -> Output[Answer]:
    """An answer from these passages alone, with a citation for everything it says."""
    with one_line():
        answer = rag.generate(hits)
    return Output(answer, metadata=_metadata(answer))


@contextmanager
def one_line() -> Iterator[None]:
    """A failure that a person can put right as the one line that says how; trying again would not help."""
    try:
        yield
    except RagError as error:
        raise Failure(str(error), allow_retries=False) from None


def _metadata(answer: Answer) -> dict[str, object]:
    """The answer as plain text, for what a model writes is not to be rendered; its sources without theirs."""
    columns = ("citation", "collection", "path", "page", "heading", "start", "end")
    records = [
        TableRecord(
            {
                **{column: getattr(source, column) for column in columns},
                "page": source.page or "",
                "heading": " › ".join(source.heading),
            }
        )
        for source in answer.sources
    ]
    known = {"model": answer.model, "cost_usd": answer.cost_usd, "degraded": answer.degraded}
    return {
        "answer": MetadataValue.text(answer.text),
        "answered": answer.answered,
        "kind": answer.kind,
        "sources": MetadataValue.table(records, TableSchema([TableColumn(column) for column in columns])),
        "embedding_tokens": answer.tokens.embedding,
        "prompt_tokens": answer.tokens.prompt,
        "completion_tokens": answer.tokens.completion,
        "total_tokens": answer.tokens.total,
        "citations_dropped": answer.citations_dropped,
        **{name: value for name, value in known.items() if value is not None},
    }
