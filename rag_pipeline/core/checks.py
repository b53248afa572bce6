"""What must be true of a collection's index, looked for in the database: each function returns what it finds wrong.

Findings name paths and figures, never a word of a document.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import Connection, sql

from rag_pipeline.core.indexing import VectorIndex
from rag_pipeline.core.ranking import DEPTH

# Recall is measured for the hits that a search shows at first, on so many of the index's own vectors.
RECALL_HITS = 10
RECALL_SAMPLE = 50


@dataclass(frozen=True)
class Finding:
    """A path, or what else is concerned, and what is wrong with it."""

    subject: str
    problem: str


def incomplete_documents(connection: Connection, index: VectorIndex, paths: Sequence[str] | None) -> list[Finding]:
    """Published documents, of these paths or (None) of all, that lack their text, a chunk or its row in the index, or
    have a vector of other dimensions there."""
    rows = connection.execute(
        """SELECT d.path, k.chunks, count(c.ordinal) AS chunked, count(i.content_hash) AS indexed,
                  count(*) FILTER (WHERE vector_dims(i.embedding) <> %(dimensions)s) AS misfits, p.parse_key IS NOT NULL
           FROM rag.document d
           LEFT JOIN rag.chunking k ON k.collection = d.collection AND k.chunk_key = d.published_chunk_key
           LEFT JOIN rag.parsed_text p
                ON p.collection = d.collection AND p.parse_key = k.parse_key AND p.text IS NOT NULL
           LEFT JOIN rag.token_chunk c ON c.collection = d.collection AND c.chunk_key = d.published_chunk_key
           LEFT JOIN rag.indexed_chunk i ON i.index_id = %(index)s AND i.content_hash = c.content_hash
           WHERE d.collection = %(collection)s AND d.published_chunk_key IS NOT NULL
                 AND (%(paths)s::text[] IS NULL OR d.path = ANY (%(paths)s))
           GROUP BY d.path, k.chunks, p.parse_key
           HAVING count(c.ordinal) IS DISTINCT FROM k.chunks OR count(i.content_hash) IS DISTINCT FROM k.chunks
                  OR count(*) FILTER (WHERE vector_dims(i.embedding) <> %(dimensions)s) > 0 OR p.parse_key IS NULL
           ORDER BY d.path""",
        {
            "collection": index.collection,
            "index": index.id,
            "dimensions": index.dimensions,
            "paths": None if paths is None else list(paths),
        },
    ).fetchall()
    return [
        Finding(
            path,
            f"{chunks} chunks are due: {chunked} there, {indexed} indexed, {misfits} of other dimensions"
            if has_text
            else "the text that it was cut from is not there",
        )
        for path, chunks, chunked, indexed, misfits, has_text in rows
    ]


def newly_failed(connection: Connection, name: str) -> list[Finding]:
    """Documents that are served, and whose newest version failed since this was last asked."""
    with connection.transaction():
        rows = connection.execute(
            """SELECT path, failure_stage, failure_reason FROM rag.document
               WHERE collection = %s AND failed_before <> (failure_stage IS NOT NULL)
                     AND failure_stage IS NOT NULL AND published_chunk_key IS NOT NULL AND NOT removed ORDER BY path""",
            [name],
        ).fetchall()
        connection.execute(
            """UPDATE rag.document SET failed_before = failure_stage IS NOT NULL
               WHERE collection = %s AND failed_before <> (failure_stage IS NOT NULL)""",
            [name],
        )
    return [Finding(path, f"{reason} ({stage})") for path, stage, reason in rows]


def wrong_rows(connection: Connection, index: VectorIndex) -> list[Finding]:
    """Rows of the index that no document has, published or about to be; and a count of them that is not theirs."""
    stray, rows = connection.execute(
        """SELECT count(*) FILTER (WHERE NOT EXISTS (
                      SELECT FROM rag.token_chunk c
                      JOIN rag.document d ON d.collection = c.collection
                           AND (d.published_chunk_key = c.chunk_key OR d.chunk_key = c.chunk_key)
                      WHERE c.collection = %(collection)s AND c.content_hash = i.content_hash)),
                  count(*)
           FROM rag.indexed_chunk i WHERE index_id = %(index)s""",
        {"collection": index.collection, "index": index.id},
    ).fetchone()
    findings = [Finding(f"index {index.id}", f"{stray} of its rows belong to no document")] if stray else []
    if rows != index.rows:
        findings.append(Finding(f"index {index.id}", f"{index.rows} rows are counted, {rows} are there"))
    return findings


def orphans(connection: Connection, name: str) -> list[Finding]:
    """Texts, chunks and partitions that nothing refers to, save those that are noted to be deleted."""
    counted = connection.execute(
        """WITH held AS MATERIALIZED (
               SELECT kind, key FROM rag.document d, LATERAL (
                   VALUES ('parsed_text', d.wanted_parse_key), ('parsed_text', d.parse_key),
                          ('chunking', d.chunk_key), ('chunking', d.published_chunk_key)) AS keys (kind, key)
               WHERE d.collection = %(name)s
               -- A document that is served in its older version is cut from the text of that.
               UNION SELECT 'parsed_text', parse_key FROM rag.chunking WHERE collection = %(name)s
               UNION SELECT kind, key FROM rag.garbage WHERE collection = %(name)s)
           SELECT 'parsed texts', count(*) FROM rag.parsed_text p
           WHERE p.collection = %(name)s
                 AND NOT EXISTS (SELECT FROM held WHERE kind = 'parsed_text' AND key = p.parse_key)
           UNION ALL
           SELECT 'chunked documents', count(*) FROM rag.chunking k
           WHERE k.collection = %(name)s AND NOT EXISTS (SELECT FROM held WHERE kind = 'chunking' AND key = k.chunk_key)
           UNION ALL
           SELECT 'partitions ' || string_agg(t.relname, ', '), count(*)
           FROM pg_inherits h JOIN pg_class t ON t.oid = h.inhrelid
           WHERE h.inhparent = 'rag.indexed_chunk'::regclass
                 AND NOT EXISTS (SELECT FROM rag.vector_index v WHERE t.relname = 'indexed_chunk_' || v.id)""",
        {"name": name},
    ).fetchall()
    return [Finding(what, f"{number} that nothing refers to") for what, number in counted if number]


def wrong_dimensions(connection: Connection, index: VectorIndex) -> list[Finding]:
    """Vectors that the index's model cannot have made."""
    (misfits,) = connection.execute(
        "SELECT count(*) FROM rag.indexed_chunk WHERE index_id = %s AND vector_dims(embedding) <> %s",
        [index.id, index.dimensions],
    ).fetchone()
    problem = f"{misfits} vectors have not the {index.dimensions} dimensions of {index.model}"
    return [Finding(f"index {index.id}", problem)] if misfits else []


def wrong_statistics(connection: Connection, index: VectorIndex) -> list[Finding]:
    """How many words the text statistics count otherwise than they stand in the index's rows."""
    if not _has_index(connection, index, "gin"):
        return [Finding(f"index {index.id}", "it has no text index")]
    differing, words, counted = connection.execute(
        """WITH found AS MATERIALIZED (
               SELECT word, ndoc FROM ts_stat(format('SELECT terms FROM rag.%%I', %(table)s::text)))
           SELECT (SELECT count(*) FROM found
                   FULL JOIN (SELECT term, chunks FROM rag.index_term WHERE index_id = %(index)s) AS t
                        ON t.term = found.word COLLATE "C"
                   WHERE t.chunks IS DISTINCT FROM found.ndoc),
                  (SELECT coalesce(sum(ndoc), 0) FROM found),
                  (SELECT words FROM rag.vector_index WHERE id = %(index)s)""",
        {"index": index.id, "table": f"indexed_chunk_{index.id}"},
    ).fetchone()
    findings = [Finding(f"index {index.id}", f"{differing} words are counted wrongly")] if differing else []
    if words != counted:
        findings.append(Finding(f"index {index.id}", f"{counted} words are counted in all, {words} are there"))
    return findings


def recall(connection: Connection, index: VectorIndex) -> float:
    """The share of the nearest RECALL_HITS that the HNSW graph finds, of those that comparing every row finds; over a
    random sample of the index's own vectors, with the breadth of search that `rag search` has. 1 when it is empty, 0
    without a graph."""
    if not _has_index(connection, index, "hnsw"):
        return 0.0
    kind = sql.SQL("halfvec" if index.precision == "half" else "vector")
    distance = sql.SQL("embedding::{kind}({dimensions}) <=> %(vector)s::{kind}({dimensions})").format(
        kind=kind, dimensions=sql.Literal(index.dimensions)
    )
    nearest = sql.SQL("SELECT {distance} FROM {table} ORDER BY {order} LIMIT %(k)s")
    by_graph = nearest.format(distance=distance, table=index.table, order=distance)
    exactly = nearest.format(distance=distance, table=index.table, order=sql.SQL("({}) + 0").format(distance))
    found = wanted = 0
    with connection.transaction():
        connection.execute(
            """SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', 'strict_order', true),
                      set_config('enable_seqscan', 'off', true)""",
            [str(DEPTH)],
        )
        for vector in _sample(connection, index):
            parameters = {"vector": vector, "k": RECALL_HITS}
            best = [distance for (distance,) in connection.execute(exactly, parameters).fetchall()]
            got = [distance for (distance,) in connection.execute(by_graph, parameters).fetchall()]
            # Whatever is as near as the last of the best is as good.
            found += sum(distance <= best[-1] + 1e-6 for distance in got)
            wanted += len(best)
    return found / wanted if wanted else 1.0


def _has_index(connection: Connection, index: VectorIndex, kind: str) -> bool:
    return connection.execute(
        """SELECT EXISTS (
               SELECT FROM pg_index x
               JOIN pg_class made ON made.oid = x.indexrelid
               JOIN pg_am a ON a.oid = made.relam
               WHERE x.indrelid = to_regclass(%s) AND x.indisvalid AND a.amname = %s)""",
        [f"rag.indexed_chunk_{index.id}", kind],
    ).fetchone()[0]


def _sample(connection: Connection, index: VectorIndex) -> list:
    """Vectors from a random place on, in the order of their texts' hashes, which is as good as none."""
    statement = sql.SQL("SELECT embedding FROM {table} WHERE content_hash >= %s ORDER BY content_hash LIMIT %s").format(
        table=index.table
    )
    rows = connection.execute(statement, [secrets.token_bytes(32), RECALL_SAMPLE]).fetchall()
    rows += connection.execute(statement, [b"", RECALL_SAMPLE - len(rows)]).fetchall()
    return [vector for (vector,) in rows]
