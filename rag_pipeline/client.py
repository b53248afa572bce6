"""`Rag`: search and ask from Python, and hand work to the daemon."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from time import perf_counter
from typing import TYPE_CHECKING, Literal, Self, overload

import numpy as np

from rag_pipeline.core.answering import Answer, AnswerStream, answer, stream_answer
from rag_pipeline.core.audit import Query, QueryLog
from rag_pipeline.core.collections import get
from rag_pipeline.core.embedding import embed_question
from rag_pipeline.core.errors import ProviderError, UsageError
from rag_pipeline.core.models import embedding_model
from rag_pipeline.core.retrieval import Hits, Searcher
from rag_pipeline.runs import Run, visible_run
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import Settings

if TYPE_CHECKING:
    from rag_pipeline.core.evaluation import Evaluation, KnownQuestion

CLOSED = "this Rag is closed: connect another"


class Rag:
    """Searches collections and answers questions from them, in the environment's settings.

        with Rag.connect() as rag:
            hits = rag.search("handbook", "how do I reset a password?")
            answer = rag.ask("handbook", "how do I reset a password?")

    With an API key it reads what that is granted and nothing else. One thread at a time; a thread of its own takes a
    `Rag` of its own.
    """

    def __init__(self, runtime: Runtime, *, as_owner: bool = False):
        """`as_owner` is for who owns the data and reads it without a key where there are keys."""
        self._open_runtime: Runtime | None = runtime
        self._connection = runtime.connect_reader(as_owner=as_owner)
        self._open_searcher = Searcher(self._connection, _embedder(runtime))
        self._log = QueryLog(partial(runtime.connect_reader, as_owner=True))

    @classmethod
    def connect(cls, api_key: str | None = None) -> Self:
        """Connect as the environment says, starting the embedded services where it names no others.

        `api_key` comes before the environment's RAG_API_KEY. Raises ServiceError when the services cannot be reached,
        UsageError for a key that is empty or no text.
        """
        settings = Settings.from_environment()
        return cls(Runtime(settings if api_key is None else replace(settings, api_key=api_key)))

    def search(
        self,
        collection: str | Sequence[str],
        query: str,
        k: int = 5,
        mode: str = "hybrid",
        filters: Sequence[str] = (),
    ) -> Hits:
        """The k best hits, by `mode`: hybrid, vector or text. Several collections are ranked alone and fused.

        `filters` are written as on the command line: ["path=guides/**", "modified>=2024-01-31", "author=*Knuth*"].
        Without an embedding provider a hybrid search falls back to text and says so in `degraded`.
        Raises UsageError for what cannot be searched, ProviderError when mode vector has no provider.
        """
        started = perf_counter()
        hits = self._search(collection, query, k, mode, filters)
        self._record("search", hits, k, hits.question_tokens, hits.cost_usd, started)
        return hits

    @overload
    def ask(
        self, collection: str | Sequence[str], question: str, k: int = 5, *, stream: Literal[False] = False
    ) -> Answer: ...

    @overload
    def ask(
        self, collection: str | Sequence[str], question: str, k: int = 5, *, stream: Literal[True]
    ) -> AnswerStream: ...

    def ask(
        self, collection: str | Sequence[str], question: str, k: int = 5, *, stream: bool = False
    ) -> Answer | AnswerStream:
        """An answer from the k best hits alone, with its sources; extractive where no chat model is set.

        With `stream` an iterator of its text as the model writes it, whose `answer` is the whole.
        Raises what `retrieve` and `generate` raise; with `stream`, what the model raises comes from iterating.
        """
        started = perf_counter()
        hits = self.retrieve(collection, question, k)
        if not stream:
            return self._recorded(hits, k, answer(question, hits, self._runtime.chat), started)
        return stream_answer(
            question, hits, self._runtime.chat, done=lambda whole: self._recorded(hits, k, whole, started)
        )

    def retrieve(self, collection: str | Sequence[str], question: str, k: int = 5) -> Hits:
        """What `ask` answers from: the k best hits.

        Raises what `search` raises, and ProviderError when nothing was found by words alone.
        """
        hits = self._search(collection, question, k, merged=True)
        if hits.degraded and not hits:
            raise ProviderError(hits.degraded)
        return hits

    def generate(self, hits: Hits) -> Answer:
        """The answer to the hits' question, from these hits alone.

        Raises ProviderError when the chat model does not answer, UsageError for a question too long for it.
        """
        started = perf_counter()
        return self._recorded(hits, len(hits), answer(hits.query, hits, self._runtime.chat), started)

    def evaluate(
        self,
        collection: str,
        questions: "Sequence[KnownQuestion]",
        k: int = 5,
        mode: str = "hybrid",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "Evaluation":
        """How well `search` finds the known sources of questions: hit rate, MRR and nDCG at k.

        Raises what `search` raises, and ProviderError rather than measure another mode than was asked for.
        """
        from rag_pipeline.core.evaluation import evaluate

        return evaluate(self._searcher, collection, questions, k, mode, progress)

    def questions(self, collection: str) -> "list[KnownQuestion]":
        """Those that come with the collection, in `questions.jsonl` at the root of its source; none where there is no
        such file. Raises SourceError when it cannot be read, UsageError for a line that is none."""
        from rag_pipeline.core.evaluation import source_questions

        # The reader's own transaction, for that refuses whom access is closed to.
        with self._runtime.connect() as connection, self._connection.transaction():
            self._runtime.require_grant(connection, collection)
            return source_questions(get(connection, collection))

    def ingest(self, collection: str, *, allow_mass_removal: bool = False) -> str:
        """Ask the daemon to ingest a collection; the id of the run, at once. `run` tells what becomes of it.

        Raises UsageError when there is no such collection.
        """
        from rag_pipeline.queueing import queue_runs

        with self._runtime.connect() as connection:
            self._runtime.require_grant(connection, collection, to_write=True)
        (run_id,) = queue_runs(self._runtime, [collection], "Rag.ingest", allow_mass_removal=allow_mass_removal)
        return run_id

    def run(self, run_id: str) -> Run:
        """How far a run is, what it did, or why it failed. Raises UsageError when there is no such run."""
        with self._runtime.connect() as connection:
            return visible_run(self._runtime, connection, run_id)

    def cancel(self, run_id: str) -> None:
        """Cancel a queued run, or end one under way; what it did is kept. Raises UsageError where there is none."""
        from rag_pipeline.queueing import cancel_run

        cancel_run(self._runtime, run_id)

    def close(self) -> None:
        """End its connections, once what it was asked is recorded. What it is asked later raises UsageError."""
        self._open_runtime = None
        self._log.close()
        self._connection.close()

    @property
    def _runtime(self) -> Runtime:
        if self._open_runtime is None:
            raise UsageError(CLOSED)
        return self._open_runtime

    @property
    def _searcher(self) -> Searcher:
        if self._open_runtime is None:
            raise UsageError(CLOSED)
        return self._open_searcher

    def _search(
        self,
        collection: str | Sequence[str],
        query: str,
        k: int,
        mode: str = "hybrid",
        filters: Sequence[str] = (),
        *,
        merged: bool = False,
    ) -> Hits:
        return self._searcher.search(_names(collection), query, k, mode, filters, merged=merged)

    def _recorded(self, hits: Hits, k: int, result: Answer, started: float) -> Answer:
        self._record("ask", hits, k, result.tokens.total, result.cost_usd, started, result.answered)
        return result

    def _record(
        self,
        kind: str,
        hits: Hits,
        k: int,
        tokens: int,
        cost_usd: float | None,
        started: float,
        answered: bool | None = None,
    ) -> None:
        names, seconds = hits.collection.split(","), perf_counter() - started
        self._log.record(Query(kind, names, hits.query, hits.mode, k, len(hits), tokens, cost_usd, seconds, answered))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _names(collection: str | Sequence[str]) -> list[str]:
    return [collection] if isinstance(collection, str) else list(collection)


def _embedder(runtime: Runtime) -> Callable[[str, str, int], tuple[np.ndarray, int, float | None]]:
    @cache
    def connect(name: str, dimensions: int):
        provider = runtime.provider(embedding_model(name, dimensions))
        return provider, runtime.cache(provider)

    def embed(question: str, model: str, dimensions: int) -> tuple[np.ndarray, int, float | None]:
        provider, known = connect(model, dimensions)
        vector, tokens = embed_question(provider, known, question)
        return vector, tokens, provider.model.cost(tokens)

    return embed
