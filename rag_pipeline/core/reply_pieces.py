"""What has to be looked at as a whole in a chat model's reply, and what has to wait for that while the reply comes."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from rag_pipeline.core.citations import NEVER, Citation, bracket_pattern, read_citation
from rag_pipeline.core.prompting import NO_ANSWER

# Where a link leads, with round brackets that are closed in it, and what must follow. It ends where another may begin,
# so that no text is gone through twice.
_TARGET = r"(?:[^()\s\]]|\](?!\()|\([^()\s\]]*+\)?)+"
_TARGET_ENDS = r"""(?:\s*\)|\s+["'(]|\]\()"""
# What ends an address: space, brackets, quotes, Markdown's signs, and those of Chinese and Japanese.
_ENDS = r"""\s<>"'`)\[\]*|“”„‘’«»，。、；！？：（）「」『』【】［］"""
_IN_ADDRESS, _IN_HOST = rf"[^{_ENDS}]", rf"[^{_ENDS}/\\]"
_HOST = rf"{_IN_HOST}*? (?:\.|%2[eE])\w"
# An address by its scheme, or the name that programs take for one. Another has the scheme of the page it is shown in.
_WITH_SCHEME = rf"""(?ai:https?|ftp|wss?): (?:[/\\]+|{_HOST}) {_IN_ADDRESS}* | (?ai:www)\.\w {_IN_ADDRESS}*"""
# In code what begins with // is mostly a comment.
ADDRESS_IN_CODE = re.compile(
    rf"""{_WITH_SCHEME} | (?<=[('"=<]) [/\\]{{2}} {_HOST} {_IN_ADDRESS}*""",
    re.VERBOSE,
)
_ASCII = string.ascii_letters + string.digits + string.punctuation


class _Forms(NamedTuple):
    """The pattern of any piece, and that of a citation with the link behind it."""

    any: re.Pattern
    citation: re.Pattern


@cache
def _forms(*, ended: bool) -> _Forms:
    """Until the reply has ended, its end so far stands for whatever may come: what is not closed reaches up to it."""
    end = NEVER if ended else r"\Z"
    title = rf"""(?: "[^"\n]{{0,200}}(?:"|{end}) | '[^'\n]{{0,200}}(?:'|{end}) | \([^()\n]{{0,200}}(?:\)|{end}) )"""
    link = rf"\(\s* (?: (?: {_TARGET} (?:\s+{title})? \s* )? (?:\)|{end}) | {_TARGET}(?={_TARGET_ENDS}) )"
    citation = rf"{bracket_pattern(end)} (?:{link})?"
    code = rf"""(?P<fence>```|~~~) (?s:.*?) (?:(?P=fence)|{end})
              | ``(?!`) (?:[^`\n]|`(?!`))++ (?:``|{end})
              | ` [^`\n]* (?:`|{end})"""
    # Of a Markdown link or image.
    target = rf"\]\(\s* (?: (?P<target>{_TARGET}) (?: (?={_TARGET_ENDS}) | \s*{end} ) | {end} )"
    address = rf"{_WITH_SCHEME} | (?<![A-Za-z0-9_.]) (?:/[/\\]|\\/) (?: {_HOST} {_IN_ADDRESS}* | {_IN_HOST}* {end} )"
    marker = rf"`? (?P<marker>(?ai:{re.escape(NO_ANSWER)})) `?"
    forms = rf"{marker} | (?P<code>{code}) | (?P<space>[ ]?){citation} | {target} | (?P<address>{address})"
    return _Forms(re.compile(forms, re.VERBOSE), re.compile(citation, re.VERBOSE))


@dataclass(frozen=True)
class Piece:
    """Code, the words for "no answer", an address (by itself, or the target of a link), or citations that stand one
    behind another. The groups of `found` say which; each citation is with its bracket, without the link behind it."""

    found: re.Match
    end: int
    citations: Sequence[tuple[str, Citation]] = ()

    @property
    def start(self) -> int:
        return self.found.start()

    @property
    def brackets(self) -> str:
        return "".join(bracket for bracket, _ in self.citations)


def find_pieces(text: str, *, ended: bool) -> tuple[list[Piece], int]:
    """The pieces in their order, and up to where the text is settled.

    Until the reply has ended, a piece that comes near to its end so far may grow, and waits with all behind it.
    """
    forms = _forms(ended=ended)
    settled = len(text) if ended else _settled(text)
    pieces, at = [], 0
    while found := forms.any.search(text, at):
        start, at = found.span()
        citations = []
        if found["bracket"]:
            citations, at = _read_citations(text, found.start("bracket"), forms.citation, ended=ended)
        if at >= settled and not ended:
            return pieces, min(settled, start)
        if citations or not found["bracket"]:
            pieces.append(Piece(found, at, citations))
    return pieces, settled


def _read_citations(
    text: str, start: int, pattern: re.Pattern, *, ended: bool
) -> tuple[list[tuple[str, Citation]], int]:
    """The citations that stand one behind another, and where to go on: where there is none, within the bracket."""
    citations, end = [], start
    while found := pattern.match(text, end):
        if not ended and found.end() == len(text):
            return [], len(text)
        citation = read_citation(found["content"])
        if not citation:
            break
        citations.append((found["bracket"], citation))
        end = found.end()
    return citations, end if citations else start + 1


def _settled(text: str) -> int:
    """Up to where a piece may begin that is not to be known by its first letters yet: up to the last word, with the
    space before it, or to what may become NO_ANSWER. A word is one in ASCII, or scripts without spaces would wait."""
    before_word = text.rstrip(_ASCII).removesuffix(" ")
    last = text[-len(NO_ANSWER) :].upper()
    begun = next(length for length in range(len(NO_ANSWER), -1, -1) if last.endswith(NO_ANSWER[:length]))
    return min(len(before_word), len(text) - begun)
