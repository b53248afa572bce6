"""EPUB: the chapters in the order of the spine, each read as HTML."""

import posixpath
from urllib.parse import unquote

from lxml import etree

from .containers import dublin_core, open_zip, read_xml
from .document import Block, Draft, ParseFailure
from .encodings import decode
from .html import read_html

# Obfuscated fonts are no encryption (EPUB 3.3, 4.3).
FONT_OBFUSCATION = (b"http://www.idpf.org/2008/embedding", b"http://ns.adobe.com/pdf/enc#RC")


def parse_epub(content: bytes, name: str) -> Draft:
    """A book. Its table of contents, when it is only navigation, is left out like any other."""
    with open_zip(content) as archive:
        names = set(archive.namelist())
        if "META-INF/encryption.xml" in names:
            methods = [
                e.get("Algorithm", "").encode()
                for e in read_xml(archive.read("META-INF/encryption.xml")).iter("{*}EncryptionMethod")
            ]
            if any(method not in FONT_OBFUSCATION for method in methods):
                raise ParseFailure("encrypted", "the book is protected")
        try:
            container = read_xml(archive.read("META-INF/container.xml"))
            package_name = next(container.iter("{*}rootfile")).get("full-path", "")
            package = read_xml(archive.read(package_name))
        except (KeyError, StopIteration):
            raise ParseFailure("corrupt", "the book has no package document") from None
        blocks: list[Block] = []
        for member in _spine(package, posixpath.dirname(package_name)):
            if member not in names:
                raise ParseFailure("corrupt", "a chapter is missing")
            blocks += read_html(decode(archive.read(member)).text).blocks
    metadata = next(package.iterchildren("{*}metadata"), None)
    return Draft(blocks, dublin_core(metadata) if metadata is not None else {})


def _spine(package: etree._Element, folder: str) -> list[str]:
    """The names of the chapters' members, in reading order; the navigation document is not one."""
    items = {item.get("id"): item for item in package.iter("{*}item")}
    chapters = []
    for reference in package.iter("{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is None or "html" not in item.get("media-type", "") or "nav" in item.get("properties", "").split():
            continue
        chapters.append(posixpath.normpath(posixpath.join(folder, unquote(item.get("href", "")))))
    return chapters
