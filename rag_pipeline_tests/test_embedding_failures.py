"""Every way a provider can fail, injected: what passes is retried, what does not ends with what to do."""

import logging
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from types import SimpleNamespace

import numpy as np
import pytest

from rag_pipeline.core.cache import EmbeddingCache
from rag_pipeline.core.embedding import EmbeddingReport, connect_provider, embed_question, embed_stream
from rag_pipeline.core.errors import ProviderError
from rag_pipeline.core.models import embedding_model
from rag_pipeline.core.providers import Provider
from rag_pipeline.core.providers import openai as openai_provider
from rag_pipeline_tests.openai_server import (
    DROP,
    OpenAIServer,
    Reply,
    Request,
    embeddings_reply,
    error,
    out_of_quota,
    rate_limited,
    text_vector,
)
from rag_pipeline_tests.test_embedding import make_inputs, one_input

MODEL = embedding_model("openai/stand-in", 64)
KEY = "sk-never-to-be-logged"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(openai_provider, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(key=KEY) as server:
        yield server


@pytest.fixture
def provider(server: OpenAIServer) -> Provider:
    return connect_provider(MODEL, api_key=KEY, base_url=server.url)


def run(
    provider: Provider, inputs: list, redis_url: str | None = None
) -> tuple[EmbeddingReport, dict[str, np.ndarray]]:
    cache = EmbeddingCache(redis_url, provider.base_url, provider.model.name, provider.model.dimensions)
    rows = []
    report = embed_stream(inputs, provider, cache, rows.extend)
    assert len(rows) == len({hash for hash, _, _ in rows})
    return report, {text: vector for _, text, vector in rows}


@pytest.mark.parametrize(
    "passing",
    [
        rate_limited(),
        rate_limited(retry_after=0),
        error(408, "Timeout"),
        error(409, "Conflict"),
        error(500, "Error"),
        error(502, "Bad gateway"),
        error(503, "Overloaded"),
        DROP,
        Reply(payload={"data": []}, drop=True),
        Reply(payload={"data": []}),
        Reply(payload={"data": "nonsense"}),
        Reply(payload={}),
        Reply(payload={"data": [], "usage": "none"}),
        Reply(events=({"not": "json"},)),
    ],
    ids=str,
)
def test_what_passes_by_itself_is_retried(server, provider, passing):
    server.replies += [passing] * 4
    inputs = make_inputs(1500)
    report, vectors = run(provider, inputs)
    assert vectors.keys() == {input.text for input in inputs}
    assert (report.retries, report.refused, report.stopped) == (4, [], None)
    assert report.requests == len(server.requests)


def test_a_time_out_is_retried(server, provider, monkeypatch):
    monkeypatch.setattr(openai_provider, "TIMEOUT_S", 0.2)
    server.latency = 1.0
    server.intercept = lambda request: setattr(server, "latency", 0.0)  # from the second request on
    report, vectors = run(provider, make_inputs(3))
    assert len(vectors) == 3
    assert report.retries == 1


def test_a_tenth_of_all_requests_failing_loses_nothing(server, provider):
    server.failure_rate = 0.1
    report, vectors = run(provider, make_inputs(20_000))
    assert len(vectors) == 20_000
    assert report.retries > 0


def test_retry_after_is_honoured(server, provider):
    server.replies.append(rate_limited(retry_after=0.5))
    run(provider, make_inputs(2))
    first, second = server.requests
    assert second.at - first.answered_at >= 0.5


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "2"}, 2),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_every_form_of_retry_after_is_read(headers, seconds):
    assert openai_provider._retry_after(SimpleNamespace(response=SimpleNamespace(headers=headers))) == seconds


def test_a_date_to_retry_after_is_read():
    headers = {"retry-after": formatdate(time.time() + 1000, usegmt=True)}
    after = openai_provider._retry_after(SimpleNamespace(response=SimpleNamespace(headers=headers)))
    assert 900 < after <= 1000


@pytest.mark.parametrize("url", ["localhost:8080/v1", "ftp://host/v1", "http://", "not a url"])
def test_an_address_that_is_none_is_named(url):
    with pytest.raises(ProviderError, match="OPENAI_BASE_URL"):
        connect_provider(MODEL, api_key=KEY, base_url=url)


@pytest.mark.parametrize("key", ["", None, "sk-“quoted”", "sk-two\nlines"])
def test_a_key_that_is_none_is_named_and_not_repeated(key):
    report, vectors = run(connect_provider(MODEL, api_key=key), make_inputs(3))
    assert "OPENAI_API_KEY" in report.stopped
    assert "sk-" not in report.stopped
    assert (report.requests, vectors) == (0, {})


def test_a_provider_that_stays_down_stops_the_asking(server, provider):
    answered = iter(range(3))
    server.intercept = lambda request: None if next(answered, None) is not None else error(503, "Overloaded")
    report, vectors = run(provider, make_inputs(20_000))
    assert "503" in report.stopped
    assert 0 < len(vectors) == report.requested < 20_000
    assert len(server.requests) <= 3 + provider.in_flight * openai_provider.TRIES_FAILING


def test_a_provider_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    provider = connect_provider(MODEL, api_key=KEY, base_url=f"http://127.0.0.1:{port}/v1")
    report, vectors = run(provider, make_inputs(5000))
    assert f"http://127.0.0.1:{port}/v1 cannot be reached" in report.stopped
    assert (vectors, report.requests) == ({}, openai_provider.TRIES_FAILING)


@pytest.mark.parametrize(
    ("final", "remedy"),
    [
        (error(401, "Incorrect API key"), "OPENAI_API_KEY"),
        (out_of_quota(), "add credit"),
        (error(403, "Country not supported"), "403"),
        (error(404, "No such model", "model_not_found"), "embedding_model"),
    ],
)
def test_what_cannot_pass_stops_at_once(server, provider, final, remedy):
    server.intercept = lambda request: final
    report, vectors = run(provider, make_inputs(20_000))
    assert remedy in report.stopped
    assert (len(server.requests), report.retries, vectors) == (1, 0, {})


def test_what_was_answered_before_the_quota_ended_is_stored_and_not_asked_again(server, provider, redis_url):
    answered = iter(range(5))
    server.intercept = lambda request: None if next(answered, None) is not None else out_of_quota()
    server.latency = 0.01
    inputs = make_inputs(20_000)
    report, vectors = run(provider, inputs, redis_url)
    assert "quota" in report.stopped
    assert len(server.requests) <= 5 + provider.in_flight
    assert sorted(vectors) == sorted(server.embedded_texts())

    server.intercept = lambda request: None
    server.requests.clear()
    report, again = run(provider, inputs, redis_url)
    assert len(again) == 20_000
    assert not set(server.embedded_texts()) & set(vectors)


def test_what_is_cached_is_stored_though_asking_stopped(server, provider, redis_url):
    known = make_inputs(2000, "known ")
    run(provider, known, redis_url)
    server.key = "another"
    report, vectors = run(provider, make_inputs(2000) + known, redis_url)
    assert "OPENAI_API_KEY" in report.stopped
    assert vectors.keys() == {input.text for input in known}


def test_a_refused_text_is_isolated(server, provider):
    server.refuses = lambda text: "poison" in text
    inputs = make_inputs(3000)
    for position in (0, 700, 701, 2999):
        inputs[position] = one_input(f"poison {position}")
    report, vectors = run(provider, inputs)
    assert {hash for hash, _ in report.refused} == {inputs[position].hash for position in (0, 700, 701, 2999)}
    assert all("400" in reason for _, reason in report.refused)
    assert len(vectors) == 2996
    assert report.stopped is None
    # Halving a batch of 512 takes two requests a level.
    assert len(server.requests) <= 8 + 4 * 2 * 10


@pytest.mark.parametrize("text", ["", "word " * 9000], ids=["empty", "too long"])
def test_a_text_the_model_cannot_read_is_refused_alone(server, provider, text):
    report, vectors = run(provider, [*make_inputs(600), one_input(text)])
    assert [hash for hash, _ in report.refused] == [one_input(text).hash]
    assert len(vectors) == 600


def test_a_provider_that_refuses_every_text_is_not_asked_text_by_text(server, provider):
    server.refuses = lambda text: True
    report, vectors = run(provider, make_inputs(20_000))
    assert "every text" in report.stopped
    assert (report.refused, vectors) == ([], {})
    assert (len(server.requests), len(server.probes)) == (1, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 1e39])
def test_a_vector_that_cannot_be_searched_is_refused(server, provider, value):
    def spoil(request: Request) -> Reply:
        vectors = np.array([text_vector(text, 64) for text in request.inputs], dtype=np.float64)
        vectors[[text == "text number 3" for text in request.inputs]] = value
        return embeddings_reply(vectors, "stand-in", 1)

    server.intercept = spoil
    report, vectors = run(provider, make_inputs(700))
    assert [hash for hash, _ in report.refused] == [one_input("text number 3").hash]
    assert len(vectors) == 699


@pytest.mark.parametrize("dimensions", [1, 63, 65, 128])
def test_wrong_dimensions_stop_the_asking(server, provider, redis_url, dimensions):
    server.dimensions = dimensions
    report, vectors = run(provider, make_inputs(2000), redis_url)
    assert f"{dimensions} dimensions, not 64" in report.stopped
    assert (vectors, len(server.requests)) == ({}, 1)


def test_answers_out_of_order_are_matched_by_index(server, provider):
    def shuffle(request: Request) -> Reply:
        reply = embeddings_reply(np.array([text_vector(text, 64) for text in request.inputs]), "stand-in", 1)
        reply.payload["data"].reverse()
        return reply

    server.intercept = shuffle
    _, vectors = run(provider, make_inputs(1000))
    assert all(np.allclose(vector, text_vector(text, 64), atol=1e-6) for text, vector in vectors.items())


def test_a_server_that_knows_no_base64_and_tells_no_usage_works(server, provider):
    def plain(request: Request) -> Reply:
        reply = embeddings_reply(np.array([text_vector(text, 64) for text in request.inputs]), "stand-in", 1)
        del reply.payload["usage"]
        return reply

    server.intercept = plain
    report, vectors = run(provider, make_inputs(100))
    assert all(np.allclose(vector, text_vector(text, 64), atol=1e-6) for text, vector in vectors.items())
    assert report.tokens == 400


def test_a_question_does_not_wait_for_a_provider_that_is_down(server, provider):
    server.intercept = lambda request: error(503, "Overloaded")
    cache = EmbeddingCache(None, provider.base_url, MODEL.name, 64)
    with pytest.raises(ProviderError, match="503"):
        embed_question(provider, cache, "a question")
    server.intercept = lambda request: rate_limited(retry_after=60)
    with pytest.raises(ProviderError, match="limits the rate"):
        embed_question(provider, cache, "a question")
    assert len(server.requests) == openai_provider.TRIES_HURRY + 1


def test_no_log_and_no_report_names_a_key_or_a_text(server, redis_url, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    address = server.url.replace("http://", "http://user:hidden-password@")
    for key in (KEY, "sk-wrong-key"):
        provider = connect_provider(MODEL, api_key=key, base_url=address, redis_url=redis_url)
        server.replies += [error(500, "Error"), DROP, rate_limited()]
        server.refuses = lambda text: text == "text number 7"
        report, _ = run(provider, make_inputs(100), redis_url)
        said = caplog.text + "".join(capfd.readouterr()) + repr(report) + provider.base_url
        for secret in (KEY, "sk-wrong-key", "hidden-password", "text number"):
            assert secret not in said
