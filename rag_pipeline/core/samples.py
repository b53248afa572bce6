"""What Dagster may show of a collection: paths, headings and figures. No other text of a document, for nobody could
erase it there."""

from collections.abc import Sequence

from psycopg import Connection

CHUNKS_SHOWN = 20
FAILURES_SHOWN = 100


def chunk_sample(connection: Connection, name: str, paths: Sequence[str]) -> list[tuple[str, str, str, int]]:
    """Chunks of these documents, of each one first: (path, heading, span, tokens)."""
    return connection.execute(
        """SELECT d.path, array_to_string(c.headings, ' › '), c.span_start || ':' || c.span_end, c.tokens
           FROM rag.document d
           JOIN rag.token_chunk c ON c.collection = d.collection AND c.chunk_key = d.chunk_key
           WHERE d.collection = %s AND d.path = ANY (%s) ORDER BY c.ordinal, d.path LIMIT %s""",
        [name, list(paths), CHUNKS_SHOWN],
    ).fetchall()


def failure_sample(connection: Connection, name: str) -> list[tuple[str, str, str]]:
    """Documents whose newest version is not served: (path, stage, reason)."""
    return connection.execute(
        """SELECT path, failure_stage, failure_reason FROM rag.document
           WHERE collection = %s AND failure_stage IS NOT NULL ORDER BY path LIMIT %s""",
        [name, FAILURES_SHOWN],
    ).fetchall()
