"""What a file is: told from its bytes, the name breaking ties between kinds of text."""

import re
from pathlib import Path, PurePath

from .parsing.encodings import MARKS, decode, is_text

HEAD_BYTES = 65536
# As much of a container's directory is looked at, wherever in the file it stands.
DIRECTORY_BYTES = 1024 * 1024
UNKNOWN = "application/octet-stream"

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PPTX = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
ODT = "application/vnd.oasis.opendocument.text"
EPUB = "application/epub+zip"
DOC, PPT, XLS = "application/msword", "application/vnd.ms-powerpoint", "application/vnd.ms-excel"
MSG = "application/vnd.ms-outlook"
ENCRYPTED_OFFICE = "application/x-encrypted-office"

# The first bytes of the formats that have a signature (their specifications;
# https://www.iana.org/assignments/media-types).
SIGNATURES = (
    (b"{\\rtf", "application/rtf"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"ID3", "audio/mpeg"),
    (b"OggS", "audio/ogg"),
    (b"\x1f\x8b", "application/gzip"),
    (b"BZh", "application/x-bzip2"),
    (b"\xfd7zXZ\0", "application/x-xz"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (b"Rar!\x1a\x07", "application/vnd.rar"),
    (b"\x7fELF", "application/x-executable"),
)
# Kinds of text that no byte tells apart: the name does.
BY_SUFFIX = {
    "text/plain": "txt text log",
    "text/markdown": "md markdown mdown mkd",
    "text/x-rst": "rst rest",
    "text/org": "org",
    "text/csv": "csv",
    "text/tab-separated-values": "tsv tab",
    "application/json": "json geojson",
    "application/x-ndjson": "jsonl ndjson",
    "text/html": "html htm xhtml",
    "application/xml": "xml",
    "message/rfc822": "eml",
    "text/x-source": """
        py pyi js mjs cjs ts tsx jsx java kt kts scala c h cc cpp cxx hpp hh cs go rs rb php pl pm swift m mm r
        jl lua sh bash zsh fish ps1 bat cmd sql hs ml mli ex exs erl clj cljs lisp el dart groovy gradle v vhd
        asm s f f90 pas vb tcl yaml yml toml ini cfg conf properties env dockerfile makefile mk cmake tf proto
        graphql css scss sass less vue svelte tex bib diff patch awk sed
    """,
}
TYPE_OF_SUFFIX = {suffix: media_type for media_type, suffixes in BY_SUFFIX.items() for suffix in suffixes.split()}

_PDF_HEADER = re.compile(rb"%PDF-(?P<alone>\d\.\d\s*[\r\n])?")
_PDF_OBJECT = re.compile(rb"[\r\n]\d+ \d+ obj\b")
_HTML = re.compile(r"<(?:!doctype\s+html|html|head|body)\b", re.I)
_HTML_FRAGMENT = re.compile(r"<(?:p|div|span|table|h[1-6]|ul|ol|a|b|i|em|strong|br|hr|section|article)\b", re.I)
_XML = re.compile(r"<(?:!DOCTYPE\s+\w|[A-Za-z_][\w.:-]*(?:\s+[\w.:-]+\s*=\s*[\"'][^<]*)?/?>)")
_XML_DECLARATION = re.compile(r"<\?xml\s[^>]*>")
_MAIL_HEADER = re.compile(r"^([A-Za-z][A-Za-z0-9-]*):[ \t]*\S?", re.M)
_MAIL_HEADERS = """from to cc subject date mime-version received return-path message-id delivered-to content-type
    reply-to x-mailer dkim-signature sender content-transfer-encoding"""
_MAIL_NAMES = set(_MAIL_HEADERS.split())
_JSON = re.compile(r"\s*(?:\{\s*\"|\[\s*[\[{\"\d])")


def detect(head: bytes, name: str, path: Path | None = None) -> str:
    """The media type of a file whose first HEAD_BYTES (or all, when it is smaller) are `head` and whose name is `name`.

    `path` is opened only for containers (zip, OLE) whose kind does not show in `head`; a file that cannot be opened
    counts as not given. Returns 'application/octet-stream' when nothing fits.
    """
    suffix = PurePath(name).suffix.lstrip(".").lower() or PurePath(name).name.lower()
    if _is_pdf(head, suffix):
        return "application/pdf"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_type(head, path)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _ole_type(head, suffix, path)
    text = is_text(head)
    for signature, media_type in SIGNATURES:
        # A signature of letters may be the first word of a text.
        if head.startswith(signature) and not (text and signature.isalnum()):
            return media_type
    if text:
        return _text_type(head, suffix)
    if head[:4] == b"RIFF" and head[8:12] in (b"WEBP", b"WAVE", b"AVI "):
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}[head[8:12]]
    return "video/mp4" if head[4:8] == b"ftyp" else UNKNOWN


def _is_pdf(head: bytes, suffix: str) -> bool:
    """Whether the header of a PDF stands in the first 1024 bytes (ISO 32000-1, annex H, implementation note 13), with
    what comes after it in a PDF, not in a text about PDFs: an object, bytes that are no text, or, where the file begins
    with it, the end of the line or the name of a PDF."""
    header = _PDF_HEADER.search(head[:1024])
    if header is None:
        return False
    begins = not head[: header.start()].strip(b"\xef\xbb\xbf \t\r\n")
    named = header["alone"] is not None or suffix == "pdf"
    return (begins and named) or not is_text(head) or _PDF_OBJECT.search(head) is not None


def _text_type(head: bytes, suffix: str) -> str:
    named = TYPE_OF_SUFFIX.get(suffix)
    start = _start(head)
    if named not in ("text/markdown", "text/x-rst", "text/org", "text/x-source"):
        first_tag, declared = _first_tag(start)
        if _HTML.match(first_tag) or (named is None and not declared and _HTML_FRAGMENT.match(first_tag)):
            return "text/html"
        if declared or (named in (None, "application/xml") and _XML.match(first_tag)):
            return "application/xml"
        if _is_mail(start):
            return "message/rfc822"
    if start.startswith("#!") and named in (None, "text/plain"):
        return "text/x-source"
    if named is None and _JSON.match(start):
        return "application/json"
    return named or "text/plain"


def _start(head: bytes) -> str:
    """The first characters of a text, for looking at only."""
    sample = head[:8192]
    if not any(sample.startswith(mark) for mark, _ in MARKS) and b"\0" not in sample:
        return sample.decode("latin-1")
    return decode(sample[: len(sample) // 4 * 4]).text


def _first_tag(start: str) -> tuple[str, bool]:
    """A text from its first tag on, and whether an XML declaration came before."""
    rest = start.lstrip()
    declaration = _XML_DECLARATION.match(rest)
    if declaration:
        rest = rest[declaration.end() :].lstrip()
    while rest.startswith("<!--"):
        rest = rest.partition("-->")[2].lstrip()
    return rest, declaration is not None


def _is_mail(start: str) -> bool:
    """A block of headers at the very start, three of them the usual ones of a message (RFC 5322), or two when one says
    MIME."""
    headers = re.split(r"\r?\n\r?\n", start, maxsplit=1)[0]
    first = headers.split("\n", 1)[0]
    if not (_MAIL_HEADER.match(first) or first.startswith("From ")):
        return False
    names = {name.lower() for name in _MAIL_HEADER.findall(headers)} & _MAIL_NAMES
    return len(names) >= 3 or (len(names) == 2 and bool(names & {"mime-version", "received", "message-id"}))


def _zip_type(head: bytes, path: Path | None) -> str:
    # OCF 3.3, 4.2.2 and ODF 1.3, part 2, 3.3: the first member is named mimetype, stored, and holds the type.
    if head[30:38] == b"mimetype":
        for media_type in (EPUB, ODT):
            if media_type.encode() in head[38:120]:
                return media_type
    # The names of the members stand in the clear, before each of them and once more at the end of the file.
    names = head + _piece(path, -DIRECTORY_BYTES)
    # The main part may come last, and be missing from a file cut short: other parts stand in the same folder.
    for parts, media_type in (
        ((b"word/document", b"word/styles"), DOCX),
        ((b"ppt/presentation", b"ppt/slide"), PPTX),
        ((b"xl/workbook", b"xl/worksheets", b"xl/styles", b"xl/theme"), XLSX),
    ):
        if any(part in names for part in parts):
            return media_type
    return EPUB if b"META-INF/container.xml" in names else "application/zip"


def _ole_type(head: bytes, suffix: str, path: Path | None) -> str:
    """The stream names of a compound file tell its kind; they stand in its directory ([MS-CFB] 2.2 and 2.6)."""
    sector_size = 1 << min(int.from_bytes(head[30:32], "little"), 12)
    first_directory_sector = int.from_bytes(head[48:52], "little")
    names = head + _piece(path, (first_directory_sector + 1) * sector_size)
    for stream, media_type in (
        ("EncryptedPackage", ENCRYPTED_OFFICE),
        ("WordDocument", DOC),
        ("PowerPoint Document", PPT),
        ("Workbook", XLS),
        ("Book", XLS),
        ("__substg1.0_", MSG),
        ("__properties_version1", MSG),
    ):
        if stream.encode("utf-16-le") in names:
            return media_type
    return {"doc": DOC, "ppt": PPT, "xls": XLS, "msg": MSG}.get(suffix, "application/x-ole-storage")


def _piece(path: Path | None, offset: int) -> bytes:
    """DIRECTORY_BYTES of a file from an offset, counted from its end when it is negative; none of a file that is not
    there."""
    try:
        with Path(path or "").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size + offset, 0) if offset < 0 else min(offset, size))
            return file.read(DIRECTORY_BYTES)
    except OSError:
        return b""
