"""Vector indexes: one partition of `rag.indexed_chunk` each, with one HNSW graph and one GIN index over its rows.

A collection serves from its active index. A change that would reshape it, or outgrow it, is prepared in another one
built beside it, and takes effect when `pgvector_index` switches to that.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import psycopg
from pgvector import Vector
from psycopg import Connection, sql
from psycopg.rows import class_row

from rag_pipeline.core.collections import Collection
from rag_pipeline.core.locking import keep_out_forget
from rag_pipeline.core.models import EmbeddingModel

# pgvector's HNSW takes vectors of at most this many dimensions in full precision, twice as many in half.
FULL_PRECISION_DIMENSIONS = 2000

# How often a build that lasts is asked how far it is.
SECONDS_BETWEEN_LOOKS = 0.5

# The form in which `rag.terms` writes now (sql/0004_search.sql). An index whose rows are in another is built anew.
TERMS_FORM = 2

# Below this, extending the live graph is quicker than thinking about it.
SMALL_INDEX = 1000


@dataclass(frozen=True)
class VectorIndex:
    """A row of `rag.vector_index`. `rows` counts its chunks, `dead_rows` those deleted since its graph was built."""

    id: int
    collection: str
    model: str
    dimensions: int
    precision: str
    text_search: str
    terms_form: int
    m: int
    ef_construction: int
    rows: int
    dead_rows: int
    active: bool

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier("rag", f"indexed_chunk_{self.id}")


def active_index(connection: Connection, name: str) -> VectorIndex | None:
    """The index that readers of the collection use."""
    return next((index for index in _living(connection, name) if index.active), None)


def target_index(connection: Connection, name: str) -> VectorIndex | None:
    """The index that is being brought up to date: the one under construction, else the active one."""
    return next(iter(sorted(_living(connection, name), key=lambda index: index.active)), None)


def choose_target(connection: Connection, collection: Collection, model: EmbeddingModel) -> VectorIndex:
    """The index to bring up to date, begun anew beside the active one when that cannot or should not be extended."""
    shape = _shape(collection, model)
    target = None
    for index in _living(connection, collection.name):
        fits = _fits(index, shape)
        if index.active:
            if fits and target is None and not _outgrown(connection, index):
                target = index
        elif fits:
            target = index
        else:
            _retire(connection, index)
    return target or _begin(connection, collection.name, shape)


def known_vectors(connection: Connection, collection: Collection, model: EmbeddingModel) -> list[VectorIndex]:
    """The indexes whose vectors a run would not ask for again: those of the model that `choose_target` keeps."""
    shape = _shape(collection, model)
    return [
        index
        for index in _living(connection, collection.name)
        if (index.model, index.dimensions) == (model.name, model.dimensions) and (index.active or _fits(index, shape))
    ]


def count_missing(connection: Connection, index: VectorIndex) -> int:
    """How many distinct chunks the collection's documents have that the index has not."""
    return connection.execute(
        sql.SQL("SELECT count(DISTINCT content_hash) FROM ({}) AS missing").format(missing_chunks(index)),
        {"collection": index.collection, "index": index.id},
    ).fetchone()[0]


def missing_chunks(index: VectorIndex, *, new_content: bool = False) -> sql.Composed:
    """The chunks a live index lacks of what is pending, or one under construction of everything; with `new_content`,
    of pending documents whose content, and not only its cutting, is another than the one that is served.

    Bind `collection` and `index`.
    """
    documents = sql.SQL("pending AND" if index.active else "")
    if new_content:
        documents += sql.SQL(
            """ NOT EXISTS (SELECT FROM rag.chunking k
                            WHERE k.collection = d.collection AND k.chunk_key = d.published_chunk_key
                                  AND k.parse_key = d.parse_key) AND"""
        )
    return sql.SQL(
        """SELECT c.* FROM rag.token_chunk c
           WHERE c.collection = %(collection)s
                 AND c.chunk_key IN (SELECT chunk_key FROM rag.document d
                                     WHERE collection = %(collection)s AND {documents} NOT removed)
                 AND NOT EXISTS (SELECT FROM rag.indexed_chunk i
                                 WHERE i.index_id = %(index)s AND i.content_hash = c.content_hash)"""
    ).format(documents=documents)


def with_lacking(index: VectorIndex, statement: str) -> sql.Composed:
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


def can_take_over(connection: Connection, index: VectorIndex) -> bool:
    """Whether every published document is whole in an index under construction, and every moved one that is served
    under its old path."""
    (broken,) = connection.execute(
        with_lacking(
            index,
            """SELECT count(*) FROM rag.document d
               WHERE collection = %(collection)s AND NOT removed AND NOT {whole}
                     AND (published_chunk_key IS NOT NULL
                          OR coalesce(failure_stage, 'embedding') = 'embedding' AND EXISTS (
                              SELECT FROM rag.document gone
                              WHERE gone.collection = d.collection AND gone.content_hash = d.content_hash
                                    AND gone.removed AND gone.published_chunk_key IS NOT NULL))""",
        ),
        {"collection": index.collection, "index": index.id},
    ).fetchone()
    return not broken


def copy_from_sibling(connection: Connection, index: VectorIndex) -> int:
    """Take over the vectors that another index of the collection has from the same model; how many were."""
    return _insert(
        connection,
        index,
        sql.SQL(
            """SELECT DISTINCT ON (s.content_hash) s.content_hash, s.input, s.embedding
               FROM rag.indexed_chunk s
               JOIN rag.vector_index v ON v.id = s.index_id
               WHERE v.collection = %(collection)s AND v.id <> %(index)s AND v.retired_at IS NULL
                     AND v.model = %(model)s AND v.dimensions = %(dimensions)s
                     AND s.content_hash IN (SELECT content_hash FROM ({missing}) AS missing)
               ORDER BY s.content_hash"""
        ).format(missing=missing_chunks(index)),
    )


def insert_chunks(connection: Connection, index: VectorIndex, rows: Sequence[tuple[bytes, str, np.ndarray]]) -> int:
    """Write (content hash, embedded input, vector) rows, committed together; how many were new to the index."""
    # Arrays, not COPY: that needs a table to arrive in, from which each vector is read and written once more.
    return _insert(
        connection,
        index,
        sql.SQL(
            """SELECT * FROM unnest(%(hashes)b::bytea[], %(inputs)b::text[], %(vectors)b::vector[])
                             AS arriving (content_hash, input, embedding)"""
        ),
        {
            "hashes": [content_hash for content_hash, _, _ in rows],
            "inputs": [text for _, text, _ in rows],
            "vectors": [Vector(vector) for _, _, vector in rows],
        },
    )


def delete_chunks(connection: Connection, index_id: int, content_hashes: Sequence[bytes]) -> int:
    """Delete the rows whose text no chunk of the index's collection has any more; how many there were."""
    (deleted,) = connection.execute(
        """WITH deleted AS (
               DELETE FROM rag.indexed_chunk i USING rag.vector_index v
               WHERE i.index_id = %(index)s AND v.id = %(index)s AND i.content_hash = ANY (%(hashes)s)
                     AND NOT EXISTS (SELECT FROM rag.token_chunk c
                                     WHERE c.collection = v.collection AND c.content_hash = i.content_hash)
               RETURNING i.terms),
           fewer AS (
               UPDATE rag.index_term t SET chunks = t.chunks - gone.chunks
               FROM (SELECT lexeme, count(*) AS chunks FROM deleted, unnest(deleted.terms) GROUP BY lexeme) AS gone
               WHERE t.index_id = %(index)s AND t.term = gone.lexeme)
           UPDATE rag.vector_index v
           SET rows = rows - number, dead_rows = dead_rows + number, words = v.words - total.words
           FROM (SELECT count(*) AS number, coalesce(sum(length(terms)), 0) AS words FROM deleted) AS total
           WHERE id = %(index)s RETURNING number""",
        {"index": index_id, "hashes": list(content_hashes)},
    ).fetchone()
    connection.execute("DELETE FROM rag.index_term WHERE index_id = %s AND chunks = 0", [index_id])
    return deleted


def build_graph(
    connection: Connection, index: VectorIndex, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Build the HNSW graph (cosine) and the text index over the rows loaded so far; at once when they are there.

    `progress` is called with (rows in the graph, rows), from another thread.
    """
    with connection.transaction(), _watched(connection, index, progress):
        connection.execute(
            "SELECT set_config('maintenance_work_mem', %s, true)", [f"{_build_memory_mb(connection, index)}MB"]
        )
        connection.execute("SELECT rag.build_graph(%s)", [index.id])
        _count_words(connection, index)
    connection.execute("SELECT rag.analyze_index(%s)", [index.id])


def drop_retired(connection: Connection, name: str) -> None:
    """Drop the collection's retired partitions, save those a reader may still be on its way to.

    Dropping locks the parent for a moment; when that is not to be had at once, a later run does it.
    """
    retired = connection.execute(
        "SELECT id FROM rag.vector_index WHERE collection = %s AND retired_at < now() - interval '1 minute'", [name]
    ).fetchall()
    for (index_id,) in retired:
        try:
            with connection.transaction():
                connection.execute("SET LOCAL lock_timeout = '100ms'")
                connection.execute("SELECT rag.drop_partition(%s)", [index_id])
                connection.execute("DELETE FROM rag.vector_index WHERE id = %s", [index_id])
        except psycopg.errors.LockNotAvailable:
            return


def _living(connection: Connection, name: str) -> list[VectorIndex]:
    """The collection's indexes that are not retired: the newest first."""
    with connection.cursor(row_factory=class_row(VectorIndex)) as cursor:
        return cursor.execute(
            """SELECT v.id, v.collection, v.model, v.dimensions, v.precision, v.text_search::text, v.terms_form,
                      v.m, v.ef_construction, v.rows, v.dead_rows, v.id IS NOT DISTINCT FROM c.active_index AS active
               FROM rag.vector_index v JOIN rag.collection c ON c.name = v.collection
               WHERE v.collection = %s AND v.retired_at IS NULL ORDER BY v.id DESC""",
            [name],
        ).fetchall()


def _shape(collection: Collection, model: EmbeddingModel) -> dict[str, object]:
    """What the collection's settings want of an index."""
    settings = collection.settings
    half = settings.precision == "half" or model.dimensions > FULL_PRECISION_DIMENSIONS
    return {
        "model": model.name,
        "dimensions": model.dimensions,
        "precision": "half" if half else "full",
        "text_search": settings.text_search,
        "terms_form": TERMS_FORM,
        "m": settings.hnsw_m,
        "ef_construction": settings.hnsw_ef_construction,
    }


def _fits(index: VectorIndex, shape: dict[str, object]) -> bool:
    return all(getattr(index, key) == value for key, value in shape.items())


def _outgrown(connection: Connection, index: VectorIndex) -> bool:
    """Whether building anew is cheaper, and makes a better graph, than extending the live one by what is missing."""
    if index.dead_rows > max(index.rows, SMALL_INDEX):
        return True
    missing = count_missing(connection, index)
    return missing > SMALL_INDEX and missing > index.rows / 2


def _begin(connection: Connection, name: str, shape: dict[str, object]) -> VectorIndex:
    """A new, empty partition."""
    with connection.transaction():
        (index_id,) = connection.execute(
            """INSERT INTO rag.vector_index
                   (collection, model, dimensions, precision, text_search, terms_form, m, ef_construction)
               VALUES (%(collection)s, %(model)s, %(dimensions)s, %(precision)s, %(text_search)s::regconfig,
                       %(terms_form)s, %(m)s, %(ef_construction)s) RETURNING id""",
            {"collection": name, **shape},
        ).fetchone()
        connection.execute("SELECT rag.create_partition(%s)", [index_id])
    return next(index for index in _living(connection, name) if index.id == index_id)


def _retire(connection: Connection, index: VectorIndex) -> None:
    connection.execute("UPDATE rag.vector_index SET retired_at = now() WHERE id = %s", [index.id])


def _insert(connection: Connection, index: VectorIndex, chunks: sql.Composable, parameters: Mapping = {}) -> int:
    """Add the (content_hash, input, embedding) that a query selects, save those the index has; how many were new.

    A live index counts its words as they come, one under construction when all are there (`_count_words`).
    """
    words = """more AS (
                   INSERT INTO rag.index_term AS t (index_id, term, chunks)
                   SELECT %(index)s, lexeme, count(*) FROM inserted, unnest(inserted.terms)
                   GROUP BY lexeme ORDER BY lexeme
                   ON CONFLICT (index_id, term) DO UPDATE SET chunks = t.chunks + excluded.chunks),"""
    statement = sql.SQL(
        """WITH inserted AS (
                   INSERT INTO {table} (index_id, content_hash, input, embedding, terms)
                   SELECT %(index)s, content_hash, input, embedding, rag.terms(%(text_search)s::regconfig, input)
                   FROM ({chunks}) AS chunks ON CONFLICT DO NOTHING RETURNING terms),
               {words}
               total AS (SELECT count(*) AS rows, coalesce(sum(length(terms)), 0) AS words FROM inserted)
               UPDATE rag.vector_index v SET rows = v.rows + total.rows, words = v.words + total.words
               FROM total WHERE id = %(index)s RETURNING total.rows"""
    ).format(table=index.table, chunks=chunks, words=sql.SQL(words if index.active else ""))
    with connection.transaction():
        # Taking over all of a sibling may take long, and nobody but its run writes to an index under construction.
        if index.active or parameters:
            keep_out_forget(connection, index.collection)
        (inserted,) = connection.execute(
            statement,
            {
                "index": index.id,
                "collection": index.collection,
                "model": index.model,
                "dimensions": index.dimensions,
                "text_search": index.text_search,
                **parameters,
            },
        ).fetchone()
    return inserted


@contextmanager
def _watched(connection: Connection, index: VectorIndex, progress: Callable[[int, int], None]) -> Iterator[None]:
    """Report how many rows the graph has that `connection` builds meanwhile: through another one, for it is busy."""
    pid, built = connection.info.backend_pid, threading.Event()

    def watch() -> None:
        if built.wait(SECONDS_BETWEEN_LOOKS):
            return
        # Nobody is told anything where the server takes no more connections; the building goes on.
        with (
            suppress(psycopg.Error),
            psycopg.connect(connection.info.dsn, password=connection.info.password, autocommit=True) as other,
        ):
            while not built.wait(SECONDS_BETWEEN_LOOKS):
                done = other.execute(
                    "SELECT tuples_done FROM pg_stat_progress_create_index WHERE pid = %s AND tuples_done > 0", [pid]
                ).fetchone()
                if done:
                    progress(done[0], index.rows)

    thread = threading.Thread(target=watch, name="graph-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        built.set()
        thread.join()


def _count_words(connection: Connection, index: VectorIndex) -> None:
    """Count how many rows have each word, over all rows of an index under construction."""
    connection.execute("DELETE FROM rag.index_term WHERE index_id = %s", [index.id])
    connection.execute(
        """INSERT INTO rag.index_term (index_id, term, chunks)
           SELECT %(index)s, word, ndoc FROM ts_stat(format('SELECT terms FROM rag.%%I', %(table)s::text))""",
        {"index": index.id, "table": f"indexed_chunk_{index.id}"},
    )


def _build_memory_mb(connection: Connection, index: VectorIndex) -> int:
    """Memory that holds the whole graph while it is built: a vector, its neighbours on all layers (about 2 m links of
    16 bytes) and some 200 bytes of bookkeeping for each row; at least what the server is set to."""
    (configured,) = connection.execute(
        "SELECT setting::bigint / 1024 FROM pg_settings WHERE name = 'maintenance_work_mem'"
    ).fetchone()
    (rows,) = connection.execute("SELECT rows FROM rag.vector_index WHERE id = %s", [index.id]).fetchone()
    needed = rows * (index.dimensions * 4 + 2 * index.m * 16 + 200) // 2**20
    return max(configured, min(needed + 64, 8192))
