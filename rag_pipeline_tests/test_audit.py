"""The record of what was searched and asked: complete, off the query's path, and without questions unless wanted."""

import threading
from contextlib import closing
from dataclasses import asdict

import psycopg
import pytest
from psycopg.types.json import Jsonb

from rag_pipeline.core import access, audit, collections
from rag_pipeline.core.audit import Query, QueryLog, record_queries
from rag_pipeline_tests.access_library import Library
from rag_pipeline_tests.waiting import eventually

COLUMNS = "key, collections, kind, mode, k, hits, tokens >= 0, seconds > 0, answered, question"


@pytest.fixture
def log(library: Library):
    """The owner's connection to an empty record."""
    with closing(library.owner.connect()) as connection:
        connection.execute("DELETE FROM rag.query_log")
        yield connection


def query(**fields) -> Query:
    values = {
        "kind": "search",
        "collections": ["handbook"],
        "question": "who?",
        "mode": "text",
        "k": 5,
        "hits": 1,
        "tokens": 7,
        "cost_usd": 0.5,
        "seconds": 0.1,
    }
    return Query(**(values | fields))


def rows(connection: psycopg.Connection, columns: str = COLUMNS) -> list[tuple]:
    return connection.execute(f"SELECT {columns} FROM rag.query_log ORDER BY at").fetchall()


def kept(connection: psycopg.Connection) -> set[str]:
    """The questions that the record has."""
    return {question for (question,) in rows(connection, "question") if question is not None}


def test_every_search_and_ask_is_recorded_by_key_and_no_question_is_kept(library, log):
    with library.rag("reader") as rag:
        rag.search("handbook", "travel rules", k=3, mode="text")
        rag.ask("handbook", "What are the travel rules?")
    with library.rag("auditor") as rag:
        "".join(rag.ask(["handbook", "payroll"], "What are the travel rules?", k=2, stream=True))
    assert rows(log) == [
        ("reader", ["handbook"], "search", "text", 3, 3, True, True, None, None),
        ("reader", ["handbook"], "ask", "hybrid", 5, 3, True, True, True, None),
        ("auditor", ["handbook", "payroll"], "ask", "hybrid", 2, 2, True, True, True, None),
    ]


def test_a_question_is_kept_when_every_collection_says_so_and_goes_with_it(library, log):
    collections.add(log, "brief", "/tmp", {"embedding_model": library.owner.settings.embedding_model, "dimensions": 64})
    collections.change(log, "handbook", {"log_questions": True})
    try:
        record_queries(
            log, [query(), query(collections=["handbook", "payroll"]), query(collections=["handbook", "brief"])]
        )
        assert kept(log) == {"who?"}
        collections.change(log, "brief", {"log_questions": True})
        record_queries(log, [query(collections=["handbook", "brief"], question="a\0b")])
        assert kept(log) == {"who?", "ab"}
    finally:
        collections.remove(log, "brief")
        collections.change(log, "handbook", {"log_questions": False})
    assert kept(log) == {"who?"}


def test_a_key_writes_as_itself_about_what_it_is_granted_and_reads_nothing(library, log):
    with closing(access.connect_query(library.owner.query_database_url, library.secrets["reader"])) as connection:
        record_queries(connection, [query(), query(collections=["payroll"])])
        connection.act_for(library.secrets["unknown"])
        record_queries(connection, [query()])
        connection.act_for(None)
        record_queries(connection, [query()])
        for statement in ("SELECT * FROM rag.query_log", "DELETE FROM rag.query_log"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
    assert rows(log, "key, collections") == [("reader", ["handbook"])]


@pytest.mark.parametrize(
    "wrong",
    [
        {"collections": []},
        {"collections": ["payroll"]},
        {"collections": ["handbook", "payroll"]},
        {"mode": "psychic"},
        {"kind": "theft"},
        {"k": -1},
        {"hits": 10**6},
        {"tokens": -5},
        {"tokens": 10**12},
        {"cost_usd": -1.0},
        {"cost_usd": 10**9},
        {"seconds": -1.0},
        {"seconds": 10**9},
        {"question": "x" * 200_000},
    ],
)
def test_what_no_search_can_have_been_is_not_recorded(library, log, wrong):
    with closing(access.connect_query(library.owner.query_database_url, library.secrets["reader"])) as connection:
        record_queries(connection, [query(**wrong), query()])
        connection.act_for(library.secrets["reader"])
        with connection.transaction():
            forged = [asdict(query()) | {"seconds_ago": 10**8, "at": "2001-01-01", "key": "auditor"}]
            connection.execute("SELECT rag.record_queries(%s)", [Jsonb(forged)])
    assert rows(log, "key, collections, at > now() - interval '1 minute'") == [("reader", ["handbook"], True)] * 2


def test_closing_does_not_wait_for_a_record_that_somebody_has_locked(library, log, caplog):
    recorded = QueryLog(library.owner.connect)
    with closing(library.owner.connect()) as other, other.transaction():
        other.execute("LOCK TABLE rag.query_log")
        recorded.record(query())
        closer = threading.Thread(target=recorded.close, daemon=True)
        closer.start()
        closer.join(30)
        assert not closer.is_alive()
    assert "1 queries were not recorded: QueryCanceled" in caplog.text
    assert "who?" not in caplog.text
    assert rows(log) == []


def test_the_use_of_a_collection_that_was_removed_is_not_that_of_its_successor(library, log):
    settings = {"embedding_model": library.owner.settings.embedding_model, "dimensions": 64}
    collections.add(log, "phoenix", "/tmp", settings)
    record_queries(log, [query(collections=["phoenix"])])
    assert len(audit.usage(log, "phoenix")) == 1
    collections.remove(log, "phoenix")
    collections.add(log, "phoenix", "/tmp", settings)
    try:
        assert audit.usage(log, "phoenix") == []
    finally:
        collections.remove(log, "phoenix")


def test_a_record_that_cannot_be_written_fails_no_search(library, log):
    def refuse() -> psycopg.Connection:
        raise psycopg.OperationalError("down")

    broken = QueryLog(refuse)
    for _ in range(3):
        broken.record(query())
    broken.close()
    assert rows(log) == []
    attempts = []

    def at_the_second(connect=library.owner.connect) -> psycopg.Connection:
        attempts.append(1)
        return refuse() if len(attempts) == 1 else connect()

    recovering = QueryLog(at_the_second)
    for _ in range(audit.BATCH + 1):
        recovering.record(query())
    recovering.close()
    assert len(rows(log)) == 1


def test_batches_are_written_when_full_or_old_without_being_closed(library, log):
    recorded = QueryLog(library.owner.connect)
    for _ in range(audit.BATCH):
        recorded.record(query())
    eventually(lambda: len(rows(log)) == audit.BATCH, 30)
    recorded.record(query())
    eventually(lambda: len(rows(log)) == audit.BATCH + 1, 30)
    recorded.close()


def test_use_is_counted_by_key_and_old_records_go(library, log):
    record_queries(log, [query(tokens=5), query(tokens=6), query(collections=["payroll"])])
    with closing(access.connect_query(library.owner.query_database_url, library.secrets["reader"])) as connection:
        record_queries(connection, [query(tokens=1)])
    counted = [(use["key"], use["queries"], use["tokens"]) for use in audit.usage(log, "handbook")]
    assert counted == [(None, 2, 11), ("reader", 1, 1)]
    assert audit.prune(log) == 0
    log.execute("UPDATE rag.query_log SET at = at - interval '91 days' WHERE key IS NULL")
    assert audit.prune(log) == 3
    assert [use["key"] for use in audit.usage(log, "handbook")] == ["reader"]
