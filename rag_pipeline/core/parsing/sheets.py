"""Tables in files of their own: CSV and TSV, XLSX, XLS. Rows are streamed, so that empty ones cost nothing but time."""

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from datetime import datetime, time
from itertools import zip_longest

from .containers import open_zip, properties
from .document import Block, Draft, ParseFailure, table_block
from .encodings import decode

# The field size limit of the csv module guards against unclosed quotes; a cell may be as long as a chapter.
MAX_CELL = 10_000_000
_UNCOMPUTED = re.compile(rb"(?:</f>|<f[^<>]*/>)\s*(?:<v\s*/>|<v>\s*</v>)?\s*</c>")
_YEAR = re.compile(r"(?:19|20)\d\d")
_NUMBER = re.compile(r"[-+(]?[$€£]?\s*[\d.,]+\s*[%)]?$")

# What Excel writes above the values to say what parts them.
_SEPARATOR = re.compile(r"sep=(.)\r?\n")


def parse_csv(content: bytes, name: str) -> Draft:
    """Values parted by commas, or by whatever parts them better."""
    return _separated(content, ",")


def parse_tsv(content: bytes, name: str) -> Draft:
    """Values parted by tabs, or by whatever parts them better."""
    return _separated(content, "\t")


def _separated(content: bytes, named: str) -> Draft:
    decoded = decode(content)
    text = decoded.text.replace("\0", "")
    csv.field_size_limit(MAX_CELL)
    if separator := _SEPARATOR.match(text):
        text = text[separator.end() :]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator[1] if separator else _delimiter(text, named))
    return Draft(list(_tables(rows)), decoded.metadata())


def parse_xlsx(content: bytes, name: str) -> Draft:
    """A workbook: each sheet a title, with its tables. Values as the program last computed them; the formula where it
    did not."""
    from openpyxl import load_workbook

    with open_zip(content) as archive:
        metadata = properties(archive, "docProps/core.xml")
        uncomputed = any(_has_uncomputed(archive, member) for member in archive.namelist() if "worksheets/" in member)
    draft = Draft(metadata=metadata)

    def sheets(data_only: bool) -> list:
        options = {"read_only": True, "keep_links": False, "data_only": data_only}
        found = load_workbook(io.BytesIO(content), **options).worksheets
        for sheet in found:
            sheet.reset_dimensions()  # they are the file's claim, and may be a million rows
        return found

    formulas = sheets(data_only=False) if uncomputed else []
    for number, sheet in enumerate(sheets(data_only=True), 1):
        rows = sheet.iter_rows(values_only=True)
        if formulas:
            rows = map(_computed, rows, formulas[number - 1].iter_rows(values_only=True))
        _add_sheet(draft, sheet.title, number, ([_shown(value) for value in row] for row in rows))
    return draft


def _has_uncomputed(archive: zipfile.ZipFile, member: str) -> bool:
    """Whether a sheet has a formula without a value, as programs other than spreadsheets write them."""
    end = b""
    with archive.open(member) as sheet:
        while piece := sheet.read(1 << 20):
            if _UNCOMPUTED.search(end + piece):
                return True
            end = piece[-1000:]
    return False


def _computed(values: Iterable[object], formulas: Iterable[object]) -> list[object]:
    return [
        formula if value is None and isinstance(formula, str) and formula.startswith("=") else value
        for value, formula in zip(values, formulas, strict=False)
    ]


def parse_xls(content: bytes, name: str) -> Draft:
    """A workbook of Excel 97 to 2003."""
    import xlrd

    try:
        workbook = xlrd.open_workbook(file_contents=content, logfile=io.StringIO(), on_demand=True)
    except xlrd.XLRDError as error:
        if "encrypt" in str(error).lower():
            raise ParseFailure("encrypted", "the workbook asks for a password") from None
        raise
    draft = Draft(metadata={"authors": [workbook.user_name] if workbook.user_name else []})
    for number in range(workbook.nsheets):
        sheet = workbook.sheet_by_index(number)
        rows = (
            [_xls_value(xlrd, cell, workbook.datemode) for cell in sheet.row(index)] for index in range(sheet.nrows)
        )
        _add_sheet(draft, sheet.name, number + 1, rows)
    return draft


def _add_sheet(draft: Draft, title: str, number: int, rows: Iterable[list[str]]) -> None:
    tables = list(_tables(rows, number))
    if tables:
        draft.blocks.append(Block("title", title, number, 1))
        draft.blocks += tables


def _tables(rows: Iterable[list[str]], page: int | None = None) -> Iterator[Block]:
    """The tables that empty rows part. Rows that go on with the columns of the table before, after a gap, belong to
    it."""
    region: list[list[str]] = []
    gap = False
    for row in rows:
        if not any(cell.strip() for cell in row):
            gap = bool(region)
            continue
        if gap and not _goes_on(region, row):
            yield from _region(region, page)
            region = []
        region.append(row)
        gap = False
    if region:
        yield from _region(region, page)


def _width(row: list[str]) -> int:
    return sum(1 for cell in row if cell.strip())


def _is_number(cell: str) -> bool:
    return _NUMBER.match(cell.strip()) is not None


def _goes_on(region: list[list[str]], row: list[str]) -> bool:
    """Whether a row after a gap is another row of the table: it is no wider, and no header, which would repeat the
    first row or have words where the table has numbers."""
    if _width(row) < 2 or _width(region[-1]) < 2:
        return False
    if any(map(_is_number, row)):
        return True
    first = next(above for above in region if _width(above) > 1)
    columns = list(zip_longest(row, first, region[-1], fillvalue=""))
    return row != first and not any(
        cell.strip() and (not head.strip() or _is_number(above)) for cell, head, above in columns
    )


def _is_header(row: list[str], below: list[str]) -> bool:
    """Whether the first row of a table is its header: several cells, none of them a number but such as name columns, in
    which the row below has other ones."""
    if _width(row) < 2:
        return False
    return not any(map(_is_number, row)) or (_names_columns(row) and not _names_columns(below))


def _names_columns(row: list[str]) -> bool:
    """Whether the numbers of a row, beside words, are years, or count from 1 to 3 or more."""
    cells = [cell.strip() for cell in row if cell.strip()]
    numbers = [cell for cell in cells if _is_number(cell)]
    if len(numbers) == len(cells) or len(set(numbers)) < len(numbers):
        return False
    counted = len(numbers) >= 3 and numbers == [str(n) for n in range(1, len(numbers) + 1)]
    return counted or all(map(_YEAR.fullmatch, numbers))


def _region(rows: list[list[str]], page: int | None) -> Iterator[Block]:
    """A table without the empty columns around it; lone cells above it, or alone, are paragraphs."""
    start = 0
    while (
        start < len(rows)
        and _width(rows[start]) == 1
        and (start + 1 == len(rows) or any(_width(row) > 1 for row in rows))
    ):
        yield Block("paragraph", "".join(rows[start]), page)
        start += 1
    if start < len(rows):
        header = len(rows) - start > 1 and _is_header(rows[start], rows[start + 1])
        yield table_block(rows[start:], int(header), page)


def _delimiter(text: str, named: str) -> str:
    """The separator that gives most rows the same number of cells, more than one; one that does not occur when none
    does."""
    sample = text[:100_000].splitlines()[:100]
    best, best_score = "\x1f", 0.6
    for candidate in dict.fromkeys([named, ",", ";", "\t", "|"]):
        counts = [len(row) for row in csv.reader(sample, delimiter=candidate) if row]
        widest = max(set(counts), key=counts.count, default=1)
        score = counts.count(widest) / len(counts) if widest > 1 else 0.0
        if score > best_score:
            best, best_score = candidate, score
    return best


def _shown(value: object) -> str:
    """A cell's value as a person writes it: whole numbers without a fraction, dates without a midnight."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else format(value, ".15g")
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(" ", "seconds")
    return str(value)


def _xls_value(xlrd, cell, datemode: int) -> str:
    if cell.ctype == xlrd.XL_CELL_DATE:
        try:
            return _shown(xlrd.xldate_as_datetime(cell.value, datemode))
        except (xlrd.XLDateError, OverflowError, ValueError):
            return _shown(cell.value)
    if cell.ctype == xlrd.XL_CELL_BOOLEAN:
        return _shown(bool(cell.value))
    if cell.ctype == xlrd.XL_CELL_ERROR:
        return xlrd.error_text_from_code.get(cell.value, "")
    return _shown(cell.value)
