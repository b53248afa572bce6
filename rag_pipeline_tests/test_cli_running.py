"""A `rag ingest` at work: interrupted, killed, waited for, cut off from its database; and what it shows meanwhile."""

import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from dagster import DagsterRunStatus

from rag_pipeline import terminal
from rag_pipeline.core.locking import living
from rag_pipeline.definitions import build_definitions
from rag_pipeline.instance import dagster_environment, dagster_instance, settle_runs
from rag_pipeline_tests.commands import Command, Done
from rag_pipeline_tests.openai_server import OpenAIServer, Request, error
from rag_pipeline_tests.waiting import eventually

# Runs that are cut short


@pytest.fixture
def answering(server: OpenAIServer) -> Iterator[threading.Event]:
    """Once this is set, the provider answers."""
    answers = threading.Event()

    def wait(request: Request) -> None:
        answers.wait(60)

    server.intercept = wait
    yield answers
    answers.set()


@pytest.fixture
def stuck(rag: Command, handbook: Path, server: OpenAIServer, answering: threading.Event) -> Iterator[subprocess.Popen]:
    """`rag ingest handbook` in a process of its own, waiting for the provider."""
    process = rag.start("ingest", handbook)
    eventually(lambda: server.requests or process.poll() is not None, 60)
    assert process.poll() is None, process.communicate()
    yield process
    process.kill()
    process.communicate()


def last_run(rag: Command) -> dict:
    return rag.done("status", "handbook", "--json").json["last_run"]


def test_ctrl_c_ends_an_ingest_with_one_line_and_its_run_with_it(rag, stuck, answering):
    assert last_run(rag)["status"] == "started"
    stuck.send_signal(signal.SIGINT)
    answering.set()
    done = Done.of(stuck)
    assert (done.status, done.out) == (130, "")
    assert done.said == "rag: interrupted; what was done until now is kept\n"
    assert last_run(rag)["status"] == "failure"


@pytest.mark.parametrize("command", ["status", "ingest"])
def test_a_killed_ingest_is_recorded_as_failed_by_the_next_command(rag, stuck, answering, command):
    killed = last_run(rag)["run_id"]
    stuck.kill()
    stuck.wait()
    answering.set()
    rag.done(command, "handbook")
    with closing(psycopg.connect(rag.environment["RAG_DATABASE_URL"])) as connection:
        statuses = dict(connection.execute("SELECT run_id, status FROM dagster.runs").fetchall())
    assert statuses[killed] == "FAILURE"
    assert set(statuses.values()) <= {"SUCCESS", "FAILURE"}


def test_a_second_ingest_waits_for_the_first(rag, stuck, answering):
    second = rag.start("ingest", "handbook", "--json")
    assert second.stderr.readline() == "waiting for another run of handbook to end\n"
    assert last_run(rag)["status"] == "started"
    answering.set()
    assert Done.of(stuck).status == 0
    assert Done.of(second).json["files"]["unchanged"] == 3


def test_a_second_ingest_leaves_when_it_is_told_to(rag, stuck):
    reason = rag("ingest", "handbook", "--no-wait").reason
    assert reason == f"run {last_run(rag)['run_id']} has handbook now: leave --no-wait out to wait until it has ended"


def test_a_run_of_dagster_itself_is_waited_for_and_holds_nothing_once_it_is_killed(rag, handbook, server, answering):
    rag.done("collection", "add", "handbook", "--source", handbook)
    elsewhere = Command(rag.environment | dagster_environment(rag.runtime()))
    arguments = ["asset", "materialize", "-m", "rag_pipeline.definitions", "--select", "*", "--partition", "handbook"]
    process = elsewhere.start(*arguments, program="dagster", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: server.requests or process.poll() is not None, 60)
        assert re.match(r"run \S+ has handbook now", rag("ingest", "handbook", "--no-wait").reason)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    answering.set()
    assert rag.done("ingest", "handbook", "--json").json["files"]["seen"] == 3


def test_a_run_of_the_daemon_whose_process_is_gone_is_settled_once_it_had_time_to_start(
    rag, handbook, stuck, answering
):
    with dagster_instance(rag.runtime()) as instance, closing(rag.runtime().connect()) as connection:
        run = instance.create_run_for_job(
            build_definitions().resolve_job_def("refresh_collection"),
            status=DagsterRunStatus.STARTED,
            tags={"dagster/partition": "handbook"},
        )
        assert settle_runs(instance, connection) == []  # it may be importing
        connection.execute(
            "UPDATE dagster.runs SET update_timestamp = update_timestamp - interval '2 minutes' WHERE run_id = %s",
            [run.run_id],
        )
        with living(connection, run.run_id), closing(rag.runtime().connect()) as another:
            assert settle_runs(instance, another, "handbook") == []
        assert settle_runs(instance, connection, "travel") == []
        assert settle_runs(instance, connection, "handbook") == [run.run_id]
        assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.FAILURE
        assert settle_runs(instance, connection) == []
    assert last_run(rag)["status"] == "failure"
    answering.set()
    assert Done.of(stuck).status == 0


def test_a_database_that_goes_away_is_one_line(rag, stuck, answering):
    with closing(psycopg.connect(rag.environment["RAG_DATABASE_URL"], autocommit=True)) as connection:
        connection.execute(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()"""
        )
    answering.set()
    done = Done.of(stuck)
    assert (done.status, done.out) == (1, "")
    assert "Traceback" not in done.err
    assert re.fullmatch(r"rag: .*terminat.*", done.err.splitlines()[-1])


# Progress


def test_on_a_terminal_bars_show_what_is_done(rag, handbook, server):
    server.intercept = lambda request: error(500, "try again") if len(server.requests) == 1 else None
    ours, theirs = pty.openpty()
    process = rag.start("ingest", handbook, stderr=theirs)
    os.close(theirs)
    shown = b""
    # Reading from a terminal whose other side is closed is an error, not the end of a file.
    while chunk := _read(ours):
        shown += chunk
    done = Done.of(process)
    os.close(ours)
    assert done.status == 0
    assert done.out.startswith("handbook: 3 files, 3 added\n")
    text = shown.decode()
    assert "cached_embeddings (chunks)" in text
    assert "3/3" in text
    assert "━" in text
    assert "DEBUG" not in text
    # Bars are gone at the end: the last line they stood on is erased.
    assert text.rstrip().endswith("\x1b[2K")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_elsewhere_a_line_is_said_when_two_seconds_have_gone(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(terminal, "monotonic", lambda: now[0])
    progress = terminal.LineProgress()
    report = progress.stage("parsed_text", "documents")
    report(1, 10)
    assert capsys.readouterr().err == ""
    now[0] += 2
    report(4, 10)
    assert capsys.readouterr().err == "parsed_text: 4 of 10 documents, 2/s\n"
    report(5, 10)
    assert capsys.readouterr().err == ""
    now[0] += 2
    progress.stage("token_chunks", "documents")
    assert capsys.readouterr().err == "token_chunks: started\n"


def test_a_command_of_its_own_process_says_nothing_but_its_result(rag, handbook):
    first = Done.of(rag.start("ingest", handbook, "--json"))
    assert (first.status, first.said, first.json["files"]["added"]) == (0, "", 3)
    second = Done.of(rag.start("ingest", "handbook"))
    assert (second.status, second.said, len(second.out.splitlines())) == (0, "", 2)


@pytest.mark.parametrize("arguments", [["--help"], ["search", "nope", "x"], ["status"]])
def test_dagster_is_not_imported_to_read(rag, arguments):
    script = f"""
import sys
from rag_pipeline.cli import main
try:
    main({arguments})
finally:
    print("with" if "dagster" in sys.modules else "without", "Dagster")
"""
    assert Done.of(rag.start("-c", script, program="python")).out.endswith("without Dagster\n")
