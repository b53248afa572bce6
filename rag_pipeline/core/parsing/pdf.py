"""PDF: lines with their place and typography out of pdfium, page range by page range; what they mean is decided once
all are together."""

import ctypes
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .document import Draft, ParsedText, ParseFailure, assemble
from .normalising import normalise

# More pages than any real document has; a page tree that claims more is a trick.
MAX_PAGES = 50_000
# pdfium's own error codes (fpdfview.h: FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY).
ENCRYPTED_ERRORS = (4, 5)
# A gap wider than this many letter heights parts two columns or two cells, not two words.
CELL_GAP = 1.0
# A gap narrower than this many letter heights parts nothing.
WORD_GAP = 0.15
# What pdfium gives for a hyphen that ends a line.
HYPHEN = "\ufffe"
# Font descriptor flag (ISO 32000-1, table 123).
FIXED_PITCH = 1
_LINE = re.compile(r"[^\r\n\ufffe]+\ufffe?")
_SPACES = re.compile(r"(?<=\S)[ \xa0]+(?=\S)")
_BOLD = re.compile(r"bold|black|heavy|demi|medi(?!um)|cmbx|cmb1", re.I)
_MONO = re.compile(r"mono|courier|consol|typewriter|cmtt|cmsltt|fixed|menlo|code", re.I)


@dataclass
class PdfLine:
    """A line of a page: text (a last HYPHEN is one that ends the line), box in points from the lower left, size in
    points.

    cells: where wide gaps part the line, its pieces as [left, right, text].
    """

    text: str
    left: float
    bottom: float
    right: float
    top: float
    size: float
    bold: bool
    mono: bool
    cells: list[list] | None = None


@dataclass
class PdfPart:
    """Pages first..last (from 1) of a document of `pages` pages. The part with page 1 has the outline, [level, title,
    page, y], and the metadata."""

    first: int
    pages: int
    lines: list[list[PdfLine]]
    images: bool = False
    outline: list[list] = field(default_factory=list)
    metadata: dict[str, object] = field(default_factory=dict)

    def to_json(self) -> str:
        """The part as JSON, to be kept until all parts of its document are there."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, part: str) -> "PdfPart":
        """The inverse of `to_json`."""
        values = json.loads(part)
        values["lines"] = [[PdfLine(**line) for line in page] for page in values["lines"]]
        return cls(**values)


def parse_pdf(content: bytes, name: str) -> Draft:
    """A whole PDF at once."""
    from .pdf_layout import lay_out

    return lay_out([parse_pages(content, 1, MAX_PAGES)])


def page_count(source: bytes | Path) -> int:
    """The number of pages. Raises ParseFailure 'encrypted', 'corrupt' or 'too large'."""
    document = _open(source)
    try:
        return len(document)
    finally:
        document.close()


def parse_pages(source: bytes | Path, first: int, last: int) -> PdfPart:
    """Pages first..last (from 1; a last beyond the end means the end). Raises ParseFailure as `page_count` does."""
    document = _open(source)
    try:
        part = PdfPart(first, len(document), [])
        for number in range(first, min(last, part.pages) + 1):
            lines, has_image = _read_page(document, number - 1)
            part.lines.append(lines)
            part.images |= has_image
        if first == 1:
            part.outline = _outline(document)
            part.metadata = _metadata(document)
        return part
    finally:
        document.close()


def join_parts(parts: list[PdfPart]) -> ParsedText:
    """The document that the parts make, in any order, as if parsed whole. Raises ParseFailure 'empty' or 'no text
    layer'."""
    from .pdf_layout import lay_out

    return assemble(lay_out(sorted(parts, key=lambda part: part.first)))


def _open(source: bytes | Path):
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(source)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) in ENCRYPTED_ERRORS or "password" in str(error).lower():
            raise ParseFailure("encrypted", "the PDF asks for a password") from None
        raise ParseFailure("corrupt", f"not a readable PDF: {error}") from None
    if len(document) > MAX_PAGES:
        document.close()
        raise ParseFailure("too large", f"more than {MAX_PAGES:,} pages")
    return document


def _read_page(document, index: int) -> tuple[list[PdfLine], bool]:
    """The lines of a page, and whether a page without any shows a picture. A page that pdfium cannot load has no
    lines."""
    import pypdfium2
    import pypdfium2.raw as pdfium

    try:
        page = document[index]
    except pypdfium2.PdfiumError:
        return [], False
    try:
        text_page = page.get_textpage()
        if _turned_upright(page, text_page.raw):
            text_page.close()
            page.close()
            page = document[index]  # pdfium reads the content anew
            text_page = page.get_textpage()
        lines = _lines(text_page.raw)
        text_page.close()
        has_image = not lines and next(iter(page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_IMAGE])), None) is not None
        return lines, has_image
    finally:
        page.close()


def _turned_upright(page, text_page) -> bool:
    """Turn a page on which most of the text does not run from left to right, or that is shown turned, so that it does
    in the page's own coordinates; whether it had to be."""
    import pypdfium2.raw as pdfium

    characters = pdfium.FPDFText_CountChars(text_page)
    sample = range(0, characters, max(1, characters // 50))
    quarters = Counter(round(pdfium.FPDFText_GetCharAngle(text_page, i) / (math.pi / 2)) % 4 for i in sample)
    quarter = quarters.most_common(1)[0][0] if quarters else 0
    if not quarter and not page.get_rotation():
        return False
    _, _, right, top = page.get_mediabox()
    if quarter:
        turn = {1: (0, 1, -1, 0, top, 0), 2: (-1, 0, 0, -1, right, top), 3: (0, -1, 1, 0, 0, right)}[quarter]
        side = max(right, top)
        pdfium.FPDFPage_TransFormWithClip(page.raw, pdfium.FS_MATRIX(*turn), pdfium.FS_RECTF(0, side, side, 0))
    page.set_rotation(0)
    return True


def _lines(text_page) -> list[PdfLine]:
    """The lines of a page in the order of its content, which is the reading order in all but careless files."""
    import pypdfium2.raw as pdfium

    characters = pdfium.FPDFText_CountChars(text_page)
    if characters <= 0:
        return []
    buffer = (ctypes.c_ushort * (2 * characters + 2))()
    written = pdfium.FPDFText_GetText(text_page, 0, characters, buffer)
    # Surrogates stay two code units here, so that offsets are pdfium's own.
    units = "".join(map(chr, buffer[: max(written - 1, 0)]))
    lines: list[PdfLine] = []
    for match in _LINE.finditer(units):
        raw = match[0].strip(" \t\xa0")
        if raw:
            start = match.start() + match[0].index(raw)
            line = _line(pdfium, text_page, raw, start)
            if lines and _is_continued(lines[-1], line):
                lines[-1] = _continued(lines[-1], line)
            else:
                lines.append(line)
    return lines


def _line(pdfium, text_page, raw: str, start: int) -> PdfLine:
    index = pdfium.FPDFText_GetCharIndexFromTextIndex
    first, last = index(text_page, start), index(text_page, start + len(raw.rstrip(HYPHEN)) - 1)
    box, matrix, name, flags = pdfium.FS_RECTF(), pdfium.FS_MATRIX(), ctypes.create_string_buffer(128), ctypes.c_int()
    boxes, sizes, bold, mono = [], [], [], []
    for position in (first, last):
        pdfium.FPDFText_GetLooseCharBox(text_page, position, box)
        boxes.append((box.left, box.bottom, box.right, box.top))
        pdfium.FPDFText_GetMatrix(text_page, position, matrix)
        sizes.append(pdfium.FPDFText_GetFontSize(text_page, position) * math.hypot(matrix.c, matrix.d))
        length = pdfium.FPDFText_GetFontInfo(text_page, position, name, 128, flags)
        font = name.raw[: max(min(length, 128) - 1, 0)].decode("utf-8", "replace")
        bold.append(pdfium.FPDFText_GetFontWeight(text_page, position) >= 600 or bool(_BOLD.search(font)))
        mono.append(bool(flags.value & FIXED_PITCH) or bool(_MONO.search(font)))
    line = PdfLine(
        _text(raw),
        round(boxes[0][0], 1),
        round(min(boxes[0][1], boxes[1][1]), 1),
        round(boxes[1][2], 1),
        round(max(boxes[0][3], boxes[1][3]), 1),
        round(max(sizes), 1),
        all(bold),
        all(mono),
    )
    # Between the two ends every unit is a character, unless pdfium left some out.
    positions = range(first, last + 1) if last - first == len(raw.rstrip(HYPHEN)) - 1 else None
    line.cells = _cells(
        pdfium, text_page, raw, positions or [index(text_page, start + i) for i in range(len(raw))], line
    )
    return line


def _cells(pdfium, text_page, raw: str, positions: Sequence[int], line: PdfLine) -> list[list] | None:
    """The pieces of a line that wide gaps part, None when there is but one. positions: the characters' numbers in the
    page."""
    low, high, bottom, top = (ctypes.c_double() for _ in range(4))
    cells: list[list] = []
    begin, left = 0, line.left
    for space in _SPACES.finditer(raw.rstrip(HYPHEN)):
        pdfium.FPDFText_GetCharBox(text_page, positions[space.start() - 1], low, high, bottom, top)
        right = high.value
        pdfium.FPDFText_GetCharBox(text_page, positions[space.end()], low, high, bottom, top)
        if low.value - right > CELL_GAP * line.size:
            cells.append([left, round(right, 1), _text(raw[begin : space.start()])])
            begin, left = space.end(), round(low.value, 1)
    if not cells:
        return None
    return [*cells, [left, line.right, _text(raw[begin:])]]


def _is_continued(before: PdfLine, line: PdfLine) -> bool:
    """Whether `line` goes on where `before` stopped, on the same height: pdfium begins a new line at a superscript or a
    wide gap."""
    overlap = min(before.top, line.top) - max(before.bottom, line.bottom)
    lower = min(before.top - before.bottom, line.top - line.bottom)
    return not before.text.endswith(HYPHEN) and overlap > 0.5 * lower and line.left >= before.right - 0.3 * before.size


def _continued(before: PdfLine, line: PdfLine) -> PdfLine:
    gap = line.left - before.right
    size = max(before.size, line.size)
    cells = None
    if gap > CELL_GAP * size or before.cells or line.cells:
        head = before.cells or [[before.left, before.right, before.text]]
        tail = line.cells or [[line.left, line.right, line.text]]
        if gap <= CELL_GAP * size:
            joined = head[-1][2] + (" " if gap > WORD_GAP * size else "") + tail[0][2]
            head, tail = [*head[:-1], [head[-1][0], tail[0][1], joined]], tail[1:]
        cells = [*head, *tail]
    return PdfLine(
        before.text + (" " if gap > WORD_GAP * size else "") + line.text,
        before.left,
        min(before.bottom, line.bottom),
        line.right,
        max(before.top, line.top),
        size,
        before.bold and line.bold,
        before.mono and line.mono,
        cells if cells and len(cells) > 1 else None,
    )


def _text(units: str) -> str:
    """Code units as characters: pairs of surrogates joined, lone ones replaced."""
    if any("\ud800" <= unit <= "\udfff" for unit in units):
        return units.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return units


def _outline(document) -> list[list]:
    """The bookmarks as [level from 1, title, page from 1, y or None], without those that lead nowhere."""
    entries = []
    for bookmark in document.get_toc(max_depth=10):
        destination = bookmark.get_dest()
        page = destination.get_index() if destination else None
        if page is None:
            continue
        mode, position = destination.get_view()
        # PDF_View: FPDFDOC_PDFDEST_XYZ = 1 holds x, y, zoom; FITH = 3 holds y.
        y = position[1] if mode == 1 and len(position) > 1 else position[0] if mode == 3 and position else None
        entries.append([bookmark.level + 1, " ".join(normalise(bookmark.get_title()).split()), page + 1, y])
        if len(entries) >= MAX_PAGES:
            break
    return entries


def _metadata(document) -> dict[str, object]:
    raw = document.get_metadata_dict(skip_empty=True)
    return {
        "title": raw.get("Title"),
        "authors": [raw["Author"]] if raw.get("Author") else [],
        "created": _date(raw.get("CreationDate", "")),
        "modified": _date(raw.get("ModDate", "")),
        "pages": len(document),
    }


def _date(raw: str) -> str:
    """A PDF date (ISO 32000-1, 7.9.4: D:YYYYMMDDHHmmSSOHH'mm') in ISO 8601; as found when it is none."""
    match = re.match(r"(?:D:)?(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?\s*(Z|[+-]\d\d'?\d\d)?", raw)
    if not match:
        return raw
    year, month, day, hour, minute, second, zone = match.groups()
    date = "-".join(filter(None, (year, month, day)))
    if not hour:
        return date
    zone = "" if not zone else "Z" if zone == "Z" else f"{zone[:3]}:{zone[-2:]}"
    return f"{date}T{hour}:{minute or '00'}:{second or '00'}{zone}"
