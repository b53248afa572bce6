"""cached_embeddings: a vector in the index for every chunk: from a sibling index, else the cache, else the provider.

`plan_embeddings` finds what is missing and cuts it into shards, `embed_shard` does one of them, anywhere, and
`finish_embeddings` sums up. `embed_chunks` is all of it in one process.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice

from pgvector import Vector
from psycopg import Connection, sql

from rag_pipeline.core.cache import EmbeddingCache
from rag_pipeline.core.collections import Collection
from rag_pipeline.core.embedding import (
    EmbeddingInput,
    EmbeddingReport,
    Provider,
    embed_stream,
    probe,
    same_model,
)
from rag_pipeline.core.errors import ProviderError
from rag_pipeline.core.indexing import (
    VectorIndex,
    active_index,
    can_take_over,
    choose_target,
    copy_from_sibling,
    insert_chunks,
    missing_chunks,
    target_index,
)
from rag_pipeline.core.models import EmbeddingModel, embedding_model
from rag_pipeline.core.sharding import Shard, cut

# Gives what embeds with a model, and what that embedded before.
Embedder = Callable[[EmbeddingModel], tuple[Provider, EmbeddingCache]]

# Texts looked up at a time when a run is weighed before it may ask.
CACHE_WINDOW = 512


@dataclass(frozen=True)
class EmbeddingPlan:
    """What is to be embedded for an index, or why nothing is; `copied` vectors came from a sibling index."""

    index: VectorIndex
    copied: int
    shards: list[Shard]
    stopped: str | None = None


@dataclass
class EmbeddedReport:
    """What embedding came to, as figures alone: they go from one step of a run to another, and to Dagster.

    The fields are those of an EmbeddingReport, `refused` being counted; `inserted` rows are new to the index.
    """

    inserted: int = 0
    inputs: int = 0
    cached: int = 0
    requested: int = 0
    refused: int = 0
    truncated_inputs: int = 0
    tokens: int = 0
    requests: int = 0
    retries: int = 0
    cost_usd: float | None = 0.0
    stopped: str | None = None

    def add(self, other: "EmbeddedReport") -> None:
        """Add up; a cost that is not known makes the sum unknown."""
        cost = None if None in (self.cost_usd, other.cost_usd) else self.cost_usd + other.cost_usd
        stopped = self.stopped or other.stopped
        for name, value in asdict(other).items():
            if name not in ("cost_usd", "stopped"):
                setattr(self, name, getattr(self, name) + value)
        self.cost_usd, self.stopped = cost, stopped


@dataclass
class IndexedReport:
    """What this stage did: `copied` vectors from a sibling index, `inserted` rows in all, what the embedding cost.

    `same_model` tells whether the provider, when it was last asked, answered the probe text as it did when the index
    was first embedded; None where it never was.
    """

    index: VectorIndex
    copied: int = 0
    embedding: EmbeddedReport = field(default_factory=EmbeddedReport)
    same_model: bool | None = None

    @property
    def inserted(self) -> int:
        return self.copied + self.embedding.inserted


def embed_chunks(
    connection: Connection,
    collection: Collection,
    model: EmbeddingModel,
    embedder: Embedder,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> IndexedReport:
    """Give every chunk that waits for publication its row in the target index; readers do not see it yet.

    What the provider refuses is recorded on the documents concerned and reported, not raised: `pgvector_index`
    publishes all the others first.
    """
    plan = plan_embeddings(connection, collection, model, embedder)
    reports = [embed_shard(connection, collection, shard, embedder, progress=progress) for shard in plan.shards]
    return finish_embeddings(connection, collection, plan.copied, reports, embedder, stopped=plan.stopped)


def plan_embeddings(
    connection: Connection,
    collection: Collection,
    model: EmbeddingModel,
    embedder: Embedder,
    *,
    shard_chunks: int | None = None,
) -> EmbeddingPlan:
    """Choose the target index of a model, take over what a sibling has, and cut the rest into shards of so many chunks.

    What comes after goes by the index's model, whatever the collection's settings say by then. A shard is a range of
    parse keys: each document's text is read for one of them alone.
    """
    _, cache = embedder(model)
    _clear_failures(connection, collection.name)
    _remember_source(connection, collection.name, cache)
    index = choose_target(connection, collection, model)
    copied = copy_from_sibling(connection, index)
    missing = connection.execute(
        sql.SQL("SELECT parse_key, count(*) FROM ({}) AS each GROUP BY parse_key ORDER BY parse_key").format(
            _missing_once(index)
        ),
        {"collection": index.collection, "index": index.id},
    ).fetchall()
    most = collection.settings.max_embedding_tokens_per_run
    if missing and most is not None and (tokens := _tokens_to_ask(connection, index, cache)) > most:
        why = f"about {tokens:,} tokens would be asked for, more than max_embedding_tokens_per_run={most}: raise it"
        return EmbeddingPlan(index, copied, [], why)
    return EmbeddingPlan(index, copied, cut(missing, shard_chunks))


def embed_shard(
    connection: Connection,
    collection: Collection,
    shard: Shard,
    embedder: Embedder,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EmbeddedReport:
    """Embed what is still missing of a shard: all of it at first, less when it is done again after a crash."""
    index = target_index(connection, collection.name)
    provider, cache = embedder(_model(index))
    inputs = _inputs(connection, index, shard)
    return _embed(connection, index, provider, cache, inputs, progress=lambda done: progress(done, shard.size))


def _embed(
    connection: Connection,
    index: VectorIndex,
    provider: Provider,
    cache: EmbeddingCache,
    inputs: Iterator[EmbeddingInput],
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> EmbeddedReport:
    report, billed = EmbeddingReport(), _Billed(index.collection, provider.model)
    inserted = 0

    def store(rows: list) -> None:
        nonlocal inserted
        with connection.transaction():
            inserted += insert_chunks(connection, index, rows)
            billed.write(connection, report)

    embed_stream(inputs, provider, cache, store, progress=progress, report=report)
    with connection.transaction():
        _record_refused(connection, index, report.refused)
        billed.write(connection, report)
    figures = {name: getattr(report, name) for name in EmbeddedReport.__dataclass_fields__ if hasattr(report, name)}
    return EmbeddedReport(**{**figures, "inserted": inserted, "refused": len(report.refused)})


def finish_embeddings(
    connection: Connection,
    collection: Collection,
    copied: int,
    reports: Sequence[EmbeddedReport],
    embedder: Embedder,
    *,
    stopped: str | None = None,
    check_model: bool = False,
) -> IndexedReport:
    """Sum up the shards' reports, and say on the documents concerned why the asking stopped, where it did.

    The probe is asked when anything else was, or when `check_model` says so: ten tokens that are in no figure.
    """
    index = target_index(connection, collection.name)
    result = IndexedReport(index, copied, EmbeddedReport(stopped=stopped))
    for report in reports:
        result.embedding.add(report)
    if result.embedding.stopped:
        _record_stopped(connection, index, result.embedding.stopped)
    elif check_model or result.embedding.requested:
        provider, _ = embedder(_model(index))
        _ask_probe(connection, index, provider)
    (result.same_model,) = connection.execute(
        "SELECT probe_holds FROM rag.vector_index WHERE id = %s", [index.id]
    ).fetchone()
    return result


def embed_for_active(
    connection: Connection,
    collection: Collection,
    embedder: Embedder,
) -> EmbeddedReport:
    """While a new index cannot take over, give the active one, by its own model, the documents whose content has
    changed: what the provider refused of some, or has yet to answer, holds up no other."""
    target, active = target_index(connection, collection.name), active_index(connection, collection.name)
    if active is None or target is None or target.active or can_take_over(connection, target):
        return EmbeddedReport()
    provider, cache = embedder(_model(active))
    _remember_source(connection, collection.name, cache)
    return _embed(connection, active, provider, cache, _inputs(connection, active, new_content=True))


def _model(index: VectorIndex) -> EmbeddingModel:
    return embedding_model(index.model, index.dimensions)


def _remember_source(connection: Connection, name: str, cache: EmbeddingCache) -> None:
    """Before anything is asked there, so that what is erased later is erased from this cache too."""
    connection.execute(
        "INSERT INTO rag.embedding_source VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING", [name, *cache.source]
    )


def _missing_once(index: VectorIndex, *, new_content: bool = False) -> sql.Composed:
    """Each chunk that the index lacks, at the first place its text has, whatever shard that is in. Bind as for
    `missing_chunks`."""
    return sql.SQL(
        """SELECT k.parse_key, c.* FROM (
               SELECT DISTINCT ON (content_hash) * FROM ({missing}) AS every ORDER BY content_hash, chunk_key, ordinal
           ) AS c JOIN rag.chunking k USING (collection, chunk_key)"""
    ).format(missing=missing_chunks(index, new_content=new_content))


def _inputs(
    connection: Connection, index: VectorIndex, shard: Shard | None = None, *, new_content: bool = False
) -> Iterator[EmbeddingInput]:
    """Each missing text once, document by document: the server holds the list, this process one document's text."""
    within = "WHERE parse_key BETWEEN %(first)s AND %(last)s" if shard else ""
    with connection.cursor(name="missing_chunks", withhold=True) as cursor:
        cursor.execute(
            sql.SQL(
                """SELECT parse_key, prefix, span_start, span_end, suffix, content_hash, tokens
                   FROM ({missing}) AS missing {within} ORDER BY parse_key, ordinal"""
            ).format(missing=_missing_once(index, new_content=new_content), within=sql.SQL(within)),
            {"collection": index.collection, "index": index.id, **(shard.bounds() if shard else {})},
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


def _ask_probe(connection: Connection, index: VectorIndex, provider: Provider) -> None:
    """Keep with the index whether the provider answers the probe as it did at first, if it answers at all. An index
    whose vectors came from a sibling's takes over its probe as well."""
    try:
        answered = probe(provider)
    except ProviderError:
        return
    (kept,) = connection.execute(
        """UPDATE rag.vector_index v
           SET probe = coalesce(v.probe,
                                (SELECT probe FROM rag.vector_index s
                                 WHERE s.collection = v.collection AND s.model = v.model
                                       AND s.dimensions = v.dimensions AND s.probe IS NOT NULL
                                 ORDER BY s.id LIMIT 1),
                                %(answered)s)
           WHERE id = %(index)s RETURNING probe""",
        {"index": index.id, "answered": Vector(answered)},
    ).fetchone()
    connection.execute(
        "UPDATE rag.vector_index SET probe_holds = %s WHERE id = %s", [same_model(kept.to_numpy(), answered), index.id]
    )


class _Billed:
    """Adds what embedding costs to a collection's totals, in the transaction that keeps what it was paid for."""

    def __init__(self, name: str, model: EmbeddingModel):
        self._name = name
        self._model = model
        self._written = EmbeddingReport()

    def write(self, connection: Connection, report: EmbeddingReport) -> None:
        """Add what the report has more than at the last time."""
        names = ("cached", "requested", "tokens", "requests", "retries")
        more = {name: getattr(report, name) - getattr(self._written, name) for name in names}
        self._written = replace(report)
        cost = self._model.cost(more["tokens"])
        connection.execute(
            """INSERT INTO rag.embedding_total AS t
                   (collection, cached, requested, tokens, requests, retries, cost_usd, unpriced)
               VALUES (%(name)s, %(cached)s, %(requested)s, %(tokens)s, %(requests)s, %(retries)s, %(cost)s,
                       %(unpriced)s)
               ON CONFLICT (collection) DO UPDATE SET
                   cached = t.cached + excluded.cached, requested = t.requested + excluded.requested,
                   tokens = t.tokens + excluded.tokens, requests = t.requests + excluded.requests,
                   retries = t.retries + excluded.retries, cost_usd = t.cost_usd + excluded.cost_usd,
                   unpriced = t.unpriced + excluded.unpriced""",
            {**more, "name": self._name, "cost": cost or 0.0, "unpriced": more["tokens"] if cost is None else 0},
        )


def _clear_failures(connection: Connection, name: str) -> None:
    connection.execute(
        """UPDATE rag.document SET failure_stage = NULL, failure_reason = NULL, failure_detail = NULL
           WHERE collection = %s AND failure_stage = 'embedding'""",
        [name],
    )


def _record_refused(connection: Connection, index: VectorIndex, refused: list[tuple[bytes, str]]) -> None:
    """Say on each document that has a text of its own refused why it is not whole."""
    connection.execute(
        """UPDATE rag.document d
           SET failure_stage = 'embedding', failure_reason = 'refused', failure_detail = r.reason
           FROM unnest(%(hashes)s::bytea[], %(reasons)s::text[]) AS r (content_hash, reason)
           JOIN rag.token_chunk c ON c.collection = %(collection)s AND c.content_hash = r.content_hash
           WHERE d.collection = c.collection AND d.chunk_key = c.chunk_key AND NOT d.removed""",
        {
            "collection": index.collection,
            "hashes": [content_hash for content_hash, _ in refused],
            "reasons": [reason for _, reason in refused],
        },
    )


def _record_stopped(connection: Connection, index: VectorIndex, reason: str) -> None:
    """Say on each other document that is not whole that the asking stopped."""
    connection.execute(
        sql.SQL(
            """UPDATE rag.document d
               SET failure_stage = 'embedding', failure_reason = 'stopped', failure_detail = %(reason)s
               WHERE collection = %(collection)s AND NOT removed AND failure_stage IS NULL
                     AND chunk_key IN (SELECT chunk_key FROM ({missing}) AS missing)"""
        ).format(missing=missing_chunks(index)),
        {"collection": index.collection, "index": index.id, "reason": reason},
    )
