"""Several runs over one collection at once, however they were started: one result, nothing twice, nobody stuck."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from rag_pipeline_tests.commands import Command, Done
from rag_pipeline_tests.openai_server import OpenAIServer
from rag_pipeline_tests.pipelines import Pipeline
from rag_pipeline_tests.test_serving import Up, home, launch, rag_at_home, up  # noqa: F401
from rag_pipeline_tests.waiting import eventually

WAITING = "waiting for another run of docs to end"


@pytest.fixture
def docs(rag: Command, tmp_path: Path, parsing_in_process: None) -> Iterator[Pipeline]:
    """A published collection in which much has changed."""
    with closing(Pipeline(rag.runtime(), tmp_path / "docs", "docs")) as pipeline:
        for number in range(6):
            pipeline.write(f"{number}.txt", " ".join(f"Sentence {each} of fruit{number}." for each in range(30)))
        pipeline.run()
        pipeline.delete("0.txt")
        pipeline.rename("1.txt", "moved.txt")
        for number in range(2, 9):
            pipeline.write(f"{number}.txt", " ".join(f"Sentence {each} of berry{number}." for each in range(30)))
        yield pipeline


def materialize(rag: Command) -> subprocess.Popen:
    """All assets of the collection, by Dagster's own command."""
    script = """eval "$(rag env)" && exec dagster asset materialize -m rag_pipeline.definitions --select '*' \
                --partition docs"""
    programs = Path(sys.executable).parent
    return rag.start("-c", f"PATH={programs}:$PATH; {script}", program="/bin/sh")


def last_run(docs: Pipeline) -> int:
    """The number of the newest run on record, of any test of this module."""
    if docs.rows("SELECT to_regclass('dagster.runs') IS NULL") == [(True,)]:
        return 0
    return docs.rows("SELECT coalesce(max(id), 0) FROM dagster.runs")[0][0]


def assert_one_result(docs: Pipeline, server: OpenAIServer, runs: int, after: int) -> None:
    """Every run `after` that one ended well; what came of them is what one would have made, and was paid for once."""
    ended = docs.rows("SELECT status, count(*) FROM dagster.runs WHERE id > %(after)s GROUP BY status", after=after)
    assert ended == [("SUCCESS", runs)]
    texts = server.embedded_texts()
    assert len(texts) == len(set(texts))
    assert set(docs.served()) == {"moved.txt", *(f"{number}.txt" for number in range(2, 9))}
    docs.assert_clean()
    docs.assert_as_built_anew()


def said(process: subprocess.Popen, text: str) -> bool:
    """Read what a process says until it says this; False when it ends without."""
    return any(text in line for line in iter(process.stderr.readline, ""))


def test_another_run_waits_and_another_collection_does_not(rag, docs, server, tmp_path):
    before = last_run(docs)
    with closing(docs.runtime.connect()) as holder:
        with holder.transaction():
            holder.execute("SELECT FROM rag.document WHERE path = '2.txt' FOR UPDATE")  # where a run has to write
            first = rag.start("ingest", "docs")
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            eventually(lambda: docs.rows(waiting)[0][0] or first.poll() is not None, 120)
            others = [materialize(rag), rag.start("ingest", "docs")]
            for other in others:
                assert said(other, WAITING)
            (tmp_path / "other").mkdir()
            rag.done("ingest", tmp_path / "other")
            assert [process.poll() for process in (first, *others)] == [None, None, None]
        for process in (first, *others):
            done = Done.of(process)
            assert done.status == 0, done
    assert_one_result(docs, server, 4, after=before)


@pytest.mark.slow
def test_four_runs_at_once_from_the_command_line_from_dagster_and_from_its_ui(
    rag_at_home: Command,  # noqa: F811
    up: Up,  # noqa: F811
    docs: Pipeline,
    server: OpenAIServer,
):
    before = last_run(docs)
    launch(up, "docs")
    processes = [
        rag_at_home.start("ingest", "docs"),
        materialize(rag_at_home),
        rag_at_home.start("ingest", "docs"),
    ]
    for process in processes:
        done = Done.of(process)
        assert done.status == 0, done
    unfinished = "SELECT count(*) FROM dagster.runs WHERE status NOT IN ('SUCCESS', 'FAILURE')"
    with psycopg.connect(rag_at_home.environment["RAG_DATABASE_URL"], autocommit=True) as connection:
        eventually(lambda: connection.execute(unfinished).fetchone()[0] == 0, 120)
    assert_one_result(docs, server, 4, after=before)
