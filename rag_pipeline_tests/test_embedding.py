"""Embedding a stream of texts through the cache, against the stand-in server and against a provider in memory."""

import hashlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_pipeline.core import embedding
from rag_pipeline.core.cache import EmbeddingCache
from rag_pipeline.core.embedding import (
    EmbeddingInput,
    connect_provider,
    embed_question,
    embed_stream,
    probe,
    same_model,
)
from rag_pipeline.core.errors import ProviderError
from rag_pipeline.core.models import EmbeddingModel, embedding_model
from rag_pipeline.core.providers import Answer, InputRefused, Provider
from rag_pipeline_tests.openai_server import MAX_INPUTS, MAX_REQUEST_TOKENS, OpenAIServer, out_of_quota, text_vector

MODEL = embedding_model("openai/stand-in", 64)


def one_input(text: str) -> EmbeddingInput:
    return EmbeddingInput(hashlib.sha256(text.encode()).digest(), text)


def make_inputs(count: int, salt: str = "") -> list[EmbeddingInput]:
    return [one_input(f"{salt}text number {number}") for number in range(count)]


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(key="secret-key") as server:
        yield server


@pytest.fixture
def provider(server: OpenAIServer) -> Provider:
    return connect_provider(MODEL, api_key="secret-key", base_url=server.url)


def cache_of(provider: Provider, redis_url: str | None = None) -> EmbeddingCache:
    return EmbeddingCache(redis_url, provider.base_url, provider.model.name, provider.model.dimensions)


def test_every_text_gets_its_own_vector(server, provider, redis_url):
    rows = []
    inputs = make_inputs(3000)
    report = embed_stream(inputs, provider, cache_of(provider, redis_url), rows.extend)
    assert {hash: text for hash, text, _ in rows} == {input.hash: input.text for input in inputs}
    assert len(rows) == 3000
    assert all(np.allclose(vector, text_vector(text, 64), atol=1e-6) for _, text, vector in rows)
    assert all(vector.dtype == np.float32 for _, _, vector in rows)
    assert (report.inputs, report.cached, report.requested, report.refused) == (3000, 0, 3000, [])
    assert report.requests == len(server.requests)
    assert report.tokens == sum(provider.count([input.text for input in inputs]))
    assert report.cost_usd is None


def test_a_second_run_asks_nothing_and_a_changed_text_alone_is_asked(server, provider, redis_url):
    cache = cache_of(provider, redis_url)
    inputs = make_inputs(1000)
    embed_stream(inputs, provider, cache, lambda rows: None)
    server.requests.clear()
    rows = []
    report = embed_stream(inputs, provider, cache, rows.extend)
    assert (report.cached, report.requested, report.requests, len(rows)) == (1000, 0, 0, 1000)
    assert server.requests == []

    inputs[::20] = make_inputs(50, "changed ")
    report = embed_stream(inputs, provider, cache, rows.extend)
    assert sorted(server.embedded_texts()) == sorted(input.text for input in inputs[::20])
    assert (report.cached, report.requested) == (950, 50)


def test_identical_texts_are_asked_once(server, provider, redis_url):
    inputs = [one_input("the same")] * 700 + make_inputs(10) + [one_input("the same")] * 700
    rows = []
    embed_stream(inputs, provider, cache_of(provider, redis_url), rows.extend)
    assert server.embedded_texts().count("the same") == 1
    assert {text for _, text, _ in rows} == {input.text for input in inputs}


def test_batches_keep_within_both_limits(server, provider):
    long = [one_input(f"{number} " + "word " * 4000) for number in range(200)]
    report = embed_stream(make_inputs(3000) + long, provider, cache_of(provider), lambda rows: None)
    assert (report.requested, report.refused) == (3200, [])
    assert all(request.status == 200 for request in server.requests)
    assert max(len(request.inputs) for request in server.requests) <= MAX_INPUTS
    # Nor are they needlessly small: the 200 long texts have 800,000 tokens.
    assert len(server.requests) <= 3000 / 512 + 800_000 / (MAX_REQUEST_TOKENS - 5000) + 4


def test_many_requests_are_in_flight(server, provider):
    server.latency = 0.2
    embed_stream(make_inputs(5000), provider, cache_of(provider), lambda rows: None)
    asked = [(request.at, 1) for request in server.requests] + [
        (request.answered_at, -1) for request in server.requests
    ]
    running = np.cumsum([change for _, change in sorted(asked)])
    assert running.max() == provider.in_flight


def test_dimensions_are_asked_where_the_model_allows_them(server):
    for dimensions in (None, 256):
        model = embedding_model("openai/text-embedding-3-small", dimensions)
        provider = connect_provider(model, api_key="secret-key", base_url=server.url)
        rows = []
        report = embed_stream(make_inputs(3), provider, cache_of(provider), rows.extend)
        assert [len(vector) for _, _, vector in rows] == [dimensions or 1536] * 3
        assert report.cost_usd == pytest.approx(report.tokens * 0.02 / 1e6)
    assert "dimensions" in server.requests[-1].body


class MemoryProvider:
    """A provider without a wire: refuses some texts, answers others with their hash as a vector."""

    def __init__(self, refused: Sequence[str] = (), useless: Sequence[str] = (), batch_inputs: int = 8):
        self.model = EmbeddingModel("openai/memory", 4, 8192, 1.0)
        self.base_url, self.in_flight, self.first_inputs = "memory", 3, 1
        self.batch_inputs, self.batch_tokens = batch_inputs, 40
        self.refused, self.useless = set(refused), set(useless)
        self.asked: list[str] = []

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(text) + 1 for text in texts]

    def embed(self, texts: Sequence[str], *, tokens: int, hurry: bool, stop: threading.Event) -> Answer:
        assert tokens == sum(self.count(texts))
        assert len(texts) <= self.batch_inputs
        assert tokens <= self.batch_tokens or len(texts) == 1
        if self.refused & set(texts):
            raise InputRefused("refused")
        self.asked.extend(texts)
        vectors = [np.full(4, np.nan) if text in self.useless else self.vector(text) for text in texts]
        return Answer(np.array(vectors, dtype=np.float32), tokens)

    @staticmethod
    def vector(text: str) -> np.ndarray:
        return np.frombuffer(hashlib.sha256(text.encode()).digest()[:4], np.uint8).astype(np.float32) + 1


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.text("abc", max_size=3), max_size=60),
    refused=st.sets(st.text("abc", max_size=2), max_size=5),
    useless=st.sets(st.text("abc", max_size=2), max_size=5),
    batch_inputs=st.integers(1, 9),
)
def test_each_text_ends_stored_with_its_vector_or_refused_with_a_reason(texts, refused, useless, batch_inputs):
    provider = MemoryProvider(refused, useless, batch_inputs)
    rows, progress = [], []
    report = embed_stream(map(one_input, texts), provider, cache_of(provider), rows.extend, progress=progress.append)
    good = set(texts) - refused - useless
    assert {text for _, text, _ in rows} == good
    assert all((vector == provider.vector(text)).all() for _, text, vector in rows)
    assert {hash for hash, _ in report.refused} == {one_input(text).hash for text in set(texts) - good}
    assert report.stopped is None
    assert report.requested == len(rows) + len(report.refused)
    assert progress == sorted(progress)
    assert report.cost_usd == report.tokens / 1e6


def test_inputs_are_read_only_as_they_are_needed(server, provider, monkeypatch):
    monkeypatch.setattr(embedding, "WINDOW", 100)
    read, stored, most_ahead = 0, 0, 0

    def lazily() -> Iterator[EmbeddingInput]:
        nonlocal read
        for input in make_inputs(12_000):
            read += 1
            yield input

    def store(rows: list) -> None:
        nonlocal stored, most_ahead
        most_ahead = max(most_ahead, read - stored)
        stored += len(rows)

    embed_stream(lazily(), provider, cache_of(provider), store)
    assert stored == 12_000
    assert most_ahead <= (provider.in_flight + embedding.READY + 1) * provider.batch_inputs + 2 * embedding.WINDOW


def test_store_is_called_in_the_calling_thread_while_others_are_asked(server, provider):
    server.latency = 0.05
    threads, running = set(), []

    def store(rows: list) -> None:
        threads.add(threading.current_thread())
        running.append(sum(request.answered_at == 0 for request in server.requests))

    embed_stream(make_inputs(8000), provider, cache_of(provider), store)
    assert threads == {threading.current_thread()}
    assert max(running) > 1


def test_what_was_answered_is_cached_before_it_is_stored(server, provider, redis_url):
    cache = cache_of(provider, redis_url)

    def store(rows: list) -> None:
        assert len(cache.get_many([hash for hash, _, _ in rows])) == len(rows)

    assert embed_stream(make_inputs(1500), provider, cache, store).requested == 1500


def test_a_store_that_fails_ends_the_asking_and_loses_no_answer(server, provider, redis_url):
    server.latency = 0.02
    cache = cache_of(provider, redis_url)

    def store(rows: list) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        embed_stream(make_inputs(20_000), provider, cache, store)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("embedding")]
    answered = server.embedded_texts()
    assert len(answered) < 20_000
    assert len(cache.get_many([one_input(text).hash for text in answered])) == len(answered)


def test_inputs_that_fail_end_the_asking(provider):
    def failing() -> Iterator[EmbeddingInput]:
        yield from make_inputs(2000)
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"):
        embed_stream(failing(), provider, cache_of(provider), lambda rows: None)


def test_a_question_is_asked_once(server, provider, redis_url):
    cache = cache_of(provider, redis_url)
    vector, tokens = embed_question(provider, cache, "how do I reset a password?")
    assert np.allclose(vector, text_vector("how do I reset a password?", 64), atol=1e-6)
    assert tokens == 7
    again, tokens = embed_question(provider, cache, "how do I reset a password?")
    assert (again == vector).all()
    assert tokens == 0
    assert len(server.requests) == 1


def test_that_a_question_is_free_does_not_tell_that_a_chunk_says_so(server, provider, redis_url):
    cache = cache_of(provider, redis_url)
    embed_stream([one_input("a text")], provider, cache, lambda rows: None)
    assert embed_question(provider, cache, "a text")[1] > 0
    assert embed_question(provider, cache, "a text")[1] == 0
    cache.forget([one_input("a text").hash])
    assert embed_question(provider, cache, "a text")[1] > 0


def test_a_question_that_is_too_long_is_refused_before_it_is_asked(server, provider):
    with pytest.raises(ProviderError, match="shorten it"):
        embed_question(provider, cache_of(provider), "word " * 9000)
    assert server.requests == []


def test_a_question_fails_soon(server, provider):
    server.replies.append(out_of_quota())
    with pytest.raises(ProviderError, match="quota"):
        embed_question(provider, cache_of(provider), "a question")


def test_the_probe_tells_a_model_that_changed_under_its_name(server, provider):
    kept = probe(provider)
    noise = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    assert same_model(kept, probe(provider) + 1e-3 * noise)
    assert not same_model(kept, noise)
    assert not same_model(kept, kept[:32])


def test_a_text_longer_than_the_model_reads_is_refused_before_it_is_asked(server, provider):
    server.intercept = lambda request: pytest.fail("asked") if any(len(t) > 9000 for t in request.inputs) else None
    long = one_input("word " * 9000)
    report = embed_stream([*make_inputs(10), long], provider, cache_of(provider), lambda rows: None)
    assert (report.truncated_inputs, report.requested, [hash for hash, _ in report.refused]) == (1, 10, [long.hash])
