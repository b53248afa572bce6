"""Embeddings from OpenAI, or from any server that speaks its API."""

import base64
import json
import logging
import random
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from rag_pipeline.core.errors import ProviderError
from rag_pipeline.core.models import EmbeddingModel
from rag_pipeline.core.providers import Answer, AskingFailed, InputRefused, ProviderStopped
from rag_pipeline.core.rate_limit import RateLimit
from rag_pipeline.core.tokens import count_tokens

if TYPE_CHECKING:
    import openai

OPENAI_URL = "https://api.openai.com/v1"

# The API takes 2048 inputs and 300,000 tokens a request. Fewer inputs keep an answer small (8 kB a vector on the wire)
# and lose less to a kill; with chunks of 512 tokens both limits meet.
BATCH_INPUTS = 512
BATCH_TOKENS = 300_000
IN_FLIGHT = 8
# The first answer tells the rate limits, and whether the key and the model are good: it is small, and waited for.
FIRST_INPUTS = 32
# A batch is at most this share of a minute's tokens, so that a low limit is used evenly.
BATCH_SHARE = 0.25

TIMEOUT_S, HURRY_TIMEOUT_S = 60.0, 10.0
# Times a request is tried: while the provider asks for patience, while it fails, and while a person waits.
TRIES_RATE_LIMITED, TRIES_FAILING, TRIES_HURRY = 10, 6, 2
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
LONGEST_RETRY_AFTER_S = 120.0


class _TryAgain(Exception):
    """What may pass by itself. `after` is how long the provider wants to be left alone, in seconds."""

    def __init__(self, reason: str, after: float | None = None, rate_limited: bool = False):
        super().__init__(reason)
        self.after = after
        self.rate_limited = rate_limited


class OpenAIProvider:
    """A model behind the OpenAI API; see `Provider`."""

    in_flight = IN_FLIGHT
    batch_inputs = BATCH_INPUTS
    first_inputs = FIRST_INPUTS

    def __init__(
        self,
        model: EmbeddingModel,
        api_key: str | None,
        base_url: str | None,
        redis_url: str | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ):
        self.model = model
        self.base_url = shown_url(base_url or OPENAI_URL)
        self._api_key = api_key
        self._full_url = base_url
        self._client: openai.OpenAI | None = None
        self._connecting = threading.Lock()
        self._limit = RateLimit(redis_url, self.base_url, model.name, requests_per_minute, tokens_per_minute)

    @property
    def batch_tokens(self) -> int:
        per_minute = self._limit.tokens_per_minute
        return BATCH_TOKENS if per_minute is None else min(BATCH_TOKENS, max(1, int(per_minute * BATCH_SHARE)))

    def count(self, texts: Sequence[str]) -> list[int]:
        """The cl100k tokens of each text."""
        return [count_tokens(text) for text in texts]

    def embed(self, texts: Sequence[str], *, tokens: int, hurry: bool, stop: threading.Event) -> Answer:
        """See `Provider.embed`. A person in a hurry is served at once, on the rate limits' credit."""
        if not self._api_key:
            raise ProviderStopped(f"{self.model.name} needs an API key: set OPENAI_API_KEY", requests=0)
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise ProviderStopped("OPENAI_API_KEY holds characters that no key has: set it again", requests=0)
        requests = 0
        while True:
            wait = self._limit.reserve(tokens)
            if not hurry and stop.wait(wait):
                raise ProviderStopped("stopped while waiting", requests, max(0, requests - 1))
            requests += 1
            try:
                vectors, billed = self._ask(texts, HURRY_TIMEOUT_S if hurry else TIMEOUT_S)
                return Answer(vectors, billed or tokens, requests, requests - 1)
            except AskingFailed as error:
                error.requests, error.retries = requests, requests - 1
                raise
            except _TryAgain as error:
                tries = TRIES_RATE_LIMITED if error.rate_limited else TRIES_FAILING
                if requests >= (TRIES_HURRY if hurry else tries):
                    raise ProviderStopped(f"{error}, {requests} times in a row", requests, requests - 1) from error
                pause = _pause(requests, error.after)
                if (hurry and pause > HURRY_TIMEOUT_S) or stop.wait(pause):
                    raise ProviderStopped(str(error), requests, requests - 1) from error

    def _ask(self, texts: Sequence[str], timeout_s: float) -> tuple[np.ndarray, int | None]:
        """One request: the vectors and the tokens billed."""
        import openai

        client = self._connect()
        dimensions = {"dimensions": self.model.dimensions} if self.model.fewer_dimensions else {}
        try:
            response = client.embeddings.with_raw_response.create(
                model=self.model.provider_name,
                input=list(texts),
                encoding_format="base64",  # a quarter of the bytes of decimal digits, and no parsing of them
                timeout=timeout_s,
                **dimensions,
            )
        except openai.APIStatusError as error:
            self._limit.learn(error.response.headers)
            raise self._failure(error) from None
        except openai.APITimeoutError:
            raise _TryAgain(f"{self.base_url} did not answer within {timeout_s:.0f} seconds") from None
        except openai.APIConnectionError:
            raise _TryAgain(f"{self.base_url} cannot be reached") from None
        self._limit.learn(response.headers)
        return self._read(response.content, len(texts))

    def _connect(self) -> "openai.OpenAI":
        with self._connecting:
            if self._client is None:
                self._client = connect_client(self._api_key, self._full_url, max_retries=0)
            return self._client

    def _read(self, body: bytes, count: int) -> tuple[np.ndarray, int | None]:
        """The vectors of an answer in the order of their `index`, and the tokens billed where it tells them."""
        try:
            answer = json.loads(body)
            by_index = {entry["index"]: _vector(entry["embedding"]) for entry in answer["data"]}
            vectors = np.stack([by_index[index] for index in range(count)]).reshape(count, -1)
            return vectors, (answer.get("usage") or {}).get("total_tokens")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _TryAgain(f"{self.base_url} sent an answer that is not whole ({type(error).__name__})") from None

    def _failure(self, error: "openai.APIStatusError") -> Exception:
        """What a refusal means. The provider's message is not repeated: it may hold the key or the text."""
        status, code = error.status_code, str(error.code or error.type or "")
        named = f", {code}" if re.fullmatch(r"[\w.-]{1,50}", code) else ""
        if status == 401:
            return ProviderStopped(f"{self.base_url} refused the API key: set OPENAI_API_KEY to a valid one")
        if status == 429 and "insufficient_quota" in (error.code, error.type):
            return ProviderStopped(f"the quota at {self.base_url} is used up: add credit there, then run again")
        if status == 429:
            return _TryAgain(f"{self.base_url} limits the rate", _retry_after(error), rate_limited=True)
        if status in (408, 409) or status >= 500:
            return _TryAgain(f"{self.base_url} failed with status {status}", _retry_after(error))
        if status == 404:
            return ProviderStopped(
                f"{self.base_url} does not have {self.model.name}: set embedding_model to one it has"
            )
        if status in (400, 413, 422):
            return InputRefused(f"refused by {self.model.name} with status {status}{named}")
        return ProviderStopped(f"{self.base_url} refused with status {status}{named}")


def connect_client(api_key: str, base_url: str | None, **options: object) -> "openai.OpenAI":
    """A client that logs no text; to be made at the first request, for importing it takes a second."""
    import openai

    # At DEBUG they log what is sent, texts that could never be forgotten; at INFO a line a request, with the whole URL.
    for name in ("openai", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return openai.OpenAI(api_key=api_key, base_url=base_url or OPENAI_URL, **options)


def _vector(embedding: str | list[float]) -> np.ndarray:
    """One embedding as it is sent: base64, or numbers by servers that know no base64."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    with np.errstate(over="ignore"):
        return np.asarray(embedding, dtype=np.float32)


def _pause(tries: int, after: float | None) -> float:
    """Seconds before the next try: what the provider asks for, else exponential; jitter keeps many apart."""
    if after is not None:
        return min(after, LONGEST_RETRY_AFTER_S) * random.uniform(1.0, 1.1)
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)


def _retry_after(error: "openai.APIStatusError") -> float | None:
    """The seconds the provider asks to be left alone: in milliseconds, in seconds or as a date (RFC 9110, 10.2.3)."""
    headers = error.response.headers
    told = headers.get("retry-after", "")
    for read in (
        lambda: float(headers["retry-after-ms"]) / 1000,
        lambda: float(told),
        lambda: parsedate_to_datetime(told).timestamp() - time.time(),
    ):
        with suppress(KeyError, ValueError):
            return max(0.0, read())
    return None


def shown_url(url: str) -> str:
    """The URL without a user name and password: it is shown, and part of cache keys."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ProviderError("OPENAI_BASE_URL is not the address of a server: it begins with http:// or https://")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
