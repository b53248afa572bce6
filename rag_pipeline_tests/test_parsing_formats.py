"""Every example file ends as text, as an explicit empty, or as a named reason; docs/formats.md says which."""

import io
import zipfile

import pytest

from rag_pipeline.core.media_types import DOCX, EPUB, ODT, PPT, PPTX, XLSX, detect
from rag_pipeline.core.parsing import FAILURE_REASONS, ParsedText, ParseFailure, parse
from rag_pipeline_tests.formats_table import PAGE, outcomes, rows
from rag_pipeline_tests.shared import shared

WORDS = {
    "simple.docx": "These are a few of my favorite things:",
    "docx-shapes.docx": "Paragraph with single within.\n\n<inline-image>",
    "docx-tables.docx": "Header Col 1 | Header Col 2\nLorem ipsum | A link example",
    "fake.doc": "Lorem ipsum dolor sit amet.",
    "fake-doc-emphasized-text.doc": "I am a bold italic bold-italic text.",
    "fake.odt": "Header row | Mon | Wed | Fri\nColor | Blue | Red | Green",
    "fake-doc.rtf": "Column 1 | Column 2\nRow 1, Cell 1 | Row 1, Cell 2",
    "fake-power-point-table.pptx": "Red | Green | Blue",
    "fake-power-point-malformed.pptx": "Test Slide",
    "stanley-cups.xlsx": "Team | Location | Stanley Cups\nBlues | STL | 1",
    "tests-example.xls": "TF | Bagpipes are awesome. | true",
    "winter-sports.epub": "Winter Sports in Switzerland",
    "README.rst": "You can get an example 10-K in inline XBRL format",
    "README-w-include.org": "These documents can be used to test out the parsers",
    "arbitrary-records.json": "sku: GRD-8842\nname: Garden Trowel\nprice: 12.5\nin_stock: true",
    "arbitrary-records.ndjson": "price: 18.0",
    "fake-incomplete-json.txt": '"city": "New York"',
    "factbook.xml": "name: Canada\ncapital: Ottawa",
    "semicolon-delimited.csv": "Lorem, ipsum | dolor sit | amet",
    "csv-with-line-delimiter.csv": "col1 | col2 | col3\na | b | c",
    "single-column.csv": "Ut enim, ad minim, veniam",
    "fake-email.msg": "Roses are red",
    "fake-email-attachment.msg": "Attachment: fake-attachment.txt",
    "eml/fake-email-attachment.eml": "Attachment: fake-attachment.txt",
    "eml/mime-attach-mp3.eml": "Attachment: sample-3s.mp3",
    "eml/mime-multipart-digest.eml": "This is the second message in the digest.",
    "eml/fake-email-malformed-encoding.eml": "Violets are blue",
    "eml/mime-different-plain-html.eml": "This is the text/html part.",
    "eml/signed-doc.p7s": "This is a test",
    "eml/test-invalid-date.eml": "Date: INVALID-DATE-FORMAT",
    "fake.go": "package main",
}
REASONS = {
    "empty.txt": "empty",
    "fake-text-all-whitespace.txt": "empty",
    "empty.xlsx": "empty",
    "eml/empty.eml": "empty",
    "picture.pptx": "empty",
    "password_protected.xlsx": "encrypted",
    "pdf/password.pdf": "encrypted",
    "fake-encrypted.msg": "encrypted",
    "eml/fake-encrypted.eml": "encrypted",
    "pdf/single_table.pdf": "no text layer",
    "simple.zip": "unsupported type",
}


def read(name: str) -> ParsedText:
    path = shared("formats", *name.split("/"))
    content = path.read_bytes()
    return parse(content, detect(content[:65536], path.name, path), path.name)


@pytest.mark.parametrize(("name", "words"), WORDS.items())
def test_files_hold_the_words_a_person_reads(name: str, words: str) -> None:
    assert words in read(name).text


@pytest.mark.parametrize(("name", "reason"), REASONS.items())
def test_files_without_text_say_why(name: str, reason: str) -> None:
    with pytest.raises(ParseFailure) as failure:
        read(name)
    assert failure.value.reason == reason


def test_every_file_comes_to_what_the_docs_say() -> None:
    found = outcomes(shared("formats"))
    assert len(found) == 185
    assert all(outcome.parsed or outcome.failure.reason in FAILURE_REASONS for _, outcome in found.values())
    documented = PAGE.read_text().split("\n| file |")[1].splitlines()[2:]
    assert rows(found) == documented


def test_slides_sheets_and_their_titles() -> None:
    slides = read("sample-presentation.pptx")
    titles = [(e.page, slides.text[e.start : e.end]) for e in slides.elements if e.kind == "title"]
    assert titles[:2] == [(1, "Title Slide"), (2, "This is the first content slide")]
    sheets = read("stanley-cups.xlsx")
    assert {(e.page, sheets.text[e.start : e.end]) for e in sheets.elements if e.kind == "title"} == {
        (1, "Stanley Cups"),
        (2, "Stanley Cups Since 67"),
    }


def test_document_properties_are_metadata() -> None:
    assert read("category-level.docx").metadata["language"] == "en-US"
    assert read("winter-sports.epub").metadata["authors"] == ["E. F. Benson"]
    message = read("fake-email.msg").metadata
    assert message["title"] == "Test Email"
    assert read("eml/family-day.eml").metadata["created"] == "2022-12-21T10:28:53-06:00"


def test_word_keeps_insertions_content_controls_and_notes() -> None:
    from docx import Document
    from docx.oxml import parse_xml

    w = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    document = Document()
    document.add_heading("Contract", 2)
    line = document.add_paragraph("Agreed ")
    line._p.append(parse_xml(f'<w:ins {w} w:id="1" w:author="a"><w:r><w:t>and inserted</w:t></w:r></w:ins>'))
    control = f"<w:sdt {w}><w:sdtContent><w:p><w:r><w:t>controlled</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    document.element.body.insert(2, parse_xml(control))
    document.add_paragraph("one", style="List Number")
    buffer = io.BytesIO()
    document.save(buffer)
    parsed = parse(buffer.getvalue(), DOCX, "contract.docx")
    assert parsed.text == "Contract\n\nAgreed and inserted\n\ncontrolled\n\n1. one"
    assert parsed.elements[0].level == 2


def test_a_protected_book_is_encrypted_and_an_obfuscated_font_is_not() -> None:
    def book(algorithm: str) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("mimetype", EPUB)
            archive.writestr("META-INF/encryption.xml", f'<e><EncryptionMethod Algorithm="{algorithm}"/></e>')
            archive.writestr("META-INF/container.xml", '<c><rootfile full-path="b/p.opf"/></c>')
            manifest = '<item id="a" href="a%20b.xhtml" media-type="application/xhtml+xml"/>'
            archive.writestr("b/p.opf", f'<p><manifest>{manifest}</manifest><spine><itemref idref="a"/></spine></p>')
            archive.writestr("b/a b.xhtml", "<html><body><h1>One</h1></body></html>")
        return buffer.getvalue()

    assert parse(book("http://www.idpf.org/2008/embedding"), EPUB, "a.epub").text == "One"
    with pytest.raises(ParseFailure, match="encrypted"):
        parse(book("http://www.w3.org/2001/04/xmlenc#aes256-cbc"), EPUB, "a.epub")


@pytest.mark.parametrize(
    "media_type", [DOCX, PPTX, XLSX, ODT, EPUB, PPT, "application/vnd.ms-outlook", "application/json"]
)
def test_what_is_not_of_its_type_is_corrupt(media_type: str) -> None:
    with pytest.raises(ParseFailure, match="corrupt"):
        parse(b"{neither this nor that", media_type, "a")


def test_types_nothing_reads_are_unsupported_and_say_so() -> None:
    with pytest.raises(ParseFailure, match="unsupported type: image/png"):
        parse(b"\x89PNG", "image/png", "a.png")


def test_plain_text_headings_have_the_levels_of_their_underlines() -> None:
    text = "Book\n****\n\nChapter\n=======\n\nwords\nmore words\n\nSection\n-------\n\n* a\n* b\n\n"
    text += "Other\n=====\n\n- not a title\n---\n"
    parsed = parse(text.encode(), "text/plain", "a.txt")
    assert [(e.level, parsed.text[e.start : e.end]) for e in parsed.elements if e.kind == "title"] == [
        (1, "Book"),
        (2, "Chapter"),
        (3, "Section"),
        (2, "Other"),
    ]
    assert "words\nmore words" in parsed.text


@pytest.mark.parametrize(
    "name", ["fake.go", "stanley-cups.tsv", "single-column.csv", "fake-email.msg", "fake-text.txt"]
)
def test_the_same_bytes_are_the_same_text_under_any_name(name: str) -> None:
    content = shared("formats", name).read_bytes()
    media_type = detect(content, name)
    assert parse(content, media_type, "other.name") == parse(content, media_type, name)


def test_slides_have_their_notes_their_charts_and_the_headers_of_their_tables() -> None:
    from pptx import Presentation
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE

    deck = Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "Sales"
    slide.notes_slide.notes_text_frame.text = "Say it slowly."
    table = slide.shapes.add_table(2, 2, 0, 900_000, 900_000, 900_000).table
    for number, text in enumerate(("Region", "Head", "East", "Ann")):
        table.cell(number // 2, number % 2).text = text
    numbers = CategoryChartData()
    numbers.categories = ["East", "West"]
    numbers.add_series("2019", (1, 2.5))
    slide.shapes.add_chart(XL_CHART_TYPE.PIE, 0, 0, 900_000, 900_000, numbers)
    deck.slides.add_slide(deck.slide_layouts[6]).notes_slide.notes_text_frame.text = "Only a note."
    buffer = io.BytesIO()
    deck.save(buffer)
    parsed = parse(buffer.getvalue(), PPTX, "a.pptx")
    assert [(e.page, parsed.text[e.start : e.end]) for e in parsed.elements] == [
        (1, "Sales"),
        (1, "Region | Head\nEast | Ann"),
        (1, "| 2019\nEast | 1\nWest | 2.5"),
        (1, "Say it slowly."),
        (2, "Only a note."),
    ]
    assert [parsed.text[e.start : e.header_end] for e in parsed.elements if e.header_end] == ["Region | Head", "| 2019"]


def mail(*lines: str, encoding: str = "utf-8") -> ParsedText:
    return parse("\r\n".join(["From: a@b.c", "MIME-Version: 1.0", *lines]).encode(encoding), "message/rfc822", "a.eml")


def test_an_invitation_is_read_by_its_words() -> None:
    calendar = "BEGIN:VCALENDAR\nSUMMARY:x\nEND:VCALENDAR"
    parts = (("text/plain", "Please come."), ("text/calendar", calendar))
    body = "\n".join(f"--B\nContent-Type: {kind}\n\n{text}" for kind, text in parts)
    text = mail("Subject: Meeting", "Content-Type: multipart/alternative; boundary=B", "", body, "--B--").text
    assert text.endswith("Please come.")
    assert "VCALENDAR" not in text


def test_attached_messages_are_read_and_attachments_without_a_name_listed() -> None:
    attached = "Content-Disposition: attachment\nContent-Type:"
    inner = f"--B\n{attached} message/rfc822\n\nSubject: Inner\nFrom: x@y.z\n\nInner words."
    data = f"--B\n{attached} application/pdf\n\nx"
    parsed = mail("Content-Type: multipart/mixed; boundary=B", "", "--B\n\nSee below.", inner, data, "--B--")
    assert parsed.text.split("\n\n")[1:] == [
        "See below.",
        "Inner",
        "From: x@y.z",
        "Inner words.",
        "Attachment: application/pdf",
    ]


@pytest.mark.parametrize(("charset", "mark"), [("; charset=iso-8859-1", {}), ("", {"encoding_guessed": True})])
def test_raw_bytes_in_headers_are_decoded(charset: str, mark: dict) -> None:
    parsed = mail("Subject: Grüße „aus“ Köln", f"Content-Type: text/plain{charset}", "", "x", encoding="cp1252")
    assert parsed.metadata["title"] == "Grüße „aus“ Köln"
    assert mark.items() <= parsed.metadata.items()


def test_separators_of_lines_stand_inside_json_strings() -> None:
    content = '{"text": "one\u2028two"}\r\n{"text": "x\u0085y"}\n'
    assert len(parse(content.encode(), "application/x-ndjson", "a.jsonl").elements) == 2


def test_a_formula_that_was_never_computed_stands_for_itself() -> None:
    from openpyxl import Workbook

    workbook = Workbook()
    for row in (("Region", "Total"), ("East", 3), ("All", "=SUM(B2:B2)")):
        workbook.active.append(row)
    buffer = io.BytesIO()
    workbook.save(buffer)
    assert parse(buffer.getvalue(), XLSX, "a.xlsx").text.endswith("Region | Total\nEast | 3\nAll | =SUM(B2:B2)")
