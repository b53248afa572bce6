"""pgvector_index: what readers see. Whole documents are published, removals take effect, leftovers are collected."""

from dataclasses import dataclass, field

from psycopg import Connection, sql

from rag_pipeline.core.collections import Collection
from rag_pipeline.core.indexing import (
    VectorIndex,
    active_index,
    build_graph,
    delete_chunks,
    drop_retired,
    missing_chunks,
    target_index,
)

GARBAGE_BATCH = 200
CHANGES_SHOWN = 50


@dataclass
class IndexReport:
    """What this stage did. `failures` are (path, why) of documents that could not be published as they now are;
    `changes` names the first documents that readers see anew or no more: (path, what happened)."""

    published: int = 0
    removed: int = 0
    deleted: int = 0
    rows: int = 0
    switched: bool = False
    failures: list[tuple[str, str]] = field(default_factory=list)
    changes: list[tuple[str, str]] = field(default_factory=list)


def publish_documents(connection: Connection, collection: Collection) -> IndexReport:
    """Publish every document that is whole in the target index, and every removal, together; then clean up."""
    report = IndexReport()
    index = target_index(connection, collection.name)
    if index is not None and not index.active:
        build_graph(connection, index)
    with connection.transaction():
        connection.execute("SELECT FROM rag.collection WHERE name = %s FOR UPDATE", [collection.name])
        if index is not None:
            _publish(connection, index, report)
        _remove(connection, collection.name, report)
    report.deleted = _collect_garbage(connection, collection.name)
    drop_retired(connection, collection.name)
    report.failures = _failures(connection, collection.name)
    current = target_index(connection, collection.name)
    report.rows = current.rows if current else 0
    return report


def _publish(connection: Connection, index: VectorIndex, report: IndexReport) -> None:
    """Move the pointers of whole documents. A new index takes over only when every published document is whole in it;
    until then the active one shows what it can."""
    parameters = {"collection": index.collection, "index": index.id}
    if not index.active:
        (broken,) = connection.execute(
            _with_lacking(
                index,
                """SELECT count(*) FROM rag.document d
                   WHERE collection = %(collection)s AND published_chunk_key IS NOT NULL AND NOT removed
                         AND NOT {whole}""",
            ),
            parameters,
        ).fetchone()
        report.switched = not broken
        if broken:
            index = active_index(connection, index.collection)
            parameters["index"] = index.id
        else:
            _switch(connection, index)
    published = connection.execute(
        _with_lacking(
            index,
            """UPDATE rag.document d SET published_chunk_key = d.chunk_key
               FROM rag.document before
               WHERE d.collection = %(collection)s AND d.pending AND NOT d.removed
                     AND d.chunk_key IS DISTINCT FROM d.published_chunk_key AND {whole}
                     AND before.collection = d.collection AND before.path = d.path
               RETURNING d.path, before.published_chunk_key IS NULL""",
        ),
        parameters,
    ).fetchall()
    report.published = len(published)
    report.changes += [(path, "added" if new else "replaced") for path, new in published[:CHANGES_SHOWN]]


def _with_lacking(index: VectorIndex, statement: str) -> sql.Composed:
    """A statement in which `{whole}` tests that a document `d` is chunked and has all its chunks in the index."""
    return sql.SQL(
        "WITH lacking AS MATERIALIZED (SELECT DISTINCT chunk_key FROM ({missing}) AS missing) " + statement
    ).format(
        missing=missing_chunks(index),
        whole=sql.SQL(
            """(EXISTS (SELECT FROM rag.chunking k WHERE k.collection = d.collection AND k.chunk_key = d.chunk_key)
                AND NOT EXISTS (SELECT FROM lacking WHERE lacking.chunk_key = d.chunk_key))"""
        ),
    )


def _switch(connection: Connection, index: VectorIndex) -> None:
    """Make an index the active one, and retire the one it replaces."""
    connection.execute(
        """WITH switched AS (
               UPDATE rag.collection c SET active_index = %(index)s FROM rag.collection before
               WHERE c.name = %(collection)s AND before.name = c.name
               RETURNING before.active_index AS previous)
           UPDATE rag.vector_index SET retired_at = now() FROM switched WHERE id = switched.previous""",
        {"collection": index.collection, "index": index.id},
    )


def _remove(connection: Connection, name: str, report: IndexReport) -> None:
    """Drop removed documents; a moved one's old path stays until the new one is published, or is known not to parse."""
    removed = connection.execute(
        """DELETE FROM rag.document d
           WHERE collection = %(collection)s AND pending AND removed
                 AND (published_chunk_key IS NULL OR NOT EXISTS (
                     SELECT FROM rag.document moved
                     WHERE moved.collection = d.collection AND moved.content_hash = d.content_hash
                           AND NOT moved.removed AND moved.pending
                           AND coalesce(moved.failure_stage, 'embedding') = 'embedding'))
           RETURNING path""",
        {"collection": name},
    ).fetchall()
    report.removed = len(removed)
    report.changes += [(path, "removed") for (path,) in removed[: CHANGES_SHOWN - len(report.changes)]]


def _collect_garbage(connection: Connection, name: str) -> int:
    """Delete what no document holds any more, a batch a transaction; the number of index rows that went."""
    deleted = 0
    while keys := _garbage(connection, name, "chunking"):
        with connection.transaction():
            unheld = connection.execute(
                """DELETE FROM rag.token_chunk c
                   WHERE collection = %(collection)s AND chunk_key = ANY (%(keys)s)
                         AND NOT EXISTS (SELECT FROM rag.document d
                                         WHERE d.collection = c.collection AND d.chunk_key = c.chunk_key)
                         AND NOT EXISTS (SELECT FROM rag.document d
                                         WHERE d.collection = c.collection AND d.published_chunk_key = c.chunk_key)
                   RETURNING content_hash""",
                {"collection": name, "keys": keys},
            ).fetchall()
            deleted += _delete_rows(connection, name, list({content_hash for (content_hash,) in unheld}))
            connection.execute(
                """DELETE FROM rag.chunking k
                   WHERE collection = %(collection)s AND chunk_key = ANY (%(keys)s)
                         AND NOT EXISTS (SELECT FROM rag.document d
                                         WHERE d.collection = k.collection AND d.chunk_key = k.chunk_key)
                         AND NOT EXISTS (SELECT FROM rag.document d
                                         WHERE d.collection = k.collection AND d.published_chunk_key = k.chunk_key)""",
                {"collection": name, "keys": keys},
            )
            _forget_garbage(connection, name, "chunking", keys)
    while keys := _garbage(connection, name, "parsed_text"):
        with connection.transaction():
            connection.execute(
                """DELETE FROM rag.parsed_text p
                   WHERE collection = %(collection)s AND parse_key = ANY (%(keys)s)
                         AND NOT EXISTS (SELECT FROM rag.document d
                                         WHERE d.collection = p.collection AND d.parse_key = p.parse_key)
                         AND NOT EXISTS (SELECT FROM rag.document d
                                         WHERE d.collection = p.collection AND d.wanted_parse_key = p.parse_key)""",
                {"collection": name, "keys": keys},
            )
            _forget_garbage(connection, name, "parsed_text", keys)
    return deleted


def _garbage(connection: Connection, name: str, kind: str) -> list[bytes]:
    rows = connection.execute(
        "SELECT key FROM rag.garbage WHERE collection = %s AND kind = %s LIMIT %s", [name, kind, GARBAGE_BATCH]
    ).fetchall()
    return [key for (key,) in rows]


def _forget_garbage(connection: Connection, name: str, kind: str, keys: list[bytes]) -> None:
    connection.execute(
        "DELETE FROM rag.garbage WHERE collection = %s AND kind = %s AND key = ANY (%s)", [name, kind, keys]
    )


def _delete_rows(connection: Connection, name: str, content_hashes: list[bytes]) -> int:
    """Delete index rows whose text no chunk of the collection has any more."""
    indexes = connection.execute(
        "SELECT id FROM rag.vector_index WHERE collection = %s AND retired_at IS NULL", [name]
    ).fetchall()
    return sum(delete_chunks(connection, index_id, content_hashes) for (index_id,) in indexes)


def _failures(connection: Connection, name: str) -> list[tuple[str, str]]:
    """Documents the provider failed: a reason to fail the run, once everything whole is published."""
    return connection.execute(
        """SELECT path, failure_detail FROM rag.document
           WHERE collection = %s AND failure_stage = 'embedding' ORDER BY path""",
        [name],
    ).fetchall()
