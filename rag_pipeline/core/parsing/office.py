"""Presentations, and the formats of Office 97 to 2003, which are converted to today's first."""

import tempfile
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

from .containers import open_zip, properties
from .document import Block, Draft, ParseFailure
from .html import read_html
from .markup import parse_docx


def parse_pptx(content: bytes, name: str) -> Draft:
    """A presentation by unstructured: the slide's number is the page, its title placeholder the heading; notes are
    paragraphs."""
    with open_zip(content) as archive:
        metadata = properties(archive, "docProps/core.xml")
    _tune_unstructured()
    from unstructured.partition.pptx import partition_pptx

    blocks = []
    for element in partition_pptx(file=BytesIO(content), languages=[""], include_page_breaks=False):
        page, html = element.metadata.page_number, element.metadata.text_as_html
        if element.category == "Table" and html:
            for block in read_html(html).blocks:
                block.page = page
                blocks.append(block)
        elif element.category == "Title" and element.metadata.category_depth == 0:
            blocks.append(Block("title", element.text, page, 1))
        else:
            blocks.append(Block("list_item" if element.category == "ListItem" else "paragraph", element.text, page))
    return Draft(blocks, {**metadata, "pages": "slides"})


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
