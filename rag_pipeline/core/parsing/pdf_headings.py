"""Which lines of a PDF are headings: those its outline points at, or, where it has none, those that stand out."""

import re
from collections import Counter

from .pdf import HYPHEN, PdfLine

_HEADING_NUMBER = re.compile(
    r"^\s*(?:(?:chapter|appendix|part|section)\s+(?:\d+|[A-Z]\b)|\d+|[A-Z](?=\.))(?:\.\d+)*[.:]?\s+", re.I
)
_APPENDIX_LETTER = re.compile(r"^\s*[A-Z]\s+")
_SECTION_NUMBER = re.compile(r"(?:\d+|[A-Z])(?:\.\d+)*\.?")

Headings = dict[int, tuple[int, int]]  # id of a line -> level, and a number that the lines of one heading share


def outline_headings(outline: list[list], pages: list[list[PdfLine]]) -> Headings:
    """The lines that the outline's entries point at; a heading over several lines is all of them."""
    found: Headings = {}
    for number, (level, title, page, y) in enumerate(outline):
        if not 1 <= page <= len(pages):
            continue
        lines = pages[page - 1]
        for wanted in _plain(title):
            starts = [i for i, line in enumerate(lines) if id(line) not in found and _is_titled(line, wanted, y)]
            if starts:
                best = min(
                    starts, key=lambda i: (abs((lines[i].top if y is None else y) - lines[i].top), -lines[i].size)
                )
                for line in _whole_heading(lines[best:], wanted):
                    found[id(line)] = (min(level, 6), number)
                break
    return found


def _plain(text: str) -> list[str]:
    """Letters and digits only: without the number that a heading begins with, then with it ('A' may be either)."""
    text = text.replace(HYPHEN, "")
    forms = (_HEADING_NUMBER.sub("", text), _APPENDIX_LETTER.sub("", text), text)
    plain = ("".join(filter(str.isalnum, form)).lower() for form in forms)
    return [form for form in dict.fromkeys(plain) if form]


def _is_titled(line: PdfLine, wanted: str, y: float | None) -> bool:
    """Whether a line is a heading, its beginning, or, at the very place, one with a little more: 'name: what it is'."""
    for text in _plain(line.text):
        if text == wanted or (len(text) >= 8 and wanted.startswith(text)):
            return True
        if y is not None and abs(line.top - y) < 3 * line.size and len(text) < 200 and text.startswith(wanted):
            return True
    return line.cells is not None and any(wanted in _plain(cell[2]) for cell in line.cells[:2])


def _whole_heading(lines: list[PdfLine], wanted: str) -> list[PdfLine]:
    """The first of the lines, which begins a heading, and those after it that go on with it."""
    text = lines[0].text
    end = 1
    while (
        end < len(lines)
        and any(len(form) < len(wanted) and wanted.startswith(form) for form in _plain(text))
        and any(wanted.startswith(form) for form in _plain(f"{text} {lines[end].text}"))
    ):
        text = f"{text} {lines[end].text}"
        end += 1
    return lines[:end]


def typographic_headings(pages: list[list[PdfLine]]) -> Headings:
    """Headings by size: lines clearly larger than the body, or bold ones that stand alone; the largest is level 1."""
    body = body_size(pages)
    styles: dict[int, tuple[float, bool]] = {}
    for lines in pages:
        for line, before in zip(lines, [None, *lines], strict=False):
            if stands_out(line, body) and not (
                before is not None and id(before) not in styles and _runs_on(before, line)
            ):
                styles[id(line)] = (line.size, line.bold)
    ranks = {style: rank for rank, style in enumerate(sorted(set(styles.values()), reverse=True), 1)}
    return {line: (min(ranks[style], 6), 0) for line, style in styles.items()}


def stands_out(line: PdfLine, body: float) -> bool:
    """Whether a line is set like a heading in a text of that size: larger, or short and bold."""
    text = line.text.strip()
    letters = sum(map(str.isalpha, text))
    if len(text) > 150 or letters < max(3, 0.5 * len(text.replace(" ", ""))) or line.mono or text[-1] in ".,;:":
        return False
    if line.cells and not (len(line.cells) == 2 and _SECTION_NUMBER.fullmatch(line.cells[0][2])):
        return False
    if text[0].islower() or not (text[0].isalnum() or text[0] in "“\"'(["):
        return False
    return line.size >= 1.15 * body or (line.bold and line.size >= 0.98 * body and len(text) <= 80)


def _runs_on(before: PdfLine, line: PdfLine) -> bool:
    """Whether `line` is set close below `before` in the same style, as the lines of a paragraph are."""
    return (
        0 <= before.bottom - line.top < 0.5 * line.size
        and before.bold == line.bold
        and abs(before.size - line.size) < 0.5
    )


def body_size(pages: list[list[PdfLine]]) -> float:
    """The size that most of the text is set in."""
    weights: Counter[float] = Counter()
    for lines in pages:
        for line in lines:
            weights[line.size] += len(line.text)
    return weights.most_common(1)[0][0] if weights else 0.0
