"""One writer a collection: a PostgreSQL advisory lock, which the server releases when its holder is gone, somehow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from psycopg import Connection

# The first half of the lock's key; the second is the collection's name, hashed.
WRITER_LOCK = 7_240_612


@contextmanager
def writer(connection: Connection, name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the collection for writing. Calls `waiting` once if somebody else has it, and waits for them."""
    key = [WRITER_LOCK, name]
    if not connection.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", key).fetchone()[0]:
        waiting()
        connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", key)
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s, hashtext(%s))", key)
