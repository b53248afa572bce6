"""A document out of a PDF's lines: headings, tables, lists, code, paragraphs, footnotes."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from .document import Block, Draft, ParseFailure, table_block
from .pdf import HYPHEN, PdfLine, PdfPart
from .pdf_headings import Headings, body_size, outline_headings, typographic_headings
from .pdf_pages import NOTE, footnotes, in_columns, without_running_lines

# Bullets as fonts encode them; U+F000..F0FF are the symbols of Wingdings and its like.
_BULLET = re.compile(r"[•◦▪‣●○■□–∙·⁃*\uf000-\uf0ff-]\s+(?=\S)")
_NUMBERED = re.compile(r"\(?(?:\d{1,3}|[a-z]|[ivx]{1,4})[.)]\s+\S")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
# The dots that lead the eye from a heading to its page in a table of contents.
_LEADERS = re.compile(r"(?:\s?\.){5,}\s*")
_LED = re.compile(r"(?:\s?\.){5,}\s*[\divxlc]+$")


def lay_out(parts: list[PdfPart]) -> Draft:
    """The document that sorted parts make. Raises ParseFailure 'no text layer' when its pages show pictures only."""
    pages = [lines for part in parts for lines in part.lines]
    if not any(pages):
        if any(part.images for part in parts):
            raise ParseFailure("no text layer", "the pages are pictures: put the file through OCR first")
        raise ParseFailure("empty", "no page holds text")
    headings = outline_headings(parts[0].outline, pages)
    # A document of nothing but what looks like headers is kept whole.
    body_only = without_running_lines(pages, headings)
    pages = [in_columns(lines) for lines in (body_only if any(body_only) else pages)]
    if len({number for _, number in headings.values()}) < 2:  # an outline of the title alone outlines nothing
        headings = {**typographic_headings(pages), **headings}
    words = Words(pages)
    body = body_size(pages)
    blocks: list[Block] = []
    for number, lines in enumerate(pages, 1):
        notes = footnotes(lines, body)
        blocks += page_blocks(lines[: len(lines) - len(notes)], number, headings, words)
        blocks += note_blocks(notes, number, words)
    return Draft(blocks, parts[0].metadata)


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
        hyphenated, joined = f"{left[0]}-{right[0]}".lower(), f"{left[0]}{right[0]}".lower()
        if joined in self.seen or hyphenated in self.seen:
            return before + after if joined in self.seen else f"{before}-{after}"
        plain = right[0][0].islower() and left[0].isalpha() and (left[0].islower() or left[0].istitle())
        return before + after if plain else f"{before}-{after}"


def page_blocks(lines: list[PdfLine], page: int, headings: Headings, words: Words) -> Iterator[Block]:
    """The blocks of a page, its lines being in reading order."""
    start = 0
    while start < len(lines):
        rows = _table(lines, start, headings)
        if rows:
            header = lines[start].bold and not lines[start + 1].bold
            yield table_block(rows, int(header), page)
            start += len(rows)
            continue
        end = start + 1
        while (
            end < len(lines)
            and not _breaks(lines[end - 1], lines[end], headings)
            and not _is_next_item(lines[start], lines[end])
            and not _table(lines, end, headings)
        ):
            end += 1
        yield _block(lines[start:end], page, headings, words)
        start = end


def _table(lines: list[PdfLine], start: int, headings: Headings) -> list[list[str]] | None:
    """The rows of the table that begins at a line: lines in pieces that stand under one another, two or more. None when
    there is none."""
    end = start
    while (
        end < len(lines)
        and lines[end].cells
        and not lines[end].mono
        and id(lines[end]) not in headings
        and not _LED.search(lines[end].text)
    ):
        if end > start and not 0 <= lines[end - 1].bottom - lines[end].bottom < 4 * lines[end].size:
            break
        end += 1
    rows = [line.cells for line in lines[start:end] if line.cells]
    if len(rows) < 2:
        return None
    width = Counter(map(len, rows)).most_common(1)[0][0]
    full = [row for row in rows if len(row) == width]
    columns = [(min(row[i][0] for row in full), max(row[i][1] for row in full)) for i in range(width)]
    if len(full) < 2 or any(right > left for (_, right), (left, _) in pairwise(columns)):
        return None
    table = []
    for row in rows:
        cells = [""] * width
        for left, right, text in row:
            column = max(range(width), key=lambda i: min(right, columns[i][1]) - max(left, columns[i][0]))
            cells[column] = f"{cells[column]} {text}".strip()
        table.append(cells)
    return table


def _breaks(before: PdfLine, line: PdfLine, headings: Headings) -> bool:
    """Whether a new paragraph begins with `line`."""
    gap = before.bottom - line.top
    if headings.get(id(line)) != headings.get(id(before)):
        return True
    if id(line) in headings:
        return not -line.size < gap < line.size
    if before.mono != line.mono:
        return True
    if line.mono:
        return not -line.size < gap < 2.5 * line.size
    if (
        _LED.search(before.text)
        or _BULLET.match(line.text)
        or (_NUMBERED.match(line.text) and before.text.rstrip()[-1:] in ".:;)")
    ):
        return True
    if before.bottom - line.bottom < -line.size:  # upwards: the next column
        return before.text.rstrip()[-1:] in ".:!?" or not line.text.strip()[:1].islower()
    return gap > 0.5 * line.size or abs(before.size - line.size) > 0.25 * max(before.size, line.size)


def _is_next_item(first: PdfLine, line: PdfLine) -> bool:
    """Whether a line begins the item after the one that `first` begins: '2.' under '1.', 'c)' under 'b)'."""
    if not (_NUMBERED.match(first.text) and _NUMBERED.match(line.text)) or abs(first.left - line.left) > first.size:
        return False
    before, after = (re.match(r"\(?(\w+)", text)[1] for text in (first.text, line.text))
    if before.isdecimal() and after.isdecimal():
        return int(after) == int(before) + 1
    return len(before) == len(after) == 1 and ord(after) == ord(before) + 1


def _block(lines: list[PdfLine], page: int, headings: Headings, words: Words) -> Block:
    if all(line.mono for line in lines) and id(lines[0]) not in headings:
        return Block("code", _code(lines), page)
    text = _running_text(lines, words)
    if id(lines[0]) in headings:
        return Block("title", text, page, headings[id(lines[0])][0])
    if bullet := _BULLET.match(text):
        return Block("list_item", text[bullet.end() :], page)
    return Block("list_item" if _NUMBERED.match(text) or _LED.search(lines[-1].text) else "paragraph", text, page)


def note_blocks(notes: list[PdfLine], page: int, words: Words) -> Iterator[Block]:
    """One block for each footnote."""
    starts = [index for index, line in enumerate(notes) if NOTE.match(line.text)]
    for start, end in zip(starts, [*starts[1:], len(notes)], strict=False):
        yield Block("footnote", _running_text(notes[start:end], words), page)


def _running_text(lines: list[PdfLine], words: Words) -> str:
    """Lines as one, words that a line end breaks being whole again, dots that lead to a page number shortened."""
    text = ""
    for line in lines:
        piece = line.text.strip()
        if text.endswith(HYPHEN) or (text.endswith("-") and text[-2:-1].isalpha()):
            text = words.join(text[:-1], piece)
        else:
            text = f"{text} {piece}" if text else piece
    return _LEADERS.sub(" ... ", text.replace(HYPHEN, "-"))


def _code(lines: list[PdfLine]) -> str:
    """Lines of a fixed-width font, indented as they are on the page, with an empty line where one was left."""
    edge = min(line.left for line in lines)
    pieces = []
    for line, before in zip(lines, [None, *lines], strict=False):
        if before is not None and before.bottom - line.top > 0.8 * line.size:
            pieces.append("")
        width = (line.right - line.left) / max(len(line.text), 1)
        indent = round((line.left - edge) / width) if width > 0 else 0
        pieces.append(" " * min(indent, 80) + line.text.strip().replace(HYPHEN, "-"))
    return "\n".join(pieces)
