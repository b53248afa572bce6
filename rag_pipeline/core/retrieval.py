"""search: the published chunks nearest to a question, by meaning, by words, or by both."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from psycopg import IsolationLevel
from psycopg.rows import dict_row

from rag_pipeline.core.collections import missing, require_name
from rag_pipeline.core.database import ScopedConnection
from rag_pipeline.core.errors import ProviderError, UsageError
from rag_pipeline.core.filters import NOT_TEXT, Condition, Filter, condition, parse_filters, require_fields
from rag_pipeline.core.hits import AlsoIn, Hit, Hits, distinct, fuse, merge
from rag_pipeline.core.indexing import VectorIndex, active_index
from rag_pipeline.core.models import embedding_model
from rag_pipeline.core.parsing.normalising import normalise
from rag_pipeline.core.ranking import DEPTH, Wanted, statement

MODES = ("hybrid", "vector", "text")

# An index may be replaced between reading its id and searching it; a second replacement within milliseconds is not met.
ATTEMPTS = 3

# So many more than k are read: hits for near-identical ones to give way to. Where those are near-identical too, so many
# times as many are, up to the most that k may ask for.
SPARE = 10
FURTHER, FARTHEST = 10, 1000

# The longest question, in characters: more than embedding models read, and not too many for the 1 MB of a tsvector.
LONGEST_QUESTION = 50_000

# A letter or digit: what follows one at once opens no quotation (a 3" bolt). Not in Chinese, Japanese and Korean, which
# have no spaces.
LETTER = r"[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]"

# Words that must stand as they are quoted. Of single quotation marks the typographic ones alone, which an apostrophe in
# a word (don’t) does not end. Those of JSON are none.
PHRASE = re.compile(
    rf"""(?<!{LETTER}) (?<![{{\[:,=]) (?<!":\s)
         (?: ["“„]([^"“”„]+)["“”](?!:) | «([^«»]+)» | »([^«»]+)«
           | ‘((?:[^‘’]|(?<={LETTER})’(?={LETTER}))+)’(?!{LETTER}) )
       | 「([^「」]+)」 | 『([^『』]+)』""",
    re.VERBOSE,
)


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

    connection: ScopedConnection
    embed: Callable[[str, str, int], tuple[np.ndarray, int, float | None]]
    _questions: dict[tuple[str, str, int], Question] = field(default_factory=dict)
    _indexes: dict[str, VectorIndex] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Everything about a search is read from one snapshot: hits, their text and where they stand.
        self.connection.isolation_level = IsolationLevel.REPEATABLE_READ
        self.connection.read_only = True
        # A plan without the question's own values would leave the graph aside; the graph goes on until k pass a filter.
        self.connection.settings |= {"plan_cache_mode": "force_custom_plan", "hnsw.iterative_scan": "strict_order"}

    def search(
        self,
        names: Sequence[str],
        query: str,
        k: int = 5,
        mode: str = "hybrid",
        filters: Sequence[str] = (),
        *,
        merged: bool = False,
    ) -> Hits:
        """The k best hits over the named collections; each is ranked alone, several are fused by reciprocal rank.

        Words in quotes must stand so in a hit. Only documents that pass all `filters` are searched ("path=guides/**",
        "modified>=2024-01-31", "author=*Knuth*"). `merged` makes hits that stand next to each other one.
        Raises UsageError for a wrong argument or a collection that is not there or has nothing indexed yet, and
        ProviderError when mode vector has no provider.
        """
        if mode not in MODES:
            raise UsageError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        if not 1 <= k <= 1000:
            raise UsageError(f"k={k} is not from 1 to 1000")
        if NOT_TEXT.search(query):
            raise UsageError("the question is not valid text: it has a NUL or half a character in it")
        question = normalise(query)  # as the documents are
        if not question.strip():
            raise UsageError("the question is empty: ask something")
        if len(question) > LONGEST_QUESTION:
            raise UsageError(f"the question has {len(question)} characters: shorten it to {LONGEST_QUESTION}")
        if not names:
            raise UsageError("no collection is named")
        for name in names:
            require_name(name)
        names = list(dict.fromkeys(names))
        parsed = parse_filters(filters)
        for _ in range(ATTEMPTS):
            indexes = [self._index(name) for name in names]
            seen = [None if mode == "text" else self._question(question, index, mode) for index in indexes]
            asked = {id(one): one for one in seen if one}.values()
            costs = [one.cost_usd for one in asked]
            hits = self._read(list(zip(indexes, seen, strict=True)), question, k, mode, parsed, merged)
            if hits is not None:
                return Hits(
                    collection=",".join(names),
                    query=query,
                    mode=mode,
                    hits=tuple(hits),
                    degraded=next((one.error for one in asked if one.error), None),
                    question_tokens=sum(one.tokens for one in asked),
                    cost_usd=None if None in costs else sum(costs),
                )
        raise UsageError(f"collection {','.join(names)} was being replaced: search again")

    def _index(self, name: str) -> VectorIndex:
        """The index that was the active one when last looked at; `_rank` tests that it is."""
        if name in self._indexes:
            return self._indexes[name]
        with self.connection.transaction():
            index = active_index(self.connection, name)
            if index is None or not index.rows:
                if self.connection.execute("SELECT FROM rag.collection WHERE name = %s", [name]).fetchone() is None:
                    raise missing(name)
                raise UsageError(f"collection {name} has nothing indexed yet: rag ingest {name} reads its source")
        self._indexes[name] = index
        return index

    def _question(self, query: str, index: VectorIndex, mode: str) -> Question:
        key = (query, index.model, index.dimensions)
        if key in self._questions:
            return self._questions[key]
        try:
            question = Question(*self.embed(*key))
        except ProviderError as error:
            if mode == "vector":
                raise ProviderError(f"{error}; search by words meanwhile: --mode text") from error
            return Question(None, error=str(error))
        self._questions = {key: Question(question.vector)}
        return question

    def _read(
        self,
        searched: Sequence[tuple[VectorIndex, Question | None]],
        query: str,
        k: int,
        mode: str,
        filters: Sequence[Filter],
        merged: bool,
    ) -> list[Hit] | None:
        """The hits as one snapshot has them; None when one of the indexes is not the active one in it."""
        self.connection.settings["hnsw.ef_search"] = str(min(1000, max(k + SPARE, DEPTH)))
        least, limit = k, k + SPARE
        with self.connection.transaction():
            while True:
                rankings = self._rankings(searched, query, least, limit, mode, condition(filters))
                if rankings is None:
                    return None
                hits, number = distinct(rankings[0] if len(rankings) == 1 else fuse(rankings), k)
                if number == k or limit >= FARTHEST or all(len(ranking) < least for ranking in rankings):
                    break
                least = limit = min(FURTHER * limit, FARTHEST)
            require_fields(self.connection, [index.collection for index, _ in searched], filters)
            return merge(hits, self._text) if merged else hits

    def _rankings(
        self,
        searched: Sequence[tuple[VectorIndex, Question | None]],
        query: str,
        least: int,
        limit: int,
        mode: str,
        passes: Condition,
    ) -> list[list[Hit]] | None:
        """The `limit` best hits of each collection, `least` where there are; None when one of the indexes is not the
        active one."""
        rankings = []
        for index, question in searched:
            wanted = Wanted(
                query=query,
                vector=question.vector if question else None,
                text=mode != "vector",
                foreign=not embedding_model(index.model, index.dimensions).understands(query, index.text_search),
                phrases=phrases(query),
                condition=passes,
                limit=limit,
            )
            ranking = self._rank(index, wanted, least)
            if ranking is None:
                self._indexes.clear()
                return None
            rankings.append(ranking)
        return rankings

    def _rank(self, index: VectorIndex, wanted: Wanted, least: int) -> list[Hit] | None:
        """The best hits of one collection, exactly where the graph or the rarest words come up with fewer than `least`;
        None where the index is not its active one."""
        with self.connection.cursor(row_factory=dict_row) as cursor:
            parameters = wanted.parameters(index)
            rows = cursor.execute(statement(index, wanted), parameters).fetchall()
            if not rows and not self._is_active(index):
                return None
            if len(rows) < least:
                rows = cursor.execute(statement(index, wanted, exact=True), parameters).fetchall()
        return [_hit(rank, index.collection, row) for rank, row in enumerate(rows, 1)]

    def _is_active(self, index: VectorIndex) -> bool:
        return self.connection.execute(
            "SELECT EXISTS (SELECT FROM rag.collection WHERE name = %s AND active_index = %s)",
            [index.collection, index.id],
        ).fetchone()[0]

    def _text(self, hit: Hit, end: int) -> str:
        """The text of a hit's document from the hit's start to `end`."""
        return self.connection.execute(
            """SELECT substring(p.text FROM %(start)s + 1 FOR %(end)s - %(start)s)
               FROM rag.document d
               JOIN rag.chunking k ON k.collection = d.collection AND k.chunk_key = d.published_chunk_key
               JOIN rag.parsed_text p ON p.collection = k.collection AND p.parse_key = k.parse_key
               WHERE d.collection = %(collection)s AND d.path = %(path)s""",
            {"start": hit.start, "end": end, "collection": hit.collection, "path": hit.path},
        ).fetchone()[0]


def phrases(query: str) -> list[str]:
    """What stands in quotes; nothing in several lines, which are pasted: a trace's quotes are its own."""
    return [] if "\n" in query.strip() else [match[match.lastindex] for match in PHRASE.finditer(query)]


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
        also_in=AlsoIn(row["number"], tuple(row["paths"])),
    )
