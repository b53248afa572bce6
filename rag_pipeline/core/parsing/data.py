"""Data that people keep in text: JSON, JSON lines, XML."""

import json
import re
from collections import Counter
from collections.abc import Iterator

from lxml import etree

from .containers import read_xml
from .document import Block, Draft, ParseFailure
from .encodings import decode
from .html import BLOCKS as HTML_BLOCKS

TITLES = {"title", "head", "heading", "caption"}
# Attributes that say nothing of the matter, and those that do even where an element has text besides.
UNREAD = {"id", "idref", "class", "style", "version", "xmlns"}
READ = {"alt", "caption", "description", "label", "name", "text", "title"}
# Elements that part paragraphs wherever they stand: HTML's, and those of DocBook and JATS that are called otherwise.
BLOCKS = HTML_BLOCKS | TITLES | {"entry", "item", "para", "record", "row", "sec"}
# An entity whose text stands in another file, which is not read: U+FFFD stands for it.
_EXTERNAL_ENTITY = re.compile(
    rb"""<!ENTITY\s+([\w.-]+)\s+(?:SYSTEM|PUBLIC\s+(?:"[^"]*"|'[^']*'))\s+(?:"[^"]*"|'[^']*')\s*>"""
)


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
    # Only these end a line: U+2028 and the like stand inside strings.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", decoded.text), 1):
        if not line.strip():
            continue
        try:
            records.append(Block("record", "\n".join(_lines(_load(line)))))
        except json.JSONDecodeError as error:
            raise ParseFailure("corrupt", f"not JSON: {error.msg} at line {number}") from None
    return Draft(records, decoded.metadata())


def parse_xml(content: bytes, name: str) -> Draft:
    """Any XML: a paragraph for each run of text, a record for an element that holds only named values, in attributes or
    in elements."""
    # The mark and the declaration are the XML parser's own business, but for UTF-16 and 32 without a mark.
    content, entities = _EXTERNAL_ENTITY.subn(rb'<!ENTITY \1 "&#xFFFD;">', content)
    root = read_xml(content)
    return Draft(list(_elements(root, _inline_tags(root))), {"external_entities": entities} if entities else {})


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


def _inline_tags(root: etree._Element) -> set[str]:
    """The tags of elements that stand more often among text than among other elements: they part no paragraphs."""
    among_text: Counter[str] = Counter()
    for element in root.iter():
        children = list(element)
        if len(children) > 1 or _own_texts(element):
            step = 1 if any(_own_texts(element)) else -1
            among_text.update({tag: step * number for tag, number in Counter(child.tag for child in children).items()})
    return {tag for tag, more in among_text.items() if more > 0 and etree.QName(tag).localname.lower() not in BLOCKS}


def _own_texts(element: etree._Element) -> list[str]:
    """The text that stands in an element itself, in pieces that its children part."""
    return [text for text in (element.text, *(child.tail for child in element)) if text and not text.isspace()]


def _elements(root: etree._Element, inline: set[str]) -> Iterator[Block]:
    """The blocks of a tree, by a walk that does not recurse: XML may be nested as deep as it likes."""
    stack: list[etree._Element | str] = [root]
    while stack:
        element = stack.pop()
        if isinstance(element, str):
            yield Block("paragraph", element)
            continue
        children = list(element)
        tag = etree.QName(element).localname
        has_text = bool(_own_texts(element))
        attributes = "\n".join(f"{name}: {value}" for name, value in _attributes(element, has_text))
        if has_text and all(_is_inline(child, inline) for child in children):
            if attributes:
                yield Block("record", attributes)
            text = _text(element)
            yield Block("title", text, level=1) if tag.lower() in TITLES else Block("paragraph", text)
        elif (
            not has_text
            and len(children) > 1
            and all(len(child) == 0 for child in children)
            and len({child.tag for child in children}) == len(children)
        ):
            yield Block("record", "\n".join(filter(None, [attributes, *_named_values(children)])))
        else:
            if attributes:
                yield Block("record", attributes)
            stack += reversed(_parted(element, inline))


def _parted(element: etree._Element, inline: set[str]) -> list[etree._Element | str]:
    """What stands in an element: its children that are blocks, and the runs of text between them."""
    parts: list[etree._Element | str] = [element.text or ""]
    for child in element:
        if _is_inline(child, inline):
            parts[-1] += f"{_gap(child)}{_text(child)}{child.tail or ''}"
        else:
            parts += [child, child.tail or ""]
    return parts


def _is_inline(element: etree._Element, inline: set[str]) -> bool:
    return element.tag in inline and all(inner.tag in inline for inner in element.iterdescendants())


def _attributes(element: etree._Element, has_text: bool) -> Iterator[tuple[str, str]]:
    """What an element says in its attributes: all but identifiers and the like, or, where it has text, what is written
    to be read."""
    for name, value in element.attrib.items():
        if value.strip() and not name.startswith("{") and (name.lower() in READ if has_text else name not in UNREAD):
            yield name, " ".join(value.split())


def _named_values(children: list[etree._Element]) -> Iterator[str]:
    for child in children:
        name = etree.QName(child).localname
        text = " ".join((child.text or "").split())
        if text:
            yield f"{name}: {text}"
        yield from (f"{name}.{key}: {value}" for key, value in _attributes(child, has_text=False))


def _text(element: etree._Element) -> str:
    """The text below an element."""
    pieces: list[str] = []
    for event, inner in etree.iterwalk(element, events=("start", "end")):
        if event == "start":
            pieces.append("" if inner is element else _gap(inner))
            pieces.append(inner.text or "")
        elif inner is not element:
            pieces.append(inner.tail or "")
    return "".join(pieces)


def _gap(element: etree._Element) -> str:
    """A space before an element that nothing parts from the one before: they hold two words."""
    before = element.getprevious()
    return " " if before is not None and not before.tail else ""
