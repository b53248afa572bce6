"""Forgetting a document: it leaves everything at once, and its bytes never come back into the collection.

Nobody is waited for. A run that is under way finds the document gone, and its content barred; what it may store of the
document nevertheless is noted as garbage here, and deleted when that run publishes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import Connection

from rag_pipeline.core.cache import EmbeddingCache
from rag_pipeline.core.collections import get
from rag_pipeline.core.errors import ServiceError, UsageError
from rag_pipeline.core.garbage import collect_texts, erase_cached, erase_indexed, note_garbage, take_past_texts, unheld


@dataclass(frozen=True)
class Forgotten:
    """What was forgotten: the `paths` that had the same bytes, and how many rows left the collection's indexes.

    `copies` are {collection, path} of the same bytes in other collections; `similar` are {path, shared, of}: published
    documents of this one that share so many of its so many chunks, most of them.
    """

    collection: str
    path: str
    paths: list[str]
    rows: int
    copies: list[dict[str, str]]
    similar: list[dict[str, object]]


def forget(connection: Connection, name: str, path: str, caches: Sequence[EmbeddingCache]) -> Forgotten:
    """Erase a document, every version of it, from indexes, chunks, texts and caches of the collection; bar its bytes.

    The caches lose also what was made of it in earlier versions, or with other settings. Chunks that it shares with
    other documents stay theirs. Raises UsageError when there is no such document, and ServiceError when Redis cannot
    confirm that the embeddings are gone: all the rest is done then.
    """
    get(connection, name)
    with connection.transaction():
        # Whoever writes for the collection meanwhile commits before this, or sees it done.
        connection.execute("SELECT FROM rag.collection WHERE name = %s FOR UPDATE", [name])
        contents = _contents(connection, name, path)
        held = _let_go(connection, name, contents)
        chunk_keys = [key for _, kind, key in held if kind == "chunking"]
        hashes = set(_hashes(connection, name, chunk_keys))
        similar = _similar(connection, name, list(hashes))
        _bar(connection, name, contents)

        def remember(more: Sequence[bytes]) -> int:
            hashes.update(more)
            return 0

        # Earlier versions may wait there for a run to delete them.
        collect_texts(connection, name, remember)
        hashes.update(take_past_texts(connection, name, [path for path, _, _ in held]))
        gone = unheld(connection, name, list(hashes))
        rows = erase_indexed(connection, name, gone)
        # What a run that is under way may still make of the document.
        made = {(kind, key) for _, kind, key in held if key is not None}
        note_garbage(connection, name, [*made, *(("embedding", key) for key in gone)])
        copies = _copies(connection, name, contents)
    try:
        erase_cached(caches, gone)
    except ServiceError as error:
        raise ServiceError(
            f"{path} is forgotten, but not its embeddings in the cache: {error.args[0].removesuffix(': try again')}; "
            f"start Redis, then rag ingest {name} deletes them"
        ) from error
    return Forgotten(name, path, sorted({each for each, _, _ in held}), rows, copies, similar)


def _contents(connection: Connection, name: str, path: str) -> list[bytes]:
    """The hashes of the bytes that a document is about: as last seen, as last parsed, and as served."""
    row = connection.execute(
        """SELECT array_remove(ARRAY[content_hash, parsed_content, published_content], NULL)
           FROM rag.document WHERE collection = %s AND path = %s""",
        [name, path],
    ).fetchone()
    if row is None:
        raise UsageError(f"collection {name} has no document {path}: rag status {name} tells what it has")
    if not row[0]:
        raise UsageError(f"{path} could never be read, so nothing of it is kept: delete the file, or exclude it")
    return row[0]


def _let_go(connection: Connection, name: str, contents: list[bytes]) -> list[tuple[str, str, bytes | None]]:
    """Delete every document with any of these contents: (path, kind, key) of each key that it held."""
    return connection.execute(
        """WITH gone AS (
               DELETE FROM rag.document
               WHERE collection = %(collection)s AND (content_hash = ANY (%(contents)s)
                     OR parsed_content = ANY (%(contents)s) OR published_content = ANY (%(contents)s))
               RETURNING *)
           SELECT path, kind, key FROM gone, LATERAL (
               VALUES ('parsed_text', wanted_parse_key), ('parsed_text', parse_key),
                      ('chunking', chunk_key), ('chunking', published_chunk_key)) AS held (kind, key)""",
        {"collection": name, "contents": contents},
    ).fetchall()


def _hashes(connection: Connection, name: str, chunk_keys: list[bytes | None]) -> list[bytes]:
    rows = connection.execute(
        "SELECT DISTINCT content_hash FROM rag.token_chunk WHERE collection = %s AND chunk_key = ANY (%s)",
        [name, chunk_keys],
    ).fetchall()
    return [content_hash for (content_hash,) in rows]


def _similar(connection: Connection, name: str, hashes: list[bytes]) -> list[dict[str, object]]:
    rows = connection.execute(
        """SELECT d.path, count(DISTINCT c.content_hash) AS shared
           FROM rag.token_chunk c
           JOIN rag.document d ON d.collection = c.collection AND d.published_chunk_key = c.chunk_key
           WHERE c.collection = %(collection)s AND c.content_hash = ANY (%(hashes)s)
           GROUP BY d.path HAVING count(DISTINCT c.content_hash) * 2 > cardinality(%(hashes)s::bytea[])
           ORDER BY shared DESC, d.path""",
        {"collection": name, "hashes": hashes},
    ).fetchall()
    return [{"path": path, "shared": shared, "of": len(hashes)} for path, shared in rows]


def _bar(connection: Connection, name: str, contents: list[bytes]) -> None:
    connection.execute(
        """INSERT INTO rag.forgotten_content (collection, content_hash)
           SELECT %s, unnest(%s::bytea[]) ON CONFLICT DO NOTHING""",
        [name, contents],
    )


def _copies(connection: Connection, name: str, contents: list[bytes]) -> list[dict[str, str]]:
    rows = connection.execute(
        """SELECT d.collection, d.path FROM rag.collection c
           JOIN rag.document d ON d.collection = c.name AND (
               d.content_hash = ANY (%(contents)s) OR d.parsed_content = ANY (%(contents)s)
               OR d.published_content = ANY (%(contents)s))
           WHERE c.name <> %(collection)s ORDER BY d.collection, d.path""",
        {"contents": contents, "collection": name},
    ).fetchall()
    return [{"collection": collection, "path": path} for collection, path in rows]
