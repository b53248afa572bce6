"""Spans that fit a limit, cut at the best boundary there is: elements, then rows and sentences, then ever less."""

from bisect import bisect_right
from collections.abc import Callable, Iterator

import regex

from .boundaries import inside, sentences
from .parsing import ParsedText
from .tokens import TokenCounter

_VISIBLE = regex.compile(r"[^\s\x1c-\x1f]")

# A piece below this part of the limit is not worth a chunk of its own: where the best boundary would leave one, the
# next best is taken.
TINY_SHARE = 8
# The rank down to which a boundary keeps something whole: sentences, rows, top-level blocks. To reach one, a chunk
# goes without its overlap.
_WHOLE = 1


class Packer:
    """Packs spans of one document.

    `lead(position)` is the number of tokens that are embedded in front of a span that begins there.
    """

    def __init__(self, parsed: ParsedText, counter: TokenCounter, lead: Callable[[int, int], int]):
        self.text = parsed.text
        self.elements = parsed.elements
        self.starts = [element.start for element in parsed.elements]
        self.counter = counter
        self.lead = lead

    def pack(self, start: int, end: int, limit: int, overlap: int) -> Iterator[tuple[int, int]]:
        """Spans that hold all visible characters of text[start:end], none of more than `limit` tokens with its lead.

        Each begins with the last whole sentences of the one before, up to `overlap` tokens of them. Only a single
        character may exceed the limit.
        """
        stop = self._stop(start, end)
        fresh = begin = self._begin(start, stop)
        while fresh < stop:
            budget = max(1, limit - self.lead(begin, limit))
            if self._fits(begin, stop, budget):
                yield begin, stop
                return
            cut, rank = self._cut(begin, fresh, stop, budget)
            if begin < fresh and rank > _WHOLE:
                begin = fresh
                continue
            yield begin, self._stop(begin, cut)
            previous, fresh = fresh, self._begin(cut, stop)
            begin = (overlap and self._overlap(previous, cut, overlap)) or fresh

    def halves(self, start: int, end: int) -> list[tuple[int, int]]:
        """A span that is one token, cut in two between characters: another tokenizer may count it as many."""
        middle = (start + end) // 2
        parts = [(start, self._stop(start, middle)), (self._begin(middle, end), end)]
        return [(begin, stop) for begin, stop in parts if begin < stop]

    def element_at(self, position: int) -> int:
        """The index of the element that holds a position, or the white space after it."""
        return max(0, bisect_right(self.starts, position) - 1)

    def _begin(self, position: int, stop: int) -> int:
        """Where the span behind a cut begins: at the first visible character, in code at the start of its line."""
        found = _VISIBLE.search(self.text, position, stop)
        if not found:
            return stop
        begin = found.start()
        if self.elements[self.element_at(begin)].kind == "code":
            line = self.text.rfind("\n", 0, begin) + 1
            if line >= position:
                return line
        return begin

    def _stop(self, start: int, end: int) -> int:
        return start + len(self.text[start:end].rstrip())

    def _fits(self, begin: int, end: int, budget: int) -> bool:
        # An estimate is off by a few tokens at each end; counting exactly costs too much far from the budget.
        if self.counter.estimate(begin, end) > 2 * budget + 64:
            return False
        return self.counter.count(begin, self._stop(begin, end)) <= budget

    def _cut(self, begin: int, fresh: int, stop: int, budget: int) -> tuple[int, int]:
        """Where to cut text[begin:stop], which does not fit, behind `fresh`, and the rank of that boundary.

        Rank 0 is between elements, the others are the places in `inside(...)`, from 1.
        """
        reach = min(stop, self.counter.reach(begin, budget + 2) + 1)
        tiny = budget // TINY_SHARE
        first, over = self.element_at(fresh), self.element_at(reach)
        while over > first and not self._fits(begin, self.starts[over], budget):
            over -= 1
        if over > first and self.elements[over - 1].kind != "title":
            # An element that fits a chunk by itself is kept whole; one that does not may as well begin here.
            start, end = self.starts[over], min(self.elements[over].end, stop)
            enough = tiny if self.counter.estimate(start, end) <= budget else budget // 2
            if self.counter.estimate(fresh, start) >= enough:
                return start, 0
        element = self.elements[over]
        window = (max(element.start, fresh), min(reach + 1, stop))
        ranks = inside(element.kind)
        for rank, boundaries in enumerate(ranks, 1):
            for position in reversed(list(boundaries(self.text, *window))):
                if rank < len(ranks) and self.counter.estimate(fresh, position) < tiny:
                    break
                if fresh < position < stop and self._fits(begin, position, budget):
                    return position, rank
        # What a reader takes for one character may be longer than the budget: it is cut between code points.
        position = min(reach, stop - 1)
        while position > fresh + 1 and not self._fits(begin, position, budget):
            position -= 1
        return max(position, fresh + 1), len(ranks) + 1

    def _overlap(self, previous: int, cut: int, overlap: int) -> int | None:
        """Where the chunk after a cut begins, so as to repeat the last whole sentences before it; None: nowhere.

        Titles, tables and code are not repeated.
        """
        stop = self._stop(previous, cut)
        farthest = max(previous + 1, self.counter.reach_back(cut, overlap + 2))
        index = self.element_at(stop - 1)
        candidates: list[int] = []
        while index >= 0 and self.elements[index].kind not in ("title", "table", "code"):
            element = self.elements[index]
            scan = max(element.start, farthest - 200)
            candidates += reversed([p for p in sentences(self.text, scan, min(element.end, stop)) if p < stop])
            candidates.append(element.start)
            if element.start <= farthest:
                break
            index -= 1
        begin = None
        for position in candidates:
            if position < farthest or self.counter.count(position, stop) > overlap:
                break
            begin = position
        return begin
