"""cached_embeddings: a vector in the index for every chunk: from a sibling index, else the cache, else the provider."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from psycopg import Connection, sql

from rag_pipeline.core.cache import EmbeddingCache
from rag_pipeline.core.collections import Collection
from rag_pipeline.core.embedding import EmbeddingInput, EmbeddingReport, Provider, embed_stream
from rag_pipeline.core.indexing import (
    VectorIndex,
    choose_target,
    copy_from_sibling,
    count_missing,
    insert_chunks,
    missing_chunks,
)

# Texts looked up at a time when a run is weighed before it may ask.
CACHE_WINDOW = 512


@dataclass
class IndexedReport:
    """What this stage did: `copied` vectors from a sibling index, `inserted` rows in all, what the embedding cost."""

    index: VectorIndex
    copied: int
    inserted: int
    embedding: EmbeddingReport


def embed_chunks(
    connection: Connection,
    collection: Collection,
    provider: Provider,
    cache: EmbeddingCache,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> IndexedReport:
    """Give every chunk that waits for publication its row in the target index; readers do not see it yet.

    What the provider refuses is recorded on the documents concerned and reported, not raised: `pgvector_index`
    publishes all the others first.
    """
    _clear_failures(connection, collection.name)
    index = choose_target(connection, collection, provider.model)
    copied = copy_from_sibling(connection, index)
    report = IndexedReport(index, copied, copied, EmbeddingReport())
    total = count_missing(connection, index)
    if total:

        def store(rows: list) -> None:
            report.inserted += insert_chunks(connection, index, rows)

        most = collection.settings.max_embedding_tokens_per_run
        if most is not None and (tokens := _tokens_to_ask(connection, index, cache)) > most:
            report.embedding.stopped = (
                f"about {tokens:,} tokens would be asked for, more than max_embedding_tokens_per_run={most}: raise it"
            )
        else:
            report.embedding = embed_stream(
                _inputs(connection, index), provider, cache, store, progress=lambda done: progress(done, total)
            )
        _record_failures(connection, index, report.embedding)
    return report


def _inputs(connection: Connection, index: VectorIndex) -> Iterator[EmbeddingInput]:
    """Each missing text once, document by document: the server holds the list, this process one document's text."""
    with connection.cursor(name="missing_chunks", withhold=True) as cursor:
        cursor.execute(
            sql.SQL(
                """SELECT k.parse_key, c.prefix, c.span_start, c.span_end, c.suffix, c.content_hash, c.tokens
                   FROM (SELECT DISTINCT ON (content_hash) * FROM ({missing}) AS every
                         ORDER BY content_hash, chunk_key, ordinal) AS c
                   JOIN rag.chunking k USING (collection, chunk_key)
                   ORDER BY k.parse_key, c.ordinal"""
            ).format(missing=missing_chunks(index)),
            {"collection": index.collection, "index": index.id},
        )
        current, text = None, ""
        for parse_key, prefix, start, end, suffix, content_hash, tokens in cursor:
            if parse_key != current:
                current = parse_key
                row = connection.execute(
                    "SELECT text FROM rag.parsed_text WHERE collection = %s AND parse_key = %s",
                    [index.collection, parse_key],
                ).fetchone()
                text = row[0] if row else None
            if text is None:  # forgotten meanwhile
                continue
            # A token has a byte at least: no batch is larger than it says, and nothing is counted twice.
            at_most = tokens + len(prefix.encode()) + len(suffix.encode())
            yield EmbeddingInput(content_hash, prefix + text[start:end] + suffix, at_most)


def _tokens_to_ask(connection: Connection, index: VectorIndex, cache: EmbeddingCache) -> int:
    """The tokens of the missing texts that the cache does not know, at most."""
    inputs, tokens = _inputs(connection, index), 0
    while window := list(islice(inputs, CACHE_WINDOW)):
        known = cache.get_many([each.hash for each in window])
        tokens += sum(each.tokens for each in window if each.hash not in known)
    return tokens


def _clear_failures(connection: Connection, name: str) -> None:
    connection.execute(
        """UPDATE rag.document SET failure_stage = NULL, failure_reason = NULL, failure_detail = NULL
           WHERE collection = %s AND failure_stage = 'embedding'""",
        [name],
    )


def _record_failures(connection: Connection, index: VectorIndex, report: EmbeddingReport) -> None:
    """Say on each document why it is not whole: a text of its own was refused, or the asking stopped."""
    parameters = {
        "collection": index.collection,
        "index": index.id,
        "refused": [content_hash for content_hash, _ in report.refused],
        "reasons": [reason for _, reason in report.refused],
        "stopped": report.stopped,
    }
    with connection.transaction():
        connection.execute(
            """UPDATE rag.document d
               SET failure_stage = 'embedding', failure_reason = 'refused', failure_detail = r.reason
               FROM unnest(%(refused)s::bytea[], %(reasons)s::text[]) AS r (content_hash, reason)
               JOIN rag.token_chunk c ON c.collection = %(collection)s AND c.content_hash = r.content_hash
               WHERE d.collection = c.collection AND d.chunk_key = c.chunk_key AND NOT d.removed""",
            parameters,
        )
        if report.stopped:
            connection.execute(
                sql.SQL(
                    """UPDATE rag.document d
                       SET failure_stage = 'embedding', failure_reason = 'stopped', failure_detail = %(stopped)s
                       WHERE collection = %(collection)s AND NOT removed AND failure_stage IS NULL
                             AND chunk_key IN (SELECT chunk_key FROM ({missing}) AS missing)"""
                ).format(missing=missing_chunks(index)),
                parameters,
            )
