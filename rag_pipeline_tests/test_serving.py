"""`rag up` and `rag down`: the UI and the daemon start, say where they are, launch runs, and leave nothing behind."""

import json
import signal
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from rag_pipeline_tests.commands import Command, Done
from rag_pipeline_tests.waiting import eventually

LAUNCH = """
mutation Launch($run: ExecutionParams!) {
  launchRun(executionParams: $run) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""

MATERIALIZATIONS = """
query Run($run: ID!) {
  runOrError(runId: $run) {
    ... on Run { status assets { key { path } } eventConnection { events { __typename } } }
  }
}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A RAG_HOME whose name needs quoting everywhere."""
    return tmp_path / "a home's home"


@pytest.fixture
def rag_at_home(rag: Command, home: Path, tmp_path: Path) -> Command:
    # No folder of the test's becomes a collection before the test makes it one.
    return Command(rag.environment | {"RAG_HOME": str(home), "RAG_DOCUMENTS": str(tmp_path / "documents")})


class Up:
    """`rag up` as a person starts it."""

    def __init__(self, rag: Command, *options: str):
        self.port = free_port()
        self.process = rag.start("up", "--port", str(self.port), *options)
        self.screen = ""
        while "Ctrl-C" not in self.screen:
            line = self.process.stdout.readline()
            assert line, self.process.communicate()
            self.screen += line
        self.descendants = psutil.Process(self.process.pid).children(recursive=True)

    def ask(self, query: str, **variables: object) -> dict:
        """What the web server answers to a GraphQL query."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["data"]

    def nothing_is_left(self) -> bool:
        """Whether every process it ever started is gone; True once they are."""
        return not any(process.is_running() for process in self.descendants)


@pytest.fixture
def up(rag_at_home: Command) -> Iterator[Up]:
    with serving(rag_at_home) as up:
        yield up


@contextmanager
def serving(rag: Command, *options: str) -> Iterator[Up]:
    """`rag up`, of which nothing is left afterwards."""
    up = Up(rag, *options)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.process.terminate()
            up.process.communicate()
        for process in up.descendants:
            if process.is_running():
                process.kill()


def test_up_says_where_it_is_and_ctrl_c_leaves_nothing(rag_at_home, up, home):
    assert up.screen.startswith(f"Dagster UI   http://127.0.0.1:{up.port}\n")
    assert len(up.screen.splitlines()) == 4
    with urllib.request.urlopen(f"http://127.0.0.1:{up.port}/server_info", timeout=60) as response:
        assert "dagster_version" in json.load(response)
    assert len(up.descendants) >= 2

    second = rag_at_home("up", "--port", str(free_port()))
    assert second.reason == "rag up runs already for this RAG_HOME: rag down stops it"

    up.process.send_signal(signal.SIGINT)
    done = Done.of(up.process)
    assert (done.status, done.out) == (0, "")
    assert done.err == "starting the UI and the daemon of Dagster ...\nstopped the UI and the daemon\n"
    eventually(up.nothing_is_left)
    assert (home / "up.log").exists()


@pytest.mark.slow
def test_down_ends_what_up_started(rag_at_home, up):
    assert rag_at_home.done("down").out == "stopped rag up\n"
    assert Done.of(up.process).status == 0
    eventually(up.nothing_is_left)
    assert rag_at_home.done("down").out == "nothing was running\n"


def test_down_ends_what_a_killed_up_left_behind(rag_at_home, up):
    up.process.kill()
    up.process.communicate()
    assert not up.nothing_is_left()
    left = "a rag up that was killed left Dagster's UI and daemon behind: rag down ends them"
    assert rag_at_home("up").reason == left
    assert rag_at_home.done("down").out == "stopped rag up\n"
    eventually(up.nothing_is_left)


def test_a_port_in_use_is_said_plainly(rag_at_home, home):
    home.mkdir()
    # A lock file that nobody holds, of an `up` that was killed together with all it started.
    (home / "up.lock").write_text("[[1, 0.0]]\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert rag_at_home("up", "--port", str(port)).reason == f"port {port} is in use: rag up --port {port + 1}"
    assert rag_at_home.done("down").out == "nothing was running\n"


@pytest.mark.slow
def test_a_daemon_alone_finds_what_is_dropped(rag_at_home, tmp_path):
    documents = tmp_path / "documents"
    rag = Command(rag_at_home.environment | {"RAG_DOCUMENTS": str(documents)})
    with serving(rag, "--daemon-only") as up:
        assert "UI" not in up.screen
        assert f"documents    {documents}: " in up.screen
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"http://127.0.0.1:{up.port}/server_info", timeout=60)

        def found() -> set[str]:
            done = rag("search", "fruit", "apples", "--mode", "text", "--json")
            return {hit["path"] for hit in done.json["hits"]} if done.status == 0 else set()

        (documents / "fruit").mkdir(parents=True)
        apples = documents / "fruit" / "apples.txt"
        apples.write_text("Apples are red.")
        eventually(lambda: found() == {"apples.txt"}, 120)
        apples.rename(apples.with_name("more apples.txt"))
        eventually(lambda: found() == {"more apples.txt"}, 120)
        (documents / "two words").mkdir()
        eventually(lambda: "the folder two words becomes no collection" in rag("doctor").out, 120)


@pytest.mark.slow
def test_a_run_launched_in_the_ui_materializes_all_assets(rag_at_home, handbook, up):
    rag_at_home.done("collection", "add", "handbook", "--source", handbook)
    run_id = launch(up, "handbook")

    def last_run() -> dict:
        return rag_at_home.done("status", "handbook", "--json").json["last_run"]

    eventually(lambda: last_run()["status"] in ("success", "failure"), 120)
    assert last_run() == last_run() | {"run_id": run_id, "status": "success"}
    run = up.ask(MATERIALIZATIONS, run=run_id)["runOrError"]
    events = [event["__typename"] for event in run["eventConnection"]["events"]]
    assert events.count("MaterializationEvent") == 5
    assert rag_at_home.done("search", "handbook", "holidays", "--json").json["hits"][0]["path"] == "holidays.md"


@pytest.mark.slow
def test_a_run_that_ctrl_c_cuts_short_is_recorded_as_failed(rag_at_home, handbook, server, up):
    server.latency = 600
    rag_at_home.done("collection", "add", "handbook", "--source", handbook)
    launch(up, "handbook")
    eventually(lambda: server.requests, 120)
    up.process.send_signal(signal.SIGINT)
    server.latency = 0
    assert Done.of(up.process).status == 0
    assert rag_at_home.done("status", "handbook", "--json").json["last_run"]["status"] == "failure"


def launch(up: Up, name: str) -> str:
    """Launch `refresh_collection` as the UI's button does; the run's id."""
    location = {"repositoryLocationName": "rag_pipeline", "repositoryName": "__repository__"}
    run = {
        "selector": {**location, "jobName": "refresh_collection"},
        "mode": "default",
        "runConfigData": {},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": name}]},
    }
    launched = up.ask(LAUNCH, run=run)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return launched["run"]["runId"]
