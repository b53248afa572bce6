"""Where a text may be cut inside one element: positions, the best kind of boundary first.

A boundary is the position where the next piece begins, so a cut there leaves the white space to neither side.
"""

from collections.abc import Callable, Iterator

import regex

# Ends of sentences in every script (Unicode's Sentence_Terminal). Western ones count only before white space: "3.14",
# "a.b".
_CLOSING = r"[\p{Pe}\p{Pf}\p{Pi}\"'*_`]*"
_SENTENCE = regex.compile(rf"(?:[.!?…‥]+{_CLOSING}\s+|[^\P{{STerm}}.!?]+{_CLOSING}\s*)")
_CLAUSE = regex.compile(rf"(?:[,;:—–]{_CLOSING}\s+|[،؛、，；：]{_CLOSING}\s*|(?<=\s)[—–-]+\s+|\n\s*)")
_WORD = regex.compile(r"\s+")
_CHARACTER = regex.compile(r"\X")
_LINE = regex.compile(r"\n")
_CELL = regex.compile(r" \| ")
_BLANK_LINE = regex.compile(r"\n(?:[^\S\n]*\n)+")
_TOP_LEVEL = regex.compile(r"\n(?:[^\S\n]*\n)+(?=[^\s)}\]])")

# Words whose full stop ends no sentence, those that are written most; initials, "e.g.", "i.e." and the like need no
# entry.
_ABBREVIATIONS = {
    *("al", "approx", "bd", "bzw", "ca", "capt", "cf", "ch", "chap", "co", "corp", "dept", "dr", "ed", "eds", "eq"),
    *("est", "etc", "fig", "figs", "gen", "ggf", "gov", "hon", "inc", "inkl", "jr", "lt", "ltd", "mr", "mrs", "nos"),
    *("nr", "p", "pp", "prof", "ref", "refs", "resp", "rev", "sen", "sgt", "sr", "st", "univ", "usw", "vgl", "viz"),
    *("vol", "vols", "vs"),
}
_LAST_WORD = regex.compile(r"(?r)[\p{L}\p{N}][\p{L}\p{N}.]*")

Boundaries = Callable[[str, int, int], Iterator[int]]


def sentences(text: str, start: int, end: int) -> Iterator[int]:
    """Where sentences begin in text[start:end], after the first. Abbreviations, initials and list numbers end
    none."""
    for match in _SENTENCE.finditer(text, start, end):
        if text[match.start()] == "." and not _ends_sentence(text, start, match):
            continue
        yield match.end()


def _ends_sentence(text: str, start: int, match: regex.Match) -> bool:
    if match[0].rstrip() != ".":
        return True
    word = _LAST_WORD.match(text, max(start, match.start() - 30), match.start())
    if not word:
        return True
    last = word[0].rsplit(".", 1)[-1]
    if len(last) == 1 and (last.isupper() or "." in word[0]):
        return False
    if word[0].lower() in _ABBREVIATIONS or last.lower() in _ABBREVIATIONS:
        return False
    line_start = word.start() == start or text[word.start() - 1] == "\n"
    return not (word[0].isdecimal() and line_start)


def _ends(pattern: regex.Pattern) -> Boundaries:
    def boundaries(text: str, start: int, end: int) -> Iterator[int]:
        return (match.end() for match in pattern.finditer(text, start, end))

    return boundaries


# What a reader takes for one character is the last resort: emoji sequences, flags and accented letters stay whole.
_PROSE = (sentences, _ends(_CLAUSE), _ends(_WORD), _ends(_CHARACTER))
_TABLE = (_ends(_LINE), _ends(_CELL), _ends(_WORD), _ends(_CHARACTER))
_CODE = (_ends(_TOP_LEVEL), _ends(_BLANK_LINE), _ends(_LINE), _ends(_WORD), _ends(_CHARACTER))
_KINDS = {"table": _TABLE, "code": _CODE}


def inside(kind: str) -> tuple[Boundaries, ...]:
    """The kinds of boundary inside an element of that kind, best first."""
    return _KINDS.get(kind, _PROSE)
