"""Rich Text Format: pandoc reads it, once what it stumbles over is put right."""

import re

from .document import Draft
from .encodings import known
from .markup import pandoc

# A table row that repeats no definition: Word goes on with the last one, pandoc runs it into the row before.
_ROW = re.compile(rb"(\\trowd(?:\\[a-z]+-?\d* ?)*)|(\\row(?![a-z]))(?=\s*(?:\\(?!trowd)[a-z]+-?\d*\s*)*\\intbl)")
# Of a character beyond U+FFFF, which is two \\u words, pandoc makes nothing: U+E000 and on stand in for such ones.
STAND_INS = range(0xE000, 0xF000)
# A Unicode word; how many characters stand in for it in old programs; a group, which ends such a setting.
_WORD = re.compile(rb"\\u(?P<unit>-?\d{1,5}) ?|\\uc(?P<skip>\d{1,3}) ?|(?P<group>[{}])|\\[\\{}]")
# One such character: a byte, a line end aside any other; another Unicode word is none.
_SKIPPED = re.compile(rb"[\r\n]*(?:\\'[0-9a-fA-F]{2}|[^\\{}\r\n])")
# Font character sets and code pages as Python's codecs (Rich Text Format 1.9.1, font table).
CHARACTER_SETS = {0: "cp1252", 77: "mac_roman", 128: "cp932", 129: "cp949", 134: "gbk", 136: "cp950", 161: "cp1253"}
CHARACTER_SETS |= {162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251"}
CHARACTER_SETS |= {222: "cp874", 238: "cp1250"}
_FONT = re.compile(rb"\{\\f(\d+)[^{}]*?\\fcharset(\d+)")
_CODE_PAGE = re.compile(rb"\\ansicpg(\d+)")
# Bytes beyond ASCII with the ASCII between them; a change of font; a group.
_CODED = re.compile(
    rb"(?P<bytes>(?:\\'[0-9a-fA-F]{2}[ !#-\[\]-z|~]*)+)"
    rb"|\\f(?P<font>\d+)|(?P<plain>\\plain)(?![a-z])|(?P<group>[{}])|\\[\\{}]"
)


def parse_rtf(content: bytes, name: str) -> Draft:
    """An RTF document (Rich Text Format 1.9.1)."""
    content, characters = _without_stand_ins(content)
    content = _rows_defined(_decoded(content)).replace(rb"{\*\footnote", rb"{\footnote")
    draft = pandoc(content, "rtf")
    for block in draft.blocks:
        block.text = block.text.translate(characters)
    return draft


def _without_stand_ins(content: bytes) -> tuple[bytes, dict[int, str]]:
    """The document with Unicode words that nothing stands in for, one for each character; and which character each
    code unit from STAND_INS on is."""
    characters: dict[str, int] = {}
    pieces: list[bytes] = []
    skips = [1]
    position = 0
    high = None  # the first half of a pair whose second half must follow
    while word := _WORD.search(content, position):
        between = content[position : word.start()]
        if high is not None and (between or not word["unit"]):
            pieces.append(_unit_word(0xFFFD))
            high = None
        pieces.append(between)
        position = word.end()
        if not word["unit"]:
            pieces.append(word[0])
            if word["skip"]:
                skips[-1] = int(word["skip"])
            elif word["group"] == b"{":
                skips.append(skips[-1])
            elif word["group"] and len(skips) > 1:
                skips.pop()
            continue
        for _ in range(skips[-1]):
            if skipped := _SKIPPED.match(content, position):
                position = skipped.end()
        unit = int(word["unit"]) % 65536
        if high is not None and 0xDC00 <= unit < 0xE000:
            character = chr(0x10000 + ((high - 0xD800) << 10) + (unit - 0xDC00))
            free = STAND_INS[len(characters)] if len(characters) < len(STAND_INS) else 0xFFFD
            unit = characters.get(character, free)
            if unit != 0xFFFD:
                characters[character] = unit
        elif high is not None:
            pieces.append(_unit_word(0xFFFD))
        high = unit if 0xD800 <= unit < 0xDC00 else None
        if high is None:
            pieces.append(_unit_word(0xFFFD if 0xDC00 <= unit < 0xE000 else unit))
    return b"".join([*pieces, content[position:]]), {unit: character for character, unit in characters.items()}


def _decoded(content: bytes) -> bytes:
    """The document with Unicode words for its bytes beyond ASCII, which pandoc takes for cp1252 whatever the font
    says."""
    fonts = {int(font): CHARACTER_SETS.get(int(number)) for font, number in _FONT.findall(content)}
    page = _CODE_PAGE.search(content)
    default = known(f"cp{int(page[1])}") if page else None
    if {default, *fonts.values()} <= {"cp1252", None}:
        return content
    codecs = [default]

    def decode(match: re.Match) -> bytes:
        if match["group"]:
            if match["group"] == b"{":
                codecs.append(codecs[-1])
            elif len(codecs) > 1:
                codecs.pop()
        elif match["font"]:
            codecs[-1] = fonts.get(int(match["font"])) or default
        elif match["plain"]:
            codecs[-1] = default
        elif match["bytes"] and codecs[-1] not in ("cp1252", None):
            raw = re.sub(rb"\\'(..)", lambda byte: bytes.fromhex(byte[1].decode()), match["bytes"])
            return b"".join(map(_unicode_word, raw.decode(codecs[-1], "replace")))
        return match[0]

    return _CODED.sub(decode, content)


def _unicode_word(character: str) -> bytes:
    """A character as itself or as a Unicode word that nothing stands in for."""
    if character.isascii():
        return b"\\'%02x" % ord(character) if character in "\\{}" else character.encode()
    return _unit_word(ord(character))


def _unit_word(unit: int) -> bytes:
    return b"{\\uc0\\u%d }" % (unit - (65536 if unit > 32767 else 0))


def _rows_defined(content: bytes) -> bytes:
    """The document with a definition before every table row."""
    definition = b""

    def define(match: re.Match) -> bytes:
        nonlocal definition
        if match[1]:
            definition = match[1]
            return match[0]
        return match[2] + definition

    return _ROW.sub(define, content)
