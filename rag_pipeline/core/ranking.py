"""The one statement of a search: both legs over a vector index, their fusion, and where the best chunks stand.

The figures that chose the constants are in docs/benchmarks.md.
"""

from dataclasses import dataclass

import numpy as np
from psycopg import sql

from rag_pipeline.core.filters import Condition
from rag_pipeline.core.hits import PATHS_SHOWN
from rag_pipeline.core.indexing import VectorIndex

# BM25's constants, as Lucene has them.
BM25_K1, BM25_B = 1.2, 0.75

# So many chunks with the question's rarest words are ranked by all its words. On SciFact 200 do as well as all 5,183.
CANDIDATES = 2000

# What a piece of an identifier in the question counts for where the index has the whole: a chunk of like
# length that repeats up to three pieces does not outrank one that has it as it is typed.
PIECE_WEIGHT = 0.25

# How many of each leg are fused, at least: a chunk that both legs rank low can still come out on top. The graph is
# searched as far for fewer too.
DEPTH = 100

# What the vector leg counts for in the fusion, the text leg the rest to 1; the second where the model does not know the
# language.
VECTOR_WEIGHT, FOREIGN_VECTOR_WEIGHT = 0.4, 0.2

# The part of the question's idf that the text leg's first says where the leg counts in full; with less it counts by the
# square of how near that comes.
ENOUGH_SAID = 0.4
# Of a long question, such as an error's whole trace, no chunk says all: it is as if it had so many words that stand
# nowhere else.
MOST_WORDS = 8

# What each neighbour in the document counts for beside the chunk itself, and the part of its own score that it keeps.
NEIGHBOUR_WEIGHT, OWN_SHARE = 0.25, 0.9


@dataclass(frozen=True)
class Wanted:
    """What one collection is searched for. Without a vector there is no vector leg; `text` says whether there is a text
    leg; `foreign` is a language that the vector's model does not know. Each of `phrases` must stand in a chunk as it
    is. Only documents that pass `condition` count."""

    query: str
    vector: np.ndarray | None
    text: bool
    foreign: bool
    phrases: list[str]
    condition: Condition
    limit: int

    @property
    def depth(self) -> int:
        """How many each leg hands on: more than are wanted where fusion or neighbours can raise one of them."""
        return max(self.limit, DEPTH) if self.text else self.limit

    def parameters(self, index: VectorIndex) -> dict[str, object]:
        """What `statement` binds."""
        return {
            "collection": index.collection,
            "text_search": index.text_search,
            "query": self.query,
            "vector": self.vector,
            "foreign": self.foreign,
            "vector_weight": FOREIGN_VECTOR_WEIGHT if self.foreign else VECTOR_WEIGHT,
            "phrases": self.phrases,
            "enough_said": ENOUGH_SAID,
            "most_words": MOST_WORDS,
            "depth": self.depth,
            "limit": self.limit,
            "k1": BM25_K1,
            "b": BM25_B,
            "candidates": CANDIDATES,
            "piece_weight": PIECE_WEIGHT,
            "neighbour_weight": NEIGHBOUR_WEIGHT,
            "own_share": OWN_SHARE,
            "paths_shown": PATHS_SHOWN,
            **self.condition.parameters,
        }


def statement(index: VectorIndex, wanted: Wanted, *, exact: bool = False) -> sql.Composed:
    """The best chunks, best first: score, place, text, and where else they stand. Bind `wanted.parameters(index)`.

    Nothing where the index is not the collection's active one. The legs test what is published, and the filters, before
    their LIMIT: a row of the index that no such document holds is no hit. `exact` compares every row with the
    question's vector, where the HNSW graph gives up after some, and ranks every row that says one of its words, not the
    rarest of them.
    """
    legs = []
    if wanted.vector is not None:
        legs.append(sql.SQL("vector_leg AS MATERIALIZED ({})").format(_vector_leg(index, wanted, exact)))
    if wanted.text:
        legs.append(sql.SQL("text_leg AS MATERIALIZED ({})").format(_text_leg(index, wanted, exact)))
    if len(legs) == 2:
        fused, ranked = _FUSED, _WITH_NEIGHBOURS
    elif wanted.text:
        fused, ranked = sql.SQL("SELECT content_hash, score FROM text_leg"), _WITH_NEIGHBOURS
    else:
        fused, ranked = sql.SQL("SELECT content_hash, score FROM vector_leg"), sql.SQL("SELECT * FROM fused")
    return sql.SQL(
        """WITH {legs},
                fused AS MATERIALIZED ({fused}),
                best AS MATERIALIZED (
                    SELECT * FROM ({ranked}) AS ranked
                    WHERE EXISTS (SELECT FROM rag.collection WHERE name = %(collection)s AND active_index = {index})
                    ORDER BY score DESC, content_hash LIMIT %(limit)s),
                place AS MATERIALIZED (
                    SELECT best.score, d.path, c.*, {condition} AS passes
                    FROM best
                    JOIN rag.token_chunk c ON c.collection = %(collection)s AND c.content_hash = best.content_hash
                    JOIN rag.document d ON d.collection = c.collection AND d.published_chunk_key = c.chunk_key),
                first AS (SELECT DISTINCT ON (content_hash) * FROM place WHERE passes
                          ORDER BY content_hash, path, ordinal),
                every AS (SELECT content_hash, array_agg(DISTINCT path) AS paths FROM place GROUP BY content_hash)
           SELECT first.score, first.path, first.first_page AS page, first.headings, first.span_start, first.span_end,
                  first.tokens, cardinality(every.paths) - 1 AS number,
                  (array_remove(every.paths, first.path))[:%(paths_shown)s] AS paths,
                  substring(i.input FROM char_length(first.prefix) + 1 FOR first.span_end - first.span_start) AS content
           FROM first
           JOIN every USING (content_hash)
           JOIN rag.indexed_chunk i ON i.index_id = {index} AND i.content_hash = first.content_hash
           ORDER BY first.score DESC, first.content_hash"""
    ).format(
        legs=sql.SQL(", ").join(legs),
        fused=fused,
        ranked=ranked,
        index=sql.Literal(index.id),
        condition=wanted.condition.test,
    )


# A convex combination of both legs' scores, each spread over 0 to 1 from the leg's last to its first; a chunk that a
# leg has not found gets nothing from it. (Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid
# Retrieval", ACM TOIS 2023.) A text leg that is not full has left out nothing that scores like its last: it is spread
# from 0, or the second of two chunks that say an identifier would count for no more than one that does not. Where its
# first says little of the question (would, actually) the whole leg counts for less.
_FUSED = sql.SQL(
    """SELECT content_hash, sum(weight * coalesce((score - least) / nullif(most - least, 0), 1)) AS score
       FROM (SELECT content_hash, score, %(vector_weight)s AS weight, min(score) OVER () AS least,
                    max(score) OVER () AS most
             FROM vector_leg
             UNION ALL
             SELECT content_hash, score,
                    (1 - %(vector_weight)s)
                    * least(1, first_value(said) OVER (ORDER BY score DESC, content_hash) / %(enough_said)s) ^ 2,
                    CASE WHEN count(*) OVER () < %(depth)s THEN 0 ELSE min(score) OVER () END, max(score) OVER ()
             FROM text_leg) AS legs
       GROUP BY content_hash"""
)

# A chunk is judged with its neighbours: by the mean of its own score and those of the chunks before and after it, which
# count less. A neighbour that was not found counts 0, one that the document has not is left out. That lowers the right
# part of a long document against short ones, which have no neighbours: so none is lowered by much.
_WITH_NEIGHBOURS = sql.SQL(
    """SELECT f.content_hash,
              greatest(%(own_share)s * f.score,
                       (f.score + %(neighbour_weight)s * coalesce(around.score, 0))
                       / (1 + %(neighbour_weight)s * place.neighbours)) AS score
       FROM fused f
       CROSS JOIN LATERAL (
           SELECT c.chunk_key, c.ordinal, (c.ordinal > 0)::int + (c.ordinal < k.chunks - 1)::int AS neighbours
           FROM rag.token_chunk c
           JOIN rag.document d ON d.collection = c.collection AND d.published_chunk_key = c.chunk_key
           JOIN rag.chunking k ON k.collection = c.collection AND k.chunk_key = c.chunk_key
           WHERE c.collection = %(collection)s AND c.content_hash = f.content_hash
           ORDER BY d.path, c.ordinal LIMIT 1) AS place
       CROSS JOIN LATERAL (
           SELECT sum(n.score) AS score FROM rag.token_chunk c JOIN fused n ON n.content_hash = c.content_hash
           WHERE c.collection = %(collection)s AND c.chunk_key = place.chunk_key
                 AND c.ordinal IN (place.ordinal - 1, place.ordinal + 1)) AS around"""
)

# The phrases as one query; null where there is none but stop words.
_PHRASES = sql.SQL(
    """(SELECT string_agg(phrase::text, ' & ')::tsquery
        FROM unnest(%(phrases)s::text[]) AS quoted, rag.phrase_query(%(text_search)s::regconfig, quoted) AS phrase)"""
)

# Tests that a row `i` which that query finds has the identifiers of the phrases; true where they have none.
_PHRASED = sql.SQL(
    """coalesce(rag.says_identifiers(i.terms, (
           SELECT array_agg(name)
           FROM unnest(%(phrases)s::text[]) AS quoted, unnest(rag.identifiers(rag.spaced(quoted))) AS name)), true)"""
)


def _published(wanted: Wanted) -> sql.Composed:
    """Tests that a published document which passes the filters holds the row `i`."""
    return sql.SQL(
        """EXISTS (SELECT FROM rag.token_chunk c
                   JOIN rag.document d ON d.collection = c.collection AND d.published_chunk_key = c.chunk_key
                   WHERE c.collection = %(collection)s AND c.content_hash = i.content_hash AND {condition})"""
    ).format(condition=wanted.condition.test)


def _vector_leg(index: VectorIndex, wanted: Wanted, exact: bool) -> sql.Composed:
    """The chunks nearest to the question by cosine. `exact` orders by what is equal to the distance and no HNSW graph
    knows."""
    distance = sql.SQL("i.embedding::{kind}({dimensions}) <=> %(vector)s::{kind}({dimensions})").format(
        kind=sql.SQL("halfvec" if index.precision == "half" else "vector"), dimensions=sql.Literal(index.dimensions)
    )
    return sql.SQL(
        """SELECT content_hash, 1 - distance AS score
           FROM (SELECT i.content_hash, {distance} AS distance FROM rag.indexed_chunk i
                 WHERE i.index_id = {index} AND {published} {phrases}
                 ORDER BY {order} LIMIT %(depth)s) AS nearest"""
    ).format(
        distance=distance,
        index=sql.Literal(index.id),
        published=_published(wanted),
        phrases=sql.SQL("AND coalesce(i.terms @@ {}, true) AND {}").format(_PHRASES, _PHRASED)
        if wanted.phrases
        else sql.SQL(""),
        order=sql.SQL("({}) + 0").format(distance) if exact else distance,
    )


def _text_leg(index: VectorIndex, wanted: Wanted, exact: bool) -> sql.Composed:
    """The chunks that say the question's words, ranked by BM25 (Robertson and Zaragoza, 2009; idf as in Lucene).

    `said` is the part of the question's idf that a chunk says; words that stand nowhere count too. It is 1 where that
    says nothing: of an identifier that the index has, of a language that the vector's model does not know, and of
    Chinese, Japanese and Korean, which are asked for by pairs of characters, many of them no words.

    Every chunk with one of the rarest words (or with the phrases, where there are any) is ranked, by all the words:
    common ones alone make no good hit, and reading half of a collection to find that out would be dear. With `exact`
    every chunk with any of the words is, for too few were found.
    """
    return sql.SQL(
        """WITH size AS MATERIALIZED (
               SELECT rows, greatest(words, 1)::float8 / greatest(rows, 1) AS usual_length
               FROM rag.vector_index WHERE id = {index}),
           asked AS MATERIALIZED (
               SELECT tsvector_to_array(rag.terms(%(text_search)s::regconfig, %(query)s)) AS lexemes,
                      rag.identifiers(rag.spaced(%(query)s)) AS identifiers),
           name AS MATERIALIZED (
               -- A hyphen joins words too (write-ahead); with a number after it a name (ORA-01555).
               SELECT typed, typed AS lexeme FROM asked, unnest(identifiers) AS typed
               WHERE typed !~ '-' OR typed ~ '-[0-9][0-9]'
               UNION
               -- A version, with and without its v.
               SELECT typed, CASE left(typed, 1) WHEN 'v' THEN substr(typed, 2) ELSE 'v' || typed END
               FROM asked, unnest(identifiers) AS typed WHERE typed ~ '^v?[0-9]+[.][0-9]'),
           known AS MATERIALIZED (
               SELECT * FROM rag.term_counts({index}, (SELECT lexemes FROM asked) || ARRAY(SELECT lexeme FROM name))),
           piece AS MATERIALIZED (
               SELECT coalesce(array_agg(part.lexeme), '{{}}') AS lexemes
               FROM name, unnest(to_tsvector(%(text_search)s::regconfig, rag.words(name.lexeme))) AS part
               WHERE typed IN (SELECT typed FROM name JOIN known USING (lexeme))),
           term AS MATERIALIZED (
               SELECT lexeme, chunks,
                      ln(1 + (rows - coalesce(chunks, 0) + 0.5) / (coalesce(chunks, 0) + 0.5))
                      * CASE WHEN lexeme = ANY (piece.lexemes) THEN %(piece_weight)s ELSE 1 END AS idf
               FROM size, piece, known FULL JOIN (SELECT unnest(lexemes) AS lexeme FROM asked) AS a USING (lexeme)),
           whole AS MATERIALIZED (
               SELECT least(sum(idf), %(most_words)s * ln(1 + (rows + 0.5) / 0.5)) AS idf
               FROM size, term
               WHERE NOT %(foreign)s AND NOT rag.has_cjk(%(query)s)
                     AND NOT EXISTS (SELECT FROM name JOIN known USING (lexeme))
               GROUP BY rows),
           word AS MATERIALIZED (
               SELECT rag.term_query(lexeme) AS query, idf,
                      sum(chunks) OVER (ORDER BY chunks, lexeme) AS chunks_so_far,
                      row_number() OVER (ORDER BY chunks, lexeme) AS nth
               FROM term WHERE chunks > 0),
           candidate AS MATERIALIZED (
               SELECT i.content_hash, i.terms || '' AS terms
               FROM (SELECT coalesce({phrases}, string_agg(query::text, ' | ')::tsquery) AS wanted FROM word
                     WHERE {rarest}) AS candidates,
                    rag.text_candidates({index}, wanted) AS i
               WHERE {phrased})
           SELECT i.content_hash, i.score, coalesce(i.idf / (SELECT idf FROM whole), 1) AS said
           FROM (
               SELECT content_hash, sum(idf) AS idf,
                      sum(idf * frequency * (%(k1)s + 1)
                          / (frequency + %(k1)s * (1 - %(b)s + %(b)s * length(terms) / usual_length))) AS score
               FROM size, candidate, word,
                    LATERAL (SELECT rag.frequency(terms, query) AS frequency OFFSET 0) AS counted
               WHERE frequency > 0
               GROUP BY content_hash ORDER BY score DESC, content_hash OFFSET 0) AS i
           WHERE (SELECT {published})
           ORDER BY score DESC, content_hash LIMIT %(depth)s"""
    ).format(
        index=sql.Literal(index.id),
        phrases=_PHRASES if wanted.phrases else sql.SQL("NULL::tsquery"),
        phrased=_PHRASED if wanted.phrases else sql.SQL("true"),
        rarest=sql.SQL("true" if exact else "nth = 1 OR chunks_so_far <= %(candidates)s"),
        published=_published(wanted),
    )
