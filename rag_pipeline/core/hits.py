"""What a search finds, and what becomes of hits that say the same or stand next to each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from rag_pipeline.core.tokens import count_tokens

if TYPE_CHECKING:
    import pandas

# Reciprocal rank fusion's constant, from Cormack, Clarke and Buettcher, SIGIR 2009.
RRF_K = 60

# How many of the other places of a content are named.
PATHS_SHOWN = 20

# Texts are near-identical when they share this part of their runs of three words (Broder, "On the resemblance and
# containment of documents", 1997). A page changed in one word of fifty shares 0.89.
NEAR_IDENTICAL = 0.8

# The runs at these places of a text (parts of its length) are looked up before all are; of 6,000 texts that are barely
# near-identical, and as long as the other, one has none of them. The golden ratio spreads them out of step with the
# rows of a table.
SAMPLED = tuple(number * 0.618034 % 1 for number in range(4))

# The most tokens of hits that are made one: four chunks of the usual size. An eighth of what a prompt carries at most,
# and short enough to be a citation that somebody reads.
MERGED_TOKENS = 2048

# No text that parts its words by spaces has longer ones on average.
LONGEST_WORD = 20


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


def fuse(rankings: Sequence[Sequence[Hit]]) -> list[Hit]:
    """The hits of several collections by reciprocal rank: their scores come from different models and do not compare.

    Content that several collections have is one hit, at its place in the collection that ranks it best.
    """
    ranked = sorted((hit for hits in rankings for hit in hits), key=lambda hit: hit.rank)
    fused: dict[str, Hit] = {}
    for hit in ranked:
        score = 1 / (RRF_K + hit.rank)
        first = fused.get(hit.content)
        if first is None:
            fused[hit.content] = replace(hit, score=score)
        elif first.collection == hit.collection:
            fused[hit.content] = _absorb(first, hit)
        else:
            fused[hit.content] = replace(_absorb(first, hit), score=first.score + score)
    return _numbered(sorted(fused.values(), key=lambda hit: -hit.score))


def distinct(hits: Sequence[Hit], k: int) -> tuple[list[Hit], int]:
    """The k best hits that are not near-identical to a better one, and how many these are; those that are come after
    them, where k is not full, and are named in `also_in` of the better one, where it is."""
    kept: list[Hit] = []
    shingles: list[set[tuple[str, ...]]] = []
    alike: list[tuple[int, Hit]] = []
    for hit in hits:
        words = _words(hit.content)
        some = _some_shingles(words)
        suspects = [place for place, theirs in enumerate(shingles) if not theirs.isdisjoint(some)]
        mine = _shingles(words) if suspects or len(kept) < k else set()
        better = next((place for place in suspects if _near_identical(mine, shingles[place])), None)
        if better is not None:
            alike.append((better, hit))
        elif len(kept) < k:
            kept.append(hit)
            shingles.append(mine)
    room = k - len(kept)
    for better, hit in alike[room:]:
        kept[better] = _absorb(kept[better], hit)
    return _numbered([*kept, *(hit for _, hit in alike[:room])]), len(kept)


def merge(hits: Sequence[Hit], read: Callable[[Hit, int], str]) -> list[Hit]:
    """Hits of one document that overlap, touch, or are parted by white space alone, made one of MERGED_TOKENS at most:
    with the rank, score and page of the best of them, and the headings they share. The span may begin on an earlier
    page than that, and end on a later one.

    `read(hit, end)` gives the text of the hit's document from the hit's start to `end`.
    """
    merged = []
    for _, group in groupby(sorted(hits, key=_place), key=lambda hit: (hit.collection, hit.path)):
        runs: list[list[Hit]] = []
        neighbours = list(group)
        text = read(neighbours[0], max(hit.end for hit in neighbours)) if len(neighbours) > 1 else ""
        offset = neighbours[0].start
        reached = tokens = 0
        for hit in neighbours:
            tokens += hit.tokens
            if runs and tokens <= MERGED_TOKENS and not text[reached - offset : hit.start - offset].strip():
                runs[-1].append(hit)
                reached = max(reached, hit.end)
            else:
                runs.append([hit])
                reached, tokens = hit.end, hit.tokens
        merged += [_joined(run, text, offset) if len(run) > 1 else run[0] for run in runs]
    return sorted(merged, key=lambda hit: hit.rank)


def _joined(run: list[Hit], text: str, offset: int) -> Hit:
    best = min(run, key=lambda hit: hit.rank)
    end = max(hit.end for hit in run)
    content = text[run[0].start - offset : end - offset]
    heading = run[0].heading
    for one, other in pairwise(run):
        heading = _common(heading, _common(one.heading, other.heading))
    return replace(
        best,
        heading=heading,
        start=run[0].start,
        end=end,
        tokens=count_tokens(content),
        content=content,
    )


def _place(hit: Hit) -> tuple[str, str, int, int]:
    return hit.collection, hit.path, hit.start, hit.end


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """The headings that both begin with."""
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return one[:same]


def _words(text: str) -> Sequence[str]:
    """The words of a text, in small letters; its characters where spaces part no words."""
    words = text.lower().split()
    return text if len(words) * LONGEST_WORD < len(text) else words


def _shingles(words: Sequence[str]) -> set[tuple[str, ...]]:
    """The runs of three words."""
    return set(zip(words, words[1:], words[2:], strict=False)) or {tuple(words)}


def _some_shingles(words: Sequence[str]) -> set[tuple[str, ...]]:
    starts = max(1, len(words) - 2)
    return {tuple(words[start : start + 3]) for start in [int(part * starts) for part in SAMPLED]}


def _near_identical(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> bool:
    common = len(one & other)
    return common >= NEAR_IDENTICAL * (len(one) + len(other) - common)


def _absorb(hit: Hit, other: Hit) -> Hit:
    """The hit, with the places of the other in its `also_in`; those in another collection as COLLECTION/PATH."""
    prefix = "" if other.collection == hit.collection else f"{other.collection}/"
    known = {"" if prefix else hit.path, *hit.also_in.paths}
    others = [prefix + path for path in (other.path, *other.also_in.paths)]
    new = [path for path in dict.fromkeys(others) if path not in known]
    unnamed = other.also_in.count - len(other.also_in.paths)
    return replace(
        hit,
        also_in=AlsoIn(hit.also_in.count + len(new) + unnamed, (*hit.also_in.paths, *new)[:PATHS_SHOWN]),
    )


def _numbered(hits: Sequence[Hit]) -> list[Hit]:
    return [hit if hit.rank == rank else replace(hit, rank=rank) for rank, hit in enumerate(hits, 1)]
