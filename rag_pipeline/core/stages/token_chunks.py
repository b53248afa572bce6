"""token_chunks: every parsed text cut into chunks, each a span of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from psycopg import Connection

from rag_pipeline.core.chunking import Chunk, ChunkSettings, InputLimit, chunk_document, fingerprint
from rag_pipeline.core.collections import Collection
from rag_pipeline.core.parsing import ParsedText

# Documents committed together; what a kill in between costs is this much chunking again.
BATCH = 32
CHANGES_SHOWN = 50


@dataclass
class ChunkReport:
    """What this stage did. `changes` names the first documents: (path, chunks, tokens)."""

    documents: int = 0
    new: int = 0
    tokens: int = 0
    changes: list[tuple[str, int, int]] = field(default_factory=list)

    def count(self, path: str, chunks: list[Chunk]) -> None:
        tokens = sum(chunk.tokens for chunk in chunks)
        self.documents += 1
        self.new += len(chunks)
        self.tokens += tokens
        if len(self.changes) < CHANGES_SHOWN:
            self.changes.append((path, len(chunks), tokens))


def chunk_documents(
    connection: Connection,
    collection: Collection,
    settings: ChunkSettings,
    limit: InputLimit,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ChunkReport:
    """Chunk the parsed texts that no row of `rag.chunking` holds yet."""
    _rekey(connection, collection.name, str(fingerprint(settings, limit)))
    report = ChunkReport()
    missing = _missing(connection, collection.name)
    for start in range(0, len(missing), BATCH):
        with connection.transaction():
            for chunk_key, parse_key, path in missing[start : start + BATCH]:
                parsed = read_parsed_text(connection, collection.name, parse_key)
                if parsed is None:
                    continue
                chunks = chunk_document(parsed, settings, limit)
                _store(connection, collection.name, chunk_key, parse_key, chunks)
                report.count(path, chunks)
        progress(min(start + BATCH, len(missing)), len(missing))
    return report


def _rekey(connection: Connection, name: str, chunker: str) -> None:
    """After a change of the chunker or its settings, want every parsed document chunked by the new one."""
    with connection.transaction():
        moved = connection.execute(
            """UPDATE rag.collection SET chunker_fingerprint = %(chunker)s
               WHERE name = %(name)s AND chunker_fingerprint IS DISTINCT FROM %(chunker)s RETURNING name""",
            {"name": name, "chunker": chunker},
        ).fetchone()
        if moved:
            connection.execute(
                """UPDATE rag.document SET chunk_key = rag.chunk_key(parse_key, %(chunker)s)
                   WHERE collection = %(name)s AND chunk_key IS DISTINCT FROM rag.chunk_key(parse_key, %(chunker)s)""",
                {"name": name, "chunker": chunker},
            )


def _missing(connection: Connection, name: str) -> list[tuple[bytes, bytes, str]]:
    return connection.execute(
        """SELECT DISTINCT ON (chunk_key) chunk_key, parse_key, path FROM rag.document d
           WHERE collection = %(name)s AND pending AND NOT removed AND chunk_key IS NOT NULL
                 AND NOT EXISTS (SELECT FROM rag.chunking k
                                 WHERE k.collection = d.collection AND k.chunk_key = d.chunk_key)
           ORDER BY chunk_key, path""",
        {"name": name},
    ).fetchall()


def read_parsed_text(connection: Connection, name: str, parse_key: bytes) -> ParsedText | None:
    """The text that was stored under a parse key; None when it was forgotten meanwhile."""
    row = connection.execute(
        "SELECT text, elements, metadata FROM rag.parsed_text WHERE collection = %s AND parse_key = %s",
        [name, parse_key],
    ).fetchone()
    return ParsedText.from_json(*row) if row else None


def _store(connection: Connection, name: str, chunk_key: bytes, parse_key: bytes, chunks: list[Chunk]) -> None:
    connection.execute(
        "INSERT INTO rag.chunking (collection, chunk_key, parse_key, chunks, tokens) VALUES (%s, %s, %s, %s, %s)",
        [name, chunk_key, parse_key, len(chunks), sum(chunk.tokens for chunk in chunks)],
    )
    # Not by COPY, which PostgreSQL refuses a login that row-level security binds, were it with a policy for every row.
    connection.cursor().executemany(
        """INSERT INTO rag.token_chunk (collection, chunk_key, ordinal, span_start, span_end, tokens, first_page,
                                        last_page, headings, prefix, suffix, content_hash)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)""",
        [
            (
                name,
                chunk_key,
                ordinal,
                chunk.start,
                chunk.end,
                chunk.tokens,
                chunk.first_page,
                chunk.last_page,
                list(chunk.headings),
                chunk.input[: chunk.input_start],
                chunk.input[chunk.input_start + chunk.end - chunk.start :],
                sha256(chunk.input.encode()).digest(),
            )
            for ordinal, chunk in enumerate(chunks)
        ],
    )
