"""What is indexed, what is not and why; and one document as the pipeline sees it."""

from dataclasses import dataclass

from psycopg import Connection
from psycopg.rows import dict_row

from rag_pipeline.core.collections import get
from rag_pipeline.core.errors import UsageError
from rag_pipeline.core.indexing import active_index
from rag_pipeline.core.models import embedding_model

EMBEDDING_TOTALS = ("cached", "requested", "tokens", "requests", "retries", "cost_usd", "unpriced")


@dataclass(frozen=True)
class Status:
    """`documents` has total, indexed (served), pending, failed (newest version not served) and stale (failed, but
    served in an older version); `failures` are {path, stage, reason, detail}; `index` has model, dimensions, rows and
    bytes; `embeddings` sums what was asked of providers over the collection's life, `unpriced` being tokens whose
    price was not known."""

    collection: str
    documents: dict[str, int]
    chunks: int
    index: dict[str, object]
    failures: list[dict[str, str]]
    embeddings: dict[str, int | float]


def collection_status(connection: Connection, name: str) -> Status:
    """Raises UsageError when there is no such collection."""
    collection = get(connection, name)
    with connection.cursor(row_factory=dict_row) as cursor:
        documents = cursor.execute(
            """SELECT count(*) AS total,
                      count(published_chunk_key) AS indexed,
                      count(*) FILTER (WHERE pending AND failure_stage IS NULL) AS pending,
                      count(failure_stage) AS failed,
                      count(*) FILTER (WHERE failure_stage IS NOT NULL AND published_chunk_key IS NOT NULL) AS stale
               FROM rag.document WHERE collection = %s""",
            [name],
        ).fetchone()
        failures = cursor.execute(
            """SELECT path, failure_stage AS stage, failure_reason AS reason, coalesce(failure_detail, '') AS detail
               FROM rag.document WHERE collection = %s AND failure_stage IS NOT NULL ORDER BY path""",
            [name],
        ).fetchall()
        embeddings = cursor.execute(
            """SELECT cached, requested, tokens, requests, retries, cost_usd, unpriced FROM rag.embedding_total
               WHERE collection = %s""",
            [name],
        ).fetchone()
    index = active_index(connection, name)
    model = embedding_model(collection.settings.embedding_model, collection.settings.dimensions)
    return Status(
        collection=name,
        documents=documents,
        chunks=published_chunks(connection, name),
        index={
            "model": index.model if index else model.name,
            "dimensions": index.dimensions if index else model.dimensions,
            "rows": index.rows if index else 0,
            "bytes": _bytes(connection, index.id) if index else 0,
        },
        failures=failures,
        embeddings=embeddings or dict.fromkeys(EMBEDDING_TOTALS, 0),
    )


def published_chunks(connection: Connection, name: str) -> int:
    """How many chunks readers see, those of identical text counted each."""
    return connection.execute(
        """SELECT coalesce(sum(k.chunks), 0) FROM rag.document d
           JOIN rag.chunking k ON k.collection = d.collection AND k.chunk_key = d.published_chunk_key
           WHERE d.collection = %s""",
        [name],
    ).fetchone()[0]


def show_document(connection: Connection, name: str, path: str) -> dict[str, object]:
    """A document's manifest row, text, elements and chunks, as its last good parse has them.

    Raises UsageError when the collection has no such document.
    """
    get(connection, name)
    with connection.cursor(row_factory=dict_row) as cursor:
        document = cursor.execute(
            """SELECT d.collection, d.path, d.media_type, d.size, d.modified::text,
                      encode(d.content_hash, 'hex') AS content_hash,
                      d.published_chunk_key IS NOT NULL AS indexed, d.pending, d.failure_stage, d.failure_reason,
                      d.failure_detail, p.metadata, p.text, p.elements
               FROM rag.document d
               LEFT JOIN rag.parsed_text p ON p.collection = d.collection AND p.parse_key = d.parse_key
               WHERE d.collection = %s AND d.path = %s""",
            [name, path],
        ).fetchone()
        if document is None:
            raise UsageError(f"collection {name} has no document {path}: rag status {name} tells what it has")
        chunks = cursor.execute(
            """SELECT c.ordinal, c.span_start AS start, c.span_end AS end, c.tokens, c.first_page AS page,
                      c.headings AS heading
               FROM rag.token_chunk c JOIN rag.document d ON d.collection = c.collection AND d.chunk_key = c.chunk_key
               WHERE d.collection = %s AND d.path = %s ORDER BY c.ordinal""",
            [name, path],
        ).fetchall()
    text = document["text"] or ""
    columns = ("kind", "start", "end", "page", "level", "header_end")
    return {
        **document,
        "elements": [dict(zip(columns, element, strict=True)) for element in document["elements"] or []],
        "chunks": [{**chunk, "content": text[chunk["start"] : chunk["end"]]} for chunk in chunks],
    }


def _bytes(connection: Connection, index_id: int) -> int:
    return connection.execute(
        "SELECT coalesce(pg_total_relation_size(to_regclass(%s)), 0)", [f"rag.indexed_chunk_{index_id}"]
    ).fetchone()[0]
