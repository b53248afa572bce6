"""Presentations, and the formats of Office 97 to 2003, which are converted to today's first."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from io import BytesIO
from pathlib import Path

from lxml import etree

from .containers import open_zip, properties
from .document import Block, Draft, ParseFailure, table_block
from .html import read_html
from .markup import parse_docx


def parse_pptx(content: bytes, name: str) -> Draft:
    """A presentation by unstructured: the slide's number is the page, its title placeholder the heading. What
    unstructured leaves out follows on each slide: a table for each chart, then the notes."""
    with open_zip(content) as archive:
        metadata = properties(archive, "docProps/core.xml")
    _tune_unstructured()
    from pptx import Presentation
    from unstructured.partition.pptx import partition_pptx

    slides: dict[int, list[Block]] = {}
    for element in partition_pptx(file=BytesIO(content), languages=[""], include_page_breaks=False):
        page, html = element.metadata.page_number, element.metadata.text_as_html
        blocks = slides.setdefault(page, [])
        if element.category == "Table" and html:
            blocks += read_html(html).blocks
        elif element.category == "Title" and element.metadata.category_depth == 0:
            blocks.append(Block("title", element.text, level=1))
        else:
            blocks.append(Block("list_item" if element.category == "ListItem" else "paragraph", element.text))
    for page, slide in enumerate(Presentation(BytesIO(content)).slides, 1):
        blocks = slides.setdefault(page, [])
        for shape in _shapes(slide.shapes):
            if shape.has_table and shape.table.first_row:
                header = table_block([[cell.text for cell in shape.table.rows[0].cells]]).text
                for block in blocks:
                    if block.kind == "table" and block.text.startswith(f"{header}\n"):
                        block.header = header
            elif shape.has_chart:
                blocks += _chart(shape.chart._chartSpace)
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            blocks.append(Block("paragraph", slide.notes_slide.notes_text_frame.text))
        for block in blocks:
            block.page = page
    return Draft([block for page in sorted(slides) for block in slides[page]], {**metadata, "pages": "slides"})


def _shapes(shapes: Iterable) -> Iterator:
    """The shapes of a slide, those in groups too."""
    for shape in shapes:
        if hasattr(shape, "shapes"):
            yield from _shapes(shape.shapes)
        else:
            yield shape


def _chart(chart: etree._Element) -> list[Block]:
    """A chart's title and its numbers, a column for each series (ECMA-376, part 1, 21.2)."""
    title = "".join(text.text or "" for text in chart.iterfind("./{*}chart/{*}title//{*}t"))

    def points(series: etree._Element, *names: str) -> dict[str, str]:
        found = (point for name in names for point in series.iterfind(f"./{{*}}{name}//{{*}}pt"))
        return {point.get("idx"): point.findtext("{*}v", "") for point in found}

    columns, labels = [], {}
    for series in chart.iter("{*}ser"):
        columns.append((points(series, "tx").get("0", ""), points(series, "val", "yVal")))
        labels.update(points(series, "cat", "xVal"))
    rows = [[label, *(values.get(index, "") for _, values in columns)] for index, label in labels.items()]
    return [Block("paragraph", title), table_block([["", *(name for name, _ in columns)], *rows], header_rows=1)]


def parse_doc(content: bytes, name: str) -> Draft:
    """Word 97 to 2003."""
    from doc2docx import convert

    return parse_docx(_converted(content, "doc", convert), name)


def parse_ppt(content: bytes, name: str) -> Draft:
    """PowerPoint 97 to 2003."""
    from ppt2pptx import convert

    return parse_pptx(_converted(content, "ppt", convert), name)


def refuse_encrypted(content: bytes, name: str) -> Draft:
    """An Office Open XML file behind a password is a compound file around it ([MS-OFFCRYPTO])."""
    raise ParseFailure("encrypted", "the document asks for a password")


def _converted(content: bytes, suffix: str, convert: Callable) -> bytes:
    """What `convert` makes of the file, in today's format."""
    with tempfile.TemporaryDirectory(prefix="rag-parse-") as folder:
        old, new = Path(folder, f"old.{suffix}"), Path(folder, f"new.{suffix}x")
        old.write_bytes(content)
        try:
            convert(old, new)
        except Exception as error:
            if "password" in str(error).lower() or "encrypt" in f"{type(error).__name__} {error}".lower():
                raise ParseFailure("encrypted", "the document asks for a password") from None
            raise
        return new.read_bytes()


@cache
def _tune_unstructured() -> None:
    """Give unstructured a sentence splitter that is at hand: the one it wants, it downloads."""
    import spacy
    import unstructured.nlp.tokenize

    pipeline = spacy.blank("en")
    pipeline.add_pipe("sentencizer")
    unstructured.nlp.tokenize._load_spacy_model = lambda *arguments, **options: pipeline
