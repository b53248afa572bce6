"""Tables in files of their own: CSV and TSV, XLSX, XLS. Rows are streamed, so that empty ones cost nothing but time."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from datetime import datetime, time

from .containers import open_zip, properties
from .document import Block, Draft, ParseFailure, table_block
from .encodings import decode

# The field size limit of the csv module guards against unclosed quotes; a cell may be as long as a chapter.
MAX_CELL = 10_000_000
_NUMBER = re.compile(r"[-+(]?[$€£]?\s*[\d.,]+\s*[%)]?$")


def parse_csv(content: bytes, name: str) -> Draft:
    """Comma-, semicolon-, tab- or bar-separated values, whatever the name says."""
    decoded = decode(content)
    text = decoded.text.replace("\0", "")
    csv.field_size_limit(MAX_CELL)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, "\t" if name.lower().endswith((".tsv", ".tab")) else ","))
    return Draft([table for table in _tables(rows)], decoded.metadata())


def parse_xlsx(content: bytes, name: str) -> Draft:
    """A workbook: each sheet a title, with its tables. Values as the program last computed them."""
    from openpyxl import load_workbook

    with open_zip(content) as archive:
        metadata = properties(archive, "docProps/core.xml")
    workbook = load_workbook(io.BytesIO(content), read_only=True, data_only=True, keep_links=False)
    draft = Draft(metadata=metadata)
    for number, sheet in enumerate(workbook.worksheets, 1):
        sheet.reset_dimensions()  # they are the file's claim, and may be a million rows
        rows = ([_shown(value) for value in row] for row in sheet.iter_rows(values_only=True))
        _add_sheet(draft, sheet.title, number, rows)
    return draft


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
        rows = ([_xls_value(xlrd, cell, workbook.datemode) for cell in sheet.row(index)] for index in range(sheet.nrows))
        _add_sheet(draft, sheet.name, number + 1, rows)
    return draft


def _add_sheet(draft: Draft, title: str, number: int, rows: Iterable[list[str]]) -> None:
    tables = list(_tables(rows, number))
    if tables:
        draft.blocks.append(Block("title", title, number, 1))
        draft.blocks += tables


def _tables(rows: Iterable[list[str]], page: int | None = None) -> Iterator[Block]:
    """The tables that empty rows part. A lone cell on a row of its own before or after one is a paragraph."""
    region: list[list[str]] = []
    for row in rows:
        if any(cell.strip() for cell in row):
            region.append(row)
        elif region:
            yield from _region(region, page)
            region = []
    if region:
        yield from _region(region, page)


def _region(rows: list[list[str]], page: int | None) -> Iterator[Block]:
    used = [[index for index, cell in enumerate(row) if cell.strip()] for row in rows]
    first, last = min(indexes[0] for indexes in used), max(indexes[-1] for indexes in used)
    start = 0
    if last > first:
        while start < len(rows) and len(used[start]) == 1:
            yield Block("paragraph", rows[start][used[start][0]], page)
            start += 1
    table = [[*row[first : last + 1], *[""] * (last + 1 - max(len(row), first))] for row in rows[start:]]
    if not table:
        return
    header = len(table) > 1 and len(used[start]) > 1 and not any(_NUMBER.match(cell.strip()) for cell in table[0])
    yield table_block(table, int(header), page)


def _delimiter(text: str, named: str) -> str:
    """The separator that gives most rows the same number of cells, more than one; `named` when none does."""
    sample = text[:100_000].splitlines()[:100]
    best, best_score = named, 0.0
    for candidate in dict.fromkeys([named, ",", ";", "\t", "|"]):
        counts = [len(row) for row in csv.reader(sample, delimiter=candidate) if row]
        widest = max(set(counts), key=counts.count, default=1)
        score = counts.count(widest) / len(counts) if widest > 1 else 0.0
        if score > best_score:
            best, best_score = candidate, score
    return best if best_score >= 0.6 else named


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
