"""Plain text and source code: paragraphs as blank lines part them, headings as underlines mark them."""

import re

from .document import Block, Draft
from .encodings import decode
from .normalising import normalise

_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_UNDERLINE = re.compile(r"([=\-~^\"'#*+.:_`])\1{2,}\s*$")
_BULLET = re.compile(r"(?:[*+\-•‣◦·] |\(?\d{1,3}[.)] |[a-z][.)] )\s*\S")
_NOTE = re.compile(r"\[\^?\w{1,10}\]:? +\S")


def parse_plain(content: bytes, name: str) -> Draft:
    """Text as people type it. A line underlined by punctuation is a title; each new underline is one level deeper, as
    in reStructuredText. Lines stay lines: nobody can tell a poem from a wrapped paragraph."""
    decoded = decode(content)
    draft = Draft(metadata=decoded.metadata())
    underlines: list[str] = []
    for piece in _BLANK_LINES.split(normalise(decoded.text)):
        lines = piece.strip("\n").split("\n")
        start = 0
        while start < len(lines):
            level = _heading_level(lines[start : start + 2], underlines)
            if level is not None:
                draft.blocks.append(Block("title", lines[start], level=level))
                start += 2
                continue
            kind, end = "paragraph", len(lines)
            if _NOTE.match(lines[start]):
                kind = "footnote"
            elif _BULLET.match(lines[start].lstrip()):
                kind = "list_item"
                end = next((i for i in range(start + 1, end) if _BULLET.match(lines[i].lstrip())), end)
            draft.blocks.append(Block(kind, "\n".join(lines[start:end])))
            start = end
    return draft


def _heading_level(lines: list[str], underlines: list[str]) -> int | None:
    """The level of the title that two lines make, a text and an underline about as long; notes marks seen for the first
    time."""
    if len(lines) < 2 or not lines[0].strip() or lines[0].startswith((" ", "\t")) or _UNDERLINE.match(lines[0]):
        return None
    mark = _UNDERLINE.match(lines[1])
    title = lines[0].rstrip()
    if not mark or not 0.7 * len(title) <= len(lines[1].rstrip()) <= 1.3 * len(title) + 3 or len(title) > 200:
        return None
    if mark[1] not in underlines:
        underlines.append(mark[1])
    return underlines.index(mark[1]) + 1


def parse_source(content: bytes, name: str) -> Draft:
    """Source code: its lines as they are, cut into one element for each top-level piece (code that starts a line after
    a blank one)."""
    decoded = decode(content)
    pieces = re.split(r"\n[ \t]*\n(?=[^\s)}\]])", normalise(decoded.text))
    return Draft([Block("code", piece) for piece in pieces], decoded.metadata())
