"""What no document holds any more: noted by whoever lets go of it, deleted here with all that was made from it.

Every deletion tests again that no document holds the key: what is noted twice, or too early, does no harm.
"""

import threading
from collections.abc import Callable, Sequence

import psycopg
from psycopg import Connection, sql

from rag_pipeline.core.cache import LIFETIME_S, EmbeddingCache
from rag_pipeline.core.indexing import delete_chunks, drop_retired
from rag_pipeline.core.locking import keep_out_forget

BATCH = 200

# How long the lock on an index whose graph is being built, which may take minutes, is waited for.
PATIENCE = "1s"

# Each of them holds up readers for a tenth of a second at most.
DROPS_TRIED = 20


def collect_garbage(connection: Connection, name: str) -> int:
    """Delete what was noted, a batch a transaction; the number of index rows that went."""
    return collect_texts(connection, name, lambda hashes: _delete_rows(connection, name, hashes))


def collect_texts(connection: Connection, name: str, delete_rows: Callable[[Sequence[bytes]], int]) -> int:
    """Delete the chunks and the texts that were noted. `delete_rows` is given the hashes of the chunks, in the same
    transaction; the sum of what it returns."""
    deleted = 0
    while keys := _noted(connection, name, "chunking"):
        with connection.transaction():
            keep_out_forget(connection, name)
            unheld = connection.execute(
                """DELETE FROM rag.token_chunk c
                   WHERE collection = %(collection)s AND chunk_key = ANY (%(keys)s)
                         AND NOT EXISTS (SELECT FROM rag.document d
                                         WHERE d.collection = c.collection AND d.chunk_key = c.chunk_key)
                         AND NOT EXISTS (SELECT FROM rag.document d
                                         WHERE d.collection = c.collection AND d.published_chunk_key = c.chunk_key)
                   RETURNING chunk_key, content_hash""",
                {"collection": name, "keys": keys},
            ).fetchall()
            deleted += delete_rows(list({content_hash for _, content_hash in unheld}))
            _keep_past_texts(connection, name, unheld)
            uncut = connection.execute(
                """DELETE FROM rag.chunking k
                   WHERE collection = %(collection)s AND chunk_key = ANY (%(keys)s)
                         AND NOT EXISTS (SELECT FROM rag.document d
                                         WHERE d.collection = k.collection AND d.chunk_key = k.chunk_key)
                         AND NOT EXISTS (SELECT FROM rag.document d
                                         WHERE d.collection = k.collection AND d.published_chunk_key = k.chunk_key)
                   RETURNING parse_key""",
                {"collection": name, "keys": keys},
            ).fetchall()
            note_garbage(connection, name, [("parsed_text", parse_key) for (parse_key,) in uncut])
            _strike(connection, name, "chunking", keys)
    while keys := _noted(connection, name, "parsed_text"):
        with connection.transaction():
            connection.execute(
                """DELETE FROM rag.parsed_text p
                   WHERE collection = %(collection)s AND parse_key = ANY (%(keys)s)
                         AND NOT EXISTS (SELECT FROM rag.document d
                                         WHERE d.collection = p.collection AND d.parse_key = p.parse_key)
                         AND NOT EXISTS (SELECT FROM rag.document d
                                         WHERE d.collection = p.collection AND d.wanted_parse_key = p.parse_key)
                         AND NOT EXISTS (SELECT FROM rag.chunking k
                                         WHERE k.collection = p.collection AND k.parse_key = p.parse_key)""",
                {"collection": name, "keys": keys},
            )
            _strike(connection, name, "parsed_text", keys)
    return deleted


def erase_forgotten(connection: Connection, name: str, caches: Sequence[EmbeddingCache]) -> int:
    """Erase forgotten texts that a run may have indexed or cached since, save those that a document has by now; the
    number of index rows that went.

    Raises ServiceError when Redis cannot confirm it: what is noted then stays so, for the next time.
    """
    deleted = 0
    while keys := _noted(connection, name, "embedding"):
        with connection.transaction():
            keep_out_forget(connection, name)
            deleted += _delete_rows(connection, name, keys)
        erase_cached(caches, unheld(connection, name, keys))
        _strike(connection, name, "embedding", keys)
    return deleted


def erase_indexed(connection: Connection, name: str, hashes: Sequence[bytes]) -> int:
    """Delete these texts, and all that no chunk has, from every index of the collection, retired ones among them; the
    number of rows that went. An index whose graph is being built is left to the run that builds it."""
    deleted = 0
    for index_id, retired in connection.execute(
        "SELECT id, retired_at IS NOT NULL FROM rag.vector_index WHERE collection = %s ORDER BY id", [name]
    ).fetchall():
        try:
            with connection.transaction():
                connection.execute("SELECT set_config('lock_timeout', %s, true)", [PATIENCE])
                # Nothing else knows which of a retired index's texts were this document's.
                gone = _strays(connection, name, index_id) if retired else hashes
                deleted += delete_chunks(connection, index_id, gone)
                connection.execute("SET LOCAL lock_timeout = 0")
        except psycopg.errors.LockNotAvailable:
            continue
    return deleted


def erase_cached(caches: Sequence[EmbeddingCache], hashes: Sequence[bytes]) -> None:
    """Delete the cached embeddings of these texts. Raises ServiceError when Redis cannot confirm it."""
    for cache in caches:
        for start in range(0, len(hashes), BATCH):
            cache.forget(hashes[start : start + BATCH])


def reclaim_space(connection: Connection, name: str) -> None:
    """Drop retired partitions, however often readers are in the way; vacuum the others that deletions left gaps in; and
    forget the hashes of texts that no cache has any more."""
    connection.execute(
        "DELETE FROM rag.past_text WHERE collection = %s AND let_go_at < now() - make_interval(secs => %s)",
        [name, LIFETIME_S],
    )
    pause = threading.Event()
    for _ in range(DROPS_TRIED):
        drop_retired(connection, name)
        if not _to_drop(connection, name):
            break
        pause.wait(0.5)
    for (table,) in connection.execute(
        """SELECT relname FROM pg_stat_user_tables
           JOIN rag.vector_index v ON relname = 'indexed_chunk_' || v.id
           WHERE schemaname = 'rag' AND v.collection = %s AND n_dead_tup > greatest(1000, n_live_tup / 10)""",
        [name],
    ).fetchall():
        connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier("rag", table)))


def _to_drop(connection: Connection, name: str) -> bool:
    return connection.execute(
        """SELECT EXISTS (SELECT FROM rag.vector_index
                          WHERE collection = %s AND retired_at < now() - interval '1 minute')""",
        [name],
    ).fetchone()[0]


def all_texts(connection: Connection, name: str) -> list[bytes]:
    """The hashes of all texts that the collection has, and of those it had and the cache may know still."""
    rows = connection.execute(
        """SELECT i.content_hash FROM rag.indexed_chunk i JOIN rag.vector_index v ON v.id = i.index_id
           WHERE v.collection = %(name)s
           UNION SELECT content_hash FROM rag.token_chunk WHERE collection = %(name)s
           UNION SELECT content_hash FROM rag.past_text WHERE collection = %(name)s""",
        {"name": name},
    ).fetchall()
    return [content_hash for (content_hash,) in rows]


def take_past_texts(connection: Connection, name: str, paths: Sequence[str]) -> list[bytes]:
    """The hashes of the texts that these documents have let go of, for whoever erases them: they are kept no longer.
    With them those of paths that are no document any more, for such a one may be there under another path."""
    rows = connection.execute(
        """DELETE FROM rag.past_text p
           WHERE collection = %(collection)s AND (path = ANY (%(paths)s) OR NOT EXISTS (
               SELECT FROM rag.document d WHERE d.collection = p.collection AND d.path = p.path))
           RETURNING content_hash""",
        {"collection": name, "paths": list(paths)},
    ).fetchall()
    return [content_hash for (content_hash,) in rows]


def note_garbage(connection: Connection, name: str, keys: Sequence[tuple[str, bytes]]) -> None:
    """Note (kind, key) pairs, to be collected where nothing holds them."""
    connection.execute(
        """INSERT INTO rag.garbage (collection, kind, key)
           SELECT %s, * FROM unnest(%s::text[], %s::bytea[]) ON CONFLICT DO NOTHING""",
        [name, [kind for kind, _ in keys], [key for _, key in keys]],
    )


def unheld(connection: Connection, name: str, hashes: Sequence[bytes]) -> list[bytes]:
    """Those of the texts that no chunk of the collection has."""
    rows = connection.execute(
        """SELECT content_hash FROM unnest(%(hashes)s::bytea[]) AS noted (content_hash)
           WHERE NOT EXISTS (SELECT FROM rag.token_chunk c
                             WHERE c.collection = %(collection)s AND c.content_hash = noted.content_hash)""",
        {"collection": name, "hashes": list(hashes)},
    ).fetchall()
    return [content_hash for (content_hash,) in rows]


def _keep_past_texts(connection: Connection, name: str, chunks: Sequence[tuple[bytes, bytes]]) -> None:
    """Remember whose chunks (chunk key, hash) these were: it is noted with the key."""
    connection.execute(
        """INSERT INTO rag.past_text (collection, path, content_hash)
           SELECT DISTINCT g.collection, g.path, c.content_hash
           FROM unnest(%(keys)s::bytea[], %(hashes)s::bytea[]) AS c (chunk_key, content_hash)
           JOIN rag.garbage g ON g.collection = %(collection)s AND g.kind = 'chunking' AND g.key = c.chunk_key
           WHERE g.path IS NOT NULL
           ON CONFLICT (collection, path, content_hash) DO UPDATE SET let_go_at = excluded.let_go_at""",
        {
            "collection": name,
            "keys": [key for key, _ in chunks],
            "hashes": [content_hash for _, content_hash in chunks],
        },
    )


def _noted(connection: Connection, name: str, kind: str) -> list[bytes]:
    rows = connection.execute(
        "SELECT key FROM rag.garbage WHERE collection = %s AND kind = %s LIMIT %s", [name, kind, BATCH]
    ).fetchall()
    return [key for (key,) in rows]


def _strike(connection: Connection, name: str, kind: str, keys: Sequence[bytes]) -> None:
    connection.execute(
        "DELETE FROM rag.garbage WHERE collection = %s AND kind = %s AND key = ANY (%s)", [name, kind, list(keys)]
    )


def _delete_rows(connection: Connection, name: str, hashes: Sequence[bytes]) -> int:
    """Delete the index rows of texts that no chunk of the collection has any more."""
    indexes = connection.execute(
        "SELECT id FROM rag.vector_index WHERE collection = %s AND retired_at IS NULL", [name]
    ).fetchall()
    return sum(delete_chunks(connection, index_id, hashes) for (index_id,) in indexes)


def _strays(connection: Connection, name: str, index_id: int) -> list[bytes]:
    rows = connection.execute(
        """SELECT content_hash FROM rag.indexed_chunk i
           WHERE index_id = %(index)s AND NOT EXISTS (SELECT FROM rag.token_chunk c
                                                      WHERE c.collection = %(collection)s
                                                            AND c.content_hash = i.content_hash)""",
        {"collection": name, "index": index_id},
    ).fetchall()
    return [content_hash for (content_hash,) in rows]
