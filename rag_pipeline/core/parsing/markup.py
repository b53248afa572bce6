"""Markdown: rendered to HTML, read as HTML."""

import re

from .document import Block, Draft
from .encodings import decode
from .html import read_html

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?\r?\n)(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.S)


def parse_markdown(content: bytes, name: str) -> Draft:
    """CommonMark with tables and strikethrough. The front matter is kept as a code element, its title, author, date, language also as metadata."""
    from markdown_it import MarkdownIt

    decoded = decode(content)
    text = decoded.text
    front = _FRONT_MATTER.match(text)
    draft = Draft()
    if front:
        draft.blocks.append(Block("code", front[1]))
        draft.metadata.update(_front_metadata(front[1]))
        text = text[front.end() :]
    body = read_html(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))
    draft.blocks += body.blocks
    draft.metadata.update(decoded.metadata())
    return draft


def _front_metadata(front: str) -> dict[str, object]:
    wanted = {"title": "title", "author": "authors", "authors": "authors", "date": "created", "lang": "language", "language": "language"}
    found: dict[str, object] = {}
    for line in front.splitlines():
        key, colon, value = line.partition(":")
        name = wanted.get(key.strip().lower()) if colon else None
        value = value.strip().strip("\"'")
        if name and value:
            found[name] = [part.strip().strip("\"'") for part in value.strip("[]").split(",")] if name == "authors" else value
    return found
