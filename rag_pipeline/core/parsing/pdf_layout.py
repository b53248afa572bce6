"""What the lines of a PDF mean: running headers, columns, headings, tables, lists, paragraphs."""

import re
from collections import Counter
from collections.abc import Iterator

from .document import Block, Draft, ParseFailure, table_block
from .pdf import PdfLine, PdfPart

HYPHEN = "\ufffe"
_BULLET = re.compile(r"[•◦▪‣●○■–∙·⁃*-]\s+(?=\S)")
_NUMBERED = re.compile(r"\(?(?:\d{1,3}|[a-z]|[ivx]{1,4})[.)]\s+\S")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")


def lay_out(parts: list[PdfPart]) -> Draft:
    """The document that sorted parts make. Raises ParseFailure 'no text layer' when its pages show pictures only."""
    pages = [lines for part in parts for lines in part.lines]
    if not any(pages):
        if any(part.images for part in parts):
            raise ParseFailure("no text layer", "the pages are pictures: put the file through OCR first")
        raise ParseFailure("empty", "no page holds text")
    pages = without_running_lines(pages)
    headings = outline_headings(parts[0].outline, pages) or typographic_headings(pages)
    words = Words(pages)
    blocks = [block for number, lines in enumerate(pages, 1) for block in page_blocks(lines, number, headings, words)]
    return Draft(blocks, parts[0].metadata)


def without_running_lines(pages: list[list[PdfLine]]) -> list[list[PdfLine]]:
    """The pages without headers and footers: lines at either end of the page, at one height, that repeat or count the pages."""
    groups: dict[tuple, list[tuple[int, int]]] = {}
    for number, lines in enumerate(pages):
        by_height = sorted(range(len(lines)), key=lambda i: -lines[i].top)
        for end, positions in (("top", by_height[:3]), ("bottom", by_height[-3:])):
            for position in positions:
                groups.setdefault((end, round(lines[position].bottom / 3)), []).append((number, position))
    running: set[tuple[int, int]] = set()
    for places in groups.values():
        if len({number for number, _ in places}) < 3:
            continue
        texts = {place: re.sub(r"\d+|\b[ivxlc]+\b", "#", pages[place[0]][place[1]].text.strip()) for place in places}
        repeats = Counter(texts.values())
        offsets = Counter(offset for place in places for offset in _page_offsets(pages[place[0]][place[1]].text, place[0]))
        offset, hits = offsets.most_common(1)[0] if offsets else (None, 0)
        for place in places:
            counts_pages = hits >= 3 and offset in _page_offsets(pages[place[0]][place[1]].text, place[0])
            if counts_pages or repeats[texts[place]] >= 3:
                running.add(place)
    return [[line for position, line in enumerate(lines) if (number, position) not in running] for number, lines in enumerate(pages)]


def _page_offsets(text: str, number: int) -> set[int]:
    """What would have to be added to a page's index to give a number that its line begins or ends with."""
    words = text.split()
    return {int(word) - number for word in (words[0], words[-1]) if word.isascii() and word.isdigit() and len(word) < 6} if words else set()


def outline_headings(outline: list[list], pages: list[list[PdfLine]]) -> dict[int, int]:
    """id of a line -> level, for the lines that the outline's entries point at. A heading over two lines is found by its first."""
    found: dict[int, int] = {}
    for level, title, page, y in outline:
        if not 1 <= page <= len(pages):
            continue
        wanted = _plain(title)
        if not wanted:
            continue
        candidates = [line for line in pages[page - 1] if id(line) not in found and _matches(_plain(line.text), wanted)]
        if candidates:
            nearest = min(candidates, key=lambda line: (abs((y if y is not None else line.top) - line.top), -line.size))
            found[id(nearest)] = min(level, 6)
    return found


def _plain(text: str) -> str:
    """Letters and digits only, without the number that a heading begins with."""
    text = re.sub(r"^\s*(?:(?:chapter|appendix|part|section)\s+)?(?:\d+|[A-Z])(?:\.\d+)*[.:]?\s+", "", text.replace(HYPHEN, ""), flags=re.I)
    return "".join(filter(str.isalnum, text)).lower()


def _matches(line: str, wanted: str) -> bool:
    return line == wanted or (len(line) >= 8 and wanted.startswith(line)) or (len(wanted) >= 4 and line.startswith(wanted) and len(line) < 2 * len(wanted))


def typographic_headings(pages: list[list[PdfLine]]) -> dict[int, int]:
    """id of a line -> level, by size: lines clearly larger than the body, or bold lines that stand alone; the largest size is level 1."""
    weights: Counter[float] = Counter()
    for lines in pages:
        for line in lines:
            weights[line.size] += len(line.text)
    body = weights.most_common(1)[0][0]
    sizes: dict[int, tuple[float, bool]] = {}
    for lines in pages:
        for line in lines:
            if _is_heading(line, body):
                sizes[id(line)] = (line.size, line.bold)
    ranks = {size: rank for rank, size in enumerate(sorted(set(sizes.values()), reverse=True), 1)}
    return {line: min(ranks[size], 6) for line, size in sizes.items()}


def _is_heading(line: PdfLine, body: float) -> bool:
    text = line.text.strip()
    letters = sum(map(str.isalpha, text))
    if len(text) > 150 or letters < max(2, 0.4 * len(text)) or line.mono or text[-1] in ".,;:" or line.cells:
        return False
    return line.size >= 1.15 * body or (line.bold and line.size >= 0.99 * body and len(text) <= 80)


class Words:
    """The words of a document: they decide whether a hyphen at a line end belongs to its word."""

    def __init__(self, pages: list[list[PdfLine]]):
        self.seen: set[str] = set()
        for lines in pages:
            for line in lines:
                self.seen.update(map(str.lower, _WORD.findall(line.text)))

    def join(self, before: str, after: str) -> str:
        """Two pieces of text, the first of which lost its hyphen to a line end, as one."""
        left = re.search(r"[^\W_]+(?:-[^\W_]+)*$", before)
        right = re.match(r"[^\W_]+(?:-[^\W_]+)*", after)
        if not left or not right:
            return f"{before}-{after}"
        hyphenated = f"{left[0]}-{right[0]}".lower()
        joined = f"{left[0]}{right[0]}".lower()
        if hyphenated in self.seen and joined not in self.seen:
            return f"{before}-{after}"
        plain = right[0][0].islower() and not re.search(r"\d", left[0] + right[0][:1])
        return before + after if plain or joined in self.seen else f"{before}-{after}"

    def mend(self, text: str) -> str:
        """A line without the marks that pdfium leaves for hyphens."""
        if HYPHEN not in text:
            return text
        pieces = text.split(HYPHEN)
        mended = pieces[0]
        for piece in pieces[1:]:
            mended = self.join(mended, piece)
        return mended


def page_blocks(lines: list[PdfLine], page: int, headings: dict[int, int], words: Words) -> Iterator[Block]:
    """The blocks of a page, its lines being in reading order."""
    paragraph: list[PdfLine] = []
    for line, before in zip(lines, [None, *lines], strict=False):
        if before is not None and _breaks(before, line, headings):
            yield _block(paragraph, page, headings, words)
            paragraph = []
        paragraph.append(line)
    if paragraph:
        yield _block(paragraph, page, headings, words)


def _breaks(before: PdfLine, line: PdfLine, headings: dict[int, int]) -> bool:
    """Whether a new paragraph begins with `line`."""
    level, level_before = headings.get(id(line)), headings.get(id(before))
    if level != level_before:
        return True
    if before.mono != line.mono:
        return True
    if _BULLET.match(line.text) or (_NUMBERED.match(line.text) and before.text.rstrip()[-1:] in ".:;)"):
        return True
    pitch = before.bottom - line.bottom
    if pitch < -line.size:  # upwards: the next column
        return before.text.rstrip()[-1:] in ".:!?" or not line.text.strip()[:1].islower()
    gap = before.bottom - line.top
    return gap > 0.6 * line.size or abs(before.size - line.size) > 0.25 * max(before.size, line.size)


def _block(lines: list[PdfLine], page: int, headings: dict[int, int], words: Words) -> Block:
    texts = [words.mend(line.text.strip()) for line in lines]
    if id(lines[0]) in headings:
        return Block("title", " ".join(texts), page, headings[id(lines[0])])
    if len(lines) > 1 and all(line.cells and len(line.cells) == len(lines[0].cells or ()) for line in lines):
        return table_block([[words.mend(cell[2]) for cell in line.cells or ()] for line in lines], 0, page)
    if all(line.mono for line in lines):
        return Block("code", "\n".join(texts), page)
    text = texts[0]
    for piece in texts[1:]:
        text = words.join(text[:-1], piece) if text.endswith("-") and text[-2:-1].isalpha() else f"{text} {piece}"
    if bullet := _BULLET.match(text):
        return Block("list_item", text[bullet.end() :], page)
    return Block("list_item" if _NUMBERED.match(text) else "paragraph", text, page)
