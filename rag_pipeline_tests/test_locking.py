"""One writer a collection: the second waits and says so, steps of one run pass, and a dead run holds nothing."""

import threading
from contextlib import closing

import pytest

from rag_pipeline.core import collections, database
from rag_pipeline.core.errors import UsageError
from rag_pipeline.core.locking import claim, holder, is_living, living
from rag_pipeline_tests.waiting import eventually


@pytest.fixture
def connect(pipeline):
    """Connections, closed after the test."""
    opened = []

    def connect():
        opened.append(database.connect(pipeline.runtime.database_url))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def refuse(run_id: str) -> None:
    raise BlockingIOError(run_id)


def test_a_run_waits_for_another_and_says_so_once(connect):
    events: list[str] = []
    waiting = threading.Event()
    mine, theirs = connect(), connect()

    def second() -> None:
        with claim(theirs, "docs", "second", lambda run: (events.append(f"waits for {run}"), waiting.set())):
            events.append("second")

    with claim(mine, "docs", "first", refuse):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(30)
        events.append("first ends")
    thread.join(30)
    assert events == ["waits for first", "first ends", "second"]


def test_another_collection_waits_for_nobody(pipeline, connect, tmp_path):
    collections.add(
        pipeline.connection, "other", str(tmp_path), {"embedding_model": "openai/stand-in", "dimensions": 64}
    )
    with claim(connect(), "docs", "first", refuse), claim(connect(), "other", "second", refuse):
        assert (holder(connect(), "docs"), holder(connect(), "other")) == ("first", "second")
    assert (holder(connect(), "docs"), holder(connect(), "other")) == (None, None)


def test_steps_of_one_run_pass_and_another_run_waits_for_the_last_of_them(connect):
    with claim(connect(), "docs", "a run", refuse):
        with claim(connect(), "docs", "a run", refuse):
            assert holder(connect(), "docs") == "a run"
        with pytest.raises(BlockingIOError, match="a run"), claim(connect(), "docs", "another", refuse):
            pass
    with claim(connect(), "docs", "another", refuse):
        pass


def test_whoever_lets_a_run_live_between_its_steps_keeps_the_collection_for_it(connect):
    with living(connect(), "a run"):
        with claim(connect(), "docs", "a run", refuse):
            pass
        with pytest.raises(BlockingIOError), claim(connect(), "docs", "another", refuse):
            pass
        with claim(connect(), "docs", "a run", refuse):
            pass


def test_a_server_that_ends_idle_sessions_ends_no_run(connect, pipeline):
    lock = connect()
    lock.execute("SET idle_session_timeout = '1s'")
    with claim(lock, "docs", "a run", refuse):
        assert lock.execute("SHOW idle_session_timeout").fetchone() == ("0",)


def test_a_run_that_died_holds_nothing(connect):
    mine = connect()
    with claim(mine, "docs", "first", refuse):
        mine.close()
        eventually(lambda: not is_living(connect(), "first"))
        with claim(connect(), "docs", "second", refuse):
            pass


def test_a_run_that_waits_lives(connect):
    waits = threading.Event()
    with claim(connect(), "docs", "first", refuse):
        thread = threading.Thread(target=lambda: _pass(connect(), "second", waits))
        thread.start()
        assert waits.wait(30)
        assert is_living(connect(), "second")
    thread.join(30)
    eventually(lambda: not is_living(connect(), "second"))


def _pass(connection, run_id: str, waits: threading.Event) -> None:
    with claim(connection, "docs", run_id, lambda run: waits.set()):
        pass


def test_of_many_that_wait_each_is_alone(pipeline, connect):
    inside, most, done = [], [], []

    def run(number: int) -> None:
        with closing(database.connect(pipeline.runtime.database_url)) as connection:
            with claim(connection, "docs", f"run {number}", lambda run: None):
                inside.append(number)
                most.append(len(inside))
                connection.execute("SELECT 1")
                inside.remove(number)
            done.append(number)

    threads = [threading.Thread(target=run, args=[number]) for number in range(8)]
    with claim(connect(), "docs", "before", refuse):
        for thread in threads:
            thread.start()
        eventually(lambda: all(is_living(pipeline.connection, f"run {number}") for number in range(8)))
    for thread in threads:
        thread.join(60)
    assert (sorted(done), max(most)) == (list(range(8)), 1)


def test_a_collection_that_is_removed_is_waited_for_no_more(pipeline, connect):
    caught: list[str] = []

    def second() -> None:
        try:
            _pass(connect(), "second", waits)
        except UsageError as error:
            caught.append(str(error))

    waits = threading.Event()
    with claim(connect(), "docs", "first", refuse):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30)
        collections.remove(pipeline.connection, "docs")
    thread.join(30)
    assert ["collection docs was removed meanwhile" in reason for reason in caught] == [True]
