"""Rate limits: the buckets' arithmetic, and their being shared through Redis."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_pipeline.core.cache import EmbeddingCache
from rag_pipeline.core.embedding import connect_provider, embed_stream
from rag_pipeline.core.models import embedding_model
from rag_pipeline.core.providers import openai as openai_provider
from rag_pipeline.core.rate_limit import SET_BURST_S, RateLimit, State, learn, reserve
from rag_pipeline_tests.openai_server import Bucket, OpenAIServer
from rag_pipeline_tests.test_embedding import make_inputs

HEADERS = {"x-ratelimit-limit-tokens": "60000", "x-ratelimit-remaining-tokens": "60000"}
NO_LIMITS = {"requests": None, "tokens": None}


@given(
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 5000)), min_size=1, max_size=80),
    per_minute=st.integers(5000, 100_000),
)
def test_a_limit_that_was_set_holds_over_any_minute(steps, per_minute):
    state: State = {}
    now, sent = 1000.0, []
    for pause, tokens in steps:
        now += pause
        wait = reserve(state, {"requests": None, "tokens": per_minute}, {"requests": 1, "tokens": tokens}, now)
        sent.append((now + wait, tokens))
    most = max(tokens for _, tokens in sent)
    for start, _ in sent:
        within = sum(tokens for at, tokens in sent if start <= at < start + 60)
        assert within <= per_minute * (1 + SET_BURST_S / 60) + most


@given(steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 20_000)), min_size=1, max_size=80))
def test_a_limit_that_was_told_is_never_met_with_a_refusal(steps):
    """The provider's bucket grants everything that is sent when its turn has come, at whatever latency up to 100 ms."""
    state: State = {}
    learn(state, HEADERS, 1000.0)
    now, level, refilled, sent = 1000.0, 60_000.0, 1000.0, []
    for number, (pause, tokens) in enumerate(steps):
        now += pause
        wait = reserve(state, NO_LIMITS, {"requests": 1, "tokens": tokens}, now)
        sent.append((now + wait + (0.1 if number % 2 else 0.0), tokens))
    for at, tokens in sorted(sent):
        level = min(60_000.0, level + (at - refilled) * 1000)
        refilled = at
        assert tokens <= level
        level -= tokens


def test_a_limit_is_used_to_the_full():
    state: State = {}
    learn(state, HEADERS, 0.0)
    waits = [reserve(state, NO_LIMITS, {"requests": 1, "tokens": 6000}, 0.0) for _ in range(100)]
    # 600,000 tokens, of which 60,000 are there at once: nine minutes at best.
    assert 9 * 60 <= waits[-1] <= 1.05 * 9 * 60
    assert waits == sorted(waits)


def test_what_others_used_up_is_waited_for():
    state: State = {}
    learn(state, HEADERS | {"x-ratelimit-remaining-tokens": "0"}, 100.0)
    assert 10 <= reserve(state, NO_LIMITS, {"requests": 1, "tokens": 10_000}, 100.0) <= 12


def test_the_stricter_limit_rules():
    for told, set_ in [("60000", 6000), ("6000", 60_000)]:
        state: State = {}
        learn(state, {"x-ratelimit-limit-tokens": told}, 0.0)
        for _ in range(20):
            wait = reserve(state, {"requests": None, "tokens": set_}, {"requests": 1, "tokens": 1000}, 0.0)
        assert wait > 120


def test_requests_are_limited_too():
    state: State = {}
    waits = [reserve(state, {"requests": 60, "tokens": None}, {"requests": 1, "tokens": 1}, 0.0) for _ in range(66)]
    assert waits[-1] == pytest.approx(60, rel=0.1)


@pytest.mark.parametrize("nonsense", ["", "many", "0", "-1", "nan", "inf"])
def test_headers_that_make_no_sense_limit_nothing(nonsense):
    state: State = {}
    learn(state, {"x-ratelimit-limit-tokens": nonsense, "x-ratelimit-remaining-tokens": nonsense}, 0.0)
    assert state == {}


def test_all_workers_share_one_allowance_through_redis(redis_url):
    workers = [RateLimit(redis_url, "https://api.example/v1", "openai/model") for _ in range(4)]
    workers[0].learn(HEADERS)
    waits, lock = [], threading.Lock()

    def work(limit: RateLimit) -> None:
        for _ in range(25):
            wait = limit.reserve(6000)
            with lock:
                waits.append(wait)

    threads = [threading.Thread(target=work, args=(limit,)) for limit in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 500 < max(waits) <= 1.05 * 9 * 60
    steps = np.diff(sorted(wait for wait in waits if wait > 0))
    assert np.allclose(steps, 6000 / 60_000 * 60, atol=1.0), "two workers were given the same turn"
    other = RateLimit(redis_url, "https://other/v1", "openai/model")
    assert other.reserve(6000) == 0.0


@pytest.mark.parametrize("url", [None, "unix:///nonexistent/valkey.sock"])
def test_without_redis_the_limit_holds_in_this_process(url):
    limit = RateLimit(url, "https://api.example/v1", "openai/model", tokens_per_minute=6000)
    waits = [limit.reserve(1000) for _ in range(13)]
    assert waits[-1] == pytest.approx(120, rel=0.1)


def test_a_tight_limit_makes_no_storm_of_refusals(redis_url):
    """The first answer tells the limit; from then on the provider has next to nothing to refuse."""
    model = embedding_model("openai/stand-in", 64)
    with OpenAIServer(tokens_per_minute=60_000) as server:
        bucket: Bucket = server.buckets["tokens"]
        bucket.left = 5000
        provider = connect_provider(model, api_key="k", base_url=server.url, redis_url=redis_url)
        cache = EmbeddingCache(redis_url, provider.base_url, model.name, 64)
        report = embed_stream(make_inputs(1500), provider, cache, lambda rows: None)
    assert report.requested == 1500
    assert report.tokens > 6000
    assert sum(request.status == 429 for request in server.requests) <= 1


def test_batches_shrink_to_a_low_limit():
    provider = openai_provider.OpenAIProvider(embedding_model("openai/m", 8), "k", None, tokens_per_minute=40_000)
    assert provider.batch_tokens == 10_000
