"""pgvector_index: what readers see. Whole documents are published, removals take effect, leftovers are collected."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from psycopg import Connection

from rag_pipeline.core.cache import EmbeddingCache
from rag_pipeline.core.checks import incomplete_documents
from rag_pipeline.core.collections import Collection
from rag_pipeline.core.errors import RagError, ServiceError
from rag_pipeline.core.garbage import collect_garbage, erase_forgotten
from rag_pipeline.core.indexing import (
    VectorIndex,
    active_index,
    build_graph,
    can_take_over,
    drop_retired,
    target_index,
    with_lacking,
)

CHANGES_SHOWN = 50


@dataclass
class IndexReport:
    """What this stage did. `failures` are (path, why) of documents that could not be published as they now are;
    `changes` names the first documents that readers see anew or no more: (path, what happened), `touched` are the
    paths of all that were published, `unforgotten` says why the cache may still have embeddings of forgotten texts."""

    published: int = 0
    removed: int = 0
    deleted: int = 0
    rows: int = 0
    switched: bool = False
    unforgotten: str = ""
    touched: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    changes: list[tuple[str, str]] = field(default_factory=list)


def publish_documents(
    connection: Connection,
    collection: Collection,
    caches: Sequence[EmbeddingCache] = (),
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> IndexReport:
    """Publish every document that is whole in the target index, and every removal, together; then clean up.

    `caches` are those that forgotten texts are to leave. `progress` is told how many rows the graph of a new index has.
    """
    report = IndexReport()
    index = target_index(connection, collection.name)
    if index is not None and not index.active:
        build_graph(connection, index, progress)
    with connection.transaction():
        connection.execute("SELECT FROM rag.collection WHERE name = %s FOR UPDATE", [collection.name])
        if index is not None:
            index = _publish(connection, index, report)
        _remove(connection, collection.name, report)
        if index is not None and (report.touched or report.switched):
            _require_whole(connection, index, None if report.switched else report.touched)
    report.deleted = collect_garbage(connection, collection.name)
    try:
        report.deleted += erase_forgotten(connection, collection.name, caches)
    except ServiceError as error:
        report.unforgotten = str(error)
    drop_retired(connection, collection.name)
    report.failures = _failures(connection, collection.name)
    current = target_index(connection, collection.name)
    report.rows = current.rows if current else 0
    return report


def _publish(connection: Connection, index: VectorIndex, report: IndexReport) -> VectorIndex:
    """Move the pointers of whole documents; the index that shows them. A new one takes over only when every published
    document is whole in it, and every moved one that is served under its old path; until then the active one serves."""
    parameters = {"collection": index.collection, "index": index.id}
    if not index.active:
        report.switched = can_take_over(connection, index)
        if report.switched:
            _switch(connection, index)
        else:
            index = active_index(connection, index.collection)
            parameters["index"] = index.id
    published = connection.execute(
        with_lacking(
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
    report.published, report.touched = len(published), [path for path, _ in published]
    report.changes += [(path, "added" if new else "replaced") for path, new in published[:CHANGES_SHOWN]]
    return index


def _require_whole(connection: Connection, index: VectorIndex, paths: list[str] | None) -> None:
    """Raises RagError, which takes the publication back, unless these documents, or (None) all, are whole."""
    broken = incomplete_documents(connection, index, paths)
    if broken:
        raise RagError(
            f"{len(broken)} documents of {index.collection} would have been published in parts, so nothing was: "
            f"{broken[0].subject}: {broken[0].problem}; what is served stays so: rag ingest {index.collection} again"
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


def _failures(connection: Connection, name: str) -> list[tuple[str, str]]:
    """Documents the provider failed: a reason to fail the run, once everything whole is published."""
    return connection.execute(
        """SELECT path, failure_detail FROM rag.document
           WHERE collection = %s AND failure_stage = 'embedding' ORDER BY path""",
        [name],
    ).fetchall()
