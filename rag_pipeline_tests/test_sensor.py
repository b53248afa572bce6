"""The sensor `new_files` on a real instance: files come, change and go, and runs are asked for."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance, RunRequest, build_sensor_context

from rag_pipeline.core import collections, polling
from rag_pipeline.core.watching import LONGEST_PAUSE, Cursor
from rag_pipeline.instance import dagster_instance
from rag_pipeline.partitions import collections_partitions
from rag_pipeline.sensors import new_files
from rag_pipeline_tests.commands import Command
from rag_pipeline_tests.openai_server import error


class Sensor:
    """The sensor with what it keeps between ticks, over the folder of documents."""

    def __init__(self, rag: Command, instance: DagsterInstance, documents: Path):
        self.rag, self.instance, self.documents = rag, instance, documents
        self.cursor: str | None = None
        self.said: str | None = None
        self._seconds = 1_700_000_000

    def tick(self) -> dict[str, str]:
        """Why it asks for a run, by collection."""
        return {each.partition_key: each.tags["rag/why"] for each in self.requests()}

    def requests(self) -> list[RunRequest]:
        result = new_files(build_sensor_context(instance=self.instance, cursor=self.cursor))
        self.cursor = result.cursor
        self.said = result.skip_reason.skip_message if result.skip_reason else None
        return result.run_requests or []

    def tick_and_run(self) -> dict[str, str]:
        """A tick, and the runs it asks for."""
        asked = self.tick()
        for name in asked:
            self.rag.done("ingest", name)
        return asked

    def write(self, path: str, content: str, *, young: bool = False) -> Path:
        """A file, last written to a while ago unless it is young."""
        file = self.documents / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        if not young:
            self.age(file)
        return file

    def age(self, file: Path) -> None:
        self._seconds += 10
        os.utime(file, (self._seconds, self._seconds))

    def found(self, name: str, query: str) -> set[str]:
        hits = self.rag.done("search", name, query, "--mode", "text", "--json").json["hits"]
        return {path for hit in hits for path in (hit["path"], *hit["also_in"]["paths"])}


@pytest.fixture
def sensor(rag: Command, tmp_path: Path, parsing_in_process: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sensor]:
    documents = tmp_path / "documents"
    documents.mkdir()
    rag = Command(rag.environment | {"RAG_DOCUMENTS": str(documents)})
    for name, value in rag.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("rag_pipeline.sensors.sleep", lambda seconds: None)
    with dagster_instance(rag.runtime()) as instance:
        yield Sensor(rag, instance, documents)


def test_create_modify_rename_delete_recreate(sensor):
    passwords = sensor.write("handbook/passwords.md", "To reset a password press Reset.")
    content = passwords.read_text()
    sensor.write("handbook/travel.txt", "Trains are preferred.")
    assert sensor.tick_and_run() == {"handbook": "2 added"}
    assert sensor.tick() == {}
    sensor.write("handbook/passwords.md", "To reset a password call Anna.")
    assert sensor.tick_and_run() == {"handbook": "1 changed"}
    assert sensor.found("handbook", "Anna") == {"passwords.md"}
    passwords.rename(passwords.with_name("accounts.md"))
    assert sensor.tick_and_run() == {"handbook": "1 added, 1 removed"}
    assert sensor.found("handbook", "Anna") == {"accounts.md"}
    passwords.with_name("accounts.md").unlink()
    assert sensor.tick_and_run() == {"handbook": "1 removed"}
    assert sensor.found("handbook", "Anna") == set()
    # The very file that was there first, with the time it had.
    sensor.write("handbook/passwords.md", content)
    os.utime(passwords, (1_700_000_010, 1_700_000_010))
    assert sensor.tick_and_run() == {"handbook": "1 added"}
    assert sensor.found("handbook", "press") == {"passwords.md"}
    assert sensor.tick() == {}


def test_a_half_written_file_waits_and_holds_up_no_other(sensor):
    half = sensor.write("handbook/half.txt", "To reset", young=True)
    assert sensor.tick() == {}
    sensor.write("handbook/whole.txt", "Trains are preferred.")
    assert sensor.tick_and_run() == {"handbook": "1 added"}
    half.write_text("To reset a password press Reset.")
    assert sensor.tick() == {}
    sensor.age(half)
    assert list(sensor.tick_and_run()) == ["handbook"]
    assert sensor.found("handbook", "Reset") == {"half.txt"}
    assert sensor.tick() == {}


def test_a_file_that_is_whole_before_the_next_tick_is_asked_for_in_this_one(sensor, monkeypatch):
    young = [sensor.write("handbook/whole.txt", "To reset a password press Reset.", young=True)]
    monkeypatch.setattr("rag_pipeline.sensors.sleep", lambda seconds: sensor.age(young.pop()))
    assert sensor.tick_and_run() == {"handbook": "1 added"}
    young.append(sensor.write("handbook/late.txt", "Written to still.", young=True))
    sensor.write("travel/whole.txt", "Trains are preferred.")
    assert sensor.tick() == {"travel": "1 added"}  # which waits for no other
    assert young


def test_new_folders_become_collections_and_unfit_ones_are_told_once(sensor):
    sensor.write("handbook/a.txt", "Apples are red.")
    sensor.write("our papers/b.txt", "Pears are green.")
    sensor.write(".hidden/c.txt", "Plums are blue.")
    assert sensor.tick() == {"handbook": "1 added"}
    assert set(sensor.instance.get_dynamic_partitions(collections_partitions.name)) == {"handbook"}
    assert list(Cursor.from_json(sensor.cursor).unfit) == ["our papers"]
    (sensor.documents / "handbook").rename(sensor.documents / "manual")
    sensor.tick()
    with sensor.rag.runtime().connect() as connection:
        assert [each.name for each in collections.list_all(connection)] == ["handbook", "manual"]


def test_a_folder_named_like_another_collection_is_no_part_of_it(sensor, handbook):
    for file in handbook.iterdir():
        sensor.age(file)
    sensor.rag.done("collection", "add", "manual", "--source", handbook)
    sensor.rag.done("ingest", "manual")
    sensor.write("manual/a.txt", "Apples are red.")
    assert sensor.tick() == {}
    assert "the folder manual becomes no collection: collection manual has another source" in sensor.said
    # A folder that is the source of a collection by another name is that collection's alone.
    sensor.rag.done("collection", "add", "fruit", "--source", sensor.write("fruits/a.txt", "Apples are red.").parent)
    assert sensor.tick() == {"fruit": "1 added"}


def test_a_source_gone_says_why_backs_off_and_blocks_no_other(sensor, monkeypatch):
    sensor.write("handbook/a.txt", "Apples are red.")
    assert sensor.tick_and_run() == {"handbook": "1 added"}
    handbook = sensor.documents / "handbook"
    handbook.rename(sensor.documents / ".away")
    sensor.write("other/b.txt", "Pears are green.")
    assert sensor.tick_and_run() == {"other": "1 added"}
    assert sensor.tick() == {}
    assert f"cannot list {handbook}, the source of handbook" in sensor.said
    assert sensor.found("handbook", "apples") == {"a.txt"}
    (sensor.documents / ".away").rename(handbook)
    sensor.write("handbook/b.txt", "Plums are blue.")
    # It is looked at again when its time has come.
    assert sensor.tick() == {}
    monkeypatch.setattr("rag_pipeline.sensors.time", lambda: time.time() + LONGEST_PAUSE)
    assert sensor.tick_and_run() == {"handbook": "1 added"}
    assert sensor.said is None


def test_a_source_that_does_not_answer_blocks_no_other(sensor, monkeypatch):
    answers = threading.Event()
    list_source = polling.list_source

    def listing(collection):
        if collection.name == "slow":
            assert answers.wait(60)
        return list_source(collection)

    monkeypatch.setattr(polling, "list_source", listing)
    monkeypatch.setattr(polling, "PATIENCE", 0.5)
    sensor.write("slow/a.txt", "Apples are red.")
    sensor.write("swift/b.txt", "Pears are green.")
    assert sensor.tick() == {"swift": "1 added"}
    answers.set()
    monkeypatch.undo()
    for name, value in sensor.rag.environment.items():
        monkeypatch.setenv(name, value)
    assert sensor.tick() == {"slow": "1 added"}


def test_two_ticks_at_once_ask_for_one_run(sensor):
    sensor.write("handbook/a.txt", "Apples are red.")
    sensor.tick_and_run()
    sensor.write("handbook/b.txt", "Pears are green.")
    before = sensor.cursor
    (one,) = sensor.requests()
    sensor.cursor = before
    (other,) = sensor.requests()
    assert one.run_key == other.run_key
    sensor.rag.done("ingest", "handbook")
    sensor.write("handbook/a.txt", "Apples are green.")
    (later,) = sensor.requests()
    assert later.run_key != one.run_key


def test_while_a_run_is_queued_no_other_is_asked_for(sensor):
    sensor.write("handbook/a.txt", "Apples are red.")
    assert sensor.tick() == {"handbook": "1 added"}
    run_id = sensor.rag.done("ingest", "handbook", "--queue").out.strip()
    sensor.write("handbook/b.txt", "Pears are green.")
    assert sensor.tick() == {}
    sensor.rag.done("cancel", run_id)
    assert sensor.tick() == {"handbook": "2 added"}


def test_a_failed_run_is_asked_for_again_later(sensor, server, monkeypatch):
    sensor.write("handbook/a.txt", "Apples are red.")
    assert sensor.tick() == {"handbook": "1 added"}
    server.intercept = lambda request: error(400, "no")
    assert sensor.rag("ingest", "handbook").status == 1
    assert sensor.tick() == {}
    monkeypatch.setattr("rag_pipeline.sensors.time", lambda: time.time() + 31)
    server.intercept = lambda request: None
    assert sensor.tick_and_run() == {"handbook": "the last run failed"}
    monkeypatch.setattr("rag_pipeline.sensors.time", lambda: time.time() + 2 * LONGEST_PAUSE)
    assert sensor.tick() == {}


def test_changed_settings_are_asked_for(sensor):
    sensor.write("handbook/a.txt", "Apples are red.")
    assert sensor.tick_and_run() == {"handbook": "1 added"}
    sensor.rag.done("collection", "set", "handbook", "chunk_tokens=100")
    assert sensor.tick() == {"handbook": "settings changed"}


def test_what_was_ingested_by_hand_needs_no_run(sensor, handbook):
    sensor.rag.done("ingest", handbook)
    for file in handbook.iterdir():
        sensor.age(file)
    sensor.rag.done("ingest", "handbook")
    assert sensor.tick() == {}
