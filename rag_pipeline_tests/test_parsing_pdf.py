"""PDF: pages, headings, columns, tables, what repeats, and shards that join as if whole."""

import random
import re
from pathlib import Path

import pytest

from rag_pipeline.core.parsing import ParsedText, ParseFailure, PdfPart, join_parts, page_count, parse, parse_pages
from rag_pipeline_tests.pdf_files import Text, make_pdf
from rag_pipeline_tests.shared import shared

WORDS = [
    "the",
    "river",
    "bends",
    "slowly",
    "around",
    "every",
    "village",
    "that",
    "people",
    "built",
    "there",
    "before",
    "the",
    "bridge",
    "was",
    "made",
    "of",
    "stone",
]


def read(content: bytes) -> ParsedText:
    return parse(content, "application/pdf", "a.pdf")


def pieces(parsed: ParsedText) -> list[tuple[str, int | None, str]]:
    return [(element.kind, element.page, parsed.text[element.start : element.end]) for element in parsed.elements]


def paragraph(seed: int, lines: int, x: float = 72, top: float = 700, count: int = 9) -> list[Text]:
    """Lines of running text, each of them different."""
    chosen = random.Random(seed)
    return [Text(x, top - 12 * n, " ".join(chosen.choices(WORDS, k=count))) for n in range(lines)]


def test_headings_are_told_by_their_size_and_weight() -> None:
    page = [
        Text(72, 740, "The Great Book", 20),
        Text(72, 715, "A smaller heading", 10, "bold"),
        *paragraph(1, 5, top=690),
    ]
    parsed = read(make_pdf([page]))
    titles = [(e.level, parsed.text[e.start : e.end]) for e in parsed.elements if e.kind == "title"]
    assert titles == [(1, "The Great Book"), (2, "A smaller heading")]
    assert len(parsed.elements) == 3


def test_the_outline_names_the_headings_where_there_is_one() -> None:
    page = [
        Text(72, 740, "Loud words in the margin", 20),
        Text(72, 715, "1.1 Quiet start", 10),
        *paragraph(1, 5, top=690),
    ]
    first = [Text(72, 740, "1 Opening"), *paragraph(2, 5)]
    parsed = read(make_pdf([first, page], outline=[("Opening", 0, 750), ("Quiet start", 1, 725)]))
    assert [(kind, number, text) for kind, number, text in pieces(parsed) if kind == "title"] == [
        ("title", 1, "1 Opening"),
        ("title", 2, "1.1 Quiet start"),
    ]


def test_running_headers_and_footers_are_left_out() -> None:
    pages = [
        [Text(72, 770, "The Great Book"), *paragraph(n, 30), Text(300, 30, str(n + 7)), Text(500, 30, "draft")]
        for n in range(5)
    ]
    parsed = read(make_pdf(pages))
    assert "Great Book" not in parsed.text
    assert "draft" not in parsed.text
    assert not any(character.isdigit() for character in parsed.text)
    assert [element.page for element in parsed.elements] == [1, 2, 3, 4, 5]


def test_headings_at_the_top_of_every_page_stay() -> None:
    pages = [[Text(72, 770, f"Chapter {n + 1}", 18), *paragraph(n, 30)] for n in range(5)]
    parsed = read(make_pdf(pages, outline=[(f"Chapter {n + 1}", n, 790) for n in range(5)]))
    assert [text for kind, _, text in pieces(parsed) if kind == "title"] == [f"Chapter {n}" for n in range(1, 6)]


@pytest.mark.parametrize(
    ("titles", "size", "font"),
    [
        (["Step 1: Mix the flour", "Step 2: Heat the oven", "Step 3: Bake", "Step 4: Eat"], 18, "bold"),
        (["Step 1: Mix the flour", "Step 2: Heat the oven", "Step 3: Bake", "Step 4: Eat"], 10, "plain"),
        (["Chapter 1 Introduction", "Chapter 2 Methods", "Chapter 3 Results"], 10, "bold"),
        (["Results of 2019", "Results of 2020", "Results of 2021"], 10, "plain"),
        (["Part 1", "Part 2", "Part 3"], 18, "plain"),
    ],
)
def test_titles_that_count_up_are_no_running_headers(titles: list[str], size: float, font: str) -> None:
    pages = [
        [Text(72, 770, title, size, font), *paragraph(n, 30), Text(300, 30, str(n + 1))]
        for n, title in enumerate(titles)
    ]
    text = read(make_pdf(pages)).text
    assert all(title in text for title in titles)
    assert not re.search(r"^\d+$", text, re.M)


def test_headers_that_name_the_section_beside_the_page_are_left_out() -> None:
    pages = [[Text(72, 770, str(n + 5)), Text(400, 770, f"topic{n}"), *paragraph(n, 30)] for n in range(5)]
    assert "topic" not in read(make_pdf(pages)).text


def test_a_large_title_on_every_page_stays_once() -> None:
    pages = [[Text(72, 770, "Invoice", 18), *paragraph(n, 5 + n)] for n in range(4)]
    assert [page for _, page, text in pieces(read(make_pdf(pages))) if text == "Invoice"] == [1]


@pytest.mark.parametrize("turn", [(90, "0 1 -1 0 612 0 cm"), (270, "0 -1 1 0 0 792 cm"), (180, "-1 0 0 -1 612 792 cm")])
def test_pages_that_are_shown_turned_have_headings_and_tables(turn: tuple[int, str]) -> None:
    rows = [("Fruit", "Number"), ("Apple", "3"), ("Pear", "5")]
    table = [Text(72 + 200 * c, 500 - 16 * r, cell) for r, row in enumerate(rows) for c, cell in enumerate(row)]
    page = [Text(72, 600, "The Great Book", 20), *paragraph(1, 3, top=570), *table]
    upright, turned = read(make_pdf([page])), read(make_pdf([page], turn=turn))
    assert [kind for kind, _, _ in pieces(upright)] == ["title", "paragraph", "table"]
    assert pieces(turned) == pieces(upright)
    assert pieces(read(make_pdf([page], turn=(turn[0], "")))) == pieces(upright)


@pytest.mark.parametrize("interleaved", [False, True], ids=["column by column", "line by line"])
def test_two_columns_are_read_one_after_the_other(interleaved: bool) -> None:
    left, right = paragraph(1, 20, x=72, count=6), paragraph(2, 20, x=330, count=6)
    page = [line for pair in zip(left, right, strict=True) for line in pair] if interleaved else [*left, *right]
    parsed = read(make_pdf([page]))
    assert " ".join(parsed.text.split()) == " ".join(line.text for line in [*left, *right])


def test_words_broken_at_a_line_end_are_whole_again() -> None:
    lines = [
        "The exam-",
        "ple shows a well-known word, and a well-",
        "known word again, and the Franco-",
        "German border.",
    ]
    parsed = read(make_pdf([[Text(72, 700 - 12 * n, line) for n, line in enumerate(lines)]]))
    assert (
        parsed.text == "The example shows a well-known word, and a well-known word again, and the Franco-German border."
    )


def test_tables_keep_their_rows_and_columns() -> None:
    rows = [
        ("Country", "Capital", "Size"),
        ("France", "Paris", "643"),
        ("Chad", "N'Djamena", "1284"),
        ("Peru", "Lima", "1285"),
    ]
    page = [Text(72 + 150 * c, 700 - 14 * r, cell) for r, row in enumerate(rows) for c, cell in enumerate(row)]
    assert pieces(read(make_pdf([page]))) == [("table", 1, "\n".join(" | ".join(row) for row in rows))]


def test_a_bold_first_row_is_the_header_of_its_table() -> None:
    page = [Text(72, 700, "Name", 10, "bold"), Text(250, 700, "Size", 10, "bold")]
    page += [Text(72, 684, "Ann"), Text(250, 684, "3"), Text(72, 668, "Bo"), Text(250, 668, "5")]
    (table,) = read(make_pdf([page])).elements
    assert table.header_end == len("Name | Size")


def test_numbered_lines_are_items_whatever_they_end_with() -> None:
    page = [Text(72, 700, "1. Mix the flour"), Text(72, 688, "with water"), Text(72, 676, "2. Heat the oven")]
    assert [text for _, _, text in pieces(read(make_pdf([page])))] == [
        "1. Mix the flour with water",
        "2. Heat the oven",
    ]


def test_code_keeps_its_lines_and_indentation() -> None:
    code = [(0, "def f():"), (4, "if x:"), (8, "return 1"), (0, "f()")]
    page = [
        *paragraph(1, 3),
        *(Text(72 + 6 * indent, 650 - 12 * n, line, 10, "mono") for n, (indent, line) in enumerate(code)),
    ]
    assert pieces(read(make_pdf([page])))[1] == ("code", 1, "def f():\n    if x:\n        return 1\nf()")


def test_footnotes_do_not_run_into_the_text() -> None:
    page = [
        *paragraph(1, 20),
        Text(72, 60, "1 First note,", 7),
        Text(72, 52, "on two lines.", 7),
        Text(72, 44, "2 Second note.", 7),
    ]
    assert [(kind, text) for kind, _, text in pieces(read(make_pdf([page])))][1:] == [
        ("footnote", "1 First note, on two lines."),
        ("footnote", "2 Second note."),
    ]


def test_bullets_make_list_items() -> None:
    page = [*paragraph(1, 3), Text(72, 640, "• apples and"), Text(80, 628, "pears"), Text(72, 616, "• plums")]
    assert [(kind, text) for kind, _, text in pieces(read(make_pdf([page])))][1:] == [
        ("list_item", "apples and pears"),
        ("list_item", "plums"),
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("password.pdf", "encrypted"),
        ("single_table.pdf", "no text layer"),
        ("table-multi-row-column-cells.pdf", "no text layer"),
    ],
)
def test_pdfs_without_text_fail_by_name(name: str, reason: str) -> None:
    with pytest.raises(ParseFailure) as failure:
        read(shared("formats", "pdf", name).read_bytes())
    assert failure.value.reason == reason


def test_a_pdf_of_empty_pages_is_empty_and_a_broken_one_corrupt() -> None:
    for content, reason in ((make_pdf([[], []]), "empty"), (b"%PDF-1.7\nnothing", "corrupt")):
        with pytest.raises(ParseFailure) as failure:
            read(content)
        assert failure.value.reason == reason


def test_shards_join_as_if_whole() -> None:
    path = shared("corpora", "r-manuals", "R-data.pdf")
    content = path.read_bytes()
    pages = page_count(path)
    whole = read(content)
    for size in (1, 7, pages):
        parts = [parse_pages(content, first, first + size - 1) for first in range(1, pages + 1, size)]
        parts = [PdfPart.from_json(part.to_json()) for part in parts]
        random.Random(size).shuffle(parts)
        assert join_parts(parts) == whole


def sections_found(path: Path, first: int, last: int) -> tuple[int, list[str]]:
    """Of the outline entries of these pages, how many have a heading on their very page; the titles of the others."""
    part = parse_pages(path.read_bytes(), 1, last)
    parsed = join_parts([part])
    titles = [
        (element.page, squeezed(parsed.text[element.start : element.end]))
        for element in parsed.elements
        if element.kind == "title"
    ]
    wanted = [(title, page) for _, title, page, _ in part.outline if first <= page <= last]
    missing = [
        title for title, page in wanted if not any(on == page and squeezed(title) in text for on, text in titles)
    ]
    return len(wanted), missing


def squeezed(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()


def test_the_sections_of_a_manual_are_on_their_pages() -> None:
    entries, missing = sections_found(shared("corpora", "r-manuals", "R-data.pdf"), 1, 1000)
    assert entries == 43
    assert not missing


@pytest.mark.slow
def test_the_sections_of_a_manual_of_2415_pages_are_on_their_pages() -> None:
    path = shared("corpora", "r-manuals", "refman.pdf")
    assert page_count(path) == 2415
    entries, missing = sections_found(path, 1, 2415)
    assert entries == 1426
    assert missing == ["Contents"]  # the outline points at the table's first page, which says so nowhere
