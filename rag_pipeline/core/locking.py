"""One writer a collection, whether a run works in one process or its steps in several.

A run lives while a session shares the advisory lock of its id; the server releases it when that session ends, somehow.
`rag.claim` says which run has a collection. Nothing clears it: a claim is as good as its run is alive.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import Connection

from rag_pipeline.core.errors import UsageError

# The first half of the lock's key; the second is the run's id, hashed.
RUN_LOCK = 7_240_612

SECONDS_BETWEEN_ATTEMPTS = 0.25


@contextmanager
def living(connection: Connection, run_id: str) -> Iterator[None]:
    """Let the run be known to live, as long as this lasts and the connection is open."""
    # A session that holds nothing but the lock is idle for as long as its run lasts.
    connection.execute("SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'")
    connection.execute("SELECT pg_advisory_lock_shared(%s, hashtext(%s))", [RUN_LOCK, run_id])
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock_shared(%s, hashtext(%s))", [RUN_LOCK, run_id])


def is_living(connection: Connection, run_id: str) -> bool:
    """Whether any session but this one says that the run lives."""
    (alone,) = connection.execute("SELECT pg_try_advisory_xact_lock(%s, hashtext(%s))", [RUN_LOCK, run_id]).fetchone()
    return not alone


@contextmanager
def claim(connection: Connection, name: str, run_id: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the collection for a run, all of whose steps pass. Calls `waiting` once with the id of the run that has it,
    if another does, and waits until that has ended; raises UsageError when the collection is removed meanwhile."""
    with living(connection, run_id):
        told, pause = False, threading.Event()
        while not _take(connection, name, run_id):
            if not told and (other := holder(connection, name)):
                waiting(other)
                told = True
            pause.wait(SECONDS_BETWEEN_ATTEMPTS)
        yield


def holder(connection: Connection, name: str) -> str | None:
    """The id of the run that has the collection; None when none has."""
    row = connection.execute("SELECT run_id FROM rag.claim WHERE collection = %s", [name]).fetchone()
    return row[0] if row and is_living(connection, row[0]) else None


def keep_out_forget(connection: Connection, name: str) -> None:
    """Until the transaction ends: `rag forget` locks this row before it touches any that writers lock,
    which keeps the two out of each other's way, and of a deadlock."""
    connection.execute("SELECT FROM rag.collection WHERE name = %s FOR KEY SHARE", [name])


def _take(connection: Connection, name: str, run_id: str) -> bool:
    """Whether the collection is this run's now: it was, nobody had it, or the run that had it lives no more."""
    try:
        return bool(
            connection.execute(
                """INSERT INTO rag.claim AS c (collection, run_id) VALUES (%(name)s, %(run)s)
                   ON CONFLICT (collection) DO UPDATE SET run_id = excluded.run_id
                   WHERE c.run_id = excluded.run_id OR pg_try_advisory_xact_lock(%(lock)s, hashtext(c.run_id))
                   RETURNING run_id""",
                {"name": name, "run": run_id, "lock": RUN_LOCK},
            ).fetchone()
        )
    except psycopg.errors.ForeignKeyViolation:
        raise UsageError(
            f"collection {name} was removed meanwhile: rag collection list shows those there are"
        ) from None
