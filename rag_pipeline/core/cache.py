"""Embeddings in Redis, so that no text is paid for twice; losing them costs money, never correctness.

Key: the provider's base URL, the model, its dimensions and the sha256 of the input. Value: the vector's float32 bytes.
Questions are kept apart from chunks: that a question costs nothing tells nobody what a document says.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rag_pipeline.core.errors import ServiceError

log = logging.getLogger(__name__)

LIFETIME_S = 30 * 24 * 3600
TIMEOUT_S = 1.0
PAUSE_S = 30.0  # how long a Redis that failed is left alone


def connect_redis(url: str) -> redis.Redis:
    """A client that gives up after a second, having reconnected once (a restarted server drops idle connections)."""
    return redis.Redis.from_url(
        url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 1)
    )


def question_hash(text: str) -> bytes:
    """Where a question stands in the cache: no chunk's hash, for that has 32 bytes."""
    return _of_question(hashlib.sha256(text.encode()).digest())


class EmbeddingCache:
    """The cached vectors of one model at one provider; shared by all collections, safe to use from several threads.

    With `redis_url` None, and while Redis is slow, full or gone, every lookup is a miss and nothing is kept: one
    warning is logged, nothing is raised, and Redis is tried again every half minute.
    """

    def __init__(self, redis_url: str | None, base_url: str, model: str, dimensions: int):
        self._redis = connect_redis(redis_url) if redis_url else None
        self._prefix = f"rag:embedding:{base_url}:{model}:{dimensions}:".encode()
        self._dimensions = dimensions
        self.source = (base_url, model, dimensions)
        self._paused_until = {"read": 0.0, "write": 0.0}
        self._warned = False

    def get_many(self, hashes: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """The vectors that are known, by hash: float32, shape (dimensions,). A corrupt entry is a miss."""
        keys = [self._key(hash) for hash in hashes]
        values = self._attempt("read", lambda client: client.mget(keys)) if keys else None
        found = zip(hashes, values or (), strict=False)
        return {hash: vector for hash, value in found if (vector := self._vector(value)) is not None}

    def put_many(self, vectors: Mapping[bytes, np.ndarray]) -> None:
        """Keep these vectors, by hash, for 30 days."""

        def write(client: redis.Redis) -> None:
            with client.pipeline(transaction=False) as pipeline:
                for hash, vector in vectors.items():
                    pipeline.set(self._key(hash), np.asarray(vector, "<f4").tobytes(), ex=LIFETIME_S)
                pipeline.execute()

        if vectors:
            self._attempt("write", write)

    def forget(self, hashes: Iterable[bytes]) -> None:
        """Delete these vectors, and those of questions of the same words.

        Raises ServiceError when Redis cannot confirm it.
        """
        keys = [self._key(each) for hash in hashes for each in (hash, _of_question(hash))]
        if self._redis is None or not keys:
            return
        try:
            self._redis.unlink(*keys)
        except redis.RedisError as error:
            raise ServiceError(
                f"Redis did not delete {len(keys) // 2} cached embeddings ({error}): try again"
            ) from error

    def _key(self, hash: bytes) -> bytes:
        return self._prefix + hash.hex().encode()

    def _vector(self, value: bytes | None) -> np.ndarray | None:
        if value is None or len(value) != 4 * self._dimensions:
            return None
        vector = np.frombuffer(value, "<f4")
        return vector if np.isfinite(vector).all() and vector.any() else None

    def _attempt(self, kind: str, command: Callable[[redis.Redis], object]) -> object:
        """What `command` returns, or None where Redis fails; a full Redis is still read."""
        if self._redis is None or time.monotonic() < self._paused_until[kind]:
            return None
        try:
            return command(self._redis)
        except redis.RedisError as error:
            self._paused_until[kind] = time.monotonic() + PAUSE_S
            if not self._warned:
                self._warned = True
                log.warning("Redis failed (%s): embeddings are not cached until it is back", type(error).__name__)
            return None


def _of_question(hash: bytes) -> bytes:
    return b"question:" + hash
