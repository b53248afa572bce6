"""What the tables need now and then, beside what each run does for its collection."""

from psycopg import Connection, sql

from rag_pipeline.core.collections import list_all
from rag_pipeline.core.garbage import reclaim_space


def tidy(connection: Connection) -> int:
    """Drop the retired partitions that runs have left, vacuum what rows were deleted from; how many were dropped.

    The connection is in autocommit mode, for VACUUM runs in no transaction.
    """
    count = "SELECT count(*) FROM rag.vector_index WHERE retired_at IS NOT NULL"
    (before,) = connection.execute(count).fetchone()
    for collection in list_all(connection):
        reclaim_space(connection, collection.name)
    (after,) = connection.execute(count).fetchone()
    for schema, table in connection.execute(
        """SELECT schemaname, relname FROM pg_stat_user_tables
           WHERE schemaname IN ('rag', 'dagster') AND n_dead_tup > 1000 ORDER BY relname"""
    ).fetchall():
        connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(schema, table)))
    return before - after
