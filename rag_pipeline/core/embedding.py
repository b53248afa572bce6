"""Texts in, vectors out: from the cache where they are known, else from the provider; each text is paid for once."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from rag_pipeline.core.cache import EmbeddingCache, question_hash
from rag_pipeline.core.providers import Answer, InputRefused, Provider, ProviderStopped, connect_provider

__all__ = [
    "EmbeddingInput",
    "EmbeddingReport",
    "Provider",
    "connect_provider",
    "embed_question",
    "embed_stream",
    "probe",
    "same_model",
]

PROBE_TEXT = "The quick brown fox jumps over the lazy dog."
# A model answers a text again with a cosine of 0.9999 and more; another model's is far lower.
SAME_MODEL_COSINE = 0.99

# Inputs looked up in the cache at a time: their texts and vectors are what is held besides the batches in flight.
WINDOW = 512
# Batches that are ready while all of `in_flight` are asked, so that nobody waits for the reading and the writing.
READY = 2

Row = tuple[bytes, str, np.ndarray]


@dataclass(frozen=True)
class EmbeddingInput:
    """A text to embed: `hash` is the sha256 of it, `tokens` as the provider counts them (counted here when None)."""

    hash: bytes
    text: str
    tokens: int | None = None


@dataclass
class EmbeddingReport:
    """What embedding a stream took.

    `inputs` different texts were read: `cached` were known, `requested` were asked. `refused` (hash and reason) have no
    vector; `truncated_inputs` of them are longer than the model reads and were not asked, for it would have cut them
    (chunking leaves none). `stopped` says why asking ended early: all other texts have no answer then.
    `cost_usd` is None where the model's price is not known.
    """

    inputs: int = 0
    cached: int = 0
    requested: int = 0
    tokens: int = 0
    requests: int = 0
    retries: int = 0
    cost_usd: float | None = 0.0
    truncated_inputs: int = 0
    refused: list[tuple[bytes, str]] = field(default_factory=list)
    stopped: str | None = None

    @property
    def done(self) -> int:
        """The texts whose fate is known."""
        return self.cached + self.requested + self.truncated_inputs


def embed_question(provider: Provider, cache: EmbeddingCache, text: str) -> tuple[np.ndarray, int]:
    """The vector of a question, float32 (dimensions,), and the tokens it was billed: none when it was asked before.

    Raises InputRefused for a question the model cannot read whole, any ProviderError when it does not answer soon.
    """
    hash = question_hash(text)
    known = cache.get_many([hash])
    if known:
        return known[hash], 0
    (tokens,) = provider.count([text])
    if tokens > provider.model.max_input_tokens:
        limit = provider.model.max_input_tokens
        raise InputRefused(f"the question has {tokens} tokens, {provider.model.name} reads {limit}: shorten it")
    answer = _ask(provider, [text], tokens, hurry=True, stop=threading.Event())
    if not _usable(answer.vectors)[0]:
        raise ProviderStopped(f"{provider.model.name} answered the question with no usable vector")
    cache.put_many({hash: answer.vectors[0]})
    return answer.vectors[0], answer.tokens


def probe(provider: Provider) -> np.ndarray:
    """The model's vector of a fixed text, to be kept and compared: float32 (dimensions,). Raises ProviderError."""
    (tokens,) = provider.count([PROBE_TEXT])
    return _ask(provider, [PROBE_TEXT], tokens, hurry=True, stop=threading.Event()).vectors[0]


def same_model(kept: np.ndarray, now: np.ndarray) -> bool:
    """Whether two answers to the probe text come from the same model."""
    if len(kept) != len(now):
        return False
    return float(kept @ now) >= SAME_MODEL_COSINE * float(np.linalg.norm(kept) * np.linalg.norm(now))


def embed_stream(
    inputs: Iterable[EmbeddingInput],
    provider: Provider,
    cache: EmbeddingCache,
    store: Callable[[list[Row]], None],
    *,
    progress: Callable[[int], None] = lambda done: None,
    report: EmbeddingReport | None = None,
) -> EmbeddingReport:
    """Give every input its vector, handed to `store` as (hash, text, float32 vector) in no certain order.

    Inputs are read as they are needed; while some are read and stored in the calling thread, others are asked: at most
    `provider.in_flight` batches at once, so memory is bounded. An answer is in the cache before it is stored.
    `progress` gets the number of inputs that are done. A text that is refused is reported; when asking stops, what was
    answered and what is cached is still stored. What `store` or `inputs` raise ends all asking and is raised.
    A new `report` that is given is kept up to date: when `store` is called, it tells what its rows have cost.
    """
    report = report or EmbeddingReport()
    asking = _Asking(provider, cache)
    pending: dict[Future[_Outcome], list[EmbeddingInput]] = {}
    in_hand: set[bytes] = set()

    def finish(futures: Iterable[Future[_Outcome]]) -> None:
        for future in futures:
            in_hand.difference_update(input.hash for input in pending.pop(future))
            outcome = future.result()
            report.requested += len(outcome.rows) + len(outcome.refused)
            report.tokens += outcome.tokens
            report.requests += outcome.requests
            report.retries += outcome.retries
            report.refused += outcome.refused
            report.cost_usd = provider.model.cost(report.tokens)
            report.stopped = report.stopped or outcome.stopped
            if outcome.rows:
                store(outcome.rows)
            progress(report.done)

    def submit(batch: list[EmbeddingInput]) -> None:
        while len(pending) >= provider.in_flight + READY:
            finish(wait(pending, return_when=FIRST_COMPLETED).done)
        pending[executor.submit(asking.ask, batch)] = batch

    executor = ThreadPoolExecutor(provider.in_flight, thread_name_prefix="embedding")
    try:
        batch = _Batch(provider)
        for window in _windows(inputs):
            fresh = {input.hash: input for input in window if input.hash not in in_hand}
            report.inputs += len(fresh)
            known = cache.get_many(list(fresh))
            if known:
                report.cached += len(known)
                store([(hash, fresh[hash].text, vector) for hash, vector in known.items()])
                progress(report.done)
            if report.stopped:
                continue
            unknown = _readable([input for hash, input in fresh.items() if hash not in known], provider, report)
            for input in _counted(unknown, provider):
                in_hand.add(input.hash)
                for full in batch.add(input):
                    submit(full)
            finish(wait(pending, timeout=0).done)
        if batch.inputs:
            submit(batch.inputs)
        while pending:
            finish(wait(pending, return_when=FIRST_COMPLETED).done)
    except BaseException as error:
        asking.stop.set()
        # Who interrupts does not wait: the answers that are under way are paid for and still get cached.
        executor.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
        raise
    executor.shutdown()
    return report


@dataclass
class _Outcome:
    """What became of one batch."""

    rows: list[Row] = field(default_factory=list)
    refused: list[tuple[bytes, str]] = field(default_factory=list)
    tokens: int = 0
    requests: int = 0
    retries: int = 0
    stopped: str | None = None


class _Asking:
    """Asks a provider for batches, in several threads, until it stops."""

    def __init__(self, provider: Provider, cache: EmbeddingCache):
        self.stop = threading.Event()
        self._provider = provider
        self._cache = cache
        self._first = threading.Lock()
        self._answered = provider.first_inputs == 0

    def ask(self, batch: list[EmbeddingInput]) -> _Outcome:
        """The vectors of a batch, which are in the cache when this returns; never raises what a provider raises."""
        outcome = _Outcome()
        if not self._answered:
            with self._first:
                if not self._answered:
                    self._ask(batch, outcome)
                    return outcome
        self._ask(batch, outcome)
        return outcome

    def _ask(self, batch: list[EmbeddingInput], outcome: _Outcome) -> None:
        if self.stop.is_set():
            return
        texts = [input.text for input in batch]
        try:
            answer = _ask(self._provider, texts, sum(input.tokens for input in batch), hurry=False, stop=self.stop)
            self._answered = True
        except InputRefused as error:
            outcome.requests += error.requests
            outcome.retries += error.retries
            self._halve(batch, str(error), outcome)
        except ProviderStopped as error:
            outcome.requests += error.requests
            outcome.retries += error.retries
            if not self.stop.is_set():
                self.stop.set()
                outcome.stopped = str(error)
        else:
            outcome.requests += answer.requests
            outcome.retries += answer.retries
            outcome.tokens += answer.tokens
            self._keep(batch, answer, outcome)

    def _halve(self, batch: list[EmbeddingInput], reason: str, outcome: _Outcome) -> None:
        """Find which of the batch is to blame, having made sure that the provider takes any text at all."""
        if not self._answered and not self._takes_any_text(reason, outcome):
            return
        if len(batch) == 1:
            outcome.refused.append((batch[0].hash, reason))
            return
        middle = len(batch) // 2
        self._ask(batch[:middle], outcome)
        self._ask(batch[middle:], outcome)

    def _takes_any_text(self, reason: str, outcome: _Outcome) -> bool:
        outcome.requests += 1
        try:
            (tokens,) = self._provider.count([PROBE_TEXT])
            outcome.tokens += _ask(self._provider, [PROBE_TEXT], tokens, hurry=False, stop=self.stop).tokens
            self._answered = True
        except (InputRefused, ProviderStopped):
            self.stop.set()
            outcome.stopped = f"every text is {reason}"
        return self._answered

    def _keep(self, batch: list[EmbeddingInput], answer: Answer, outcome: _Outcome) -> None:
        usable = _usable(answer.vectors)
        rows = [
            (input.hash, input.text, vector)
            for input, vector, good in zip(batch, answer.vectors, usable, strict=True)
            if good
        ]
        self._cache.put_many({hash: vector for hash, _, vector in rows})
        outcome.rows += rows
        reason = f"{self._provider.model.name} answered with no usable vector (not finite, or zero)"
        outcome.refused += [(input.hash, reason) for input, good in zip(batch, usable, strict=True) if not good]


class _Batch:
    """Gathers inputs up to the provider's limits."""

    def __init__(self, provider: Provider):
        self._provider = provider
        self._most = provider.first_inputs or provider.batch_inputs
        self._tokens = 0
        self.inputs: list[EmbeddingInput] = []

    def add(self, input: EmbeddingInput) -> Iterator[list[EmbeddingInput]]:
        """Take `input`; the batch that is full without it, or with it."""
        if self.inputs and self._tokens + input.tokens > self._provider.batch_tokens:
            yield self._take()
        self.inputs.append(input)
        self._tokens += input.tokens
        if len(self.inputs) >= self._most:
            yield self._take()

    def _take(self) -> list[EmbeddingInput]:
        full, self.inputs, self._tokens, self._most = self.inputs, [], 0, self._provider.batch_inputs
        return full


def _ask(provider: Provider, texts: list[str], tokens: int, *, hurry: bool, stop: threading.Event) -> Answer:
    """The provider's answer, with one vector of the model's dimensions a text; all others stop the asking."""
    answer = provider.embed(texts, tokens=tokens, hurry=hurry, stop=stop)
    count, dimensions = answer.vectors.shape
    if count != len(texts) or dimensions != provider.model.dimensions:
        raise ProviderStopped(
            f"{provider.model.name} answers with {dimensions} dimensions, not {provider.model.dimensions}: "
            "set the dimensions it has",
            answer.requests,
            answer.retries,
        )
    return answer


def _usable(vectors: np.ndarray) -> np.ndarray:
    """Which rows are vectors that can be searched: finite and not zero."""
    return np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)


def _readable(inputs: list[EmbeddingInput], provider: Provider, report: EmbeddingReport) -> list[EmbeddingInput]:
    """The inputs that the model reads whole; the others are refused, for not every provider does it."""
    limit = provider.model.max_input_tokens
    # No tokenizer makes more tokens than there are bytes, and two that mark the ends.
    doubtful = [input for input in inputs if len(input.text.encode()) + 2 > limit]
    counts = provider.count([input.text for input in doubtful]) if doubtful else []
    too_long = {input.hash for input, tokens in zip(doubtful, counts, strict=True) if tokens > limit}
    report.truncated_inputs += len(too_long)
    report.refused += [(hash, f"longer than the {limit} tokens that {provider.model.name} reads") for hash in too_long]
    return [input for input in inputs if input.hash not in too_long]


def _counted(inputs: list[EmbeddingInput], provider: Provider) -> Iterator[EmbeddingInput]:
    """The inputs with their tokens, counting those that are not counted yet."""
    uncounted = [input.text for input in inputs if input.tokens is None]
    counts = iter(provider.count(uncounted) if uncounted else ())
    for input in inputs:
        yield input if input.tokens is not None else EmbeddingInput(input.hash, input.text, next(counts))


def _windows(inputs: Iterable[EmbeddingInput]) -> Iterator[list[EmbeddingInput]]:
    iterator = iter(inputs)
    while window := list(islice(iterator, WINDOW)):
        yield window
