"""Characters as a reader means them, whatever the file format made of them."""

import re
import unicodedata

# The presentation forms that typesetting puts in place of letters: U+FB00..FB06.
LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
# Line ends that are none of "\n"; U+0085 is NEL, U+2028 and U+2029 the separators of lines and paragraphs.
LINE_ENDS = {0x0B: "\n", 0x0C: "\n", 0x85: "\n", 0x2028: "\n", 0x2029: "\n"}
# White space that means a space, and marks that mean nothing to a reader: NUL and the other controls, zero width spaces
# and marks.
SPACES = dict.fromkeys([0xA0, 0x2000, 0x2001, *range(0x2002, 0x200B), 0x202F, 0x205F, 0x3000], " ")
NOTHING = dict.fromkeys(
    [
        *(c for c in range(0x20) if c not in (0x09, 0x0A, 0x0B, 0x0C, 0x0D)),
        *range(0x7F, 0x85),
        *range(0x86, 0xA0),
        *(0xAD, 0x200B, 0x2060, 0xFEFF, 0xFFFE, 0xFFFF),
    ]
)
SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
TABLE = {**LIGATURES, **LINE_ENDS, **SPACES, **NOTHING, **SURROGATES}

_CHANGED = re.compile("[" + "".join(map(re.escape, map(chr, TABLE))) + "]")
_SOFT_HYPHEN_AT_LINE_END = re.compile("\u00ad[ \t]*\r?\n[ \t]*")
_LINE_END_SPACE = re.compile(r"(?<![ \t])[ \t]+\n")
_MANY_BLANK_LINES = re.compile(r"\n{4,}")


def normalise(text: str) -> str:
    """The text in NFC, with "\\n" for every line end, without NUL, controls, soft hyphens, ligatures and lone
    surrogates.

    A word that a soft hyphen breaks over two lines is whole again. White space at line ends goes, three line ends in a
    row are the most. Applied to its own result it changes nothing.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\u00ad" in text:
        text = _SOFT_HYPHEN_AT_LINE_END.sub("", text)
    if _CHANGED.search(text):
        text = text.translate(TABLE)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if " \n" in text or "\t\n" in text:
        text = _LINE_END_SPACE.sub("\n", text)
    return _MANY_BLANK_LINES.sub("\n\n\n", text) if "\n\n\n\n" in text else text
