"""`rag ingest` or its PostgreSQL killed: readers lose nothing, and the next run ends as a clean build does."""

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import redis

from rag_pipeline.client import Rag
from rag_pipeline.core import collections
from rag_pipeline.runtime import Runtime
from rag_pipeline.services import running, stop
from rag_pipeline_tests.commands import Command, Done
from rag_pipeline_tests.openai_server import OpenAIServer
from rag_pipeline_tests.pipelines import UNPARSABLE, Pipeline
from rag_pipeline_tests.test_embedding_crash import answered_before

# `rag ingest NAME` that writes a byte for each statement it is about to send, and kills itself where a stage begins, or
# where all have ended.
INGEST = """
import os, signal, sys
import psycopg
from rag_pipeline import ingesting, terminal
from rag_pipeline.cli import main

name, told, last_stage = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def telling(method):
    def tell(*arguments, **keywords):
        os.write(told, b".")
        return method(*arguments, **keywords)
    return tell

for method in ("execute", "executemany", "copy"):
    setattr(psycopg.Cursor, method, telling(getattr(psycopg.Cursor, method)))
stage = terminal.LineProgress.stage
terminal.LineProgress.stage = lambda self, name, unit: die() if name == last_stage else stage(self, name, unit)
if last_stage == "end":
    ingesting.published_chunks = die
main(["ingest", name])
"""

BOUNDARIES = ("raw_files", "parsed_text", "token_chunks", "cached_embeddings", "pgvector_index", "end")
CHANGES = ("edits", "reembed", "rechunk", "first")


def text(subject: str, sentences: int) -> str:
    return f"# {subject}\n\n" + " ".join(f"Sentence {number} tells of {subject}." for number in range(sentences))


def prepare(pipeline: Pipeline, change: str) -> None:
    """A collection whose next run has something to do in every stage."""
    if change != "first":
        for subject in ("apples", "pears", "plums", "quinces", "medlars"):
            pipeline.write(f"{subject}.md", text(subject, 20))
        pipeline.run()
        pipeline.delete("pears.md")
        pipeline.rename("plums.md", "moved.md")
        pipeline.write("quinces.md", UNPARSABLE)
    if change == "rechunk":
        pipeline.change(chunk_tokens=32)
    if change == "reembed":
        pipeline.change(embedding_model="openai/another")
    pipeline.write("apples.md", text("apples", 30))
    pipeline.write("copy.md", text("apples", 30))
    for number in range(4):
        pipeline.write(f"new {number}.txt", text(f"berry{number}", 40))


def start(rag: Command, name: str, last_stage: str = "") -> tuple[subprocess.Popen, int]:
    """The ingest, and where to read a byte for each of its statements."""
    told, tell = os.pipe()
    process = rag.start("-c", INGEST, name, str(tell), last_stage, program="python", pass_fds=[tell])
    os.close(tell)
    return process, told


def await_statements(told: int, number: int) -> int:
    """Return when so many statements were told of, or there are no more; how many there were."""
    seen = 0
    while seen < number and (dots := os.read(told, number - seen)):
        seen += len(dots)
    return seen


def cached(redis_url: str) -> set[bytes]:
    """The hashes of all texts whose embedding is kept."""
    with redis.Redis.from_url(redis_url) as client:
        return {key.rpartition(b":")[2] for key in client.scan_iter("rag:embedding:*")}


def kill_and_run_again(
    rag: Command, pipeline: Pipeline, server: OpenAIServer, change: str, kill: Callable[[], None]
) -> None:
    """After a run that `kill` starts and ends: what readers see then, what the next run asks, and what it makes."""
    prepare(pipeline, change)
    before = pipeline.served()
    kill()
    killed = time.monotonic()
    reconnect(pipeline)
    known, asked = cached(rag.environment["RAG_REDIS_URL"]), len(server.embedded_texts())
    old = {text for request in answered_before(server, killed - 1) for text in request.inputs}
    between = pipeline.served()
    rag.done("ingest", pipeline.name)
    assert between in (before, pipeline.served())
    asked_again = server.embedded_texts()[asked:]
    if change != "reembed":  # where a text is asked for in vain, for another model has it
        assert not {sha256(text.encode()).hexdigest().encode() for text in asked_again} & known
        assert not old & set(asked_again)
    pipeline.assert_clean()
    pipeline.assert_as_built_anew()


def reconnect(pipeline: Pipeline) -> None:
    """Go on after the server may have gone: whoever needs it next starts it again."""
    pipeline.close()
    pipeline.runtime = Runtime(pipeline.runtime.settings)
    pipeline.connection = pipeline.runtime.connect()
    pipeline.rag = Rag(pipeline.runtime)


@pytest.fixture
def docs(rag: Command, tmp_path: Path, parsing_in_process: None) -> Iterator[Pipeline]:
    """An empty collection that the command knows."""
    with closing(Pipeline(rag.runtime(), tmp_path / "docs", "docs")) as pipeline:
        yield pipeline


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_killed_between_two_stages(rag, docs, server, boundary):
    def kill() -> None:
        process, told = start(rag, "docs", boundary)
        process.communicate(timeout=60)
        os.close(told)
        assert process.returncode == -signal.SIGKILL

    kill_and_run_again(rag, docs, server, "edits", kill)


def trials(instants: int) -> list:
    """(change, share of the run's statements) of so many trials: always the same ones."""
    chance = random.Random(7)
    return [(CHANGES[number % len(CHANGES)], chance.random()) for number in range(instants)]


# About as many statements as such a run sends.
STATEMENTS = 90


@pytest.mark.parametrize("instants", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_any_instant(rag, docs, server, tmp_path, redis_url, instants):
    for number, (change, share) in enumerate(trials(instants)):

        def kill(share: float = share, name: str = f"docs{number}") -> None:
            process, told = start(rag, name)
            await_statements(told, int(share * STATEMENTS))
            process.kill()
            process.communicate()
            os.close(told)

        with closing(Pipeline(rag.runtime(), tmp_path / f"docs{number}", f"docs{number}")) as pipeline:
            kill_and_run_again(rag, pipeline, server, change, kill)
            collections.remove(pipeline.connection, pipeline.name)


@pytest.fixture
def own_server(rag: Command, parsing_in_process: None) -> Iterator[Command]:
    """The command with a PostgreSQL of its own, which this test may kill."""
    with tempfile.TemporaryDirectory(prefix="rag-tests-", dir="/tmp") as directory:
        home = Path(directory).resolve() / "home"
        try:
            yield replace(rag, environment={**rag.environment, "RAG_HOME": str(home), "RAG_DATABASE_URL": ""})
        finally:
            stop(home)


@pytest.mark.parametrize("instants", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_postgres_killed_at_any_instant(own_server, server, tmp_path, instants):
    home = Path(own_server.environment["RAG_HOME"])
    for number, (change, share) in enumerate(trials(instants)):

        def kill(share: float = share, name: str = f"docs{number}") -> None:
            process, told = start(own_server, name)
            await_statements(told, int(share * STATEMENTS))
            os.kill(running(home)["postgres"], signal.SIGKILL)
            done = Done.of(process)
            os.close(told)
            assert done.status in (0, 1), done  # it may just have ended
            assert "Traceback" not in done.err

        with closing(Pipeline(own_server.runtime(), tmp_path / f"docs{number}", f"docs{number}")) as pipeline:
            kill_and_run_again(own_server, pipeline, server, change, kill)
            collections.remove(pipeline.connection, pipeline.name)
