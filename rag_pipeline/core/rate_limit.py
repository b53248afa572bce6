"""Requests and tokens per minute, shared through Redis by every process that asks the same model of a provider.

Each is a bucket that refills steadily. Whoever wants to ask first takes out what it needs, if need be on credit, and
waits until the debt is paid off: those who wait are served in turn, and nobody storms.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping

import redis

from rag_pipeline.core.cache import PAUSE_S, connect_redis

log = logging.getLogger(__name__)

KINDS = ("requests", "tokens")
# How many seconds' worth may be taken at once. A limit that was set holds over any few seconds; one that was told is
# drawn as far as the provider's own bucket allows, less what its clock and ours may differ by.
SET_BURST_S, TOLD_BURST_S = 6.0, 59.0
LIFETIME_S = 3600

# Per kind: `<kind>_told`, the provider's limit, and `<kind>_full`, the time at which the bucket will be full again.
State = dict[str, float]


def reserve(state: State, limits: Mapping[str, int | None], amounts: Mapping[str, int], now: float) -> float:
    """Take `amounts` out of the buckets: the seconds to wait before asking. `limits` are those that were set."""
    wait = 0.0
    for kind in KINDS:
        limit, burst = _limit(state, limits, kind)
        if limit is None:
            continue
        cost = amounts[kind] * 60 / limit
        full = max(state.get(f"{kind}_full", 0.0), now) + cost
        state[f"{kind}_full"] = full
        wait = max(wait, full - now - max(burst, cost))
    return wait


def learn(state: State, headers: Mapping[str, str], now: float) -> None:
    """Take over what the provider's `x-ratelimit-*` headers tell: its limits, and how much others have left."""
    for kind in KINDS:
        told = _number(headers.get(f"x-ratelimit-limit-{kind}"))
        remaining = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
        if told:
            state[f"{kind}_told"] = told
        if told and remaining is not None:
            used_s = max(0.0, told - remaining) * 60 / told
            state[f"{kind}_full"] = max(state.get(f"{kind}_full", 0.0), now + used_s)


class RateLimit:
    """The buckets of one model at one provider: in Redis, or in this process while there is no Redis.

    `requests_per_minute` and `tokens_per_minute` are limits that were set; the provider's own apply besides.
    """

    def __init__(
        self,
        redis_url: str | None,
        base_url: str,
        model: str,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ):
        self._limits = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._redis = connect_redis(redis_url) if redis_url else None
        self._key = f"rag:rate:{base_url}:{model}"
        self._local: State = {}
        self._lock = threading.Lock()
        self._paused_until = 0.0

    def reserve(self, tokens: int) -> float:
        """Take one request of so many tokens out of the buckets; the seconds to wait before it is sent."""
        amounts = {"requests": 1, "tokens": tokens}
        return self._change(lambda state, now: reserve(state, self._limits, amounts, now))

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take over the limits that the headers of an answer tell."""
        if any(f"x-ratelimit-limit-{kind}" in headers for kind in KINDS):
            self._change(lambda state, now: learn(state, headers, now))

    @property
    def tokens_per_minute(self) -> float | None:
        """The limit in force, as far as this process knows."""
        return _limit(self._local, self._limits, "tokens")[0]

    def _change(self, change: Callable[[State, float], float | None]) -> float:
        """Apply `change` to the shared state; `_local` keeps the newest copy of it, for as long as Redis fails."""
        with self._lock:
            if self._redis is not None and time.monotonic() >= self._paused_until:
                try:
                    return self._redis.transaction(
                        lambda pipeline: self._change_shared(pipeline, change), self._key, value_from_callable=True
                    )
                except redis.RedisError as error:
                    self._paused_until = time.monotonic() + PAUSE_S
                    log.debug("Redis failed (%s): rate limits hold for this process alone", type(error).__name__)
            return change(self._local, time.time()) or 0.0

    def _change_shared(self, pipeline: redis.client.Pipeline, change: Callable[[State, float], float | None]) -> float:
        seconds, microseconds = pipeline.time()
        self._local = {name.decode(): float(value) for name, value in pipeline.hgetall(self._key).items()}
        result = change(self._local, seconds + microseconds / 1e6)
        pipeline.multi()
        if self._local:
            pipeline.hset(self._key, mapping=self._local)
            pipeline.expire(self._key, LIFETIME_S)
        return result or 0.0


def _limit(state: State, limits: Mapping[str, int | None], kind: str) -> tuple[float | None, float]:
    """The stricter of the limit that was set and the one that was told, and its burst in seconds."""
    known = [(limits[kind], SET_BURST_S), (state.get(f"{kind}_told"), TOLD_BURST_S)]
    return min(((limit, burst) for limit, burst in known if limit is not None), default=(None, 0.0))


def _number(text: str | None) -> float | None:
    """A header's number, None where it is missing or makes no sense."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number < math.inf else None
