"""How near `embed_stream` comes to bare calls, and how much memory it takes.

A stand-in server with 100 ms latency runs in a process of its own, PostgreSQL and Valkey in a temporary home.

    python -m rag_pipeline_tests.benchmarks.embedding [--texts 20000] [--scenario all|speed|limit|memory]
"""

import argparse
import asyncio
import base64
import hashlib
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import openai
import psycopg
import redis
from pgvector.psycopg import register_vector

from rag_pipeline.core.cache import LIFETIME_S, EmbeddingCache
from rag_pipeline.core.embedding import EmbeddingInput, EmbeddingReport, connect_provider, embed_stream
from rag_pipeline.core.models import embedding_model
from rag_pipeline.core.providers.openai import BATCH_INPUTS, FIRST_INPUTS, IN_FLIGHT
from rag_pipeline.core.tokens import count_tokens
from rag_pipeline.services import Services, start_postgres, start_valkey, stop

MODEL = embedding_model("openai/text-embedding-3-small")
LATENCY_S = 0.1
WORDS = 100  # in a text


def inputs(count: int) -> Iterator[EmbeddingInput]:
    """Texts of made-up words, always the same, as the pipeline hands them over."""
    chance = random.Random(5)
    words = ["".join(chance.choices("aeioulnrst", k=chance.randint(2, 9))) for _ in range(5000)]
    for number in range(count):
        text = f"{number} " + " ".join(chance.choices(words, k=WORDS))
        yield EmbeddingInput(hashlib.sha256(text.encode()).digest(), text)


def counted(count: int) -> list[EmbeddingInput]:
    """The same with their tokens, which the pipeline knows from the chunks."""
    return [replace(input, tokens=count_tokens(input.text)) for input in inputs(count)]


@contextmanager
def server(*arguments: str) -> Iterator[str]:
    """The URL of a stand-in server in a process of its own."""
    command = [sys.executable, "-m", "rag_pipeline_tests.openai_server", "--port", "0", "--latency", str(LATENCY_S)]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


@contextmanager
def services() -> Iterator[Services]:
    with tempfile.TemporaryDirectory(prefix="rag-bench-", dir="/tmp") as home:
        try:
            yield Services(start_postgres(Path(home)), start_valkey(Path(home)))
        finally:
            stop(Path(home))


async def bare_asking(url: str, texts: list[str]) -> np.ndarray:
    """The same batches with the same concurrency, without anything else."""
    bounds = [0, *range(FIRST_INPUTS, len(texts), BATCH_INPUTS), len(texts)]
    batches = [texts[start:end] for start, end in pairwise(bounds)]
    turns = asyncio.Semaphore(IN_FLIGHT)
    async with openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=20) as client:

        async def ask(batch: list[str]) -> np.ndarray:
            async with turns:
                answer = await client.embeddings.create(
                    model=MODEL.provider_name, input=batch, dimensions=MODEL.dimensions, encoding_format="base64"
                )
            return np.stack([np.frombuffer(base64.b64decode(entry.embedding), "<f4") for entry in answer.data])

        return np.concatenate(await asyncio.gather(*map(ask, batches)))


def copy_rows(connection: psycopg.Connection, rows: list[tuple[bytes, str, np.ndarray]]) -> None:
    with (
        connection.transaction(),
        connection.cursor() as cursor,
        cursor.copy("COPY vectors FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.set_types(["bytea", "text", "vector"])
        for row in rows:
            copy.write_row(row)


def fresh_table(url: str) -> psycopg.Connection:
    connection = psycopg.connect(url, autocommit=True)
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.execute("DROP TABLE IF EXISTS vectors")
    connection.execute(f"CREATE TABLE vectors (hash bytea, text text, embedding vector({MODEL.dimensions}))")
    register_vector(connection)
    return connection


def floor(url: str, running: Services, given: list[EmbeddingInput]) -> dict[str, float]:
    """Seconds of bare asking, a bare binary COPY and bare pipelined SETs of the same vectors, one after the other."""
    client = redis.Redis.from_url(running.redis_url)
    client.flushall()
    seconds = {}
    started = time.perf_counter()
    vectors = asyncio.run(bare_asking(url, [input.text for input in given]))
    seconds["asking"] = time.perf_counter() - started
    with fresh_table(running.database_url) as connection:
        started = time.perf_counter()
        copy_rows(connection, [(input.hash, input.text, vector) for input, vector in zip(given, vectors, strict=True)])
        seconds["COPY"] = time.perf_counter() - started
    started = time.perf_counter()
    for start in range(0, len(given), BATCH_INPUTS):
        with client.pipeline(transaction=False) as pipeline:
            for input, vector in zip(given[start : start + BATCH_INPUTS], vectors[start:], strict=False):
                pipeline.set(input.hash, vector.tobytes(), ex=LIFETIME_S)
            pipeline.execute()
    seconds["SETs"] = time.perf_counter() - started
    return seconds


def ours(
    url: str, running: Services, given: Iterable[EmbeddingInput], *, flush: bool = True
) -> tuple[float, EmbeddingReport]:
    """Seconds of `embed_stream` doing the same, and its report."""
    if flush:
        redis.Redis.from_url(running.redis_url).flushall()
    provider = connect_provider(MODEL, api_key="k", base_url=url, redis_url=running.redis_url)
    cache = EmbeddingCache(running.redis_url, provider.base_url, MODEL.name, MODEL.dimensions)
    with fresh_table(running.database_url) as connection:
        started = time.perf_counter()
        report = embed_stream(given, provider, cache, lambda rows: copy_rows(connection, rows))
        seconds = time.perf_counter() - started
        (stored,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
    if stored != report.inputs:
        raise SystemExit(f"{stored} of {report.inputs} vectors were stored: {report}")
    return seconds, report


def speed(running: Services, count: int) -> None:
    """Against the floor, by turns, best of three each: empty cache, a tenth of all requests failing, full cache."""
    given = counted(count)
    with server() as url, server("--failure-rate", "0.1") as failing_url:
        for warming in (url, failing_url):  # the servers keep the vectors they made
            asyncio.run(bare_asking(warming, [input.text for input in given]))
        floors, empty, failing = [], [], []
        for _ in range(3):
            floors.append(floor(url, running, given))
            empty.append(ours(url, running, given))
            failing.append(ours(failing_url, running, given))
        full, full_report = ours(failing_url, running, given, flush=False)
    best = min(floors, key=lambda parts: sum(parts.values()))
    least = sum(best.values())
    print(f"floor        {least:6.2f} s  " + ", ".join(f"{name} {part:.2f}" for name, part in best.items()))
    for name, runs in (("empty cache", empty), ("10 % failing", failing)):
        seconds, report = min(runs, key=lambda run: run[0])
        asked = f"{report.requests} requests, {report.retries} of them retries"
        print(f"{name:12} {seconds:6.2f} s  {seconds / least:.2f} of the floor, {asked}")
    print(f"full cache   {full:6.2f} s  {full_report.requests} requests, {full_report.cached} cached")


def limit(running: Services, count: int) -> None:
    """A limit under which all tokens take two minutes; the provider's own bucket is full at the start."""
    given = counted(count)
    tokens = sum(input.tokens for input in given)
    per_minute = tokens // 3
    with server("--tokens-per-minute", str(per_minute)) as url:
        seconds, report = ours(url, running, given)
    best = (tokens - per_minute) / per_minute * 60
    asked = f"{report.requests} requests, {report.retries} of them retries"
    told = f"{seconds / best:.3f} of the {best:.1f} s that {per_minute:,} tokens a minute allow"
    print(f"limit        {seconds:6.2f} s  {told}, {asked}")


def memory(running: Services, count: int) -> None:
    """The peak of a process that embeds `count` texts; Valkey keeps what fits."""
    with server() as url:
        command = [sys.executable, "-m", __spec__.name, "--peak", url, running.database_url, running.redis_url]
        subprocess.run([*command, "--texts", str(count)], check=True)


def peak(url: str, running: Services, count: int) -> None:
    seconds, report = ours(url, running, inputs(count))
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    print(f"memory       {megabytes:6.0f} MB at most for {report.inputs:,} texts, {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--scenario", choices=["all", "speed", "limit", "memory"], default="all")
    parser.add_argument("--peak", nargs=3, metavar=("URL", "DATABASE", "REDIS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        url, *urls = arguments.peak
        return peak(url, Services(*urls), arguments.texts)
    with services() as running:
        if arguments.scenario in ("all", "speed"):
            speed(running, arguments.texts)
        if arguments.scenario in ("all", "limit"):
            limit(running, arguments.texts)
        if arguments.scenario in ("all", "memory"):
            memory(running, 5 * arguments.texts)
    return None


if __name__ == "__main__":
    main()
