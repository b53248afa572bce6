"""The parts of a PDF's pages: running headers and footers, columns, footnotes."""

import re
from collections import Counter

from .pdf import PdfLine
from .pdf_headings import Headings

# Lines whose heights differ by no more points than this are at the same place of their pages.
SAME_HEIGHT = 3.0
# How many running lines a page may have at either end.
RUNNING_LINES = 3
# Footnotes are set in at most this part of the body's size.
SMALLER = 0.92
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
# A note begins with its mark.
NOTE = re.compile(r"(?:\d{1,3}|[*†‡§¶∗])\s*(?=[^\W\d_]|[“\"‘'(/<])")


def without_running_lines(pages: list[list[PdfLine]], headings: Headings) -> list[list[PdfLine]]:
    """The pages without headers and footers: the outermost line is one when a page or two further the line at its
    height says the same or has counted on by as many pages, and three pages or more have such lines. A heading is none.
    """
    for outermost in (max, min):
        for _ in range(RUNNING_LINES):
            edges = [outermost(lines, key=lambda line: line.bottom, default=None) for lines in pages]
            edges = [None if id(line) in headings else line for line in edges]
            running = {id(line) for number, line in enumerate(edges) if _is_running(edges, number)}
            if len(running) < 3:
                break
            pages = [[line for line in lines if id(line) not in running] for lines in pages]
    return pages


def _is_running(edges: list[PdfLine | None], number: int) -> bool:
    line = edges[number]
    if line is None:
        return False
    counts = _page_counts(line.text, number)
    for neighbour in (number - 2, number - 1, number + 1, number + 2):
        other = edges[neighbour] if 0 <= neighbour < len(edges) else None
        if other is not None and abs(other.bottom - line.bottom) <= SAME_HEIGHT:
            if counts & _page_counts(other.text, neighbour):
                return True
            if line.text == other.text and sum(map(str.isalpha, line.text)) >= 3:
                return True
    return False


def _page_counts(text: str, number: int) -> set[int]:
    """The differences between the numbers in a line, Arabic or Roman, and its page's index."""
    found = set()
    for word in text.lower().split():
        if word.isascii() and word.isdigit() and len(word) < 6:
            found.add(int(word) - number)
        elif set(word) <= _ROMAN.keys():
            values = [_ROMAN[letter] for letter in word]
            found.add(sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True)) - number)
    return found


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
