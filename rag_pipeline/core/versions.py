"""Which version of a collection a stage has made: the same as long as every document's result is the same."""

from hashlib import sha256
from typing import Literal

from psycopg import Connection, sql

Key = Literal["content_hash", "parse_key", "chunk_key", "published_chunk_key"]


def result_version(connection: Connection, name: str, key: Key, *made_with: object) -> str:
    """A digest of the key that a stage gives each document, and of what else its result depends on; 16 hex digits.

    The documents' digests are combined by exclusive or, in any order: one pass over the manifest, and nothing to sort.
    """
    (combined,) = connection.execute(
        sql.SQL(
            """SELECT bit_xor(hashtextextended(path || ' ' || encode({key}, 'hex'), 0)) FROM rag.document
               WHERE collection = %s AND NOT removed AND {key} IS NOT NULL"""
        ).format(key=sql.Identifier(key)),
        [name],
    ).fetchone()
    return sha256(repr((combined, *made_with)).encode()).hexdigest()[:16]
