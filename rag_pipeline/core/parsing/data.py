"""Data that people keep in text: JSON, JSON lines, XML."""

import json
from collections.abc import Iterator

from lxml import etree

from .containers import read_xml
from .document import Block, Draft, ParseFailure
from .encodings import decode

TITLES = {"title", "head", "heading", "caption"}


def parse_json(content: bytes, name: str) -> Draft:
    """A record for each item of an array, or one for all: a line for each value, 'path.to.it: value'. Several documents
    in a row are as many."""
    decoded = decode(content)
    try:
        values = list(_documents(decoded.text))
    except json.JSONDecodeError as error:
        raise ParseFailure("corrupt", f"not JSON: {error.msg} at line {error.lineno}") from None
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    return Draft([Block("record", "\n".join(_lines(value))) for value in values], decoded.metadata())


def parse_json_lines(content: bytes, name: str) -> Draft:
    """One record a line; empty lines count for nothing."""
    decoded = decode(content)
    records = []
    for number, line in enumerate(decoded.text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            records.append(Block("record", "\n".join(_lines(_load(line)))))
        except json.JSONDecodeError as error:
            raise ParseFailure("corrupt", f"not JSON: {error.msg} at line {number}") from None
    return Draft(records, decoded.metadata())


def parse_xml(content: bytes, name: str) -> Draft:
    """Any XML: a paragraph for each run of text, a record for an element that holds only named values."""
    # The mark and the declaration are the XML parser's own business, but for UTF-16 and 32 without a mark.
    root = read_xml(content)
    return Draft(list(_elements(root)))


def _load(text: str) -> object:
    """A JSON value whose numbers are kept as they are written."""
    return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)


def _documents(text: str) -> Iterator[object]:
    """The JSON values that follow one another in a text."""
    decoder = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
    position = len(text) - len(text.lstrip())
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        yield value
        while position < len(text) and text[position].isspace():
            position += 1


def _lines(value: object, path: str = "") -> Iterator[str]:
    """The leaves of a JSON value, each with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _lines(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        if value and not any(isinstance(inner, dict | list) for inner in value):
            yield from _lines(", ".join(map(_written, value)), path)
        else:
            for inner in value:
                yield from _lines(inner, path)
    elif value is not None:
        yield f"{path}: {_written(value)}" if path else _written(value)


def _written(value: object) -> str:
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _elements(root: etree._Element) -> Iterator[Block]:
    """The blocks of a tree, by a walk that does not recurse: XML may be nested as deep as it likes."""
    stack = [root]
    while stack:
        element = stack.pop()
        children = list(element)
        tag = etree.QName(element).localname
        own_text = bool((element.text or "").strip()) or any((child.tail or "").strip() for child in children)
        if own_text or not children:
            text = "".join(element.itertext())
            yield Block("title", text, level=1) if tag.lower() in TITLES else Block("paragraph", text)
        elif (
            len(children) > 1
            and all(len(child) == 0 for child in children)
            and len({child.tag for child in children}) == len(children)
        ):
            named = ((etree.QName(child).localname, " ".join((child.text or "").split())) for child in children)
            yield Block("record", "\n".join(f"{name}: {text}" for name, text in named if text))
        else:
            stack += reversed(children)
