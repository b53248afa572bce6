"""The cache of embeddings, against a real Valkey and against servers that misbehave."""

import hashlib
import logging
import socket
from collections.abc import Iterator

import numpy as np
import pytest
import redis

from rag_pipeline.core import cache as cache_module
from rag_pipeline.core.cache import LIFETIME_S, EmbeddingCache
from rag_pipeline.core.errors import ServiceError

URL, MODEL = "https://api.example/v1", "openai/model"


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def vectors() -> dict[bytes, np.ndarray]:
    rows = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    return {digest(str(number)): row for number, row in enumerate(rows)}


def test_what_was_put_is_found_bit_by_bit_and_expires_in_30_days(redis_url, client, vectors):
    cache = EmbeddingCache(redis_url, URL, MODEL, 8)
    cache.put_many(vectors)
    found = cache.get_many([*vectors, digest("unknown")])
    assert found.keys() == vectors.keys()
    assert all(found[hash].tobytes() == vector.tobytes() for hash, vector in vectors.items())
    assert all(LIFETIME_S - 60 < client.ttl(key) <= LIFETIME_S for key in client.scan_iter())


def test_another_place_model_or_dimension_shares_nothing(redis_url, vectors):
    EmbeddingCache(redis_url, URL, MODEL, 8).put_many(vectors)
    for other in [("https://other/v1", MODEL, 8), (URL, "openai/other", 8), (URL, MODEL, 4)]:
        assert EmbeddingCache(redis_url, *other).get_many(list(vectors)) == {}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"short",
        bytes(33),
        bytes(32),
        np.full(8, np.nan, "<f4").tobytes(),
        np.array([1] * 7 + [np.inf], "<f4").tobytes(),
    ],
)
def test_a_damaged_entry_is_a_miss(redis_url, client, vectors, damage):
    cache = EmbeddingCache(redis_url, URL, MODEL, 8)
    cache.put_many(vectors)
    hash = digest("7")
    (key,) = [key for key in client.scan_iter() if key.endswith(hash.hex().encode())]
    client.set(key, damage)
    assert cache.get_many(list(vectors)).keys() == vectors.keys() - {hash}


def test_forget_deletes_and_says_when_it_cannot(redis_url, vectors):
    cache = EmbeddingCache(redis_url, URL, MODEL, 8)
    cache.put_many(vectors)
    gone = [digest("1"), digest("2")]
    cache.forget(gone)
    assert cache.get_many(list(vectors)).keys() == vectors.keys() - set(gone)
    with pytest.raises(ServiceError, match="try again"):
        EmbeddingCache("unix:///nonexistent/valkey.sock", URL, MODEL, 8).forget(gone)


def test_no_redis_is_no_cache(vectors):
    cache = EmbeddingCache(None, URL, MODEL, 8)
    cache.put_many(vectors)
    cache.forget(vectors)
    assert cache.get_many(list(vectors)) == {}


def warnings(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_redis_gone_warns_once_and_is_a_miss(vectors, caplog):
    cache = EmbeddingCache("unix:///nonexistent/valkey.sock", URL, MODEL, 8)
    for _ in range(3):
        cache.put_many(vectors)
        assert cache.get_many(list(vectors)) == {}
    assert len(warnings(caplog)) == 1


def test_a_redis_that_does_not_answer_is_left_alone(vectors, caplog, monkeypatch):
    monkeypatch.setattr(cache_module, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cache = EmbeddingCache(f"redis://127.0.0.1:{silent.getsockname()[1]}", URL, MODEL, 8)
        assert cache.get_many(list(vectors)) == {}
        silent.settimeout(0)
        while connections(silent):
            pass
        assert cache.get_many(list(vectors)) == {}
        assert not connections(silent), "a Redis that just failed was asked again at once"
    assert len(warnings(caplog)) == 1


def connections(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_a_full_redis_is_still_read(redis_url, client, vectors, caplog):
    cache = EmbeddingCache(redis_url, URL, MODEL, 8)
    cache.put_many(vectors)
    before = client.config_get("maxmemory", "maxmemory-policy")
    client.config_set("maxmemory", 1, "maxmemory-policy", "noeviction")
    try:
        cache.put_many({digest("new"): np.ones(8, np.float32)})
        assert cache.get_many([*vectors, digest("new")]).keys() == vectors.keys()
    finally:
        client.config_set(*(item for pair in before.items() for item in pair))
    assert len(warnings(caplog)) == 1


def test_a_restart_that_drops_connections_is_not_noticed(redis_url, client, vectors, caplog):
    cache = EmbeddingCache(redis_url, URL, MODEL, 8)
    cache.put_many(vectors)
    client.client_kill_filter(_type="normal", skipme=True)
    assert len(cache.get_many(list(vectors))) == len(vectors)
    client.client_kill_filter(_type="normal", skipme=True)
    cache.put_many(vectors)
    assert not warnings(caplog)


def test_redis_is_tried_again_after_a_while(redis_url, vectors, monkeypatch):
    monkeypatch.setattr(cache_module, "PAUSE_S", 0.0)
    cache = EmbeddingCache(redis_url, URL, MODEL, 8)
    cache.put_many(vectors)
    with monkeypatch.context() as failing:
        failing.setattr(redis.Redis, "mget", lambda self, keys: self.execute_command("NO SUCH COMMAND"))
        assert cache.get_many(list(vectors)) == {}
    assert len(cache.get_many(list(vectors))) == len(vectors)
