"""evaluate: how well search finds what it is known to have to find."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import log2

from psycopg import Connection

from rag_pipeline.core.collections import Collection
from rag_pipeline.core.errors import ProviderError, RagError, SourceError, UsageError
from rag_pipeline.core.files import QUESTIONS, location, open_file
from rag_pipeline.core.retrieval import Hit, Searcher


@dataclass(frozen=True)
class KnownQuestion:
    """A question and the paths of the documents that answer it; `page` is the page of them that does, if one does."""

    question: str
    sources: frozenset[str]
    id: str
    page: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """The figures, each from 0 to 1 and the mean over all questions; see `measures`.

    `without_source` names the questions none of whose sources is in the collection: nothing can find these.
    """

    collection: str
    mode: str
    k: int
    questions: int
    hit_rate: float
    mrr: float
    ndcg: float
    without_source: tuple[str, ...] = ()


def read_questions(lines: Iterable[bytes], name: str) -> list[KnownQuestion]:
    """The questions of a file of JSON lines: {"question", "sources": [path, ...], "id"?, "page"?}.

    One without an id is named by its line. Raises UsageError, with the line, for one that is not in this form.
    """
    questions = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                questions.append(_question(json.loads(line.decode("utf-8-sig")), f"in line {number}"))
            except (ValueError, TypeError, RecursionError) as error:
                reason = error if isinstance(error, TypeError) else "it is no JSON object in UTF-8"
                raise UsageError(f'line {number} of {name} is no question: {reason}: write {{"question": "...", '
                                 f'"sources": ["path", ...]}}') from None  # fmt: skip
    if not questions:
        raise UsageError(f"{name} has no questions: write one on each line")
    return questions


def source_questions(collection: Collection) -> list[KnownQuestion]:
    """The questions that come with a collection, at the root of its source; none where it has no such file.

    Raises SourceError when the file cannot be read, UsageError as `read_questions` does.
    """
    where = location(collection.source, QUESTIONS)
    try:
        with open_file(where) as lines:
            return read_questions(lines, where)
    except FileNotFoundError:
        return []
    except RagError:
        raise
    except Exception as error:  # of any kind, as remote file systems have it
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SourceError(f"cannot read {where}: {reason}; make it readable") from None


def evaluate(
    searcher: Searcher,
    name: str,
    questions: Sequence[KnownQuestion],
    k: int = 5,
    mode: str = "hybrid",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Search for every question and see where its sources come.

    Raises what a search raises, UsageError where there is no question, and ProviderError when a hybrid search had to do
    without its vectors: its figures would be those of another mode.
    """
    if not questions:
        raise UsageError("there is no question to evaluate the search by")
    figures = []
    for done, known in enumerate(questions, 1):
        hits = searcher.search([name], known.question, k, mode)
        if hits.degraded:
            raise ProviderError(f"{hits.degraded}; measure the search by words meanwhile: --mode text")
        figures.append(measures([_with_copies(searcher.connection, hit, known.sources) for hit in hits], known, k))
        progress(done, len(questions))
    published = _published(searcher.connection, name, {path for known in questions for path in known.sources})
    return Evaluation(
        name,
        mode,
        k,
        len(questions),
        *(round(sum(column) / len(questions), 6) for column in zip(*figures, strict=True)),
        without_source=tuple(known.id for known in questions if not known.sources & published),
    )


def measures(hits: Sequence[Hit], known: KnownQuestion, k: int) -> tuple[float, float, float]:
    """(hit rate, reciprocal rank, nDCG) at k of one question.

    A hit is relevant when the document it stands in, or another with the same content, is one of the sources, and it
    begins on the known page where one is known.

    - Hit rate: 1 when one of the first k hits is relevant.
    - Reciprocal rank: 1/r of the first relevant hit, 0 without one (Voorhees, TREC-8, 1999). Its mean is the MRR.
    - nDCG: sum over the gains of 1/log2(r + 1), over the same for the best possible ranking (Järvelin and
      Kekäläinen, ACM TOIS 20(4), 2002; binary relevance). A hit gains when it shows a source that none above it
      shows, so that many chunks of one document count once; sources that one hit shows together are one.
    """
    missing, ranks, gains = set(known.sources), [], []
    for rank, hit in enumerate(hits[:k], 1):
        shown = known.sources & {hit.path, *hit.also_in.paths}
        if not shown or (known.page is not None and hit.page != known.page):
            continue
        ranks.append(rank)
        if shown & missing:
            gains.append(rank)
            missing -= shown
    best = range(1, min(k, len(gains) + len(missing)) + 1)
    ndcg = sum(1 / log2(rank + 1) for rank in gains) / sum(1 / log2(rank + 1) for rank in best)
    return float(bool(ranks)), 1 / ranks[0] if ranks else 0.0, ndcg


def _question(value: object, name: str) -> KnownQuestion:
    """Raises TypeError, saying what is wrong."""
    if not isinstance(value, dict):
        raise TypeError("it is no JSON object in UTF-8")
    question, sources, page = value.get("question"), value.get("sources"), value.get("page")
    if not (isinstance(question, str) and question.strip()):
        raise TypeError('its "question" is no text')
    if not (isinstance(sources, list) and sources and all(isinstance(path, str) and path for path in sources)):
        raise TypeError('its "sources" are no list of paths')
    if page is not None and not (type(page) is int and page > 0):
        raise TypeError('its "page" is no number from 1')
    return KnownQuestion(question, frozenset(sources), str(value.get("id", name)), page)


def _with_copies(connection: Connection, hit: Hit, sources: frozenset[str]) -> Hit:
    """The hit, with those of the sources that have its content too among its paths: a hit names only the first."""
    if hit.also_in.count == len(hit.also_in.paths):
        return hit
    copies = connection.execute(
        """SELECT path FROM rag.document d
           WHERE collection = %(collection)s AND path = ANY (%(sources)s) AND EXISTS (
               SELECT FROM rag.token_chunk theirs JOIN rag.token_chunk own USING (collection, content_hash)
               WHERE theirs.collection = d.collection AND theirs.chunk_key = d.published_chunk_key
                 AND own.span_start = %(start)s AND own.span_end = %(end)s
                 AND own.chunk_key = (SELECT published_chunk_key FROM rag.document
                                      WHERE collection = %(collection)s AND path = %(path)s))""",
        {
            "collection": hit.collection,
            "sources": sorted(sources),
            "path": hit.path,
            "start": hit.start,
            "end": hit.end,
        },
    ).fetchall()
    paths = dict.fromkeys((*hit.also_in.paths, *(path for (path,) in copies)))
    return replace(hit, also_in=replace(hit.also_in, paths=tuple(paths)))


def _published(connection: Connection, name: str, paths: set[str]) -> set[str]:
    return {
        path
        for (path,) in connection.execute(
            """SELECT path FROM rag.document
               WHERE collection = %s AND path = ANY (%s) AND published_chunk_key IS NOT NULL""",
            [name, list(paths)],
        )
    }
