"""What a citation is: a bracket of numbers like [1], and what some models write for it and for [1][2].

In brackets of any kind: [1, 2], [1 and 2], [1-3], [passage 1], [^1], [**1**], [[1]], \\[1\\], [1: guide.md],
[1, page 3], [1: guide.md, 2: notes.md], 【1†source】.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

# A pattern that matches nowhere.
NEVER = r"(?!)"

_OPEN, _CLOSE, _INSIDE = r"[\[【［]", r"[\]】］]", r"[^\[\]【】［］]"


def bracket_pattern(end: str = NEVER) -> str:
    """The pattern of a bracket that may be a citation: with a number near its beginning, and brackets at most two deep.
    Where the pattern `end` matches, they need not be closed."""
    nested = rf"{_OPEN}{_INSIDE}{{0,40}}(?:{_CLOSE}|{end})"
    return rf"""(?P<bracket> \\?{_OPEN} (?= [^\d\]】］]{{0,20}} (?:\d{{1,9}}(?![^\W_])|{end}) )
                             (?P<content> (?:{_INSIDE}|{nested}){{0,240}}+ ) (?:{_CLOSE}|{end}) )"""


# What stands between the parts of the content; brackets in it do too.
_SEPARATOR = re.compile(rf"((?:(?:[,;&/，、；]|\\?{_OPEN}|\\?{_CLOSE}|\b(?:and|or|und|oder)\b)\s*)+)")
_IN_ROUND_BRACKETS = re.compile(r"\([^()]*\)")

_LABEL = r"(?i:passages?|sources?|documents?|docs?|references?|refs?|citations?|cite|see|quellen?)[\s.:#^*_-]*"
_MARKS = r"[\s#^*_]*"
_TO = r"(?:\s*[-‐‑–—−]\s*|\s+to\s+)"
# A number, or a range, and what is said of it behind a sign. 【4:0†source】 is of another list than ours.
_ITEM = re.compile(
    rf"""{_MARKS} (?:{_LABEL})? (?P<first>\d{{1,9}}) (?:{_TO}(?P<last>\d{{1,9}}))? {_MARKS}
         (?P<remark> (?: :(?!\d) | (?P<other_list>:\d+)?† | \( ) .* )?""",
    re.VERBOSE | re.DOTALL,
)
# The place in a passage.
_PLACE = re.compile(r"(?i:(?:pages?|sections?|lines?|chapters?|paragraphs?)\b|(?:pp?|sect?|ll?|ch|para?)\.|§)")
# Behind "pages 2" any other number is a page too.
_PLURAL = re.compile(rf"(?:\b(?i:\w+s|pp\.)|§§)\s?\d+(?:{_TO}\d+)?\s*\Z")
# Numbers, marks and signs; no words.
_PLAIN = re.compile(r"[\d\s#^*_,;&/，、；‐‑–—−-]+")


@dataclass(frozen=True)
class Citation:
    """What one bracket cites: the first and last of each range, a number being a range too. `plain`: without words."""

    ranges: tuple[tuple[int, int], ...]
    plain: bool


# What waits for its end is read more than once.
@lru_cache(maxsize=1000)
def read_citation(content: str) -> Citation | None:
    """What a bracket with this content cites; None where it is no citation.

    It is a list of items. Where something is said of one, a remark begins: it goes on to the end, with items in it.
    """
    # A comma between digits, as in 3,000, may be part of a number; any other is made one with a space.
    content = re.sub(r"(?<!\d),", ", ", content.strip("[]【】［］\\ "))
    # What stands in round brackets cites nothing.
    parts = _SEPARATOR.split(_IN_ROUND_BRACKETS.sub("(", content))
    ranges: list[tuple[int, int]] = []
    in_remark = in_plural = False
    # Each part with the separator before it and the part behind it.
    for separator, part, following in zip(["", *parts[1::2]], parts[::2], [*parts[2::2], ""], strict=True):
        in_remark = in_remark or bool(ranges and re.search(_OPEN, separator))
        in_plural = in_plural and not re.search("[;；]", separator)
        item = _ITEM.fullmatch(part)
        if item and (not in_remark or _cites_in_remark(item, separator, following, in_plural)):
            first, last = int(item["first"]), int(item["last"] or item["first"])
            ranges.append((0, 0) if item["other_list"] else (first, last))
        elif not in_remark and not (ranges and _PLACE.match(part)):
            return None
        in_remark = in_remark or not item or bool(item["remark"])
        in_plural = bool(_PLURAL.search(part) or (in_plural and item))
    return Citation(tuple(ranges), plain=bool(_PLAIN.fullmatch(content.replace(" to ", "-"))))


def _cites_in_remark(item: re.Match, separator: str, following: str, in_plural: bool) -> bool:
    """Whether an item in a remark is cited: when something is said of it too, or when it stands by itself. The end of
    3,000 does not, nor does a number behind "and" or of pages; and a year belongs to the text."""
    if is_year(int(item["first"])):
        return False
    if item["remark"] or _PLACE.match(following):
        return True
    return not in_plural and bool(re.search(rf"[;&，、；]|,\s|{_OPEN}", separator))


def is_year(number: int) -> bool:
    """Whether a number is taken for a year; no prompt has as many passages."""
    return 1000 <= number < 3000


# What stands right behind a word is an index.
_OF_OTHERS = re.compile(rf"(?<![A-Za-z0-9_]){bracket_pattern()}", re.VERBOSE)
_ROUND = str.maketrans("[]【】［］", "()()()")


def without_citations(text: str) -> str:
    """The text of others, its citations in round brackets: they are none of ours."""

    def in_round_brackets(found: re.Match) -> str:
        if read_citation(found["content"]):
            return f"({found['content'].translate(_ROUND)})"
        # There may be one in it.
        return found[0][0] + without_citations(found[0][1:])

    return _OF_OTHERS.sub(in_round_brackets, text)
