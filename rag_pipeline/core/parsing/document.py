"""What parsing yields: normalised text, the elements that lie in it, the document's own metadata; or a named
failure."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from .normalising import normalise

FAILURE_REASONS = (
    "encrypted",
    "corrupt",
    "unsupported type",
    "too large",
    "timed out",
    "out of memory",
    "crashed",
    "empty",
    "no text layer",
)

# A text that is longer is a bomb, or a data set that nobody will read as a document: 50 million code points are 15,000
# pages.
MAX_TEXT = 50_000_000


class ParseFailure(Exception):
    """Why a file has no text: `reason` is one of FAILURE_REASONS, `detail` one line for a person."""

    def __init__(self, reason: str, detail: str = ""):
        if reason not in FAILURE_REASONS:
            raise ValueError(f"{reason!r} is not a failure reason")
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = " ".join(detail.split())[:300]

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class Element:
    """A piece of the text that belongs together, at [start, end) in code points.

    kind: title, paragraph, list_item, table, record, code, footnote. page: of a PDF or DOCX, the slide of a
    presentation or the sheet of a workbook, from 1. level: 1..6, of a title only. header_end: where the header rows of
    a table end, None when it has none.
    """

    kind: str
    start: int
    end: int
    page: int | None = None
    level: int | None = None
    header_end: int | None = None


@dataclass(frozen=True)
class ParsedText:
    """The text of a document and what is known of it; elements are sorted, disjoint and cover all of it but white
    space."""

    text: str
    elements: tuple[Element, ...]
    metadata: dict[str, object]

    def to_json(self) -> str:
        """The elements as a JSON array of [kind, start, end, page, level, header_end]."""
        rows = [[e.kind, e.start, e.end, e.page, e.level, e.header_end] for e in self.elements]
        return json.dumps(rows, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, elements: str | list, metadata: dict[str, object]) -> "ParsedText":
        """The inverse of `to_json`; `elements` may be decoded already, as it comes from a jsonb column."""
        rows = json.loads(elements) if isinstance(elements, str) else elements
        return cls(text, tuple(Element(*row) for row in rows), metadata)


@dataclass
class Block:
    """An element on its way in: its text as found, not yet normalised. `header`: the header rows that a table's text
    begins with."""

    kind: str
    text: str
    page: int | None = None
    level: int | None = None
    header: str | None = None


@dataclass
class Draft:
    """What a format's parser hands over: the blocks in reading order and the metadata, raw."""

    blocks: list[Block] = field(default_factory=list)
    metadata: dict[str, object] = field(default_factory=dict)


def table_block(rows: Iterable[Iterable[str]], header_rows: int = 0, page: int | None = None) -> Block:
    """A table as a block: one row a line, cells separated by ' | ', the header's rows first; rows and columns without
    any text are left out."""
    table = [[" ".join(normalise(cell).split()) for cell in row] for row in rows]
    used = {column for row in table for column, cell in enumerate(row) if cell}
    lines = []
    header_lines = 0
    for number, row in enumerate(table):
        if any(row):
            lines.append(" | ".join(cell for column, cell in enumerate(row) if column in used).strip())
            header_lines += number < header_rows
    header = "\n".join(lines[:header_lines]) if header_lines else None
    return Block("table", "\n".join(lines), page, header=header)


def assemble(draft: Draft) -> ParsedText:
    """The blocks as one text, a blank line between them (a line break between the items of a list), with their spans.

    Raises ParseFailure 'empty' when there is no text and 'too large' beyond MAX_TEXT.
    """
    pieces: list[str] = []
    elements: list[Element] = []
    length = 0
    before = None
    for block in draft.blocks:
        text = normalise(block.text)
        text = text.strip("\n").rstrip() if block.kind == "code" else text.strip()
        if not text or text.isspace():
            continue
        if before is not None:
            gap = "\n" if before == block.kind == "list_item" else "\n\n"
            pieces.append(gap)
            length += len(gap)
        header_end = length + len(block.header) if block.header else None
        level = min(max(block.level or 1, 1), 6) if block.kind == "title" else None
        elements.append(Element(block.kind, length, length + len(text), block.page, level, header_end))
        pieces.append(text)
        length += len(text)
        before = block.kind
        if length > MAX_TEXT:
            raise ParseFailure("too large", f"more than {MAX_TEXT:,} characters of text")
    if not elements:
        raise ParseFailure("empty", "the file holds no text")
    return ParsedText("".join(pieces), tuple(elements), clean_metadata(draft.metadata))


def clean_metadata(metadata: dict[str, object]) -> dict[str, object]:
    """The metadata without what is empty, its strings normalised, each on one line."""

    def clean(value: object) -> object:
        if isinstance(value, str):
            return " ".join(normalise(value).split())[:2000]
        if isinstance(value, list):
            return [item for item in map(clean, value) if item]
        return value

    return {
        key: value
        for key, value in ((key, clean(value)) for key, value in metadata.items())
        if value not in ("", None, [])
    }
