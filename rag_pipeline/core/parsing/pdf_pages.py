"""The parts of a PDF's pages: running headers and footers, columns, footnotes."""

import re
from collections import Counter

from .pdf import PdfLine
from .pdf_headings import Headings, body_size, stands_out

# Lines whose heights differ by no more points than this are at the same place of their pages.
SAME_HEIGHT = 3.0
# How many running lines a page may have at either end.
RUNNING_LINES = 3
# The pages on which it is looked for again: headers of left and right pages may differ.
BEFORE, AROUND = (-2, -1), (-2, -1, 1, 2)
# Footnotes are set in at most this part of the body's size.
SMALLER = 0.92
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
# A note begins with its mark.
NOTE = re.compile(r"(?:\d{1,3}|[*†‡§¶∗])\s*(?=[^\W\d_]|[“\"‘'(/<])")


def without_running_lines(pages: list[list[PdfLine]], headings: Headings) -> list[list[PdfLine]]:
    """The pages without headers and footers: the outermost line is one when a page or two further the line at its
    height says the same, or the same but for a number that has counted on by as many pages, or something else beside
    such a number; and three pages or more have such lines. A heading is none, and what stands out like one at the top
    of pages goes only where it repeats the line of a page before.
    """
    body = body_size(pages)
    for outermost in (max, min):
        for _ in range(RUNNING_LINES):
            edges = [outermost(lines, key=lambda line: line.bottom, default=None) for lines in pages]
            edges = [None if id(line) in headings else line for line in edges]
            titled = [outermost is max and line is not None and stands_out(line, body) for line in edges]
            running = [
                n
                for n, line in enumerate(edges)
                if line is not None
                and (_is_repeated(edges, n) if titled[n] else _is_running(edges, n, footer=outermost is min))
            ]
            if len(running) < 3:
                break
            dropped = {id(edges[n]) for n in running if not titled[n] or _is_repeated(edges, n, BEFORE)}
            pages = [[line for line in lines if id(line) not in dropped] for lines in pages]
    return pages


def _is_repeated(edges: list[PdfLine | None], number: int, steps: tuple[int, ...] = AROUND) -> bool:
    return any(other.text == edges[number].text for other in _at_its_height(edges, number, steps).values())


def _is_running(edges: list[PdfLine | None], number: int, footer: bool) -> bool:
    line = edges[number]
    counted = _without_count(line, number, len(edges), footer)
    for neighbour, other in _at_its_height(edges, number, AROUND).items():
        if counted & _without_count(other, neighbour, len(edges), footer):
            return True
        if line.text == other.text and sum(map(str.isalpha, line.text)) >= 3:
            return True
    return False


def _at_its_height(edges: list[PdfLine | None], number: int, steps: tuple[int, ...]) -> dict[int, PdfLine]:
    """The edges so many pages further that stand where this one does, by their pages' indices."""
    found = {}
    for neighbour in (number + step for step in steps):
        other = edges[neighbour] if 0 <= neighbour < len(edges) else None
        if other is not None and abs(other.bottom - edges[number].bottom) <= SAME_HEIGHT:
            found[neighbour] = other
    return found


def _without_count(line: PdfLine, number: int, pages: int, footer: bool) -> set[tuple[str, int]]:
    """What is left of a line without a number in it that may be its page's, and that number less the page's index.
    Nothing is left of a line with the number apart, at either end of a footer or by a wide gap of a header: the rest
    names the section."""
    found = set()
    words = line.text.lower().split()
    for index, word in enumerate(words):
        count = _number(word)
        # Beside words, a number beyond the last page is a year or an amount.
        if count is not None and (len(words) == 1 or line.cells or count <= pages):
            found.add((" ".join([*words[:index], "", *words[index + 1 :]]), count - number))
            if footer and index in (0, len(words) - 1):
                found.add(("", count - number))
    for cell in (line.cells[0], line.cells[-1]) if line.cells else ():
        count = _number(cell[2].strip().lower())
        if count is not None:
            found.add(("", count - number))
    return found


def _number(word: str) -> int | None:
    """The value of a word that is a number, Arabic or Roman."""
    if word.isascii() and word.isdigit() and len(word) < 6:
        return int(word)
    if word and set(word) <= _ROMAN.keys():
        values = [_ROMAN[letter] for letter in word]
        return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))
    return None


def in_columns(lines: list[PdfLine]) -> list[PdfLine]:
    """A page's lines in reading order where its content goes across two columns: what is left of the gutter first, then
    what is right."""
    gutters = Counter(round((line.cells[0][1] + line.cells[1][0]) / 10) for line in lines if _is_two_columns(line))
    if not gutters:
        return lines
    middle, _ = gutters.most_common(1)[0]
    gutter = middle * 5
    crossing = [line for line in lines if line.left < gutter < line.right]
    parted = [line for line in crossing if _is_two_columns(line) and line.cells[0][1] <= gutter <= line.cells[1][0]]
    if len(parted) < 8 or len(parted) < 0.7 * len(crossing):
        return lines
    ordered: list[PdfLine] = []
    left: list[PdfLine] = []
    right: list[PdfLine] = []
    for line in lines:
        if line in parted:
            halves = [_piece(line, *cell) for cell in line.cells]
            left.append(halves[0])
            right.append(halves[1])
        elif line.right <= gutter:
            left.append(line)
        elif line.left >= gutter:
            right.append(line)
        else:
            ordered += [*left, *right, line]
            left, right = [], []
    return [*ordered, *left, *right]


def _is_two_columns(line: PdfLine) -> bool:
    """Whether a line is two lines of running text side by side, not a row of a table."""
    return line.cells is not None and len(line.cells) == 2 and min(len(cell[2]) for cell in line.cells) >= 15


def _piece(line: PdfLine, left: float, right: float, text: str) -> PdfLine:
    return PdfLine(text, left, line.bottom, right, line.top, line.size, line.bold, line.mono)


def footnotes(lines: list[PdfLine], body: float) -> list[PdfLine]:
    """The last lines of a page that are set smaller than the body, from the first that begins with a note's mark."""
    start = len(lines)
    while start and lines[start - 1].size <= SMALLER * body:
        start -= 1
    return next((lines[index:] for index in range(start, len(lines)) if NOTE.match(lines[index].text)), [])
