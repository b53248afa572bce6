"""Rich Text Format: pandoc reads it, once what it stumbles over is put right."""

import re

from .document import Draft
from .encodings import known
from .markup import pandoc

# A table row that repeats no definition: Word goes on with the last one, pandoc runs it into the row before.
_ROW = re.compile(rb"(\\trowd(?:\\[a-z]+-?\d* ?)*)|(\\row(?![a-z]))(?=\s*(?:\\(?!trowd)[a-z]+-?\d*\s*)*\\intbl)")
# Without a space after the number, pandoc takes a letter too many for what old programs show in place of the character.
_UNICODE = re.compile(rb"(\\u-?\d+)(?=[^\s\\{}\d-])")
# A character beyond U+FFFF is two \\u words, of which pandoc makes nothing: U+E000 and on stand in for such characters.
_PAIR = re.compile(rb"\\u-(\d{4,5}) ?(?:\\'[0-9a-fA-F]{2}|[^\\{}\s])?\\u-(\d{4,5})")
STAND_INS = range(0xE000, 0xF000)


# Font character sets and code pages as Python's codecs (Rich Text Format 1.9.1, font table).
CHARACTER_SETS = {0: "cp1252", 77: "mac_roman", 128: "cp932", 129: "cp949", 134: "gbk", 136: "cp950", 161: "cp1253"}
CHARACTER_SETS |= {162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251"}
CHARACTER_SETS |= {222: "cp874", 238: "cp1250"}
_FONT = re.compile(rb"\{\\f(\d+)[^{}]*?\\fcharset(\d+)")
_CODE_PAGE = re.compile(rb"\\ansicpg(\d+)")
# A Unicode word with what stands in for it; bytes beyond ASCII with the ASCII between them; a change of font; a group.
_CODED = re.compile(
    rb"(?P<unicode>\\u-?\d+ ?(?:\\'[0-9a-fA-F]{2})?)|(?P<bytes>(?:\\'[0-9a-fA-F]{2}[ !#-\[\]-z|~]*)+)"
    rb"|\\f(?P<font>\d+)|(?P<plain>\\plain)(?![a-z])|(?P<group>[{}])|\\[\\{}]"
)


def parse_rtf(content: bytes, name: str) -> Draft:
    """An RTF document (Rich Text Format 1.9.1)."""
    content, pairs = _pairs_replaced(_rows_defined(_decoded(content)))
    content = _UNICODE.sub(rb"\1 ", content).replace(rb"{\*\footnote", rb"{\footnote")
    draft = pandoc(content, "rtf")
    for block in draft.blocks:
        block.text = block.text.translate(pairs)
    return draft


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
    return b"{\\uc0\\u%d }" % (ord(character) - (65536 if ord(character) > 32767 else 0))


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


def _pairs_replaced(content: bytes) -> tuple[bytes, dict[int, str]]:
    """The document with one code unit for each pair of surrogates, and which character each of those stands for."""
    characters: dict[str, int] = {}

    def stand_in(match: re.Match) -> bytes:
        units = b"".join((65536 - int(unit)).to_bytes(2, "little", signed=False) for unit in match.groups())
        character = units.decode("utf-16-le", "replace")
        if len(character) != 1 or len(characters) == len(STAND_INS):
            return match[0]
        return b"\\u%d" % (characters.setdefault(character, STAND_INS[len(characters)]) - 65536)

    return _PAIR.sub(stand_in, content), {unit: character for character, unit in characters.items()}
