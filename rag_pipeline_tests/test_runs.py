"""Runs that somebody polls: queued, under way, done with what they did, failed with the reason, canceled."""

import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest
from dagster import DagsterRunStatus, RunsFilter

from rag_pipeline.client import Rag
from rag_pipeline.core.errors import UsageError
from rag_pipeline.instance import dagster_instance
from rag_pipeline.progress import RunProgress
from rag_pipeline.runs import read_run
from rag_pipeline_tests.commands import Command, Done
from rag_pipeline_tests.openai_server import OpenAIServer, Request, error
from rag_pipeline_tests.waiting import eventually

NO_DAEMON = "no daemon is running: rag up starts one, which executes what is queued\n"


def state(rag: Command, run_id: str) -> dict:
    return rag.done("status", "--run", run_id, "--json").json


@pytest.fixture
def client(rag: Command) -> Iterator[Rag]:
    with Rag(rag.runtime()) as client:
        yield client


def forget_daemons(rag: Command) -> None:
    with rag.runtime().connect() as connection:
        connection.execute("DELETE FROM dagster.daemon_heartbeats")


# Without a daemon


def test_queue_prints_the_id_at_once_and_says_that_nobody_executes_it(rag, handbook):
    rag.done("collection", "add", "handbook", "--source", handbook)
    forget_daemons(rag)
    done = rag.done("ingest", "handbook", "--queue")
    assert done.err == NO_DAEMON
    run_id = done.out.strip()
    assert state(rag, run_id) == state(rag, run_id) | {
        "id": run_id,
        "collection": "handbook",
        "state": "queued",
        "asked_by": "rag ingest --queue",
        "stage": None,
        "result": None,
        "reason": None,
    }
    assert rag.done("status", "--run", run_id).out.startswith("queued: handbook")
    assert rag.done("cancel", run_id).out == f"canceled {run_id}\n"
    assert state(rag, run_id)["state"] == "canceled"
    assert "has ended already" in rag("cancel", run_id).reason


def test_a_folder_is_queued_as_its_collection_and_all_collections_at_once(rag, handbook, tmp_path):
    (other := tmp_path / "other").mkdir()
    assert rag.done("ingest", handbook, "--queue", "--json").json["collection"] == "handbook"
    retried = rag.done("ingest", other, "--queue", "--retry-failed").out.strip()
    with dagster_instance(rag.runtime()) as instance:
        assert instance.get_run_by_id(retried).tags["rag/retry_failed"] == "yes"
    runs = rag.done("ingest", "--all", "--queue", "--json").json["runs"]
    assert [each["collection"] for each in runs] == ["handbook", "other"]
    assert {state(rag, each["run_id"])["state"] for each in runs} == {"queued"}


def test_from_python_too(rag, client, handbook):
    rag.done("collection", "add", "handbook", "--source", handbook)
    run_id = client.ingest("handbook", allow_mass_removal=True)
    assert (client.run(run_id).state, client.run(run_id).asked_by) == ("queued", "Rag.ingest")
    with dagster_instance(rag.runtime()) as instance:
        assert instance.get_run_by_id(run_id).tags["rag/allow_mass_removal"] == "yes"
    client.cancel(run_id)
    assert client.run(run_id).state == "canceled"
    with pytest.raises(UsageError, match="there is no collection nothing"):
        client.ingest("nothing")


def test_what_was_never_asked_for_is_said_plainly(rag):
    assert "there is no run nonsense" in rag("status", "--run", "nonsense").reason
    assert "there is no run nonsense" in rag("cancel", "nonsense").reason
    for wrong in (["ingest"], ["ingest", "handbook", "--all"]):
        assert rag(*wrong).status == 2


def test_a_done_run_tells_what_ingest_told(rag, client, handbook, parsing_in_process):
    told = rag.done("ingest", handbook, "--json").json
    run = state(rag, told["run_id"])
    assert (run["state"], run["asked_by"]) == ("done", "rag ingest")
    # Its seconds are the run's own; the command's began before.
    assert 0 < run["result"]["seconds"].pop("total") <= told["seconds"].pop("total")
    assert run["result"] == told
    assert client.run(told["run_id"]).result.index["inserted"] == 3
    assert rag.done("status", "--run", told["run_id"]).out.splitlines()[1] == "handbook: 3 files, 3 added"


def test_a_run_in_a_terminal_is_ended_there(rag, server, handbook):
    answers = threading.Event()

    def wait(request: Request) -> None:
        answers.wait(60)

    server.intercept = wait
    process = rag.start("ingest", handbook)
    eventually(lambda: server.requests or process.poll() is not None, 60)
    run_id = rag.done("status", "handbook", "--json").json["last_run"]["run_id"]
    assert "end it with Ctrl-C where it runs" in rag("cancel", run_id).reason
    assert state(rag, run_id)["state"] == "running"
    answers.set()
    assert Done.of(process).status == 0
    assert state(rag, run_id)["state"] == "done"


def newest_run(rag: Command, name: str) -> dict:
    return state(rag, rag.done("status", name, "--json").json["last_run"]["run_id"])


def test_a_failed_run_tells_the_reason_that_ingest_told(rag, server, handbook, parsing_in_process):
    server.intercept = lambda request: error(400, "no")
    reason = rag("ingest", handbook).reason
    assert (newest_run(rag, "handbook")["state"], newest_run(rag, "handbook")["reason"]) == ("failed", reason)
    server.intercept = lambda request: None
    handbook.rename(handbook.with_name("moved"))
    reason = rag("ingest", "handbook").reason
    assert reason.startswith("cannot list")
    assert newest_run(rag, "handbook")["reason"] == reason


def test_all_are_ingested_and_one_that_fails_holds_up_no_other(rag, handbook, tmp_path, parsing_in_process):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        rag.done("collection", "add", name, "--source", tmp_path / name)
    rag.done("collection", "add", "c", "--source", handbook)
    (tmp_path / "b").rmdir()
    done = rag("ingest", "--all", "--json")
    assert done.status == 1
    assert [each["collection"] for each in done.json["collections"]] == ["a", "c"]
    assert list(done.json["failed"]) == ["b"]
    assert done.said.splitlines()[-1] == "rag: 1 of 3 collections failed: b"


def test_progress_is_a_row_now_and_then(rag, monkeypatch):
    now = 0.0
    monkeypatch.setattr("rag_pipeline.progress.monotonic", lambda: now)
    lines = []
    with rag.runtime().connect() as connection:
        progress = RunProgress(connection, "r1", "handbook", lines.append)

        def row() -> tuple:
            return connection.execute("SELECT stage, done, total, unit FROM rag.run_progress").fetchone()

        report = progress.stage("parsed_text", "documents")
        assert row() == ("parsed_text", None, None, "documents")
        for done in range(1, 1000):
            now += 0.01
            report(done, 1000)
            assert done < 100 or row()[1] > done - 102
        assert row()[2] == 1000
        assert len(lines) == 0
        now += 1
        report(1000, 1000)
        assert lines == ["handbook: parsed_text: 1000 of 1000 documents"]
        progress.close()
        assert row() is None


# With one


@pytest.fixture
def daemon(rag: Command) -> Iterator[subprocess.Popen]:
    """A daemon with nothing to do."""
    with dagster_instance(rag.runtime()) as instance:
        for run in instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.QUEUED])):
            instance.report_run_canceled(run)
    process = rag.start("up", "--daemon-only", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    Done.of(process)


def test_the_daemon_executes_what_is_queued_and_a_run_under_way_can_be_canceled(
    rag: Command, daemon: subprocess.Popen, handbook, server: OpenAIServer
):
    rag.done("collection", "add", "handbook", "--source", handbook)
    first = rag.done("ingest", "handbook", "--queue").out.strip()
    eventually(lambda: state(rag, first)["state"] not in ("queued", "running"), 240)
    run = state(rag, first)
    # Beside it the sensor may have asked for one.
    assert (run["state"], run["result"]["files"]["seen"], run["result"]["chunks"]["total"]) == ("done", 3, 3), run
    answers = threading.Event()

    def wait(request: Request) -> None:
        answers.wait(60)

    server.intercept = wait
    (handbook / "more.txt").write_text("Bicycles are lent at the gate.")
    queued = rag.done("ingest", "handbook", "--queue")
    # The daemon says that it is there.
    assert queued.err == ""
    second = queued.out.strip()
    eventually(lambda: state(rag, second)["stage"] == "cached_embeddings", 240)
    rag.done("cancel", second)
    eventually(lambda: state(rag, second)["state"] == "canceled", 60)
    answers.set()
    server.intercept = lambda request: None
    # The collection is free, and what was done is kept.
    assert rag.done("ingest", "handbook", "--json").json["files"]["added"] == 0
    assert rag.done("search", "handbook", "bicycles", "--json").json["hits"][0]["path"] == "more.txt"
    with rag.runtime().connect() as connection:
        assert connection.execute("SELECT count(*) FROM rag.run_progress").fetchone() == (0,)
        assert read_run(connection, second).reason is None
