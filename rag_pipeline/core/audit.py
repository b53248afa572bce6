"""What was searched and asked, by whom: recorded off the query's path, kept for a time, counted for `rag status`."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from time import monotonic

import psycopg
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from rag_pipeline.core.errors import RagError

log = logging.getLogger(__name__)

# A batch is written when it is so large, or its first query so many seconds old.
BATCH = 100
SECONDS = 1.0

# Beyond so many that wait for a database that does not take them, the newest are dropped.
MOST_WAITING = 10_000

# A database that takes a batch no sooner has lost it; and the seconds that closing waits at most, whatever hangs.
STATEMENT_TIMEOUT = "2s"
CLOSING_SECONDS = 5.0

# How long what was asked can be looked up.
KEPT_DAYS = 90


@dataclass(frozen=True)
class Query:
    """A search, or an ask with whether it was `answered`. The database keeps `question` only where that is wanted."""

    kind: str
    collections: Sequence[str]
    question: str
    mode: str
    k: int
    hits: int
    tokens: int
    cost_usd: float | None
    seconds: float
    answered: bool | None = None


class QueryLog:
    """Writes queries in batches, from a thread and through a connection of its own. What it cannot write is lost: no
    search waits for its record, or fails with it."""

    def __init__(self, connect: Callable[[], Connection]):
        self._connect = connect
        self._waiting: queue.Queue[Query | None] = queue.Queue(MOST_WAITING)
        self._writer: threading.Thread | None = None

    def record(self, query: Query) -> None:
        """Hand over a query to be written; returns at once."""
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_all, name="rag query log", daemon=True)
            self._writer.start()
        try:
            self._waiting.put_nowait(query)
        except queue.Full:
            log.warning("a query was not recorded: %d wait already", MOST_WAITING)

    def close(self) -> None:
        """Write what is waiting; returns when it is written or lost, within CLOSING_SECONDS or so."""
        if self._writer is None:
            return
        deadline = monotonic() + CLOSING_SECONDS
        with suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSING_SECONDS)
        self._writer.join(max(0.0, deadline - monotonic()))
        if self._writer.is_alive():
            log.warning("the last queries were not recorded: the database does not answer")
        self._writer = None

    def _write_all(self) -> None:
        connection, closing = None, False
        while not closing:
            batch, closing = self._next_batch()
            if not batch:
                continue
            try:
                if connection is None:
                    connection = self._connect()
                    connection.execute("SELECT set_config('statement_timeout', %s, false)", [STATEMENT_TIMEOUT])
                record_queries(connection, batch)
            except (psycopg.Error, RagError) as error:
                # The error's own text may quote a question.
                log.warning("%d queries were not recorded: %s", len(batch), type(error).__name__)
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _next_batch(self) -> tuple[list[Query], bool]:
        """The queries of the next second or so, once there is one; and whether they are the last."""
        batch: list[Query] = []
        due = None
        while len(batch) < BATCH:
            try:
                query = self._waiting.get(timeout=None if due is None else max(0.0, due - monotonic()))
            except queue.Empty:
                break
            if query is None:
                return batch, True
            batch.append(query)
            due = due or monotonic() + SECONDS
        return batch, False


def record_queries(connection: Connection, queries: Sequence[Query]) -> None:
    """Write queries as whoever the connection acts for, at the time it is now."""
    entries = []
    for query in queries:
        entry = asdict(query)
        entry["question"] = query.question.replace("\0", "")
        entries.append(entry)
    with connection.transaction():
        connection.execute("SELECT rag.record_queries(%s)", [Jsonb(entries)])


def usage(connection: Connection, name: str) -> list[dict[str, object]]:
    """Who used a collection within KEPT_DAYS: {key, queries, tokens, last}, busiest first; key None is the owner.

    One of the same name that was removed before is another collection.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            """SELECT key, count(*) AS queries, sum(tokens)::bigint AS tokens, max(at)::timestamptz(0) AS last
               FROM rag.query_log
               WHERE collections @> ARRAY[%(name)s]
                     AND at >= (SELECT created_at FROM rag.collection WHERE name = %(name)s)
               GROUP BY key ORDER BY queries DESC, key""",
            {"name": name},
        ).fetchall()


def prune(connection: Connection) -> int:
    """Delete what is older than KEPT_DAYS; how many queries that were."""
    return connection.execute(
        "DELETE FROM rag.query_log WHERE at < now() - make_interval(days => %s)", [KEPT_DAYS]
    ).rowcount
