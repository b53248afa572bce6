"""search: the published chunks nearest to a question, by meaning, by words, or by both."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from psycopg import Connection, IsolationLevel, sql
from psycopg.rows import dict_row

from rag_pipeline.core.collections import get, require_name
from rag_pipeline.core.errors import ProviderError, UsageError
from rag_pipeline.core.indexing import VectorIndex, active_index

if TYPE_CHECKING:
    import pandas

MODES = ("hybrid", "vector", "text")

# Reciprocal rank fusion's constant, from Cormack, Clarke and Buettcher, SIGIR 2009.
RRF_K = 60

# BM25's constants, as Lucene has them.
BM25_K1, BM25_B = 1.2, 0.75

# So many chunks with the question's rarest words are ranked by all its words. On SciFact 200 do as well as all 5,183.
CANDIDATES = 2000

# How many of each leg are fused, at least: a hit that both legs rank low can still come out on top.
DEPTH = 50

PATHS_SHOWN = 20

# An index may be replaced between reading its id and searching it; a second replacement within milliseconds is not met.
ATTEMPTS = 3

# What PostgreSQL cannot store, and what bytes that are no UTF-8 become on a command line.
NOT_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class AlsoIn:
    """Where else the same content is: how many other documents, and the first paths of those."""

    count: int
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Hit:
    """A unique published content, at the first place it stands: the span [start, end) of that document's text."""

    rank: int
    score: float
    collection: str
    path: str
    page: int | None
    heading: tuple[str, ...]
    start: int
    end: int
    tokens: int
    content: str
    also_in: AlsoIn


@dataclass(frozen=True)
class Hits(Sequence[Hit]):
    """What a search found, best first. `degraded` says why it is less than was asked for, if it is.

    `question_tokens` is what the provider billed for the question; 0 where its embedding was cached.
    """

    collection: str
    query: str
    mode: str
    hits: tuple[Hit, ...]
    degraded: str | None = None
    question_tokens: int = 0
    cost_usd: float | None = 0.0

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, position):
        return self.hits[position]

    def to_frame(self) -> "pandas.DataFrame":
        """One row a hit, its columns the fields of a hit."""
        import pandas

        return pandas.DataFrame([vars(hit) for hit in self.hits], columns=list(Hit.__dataclass_fields__))


@dataclass(frozen=True)
class Question:
    """A question as one model sees it: its vector (None where the provider could not give one), and what that cost."""

    vector: np.ndarray | None
    tokens: int = 0
    cost_usd: float | None = 0.0
    error: str | None = None


@dataclass
class Searcher:
    """Searches collections through a connection of its own.

    `embed(question, model, dimensions)` gives the vector, the tokens and the dollars it took, or raises ProviderError.
    """

    connection: Connection
    embed: Callable[[str, str, int], tuple[np.ndarray, int, float | None]]
    _questions: dict[tuple[str, str, int], Question] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Everything about a search is read from one snapshot: hits, their text and where they stand.
        self.connection.isolation_level = IsolationLevel.REPEATABLE_READ
        self.connection.read_only = True

    def search(self, names: Sequence[str], query: str, k: int = 5, mode: str = "hybrid") -> Hits:
        """The k best hits over the named collections; each is ranked alone, several are fused by reciprocal rank.

        Raises UsageError for a wrong argument or a collection that is not there or has nothing indexed yet.
        """
        if mode not in MODES:
            raise UsageError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        if not 1 <= k <= 1000:
            raise UsageError(f"k={k} is not from 1 to 1000")
        if not query.strip():
            raise UsageError("the question is empty: ask something")
        if NOT_TEXT.search(query):
            raise UsageError("the question is not valid text: it has a NUL or half a character in it")
        if not names:
            raise UsageError("no collection is named")
        for name in names:
            require_name(name)
        results = [self._search_one(name, query, k, mode) for name in dict.fromkeys(names)]
        hits = results[0][0] if len(results) == 1 else _fuse([hits for hits, _ in results], k)
        questions = {id(question): question for _, question in results if question is not None}.values()
        costs = [question.cost_usd for question in questions]
        return Hits(
            collection=",".join(dict.fromkeys(names)),
            query=query,
            mode=mode,
            hits=tuple(hits),
            degraded=next((question.error for question in questions if question.error), None),
            question_tokens=sum(question.tokens for question in questions),
            cost_usd=None if None in costs else sum(costs),
        )

    def _search_one(self, name: str, query: str, k: int, mode: str) -> tuple[list[Hit], Question | None]:
        for _ in range(ATTEMPTS):
            index = active_index(self.connection, name)
            if index is None or not index.rows:
                source = get(self.connection, name).source
                raise UsageError(f"collection {name} has nothing indexed yet: rag ingest {name} reads {source}")
            question = None if mode == "text" else self._question(query, index)
            if question is not None and question.vector is None and mode == "vector":
                raise ProviderError(f"{question.error}; search by words meanwhile: --mode text")
            hits = self._read(index, query, question.vector if question else None, k, mode)
            if hits is not None:
                return hits, question
        raise UsageError(f"collection {name} was being replaced: search again")

    def _question(self, query: str, index: VectorIndex) -> Question:
        key = (query, index.model, index.dimensions)
        if key in self._questions:
            return self._questions[key]
        try:
            question = Question(*self.embed(*key))
        except ProviderError as error:
            return Question(None, error=str(error))
        self._questions = {key: Question(question.vector)}
        return question

    def _read(self, index: VectorIndex, query: str, vector: np.ndarray | None, k: int, mode: str) -> list[Hit] | None:
        """The hits as one snapshot has them; None when the index is not the active one in it."""
        depth = max(k, DEPTH)
        statement = _statement(index, with_vector=vector is not None, with_text=mode != "vector")
        parameters = {
            "collection": index.collection,
            "query": query,
            "text_search": index.text_search,
            "vector": vector,
            "depth": depth,
            "k": k,
            "rrf_k": RRF_K,
            "paths_shown": PATHS_SHOWN,
            "candidates": CANDIDATES,
            "k1": BM25_K1,
            "b": BM25_B,
        }
        with self.connection.transaction(), self.connection.cursor(row_factory=dict_row) as cursor:
            active = cursor.execute(
                """SELECT active_index, set_config('plan_cache_mode', 'force_custom_plan', true),
                          set_config('hnsw.iterative_scan', 'strict_order', true),
                          set_config('hnsw.ef_search', %s, true)
                   FROM rag.collection WHERE name = %s""",
                [str(min(1000, max(2 * depth, 40))), index.collection],
            ).fetchone()
            if active is None or active["active_index"] != index.id:
                return None
            rows = cursor.execute(statement, parameters).fetchall()
            if vector is not None and len(rows) < min(k, index.rows):
                exactly = _statement(index, with_vector=True, with_text=mode != "vector", exact=True)
                rows = cursor.execute(exactly, parameters).fetchall()
        return [_hit(rank, index.collection, row) for rank, row in enumerate(rows, 1)]


def _statement(index: VectorIndex, *, with_vector: bool, with_text: bool, exact: bool = False) -> sql.Composed:
    """Both legs, their fusion and the hits' provenance in one statement.

    The legs test what is published before their LIMIT: a row of the index that no published document holds is no hit.
    `exact` orders by what is equal to the distance and no HNSW graph knows, so that every row is compared.
    """
    published = sql.SQL(
        """EXISTS (SELECT FROM rag.token_chunk c
                   JOIN rag.document d ON d.collection = c.collection AND d.published_chunk_key = c.chunk_key
                   WHERE c.collection = %(collection)s AND c.content_hash = i.content_hash)"""
    )
    kind = sql.SQL("halfvec" if index.precision == "half" else "vector")
    distance = sql.SQL("i.embedding::{kind}({dimensions}) <=> %(vector)s::{kind}({dimensions})").format(
        kind=kind, dimensions=sql.Literal(index.dimensions)
    )
    legs = []
    if with_vector:
        legs.append(
            sql.SQL(
                """SELECT content_hash, row_number() OVER (ORDER BY distance) AS rank, 1 - distance AS similarity
                   FROM (SELECT i.content_hash, {distance} AS distance FROM rag.indexed_chunk i
                         WHERE i.index_id = {index} AND {published}
                         ORDER BY {order} LIMIT %(depth)s) AS nearest"""
            ).format(
                distance=distance,
                order=sql.SQL("({}) + 0").format(distance) if exact else distance,
                index=sql.Literal(index.id),
                published=published,
            )
        )
    if with_text:
        legs.append(_text_leg(index, published))
    score = "sum(1.0 / (%(rrf_k)s + rank))::float8" if len(legs) == 2 else "max(similarity)::float8"
    return sql.SQL(
        """WITH legs AS MATERIALIZED ({legs}),
                best AS (SELECT content_hash, {score} AS score FROM legs
                         GROUP BY content_hash ORDER BY score DESC, content_hash LIMIT %(k)s)
           SELECT best.score, place.path, place.first_page AS page, place.headings, place.span_start, place.span_end,
                  place.tokens, elsewhere.number, elsewhere.paths,
                  substring(i.input FROM char_length(place.prefix) + 1 FOR place.span_end - place.span_start) AS content
           FROM best
           JOIN rag.indexed_chunk i ON i.index_id = {index} AND i.content_hash = best.content_hash
           CROSS JOIN LATERAL (
               SELECT d.path, c.* FROM rag.token_chunk c
               JOIN rag.document d ON d.collection = c.collection AND d.published_chunk_key = c.chunk_key
               WHERE c.collection = %(collection)s AND c.content_hash = best.content_hash
               ORDER BY d.path, c.ordinal LIMIT 1) AS place
           CROSS JOIN LATERAL (
               SELECT count(*) AS number, (array_agg(path ORDER BY path))[:%(paths_shown)s] AS paths
               FROM (SELECT DISTINCT d.path FROM rag.token_chunk c
                     JOIN rag.document d ON d.collection = c.collection AND d.published_chunk_key = c.chunk_key
                     WHERE c.collection = %(collection)s AND c.content_hash = best.content_hash
                           AND d.path <> place.path) AS others) AS elsewhere
           ORDER BY best.score DESC, best.content_hash"""
    ).format(
        legs=sql.SQL(" UNION ALL ").join(sql.SQL("({})").format(leg) for leg in legs),
        score=sql.SQL(score),
        index=sql.Literal(index.id),
    )


def _text_leg(index: VectorIndex, published: sql.SQL) -> sql.Composed:
    """The chunks that say the question's words, ranked by BM25 (Robertson and Zaragoza, 2009; idf as in Lucene).

    Every chunk with one of the rarest words is ranked, by all the words: common ones alone make no good hit, and
    reading half of a collection to find that out would be dear.
    """
    return sql.SQL(
        """SELECT content_hash, row_number() OVER (ORDER BY weight DESC, content_hash) AS rank, weight AS similarity
           FROM (
               WITH size AS MATERIALIZED (
                   SELECT rows, greatest(words, 1)::float8 / greatest(rows, 1) AS usual_length
                   FROM rag.vector_index WHERE id = {index}),
               word AS MATERIALIZED (
                   SELECT rag.term_query(lexeme) AS query, ln(1 + (rows - chunks + 0.5) / (chunks + 0.5)) AS idf,
                          sum(chunks) OVER (ORDER BY chunks, lexeme) AS chunks_so_far,
                          row_number() OVER (ORDER BY chunks, lexeme) AS nth
                   FROM size, unnest(rag.terms(%(text_search)s::regconfig, %(query)s))
                   JOIN rag.index_term t ON t.index_id = {index} AND t.term = lexeme),
               candidate AS MATERIALIZED (
                   SELECT i.content_hash, i.terms || '' AS terms
                   FROM (SELECT string_agg(query::text, ' | ')::tsquery AS any_word FROM word
                         WHERE nth = 1 OR chunks_so_far <= %(candidates)s) AS rarest
                   JOIN rag.indexed_chunk i ON i.index_id = {index} AND i.terms @@ any_word)
               SELECT i.content_hash, i.weight FROM (
                   SELECT content_hash,
                          sum(idf * frequency * (%(k1)s + 1)
                              / (frequency + %(k1)s * (1 - %(b)s + %(b)s * length(terms) / usual_length))) AS weight
                   FROM size, candidate, word,
                        LATERAL (SELECT rag.frequency(terms, query) AS frequency OFFSET 0) AS said
                   WHERE frequency > 0
                   GROUP BY content_hash ORDER BY weight DESC, content_hash OFFSET 0) AS i
               WHERE (SELECT {published})
               ORDER BY weight DESC, content_hash LIMIT %(depth)s) AS matching"""
    ).format(index=sql.Literal(index.id), published=published)


def _hit(rank: int, collection: str, row: dict) -> Hit:
    return Hit(
        rank=rank,
        score=row["score"],
        collection=collection,
        path=row["path"],
        page=row["page"],
        heading=tuple(row["headings"]),
        start=row["span_start"],
        end=row["span_end"],
        tokens=row["tokens"],
        content=row["content"],
        also_in=AlsoIn(row["number"], tuple(row["paths"] or ())),
    )


def _fuse(rankings: list[list[Hit]], k: int) -> list[Hit]:
    """Hits of several collections by reciprocal rank: their scores come from different models and do not compare."""
    ranked = sorted((hit for hits in rankings for hit in hits), key=lambda hit: hit.rank)
    return [replace(hit, rank=rank, score=1 / (RRF_K + hit.rank)) for rank, hit in enumerate(ranked[:k], 1)]
