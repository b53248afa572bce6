"""The type of a file comes from its content; its name decides only between kinds of text."""

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_pipeline.core.media_types import DOC, DOCX, ENCRYPTED_OFFICE, EPUB, MSG, ODT, PPTX, UNKNOWN, XLS, XLSX, detect
from rag_pipeline_tests.shared import shared

BY_CONTENT = {
    "fake.doc": DOC,
    "language-docs/eng_spa_mult.doc": DOCX,
    "language-docs/eng_spa_mult.ppt": PPTX,
    "tests-example.xls": XLS,
    "password_protected.xlsx": ENCRYPTED_OFFICE,
    "stanley-cups.xlsx": XLSX,
    "fake.odt": ODT,
    "winter-sports.epub": EPUB,
    "fake-email.msg": MSG,
    "fake-email.txt": "message/rfc822",
    "eml/empty.eml": "message/rfc822",
    "simple.zip": "application/zip",
    "factbook-utf-16.xml": "application/xml",
    "example-steelJIS-datasheet-utf-16.html": "text/html",
    "stanley-cups-utf-16.csv": "text/csv",
    "README.org": "text/org",
    "README.rst": "text/x-rst",
    "fake-doc.rtf": "application/rtf",
    "simple.ndjson": "application/x-ndjson",
    "fake.go": "text/x-source",
    "fake-incomplete-json.txt": "text/plain",
    "pdf/password.pdf": "application/pdf",
}


@pytest.mark.parametrize(("name", "media_type"), BY_CONTENT.items())
def test_files_of_every_kind(name: str, media_type: str) -> None:
    path = shared("formats", *name.split("/"))
    assert detect(path.read_bytes()[:65536], path.name, path) == media_type


def test_the_content_wins_over_the_name() -> None:
    pdf = shared("formats", "pdf", "fake-memo.pdf").read_bytes()
    assert detect(pdf, "letter.txt") == "application/pdf"
    assert detect(b"<!DOCTYPE html><p>x", "page.txt") == "text/html"
    assert detect(b"\x89PNG\r\n\x1a\n....", "picture.md") == "image/png"
    assert detect(b"\x00\x01\x02\x03\x00\x00" * 100, "notes.txt") == UNKNOWN


def test_the_name_decides_between_kinds_of_text() -> None:
    text = b"Title\n=====\n\nSome words.\n"
    kinds = [detect(text, name) for name in ("a.md", "a.rst", "a.org", "a.py", "a.txt", "a", "a.csv", "Makefile")]
    assert kinds == [
        "text/markdown",
        "text/x-rst",
        "text/org",
        "text/x-source",
        "text/plain",
        "text/plain",
        "text/csv",
        "text/x-source",
    ]


def test_markdown_that_begins_with_html_stays_markdown() -> None:
    assert detect(b"<html>\n\n# Title\n", "page.md") == "text/markdown"


def test_a_container_is_told_from_the_file_when_its_head_does_not_show(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("customXml/padding.bin", bytes(range(256)) * 400)
        archive.writestr("word/document.xml", "<x/>")
    path = tmp_path / "late.docx"
    path.write_bytes(buffer.getvalue())
    head = buffer.getvalue()[:65536]
    assert b"word/document" not in head
    assert detect(head, path.name, path) == DOCX
    assert detect(head, path.name) == "application/zip"


@pytest.mark.parametrize(
    "text",
    [
        b"ID3 tags explained: an ID3 tag is metadata.\n",
        b"GIF89a is the newer version.\n",
        b"How to spot a PDF: it begins with %PDF-1.4 or similar.\n",
        b"%PDF-1.4 is how a PDF begins.\n",
        b"The ftyp box comes first.\n",
    ],
)
def test_a_text_about_a_format_is_a_text(text: bytes) -> None:
    assert detect(text, "a.txt") == "text/plain"


def test_a_pdf_may_begin_with_something_else() -> None:
    assert detect(b"junk\n%PDF-1.4\n1 0 obj\n<<>>\nendobj\n", "a") == "application/pdf"
    assert detect(b"junk %PDF-1.4 %" + bytes(range(32)) * 9, "a.txt") == "application/pdf"
    assert detect(b"%PDF-1.4\r1 0 obj", "a.txt") == "application/pdf"


@pytest.mark.parametrize("part", ["word/document.xml", "ppt/presentation.xml", "xl/workbook.xml"])
def test_a_container_cut_short_is_still_of_its_type(part: str) -> None:
    folder = part.partition("/")[0]
    other = {"word": "styles.xml", "ppt": "slides/slide1.xml", "xl": "worksheets/sheet1.xml"}[folder]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("docProps/app.xml", "<x/>")
        archive.writestr(f"{folder}/{other}", "<x/>" * 100)
        archive.writestr(part, "<x/>")
    content = buffer.getvalue()
    assert detect(content[: len(content) // 2], "a") == detect(content, "a") != "application/zip"


@given(st.binary(max_size=300), st.text(max_size=20))
def test_any_bytes_and_any_name_have_a_type(head: bytes, name: str) -> None:
    assert "/" in detect(head, name)


@pytest.mark.parametrize(
    "start", [b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"%PDF-", b"{\\rtf", b"From: a\n"]
)
@given(tail=st.binary(max_size=200))
def test_damaged_containers_have_a_type_too(
    start: bytes, tail: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(start + tail)
    assert "/" in detect(start + tail, "damaged", path)


def test_a_fragment_of_html_without_a_telling_name_is_html() -> None:
    assert detect(b"<p>One <b>two</b>", "fragment") == "text/html"
    assert detect(b"<p>One <b>two</b>", "fragment.txt") == "text/plain"


def test_endless_comments_do_not_hold_up_the_detection() -> None:
    assert detect(b"<!-- -->" * 8000, "a") == "text/plain"
    assert detect(b"<?xml version='1.0'?><!-- a --><!-- b --><html>", "a") == "text/html"
    assert detect(b"<!-- a --><book><title>x</title></book>", "a") == "application/xml"
