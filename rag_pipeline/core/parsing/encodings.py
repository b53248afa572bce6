"""From bytes to characters: marks first, then what the file declares, then UTF-8, then the best guess, which is said to
be one."""

import codecs
import re
import unicodedata
from dataclasses import dataclass

MARKS = (  # UTF-32 before UTF-16: the mark of the one begins with that of the other.
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What the web calls by these names is their superset (WHATWG Encoding Standard, labels).
SUPERSETS = {"iso8859-1": "cp1252", "ascii": "cp1252", "shift_jis": "cp932", "gb2312": "gb18030", "gbk": "gb18030",
             "euc_kr": "cp949", "iso8859-9": "cp1254", "tis-620": "cp874", "iso8859-8-i": "iso8859-8"}  # fmt: skip
# Encodings of other than Latin scripts, for charset-normalizer to choose from; the many others only add wrong guesses.
OTHER_SCRIPTS = [
    "cp1251",
    "koi8_r",
    "cp866",
    "cp1253",
    "cp1255",
    "cp1256",
    "cp874",
    "big5",
    "gb18030",
    "cp949",
    "euc_jp",
    "cp932",
]
# The letters beyond ASCII of the languages that are written in an encoding, more common ones first; all of them
# together last.
WESTERN = ("äöüß", "àâçéèêëîïôùûüÿœæ", "áéíóúüñ", "àèéìíîòóùú", "áâãàçéêíóôõúü", "åäöéæøü", "áéíóúýþæöð", "éëïöóüèáê")
ALPHABETS = (
    *(("cp1252", set(alphabet + "ªºµ")) for alphabet in WESTERN),
    ("cp1250", set("ąćęłńóśźż")),
    ("cp1250", set("áčďéěíňóřšťúůýžäľĺŕô")),
    ("cp1250", set("áéíóöőúüű")),
    ("cp1250", set("čćđšž")),
    ("cp1250", set("ăâîşţ")),
    ("cp1254", set("çğıöşüâîû")),
    ("cp1252", set("".join(WESTERN) + "ªºµ")),
)
ASCII_LETTERS = set("abcdefghijklmnopqrstuvwxyz")
HIGH_BYTES = bytes(range(128, 256))
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" + HIGH_BYTES
# Fewer bytes beyond ASCII than this tell nothing about the language, so nothing about the encoding.
ENOUGH_TO_GUESS = 24


@dataclass(frozen=True)
class Decoded:
    """Text, the encoding it was read in, whether that is a guess, and how many bytes could not be read (U+FFFD stands
    for them)."""

    text: str
    encoding: str
    guessed: bool = False
    undecodable: int = 0

    def metadata(self) -> dict[str, object]:
        """What the document's metadata should say of its encoding: nothing where it is plain UTF-8."""
        found: dict[str, object] = {} if self.encoding == "utf-8" else {"encoding": self.encoding}
        if self.guessed:
            found["encoding_guessed"] = True
        if self.undecodable:
            found["undecodable_bytes"] = self.undecodable
        return found


def decode(content: bytes, declared: str | None = None) -> Decoded:
    """The text of `content`. `declared` is the encoding its container or header names: believed where the bytes allow
    it."""
    for mark, encoding in MARKS:
        if content.startswith(mark):
            return _lenient(content, encoding)
    if wide := wide_without_mark(content):
        return _lenient(content, wide)
    # Bytes beyond ASCII that are UTF-8 throughout are nothing else, whatever is declared.
    utf8 = _strict(content, "utf-8")
    if utf8 is not None and not content.isascii():
        return Decoded(utf8, "utf-8")
    if declared and (encoding := known(declared)) and not encoding.startswith(("utf-16", "utf-32", "utf-7")):
        text = _strict(content, SUPERSETS.get(encoding, encoding))
        if text is not None:
            return Decoded(text, "utf-8" if content.isascii() and text == utf8 else encoding)
    if utf8 is not None:
        return Decoded(utf8, "utf-8")
    if _mostly_utf8(content):
        return _lenient(content, "utf-8")
    return _guess(content)


def known(label: str) -> str | None:
    """Python's name of the text encoding a file calls `label`, None when it has no such encoding."""
    label = label.strip().strip("\"'").lower()
    label = {"x-sjis": "shift_jis", "windows-31j": "cp932", "iso-8859-8-i": "iso8859-8", "x-user-defined": ""}.get(
        label, label
    )
    try:
        info = codecs.lookup(label) if label else None
    except (LookupError, ValueError):
        return None
    return info.name if info and info._is_text_encoding else None


def wide_without_mark(content: bytes) -> str | None:
    """UTF-16 or UTF-32 that carries no mark, by where its zero bytes stand or by the characters it makes; None for
    anything else."""
    sample = content[:4096]
    if len(content) % 2 or len(sample) < 4:
        return None
    if len(content) % 4 == 0 and len(sample) >= 8:
        quarters = [sample[i::4].count(0) / len(sample[i::4]) for i in range(4)]
        if quarters[0] > 0.95 and quarters[1] > 0.95 and quarters[3] < 0.2 and _reads(sample, "utf-32-be"):
            return "utf-32-be"
        if quarters[3] > 0.95 and quarters[2] > 0.95 and quarters[0] < 0.2 and _reads(sample, "utf-32-le"):
            return "utf-32-le"
    zeros = [half.count(0) / len(half) for half in (sample[0::2], sample[1::2])]
    # Spaces, digits and line ends have a zero half in every script; the other half is zero in few characters.
    if zeros[0] > 0.05 and zeros[1] < zeros[0] / 4 and _reads(sample, "utf-16-be"):
        return "utf-16-be"
    if zeros[1] > 0.05 and zeros[0] < zeros[1] / 4 and _reads(sample, "utf-16-le"):
        return "utf-16-le"
    if _strict(content, "utf-8") is None:
        return next((encoding for encoding in ("utf-16-le", "utf-16-be") if _reads_east_asian(sample, encoding)), None)
    return None


def _reads(sample: bytes, encoding: str) -> bool:
    """Whether the start of a file is text in an encoding: next to no controls, and nothing that no character is."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return False
    strange = sum(1 for c in text if unicodedata.category(c) in ("Cc", "Cn", "Co") and c not in "\t\n\f\r")
    return strange <= 0.002 * len(text)


def _reads_east_asian(sample: bytes, encoding: str) -> bool:
    """Whether a text without spaces and line ends reads as Chinese, Japanese or Korean, its kana or punctuation
    (U+3000 to U+30FF, U+FF00 to U+FFEF) among it: in no other encoding have bytes this order."""
    if not _reads(sample, encoding):
        return False
    text = codecs.getincrementaldecoder(encoding)().decode(sample)
    marks = sum("\u3000" <= c <= "\u30ff" or "\uff00" <= c <= "\uffef" for c in text)
    letters = sum("\u4e00" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7a3" or c < "\x7f" for c in text)
    return marks >= max(1, 0.04 * len(text)) and marks + letters > 0.95 * len(text)


def is_text(head: bytes) -> bool:
    """Whether the first bytes of a file can be text: marked or recognisable UTF-16/32, or bytes with next to no
    controls."""
    if any(head.startswith(mark) for mark, _ in MARKS) or wide_without_mark(head[: len(head) // 4 * 4]):
        return True
    controls = sum(head.count(c) for c in range(32) if c not in (9, 10, 12, 13, 27))
    return controls <= 2 + len(head) * 0.001


def _strict(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return None


def _lenient(content: bytes, encoding: str) -> Decoded:
    text = content.decode(encoding, errors="replace")
    lost = text.count("\ufffd") - (0 if _strict(content, encoding) is None else text.count("\ufffd"))
    return Decoded(text, encoding.removesuffix("-sig"), undecodable=max(lost, 0))


def _mostly_utf8(content: bytes) -> bool:
    """UTF-8 with a little damage: more whole sequences of several bytes than broken ones; other encodings form none."""
    text = content.decode("utf-8", errors="replace")
    whole = sum(1 for _ in re.finditer("[^\x00-\x7f\ufffd]", text))
    return whole > 2 * text.count("\ufffd")


def _guess(content: bytes) -> Decoded:
    """The encoding in which the text reads like a language: Japanese by its kana, Latin scripts by their alphabets,
    others by statistics."""
    if japanese := _japanese(content):
        return japanese
    beyond_ascii = len(content) - len(content.translate(None, HIGH_BYTES))
    letters = len(content) - len(content.translate(None, LETTERS))
    if beyond_ascii >= max(ENOUGH_TO_GUESS, 0.4 * letters):
        from charset_normalizer import from_bytes

        best = from_bytes(content[:200_000], cp_isolation=OTHER_SCRIPTS).best()
        if best and (text := _strict(content, best.encoding)) is not None:
            return Decoded(text, best.encoding, guessed=True)
    for encoding, alphabet in ALPHABETS:
        text = _strict(content, encoding)
        if text is not None and set(filter(str.isalpha, text.lower())) - ASCII_LETTERS <= alphabet:
            return Decoded(text, encoding, guessed=True)
    for encoding in ("cp1252", "latin-1"):  # Latin-1 reads any bytes, so one of the two answers
        text = _strict(content, encoding)
        if text is not None:
            break
    return Decoded(text, encoding, guessed=True)


def _japanese(content: bytes) -> Decoded | None:
    """Shift-JIS or EUC-JP, recognised by kana: no Japanese text does without them, and few other texts decode to
    them."""
    for encoding in ("cp932", "euc_jp"):
        text = _strict(content, encoding)
        if text is None:
            continue
        beyond_ascii = [c for c in text if c > "\x7f"]
        kana = sum("\u3040" <= c <= "\u30ff" for c in beyond_ascii)
        half_width = sum("\uff61" <= c <= "\uff9f" for c in beyond_ascii)
        if kana > 0.1 * len(beyond_ascii) and half_width < 0.1 * len(beyond_ascii):
            return Decoded(text, "shift_jis" if encoding == "cp932" else encoding, guessed=True)
    return None
