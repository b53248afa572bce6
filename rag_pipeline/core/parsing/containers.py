"""Zip containers (EPUB, OpenDocument, Office Open XML): opened with an eye on bombs and passwords, and their
metadata."""

import io
import zipfile

from lxml import etree

from .document import ParseFailure

# What a container may unpack to, all members together; a bomb declares gigabytes.
MAX_UNPACKED = 1024**3
ENCRYPTED_MEMBER = 0x1  # general purpose flag bit 0 (APPNOTE.TXT, 4.4.4)

_PROPERTIES = {
    "title": "title",
    "creator": "authors",
    "initial-creator": "authors",
    "created": "created",
    "creation-date": "created",
    "date": "modified",
    "modified": "modified",
    "language": "language",
}


def open_zip(content: bytes) -> zipfile.ZipFile:
    """The archive. Raises ParseFailure 'corrupt', 'encrypted' or 'too large'."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ParseFailure("corrupt", f"not a whole zip container: {error}") from None
    members = archive.infolist()
    if any(member.flag_bits & ENCRYPTED_MEMBER for member in members):
        raise ParseFailure("encrypted", "the container asks for a password")
    if sum(member.file_size for member in members) > MAX_UNPACKED:
        raise ParseFailure("too large", f"unpacks to more than {MAX_UNPACKED // 2**30} GB")
    return archive


def read_xml(content: bytes) -> etree._Element:
    """The root of an XML document; entities are expanded within libxml2's limits, nothing outside it is read."""
    parser = etree.XMLParser(
        resolve_entities="internal", no_network=True, load_dtd=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise ParseFailure("corrupt", f"not well-formed XML: {error}") from None
    if root is None:
        raise ParseFailure("empty", "the file holds no text")
    return root


def properties(archive: zipfile.ZipFile, member: str) -> dict[str, object]:
    """The Dublin Core properties in a member such as docProps/core.xml or meta.xml; none when it is missing or
    broken."""
    try:
        root = read_xml(archive.read(member))
    except (KeyError, zipfile.BadZipFile, ParseFailure):
        return {}
    return dublin_core(root)


def dublin_core(root: etree._Element) -> dict[str, object]:
    """Title, authors, dates and language by their Dublin Core names, wherever they stand below `root`."""
    found: dict[str, object] = {}
    for element in root.iter("{*}*"):
        key = _PROPERTIES.get(etree.QName(element).localname)
        text = (element.text or "").strip()
        if not key or not text:
            continue
        if key == "authors":
            authors = found.setdefault("authors", [])
            if text not in authors:
                authors.append(text)
        else:
            found.setdefault(key, text)
    return found
