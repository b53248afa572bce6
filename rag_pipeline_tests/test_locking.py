"""One writer a collection: the second waits and says so, and a dead one holds nothing."""

import threading

from rag_pipeline.core import database
from rag_pipeline.core.locking import writer
from rag_pipeline_tests.waiting import eventually


def test_a_run_waits_for_another_and_says_so(pipeline):
    with (
        database.connect(pipeline.runtime.database_url) as mine,
        database.connect(pipeline.runtime.database_url) as theirs,
    ):
        events: list[str] = []
        holding, waiting = threading.Event(), threading.Event()

        def second() -> None:
            holding.wait(30)
            with writer(theirs, "docs", lambda: (events.append("waits"), waiting.set())):
                events.append("second")

        thread = threading.Thread(target=second)
        thread.start()
        with writer(mine, "docs", lambda: events.append("first waits")):
            holding.set()
            assert waiting.wait(30)
            asked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            eventually(lambda: pipeline.rows(asked)[0][0])
            events.append("first")
        thread.join(30)
        assert events == ["waits", "first", "second"]
        with (
            writer(mine, "docs", lambda: events.append("waits")),
            writer(theirs, "other", lambda: events.append("waits")),
        ):
            assert events == ["waits", "first", "second"]  # another collection waits for nobody


def test_a_writer_that_died_holds_nothing(pipeline):
    mine = database.connect(pipeline.runtime.database_url)
    with writer(mine, "docs", lambda: None):
        mine.close()
        eventually(lambda: not pipeline.rows("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"))
        waited: list[int] = []
        with writer(pipeline.connection, "docs", lambda: waited.append(1)):
            assert not waited
