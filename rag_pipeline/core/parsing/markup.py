"""Formats that become HTML first: Markdown by markdown-it, the others by pandoc, which unstructured itself uses for
them."""

import io
import re
import subprocess
import zipfile
from datetime import date
from typing import ClassVar

from lxml import etree

from .containers import open_zip, properties, read_xml
from .document import Block, Draft, ParseFailure
from .encodings import decode
from .html import UNREAD, read_html
from .normalising import normalise

# Elements in which HTML knows no markup, or shows nothing, to the end of the page where nothing closes them (as GitHub
# Flavored Markdown 0.29, 6.11).
RAW = {"frameset", "iframe", "noembed", "noframes", "plaintext", "script", "style", "textarea", "title", "xmp"}
_SILENT_TAG = re.compile(rf"<(/?)({'|'.join(sorted(UNREAD | RAW))})(?![\w-])", re.I)
_CLOSING_TAG = re.compile(r"</(\w+)")
_SCRIPT = re.compile(r"<(iframe|script|style)(?![\w-])[^>]*>.*?</\1\s*>", re.I | re.S)
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?\r?\n)(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.S)
# Nobody writes longer front matter, or more brackets in it: the time to read them grows with their square.
_FRONT_LIMIT, _FRONT_BRACKETS = 64_000, 1000
_FRONT_NAMES = {"author": "authors", "date": "created", "lang": "language"}
_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


def parse_markdown(content: bytes, name: str) -> Draft:
    """CommonMark with tables and strikethrough. Front matter stays, as code; its fields are metadata too."""
    decoded = decode(content)
    text = decoded.text
    front = _FRONT_MATTER.match(text)
    draft = Draft()
    if front:
        draft.blocks.append(Block("code", front[1]))
        draft.metadata = _front_metadata(front[1])
        text = text[front.end() :]
    draft.metadata.update(decoded.metadata())
    draft.blocks += read_html(_rendered(text)).blocks
    return draft


def _rendered(text: str) -> str:
    """Markdown as HTML, in which tags that would swallow what follows them are words: inside a paragraph they name a
    tag, in a block of HTML they are meant when they are closed."""
    from markdown_it import MarkdownIt

    closed = {tag.lower() for tag in _CLOSING_TAG.findall(text)} - RAW

    def inline(_, tokens, index: int, *more) -> str:
        return _SILENT_TAG.sub(r"&lt;\1\2", tokens[index].content)

    def block(_, tokens, index: int, *more) -> str:
        html = _SCRIPT.sub("", tokens[index].content)
        return _SILENT_TAG.sub(lambda tag: tag[0] if tag[2].lower() in closed else f"&lt;{tag[1]}{tag[2]}", html)

    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    markdown.add_render_rule("html_inline", inline)
    markdown.add_render_rule("html_block", block)
    return markdown.render(text)


def parse_rst(content: bytes, name: str) -> Draft:
    """reStructuredText; what it would include from other files is left out."""
    decoded = decode(content)
    draft = pandoc(decoded.text.encode("utf-8", "replace"), "rst")
    if draft.blocks and draft.blocks[0].text == draft.metadata.get("title"):
        # A lone heading at the top is the document's title, and its sections are promoted: they keep their levels here.
        for block in draft.blocks[1:]:
            block.level = block.level + 1 if block.level else None
    draft.metadata.update(decoded.metadata())
    return draft


def parse_org(content: bytes, name: str) -> Draft:
    """Org mode; what it would include from other files is left out."""
    decoded = decode(content)
    draft = pandoc(decoded.text.encode("utf-8", "replace"), "org")
    draft.metadata.update(decoded.metadata())
    return draft


def parse_odt(content: bytes, name: str) -> Draft:
    """OpenDocument text."""
    with open_zip(content) as archive:
        try:
            manifest = archive.read("META-INF/manifest.xml")
        except KeyError:
            manifest = b""
        if b"encryption-data" in manifest:
            raise ParseFailure("encrypted", "the document asks for a password")
        metadata = properties(archive, "meta.xml")
    draft = pandoc(content, "odt")
    draft.metadata = metadata
    return draft


def parse_docx(content: bytes, name: str) -> Draft:
    """Word. pandoc keeps what python-docx, under unstructured, drops: insertions, content controls, notes."""
    with open_zip(content) as archive:
        metadata = properties(archive, "docProps/core.xml")
        main = next((n for n in archive.namelist() if n.startswith("word/document") and n.endswith(".xml")), None)
        if main is None:
            raise ParseFailure("corrupt", "the container holds no Word document")
        if b"txbxContent" in (document := archive.read(main)):
            content = _replaced(archive, main, _text_boxes_unpacked(document))
    draft = pandoc(content, "docx")
    draft.metadata = metadata
    return draft


def pandoc(content: bytes, source_format: str) -> Draft:
    """What pandoc makes of a document, in its sandbox: it reads its input and no other file. Raises ParseFailure
    'corrupt'."""
    import pypandoc

    command = [
        pypandoc.get_pandoc_path(),
        "--sandbox",
        "--standalone",
        "--wrap=none",
        "--syntax-highlighting=none",
        "--quiet",
    ]
    ran = subprocess.run(
        [*command, "--from", source_format, "--to", "html5"], input=content, capture_output=True, check=False
    )
    if ran.returncode:
        reason = ran.stderr.decode("utf-8", "replace")
        # GHC's runtime: exit code 251 is heap exhaustion.
        if ran.returncode == 251 or "out of memory" in reason or "heap overflow" in reason:
            raise MemoryError
        raise ParseFailure("corrupt", f"pandoc cannot read it: {reason or f'status {ran.returncode}'}")
    draft = read_html(ran.stdout.decode("utf-8", "replace"), keep_navigation=True)
    if draft.metadata.get("title") == "-":  # standing for the standard input
        del draft.metadata["title"]
    return draft


def _text_boxes_unpacked(document: bytes) -> bytes:
    """A Word document whose text boxes are paragraphs after the one they hang on: pandoc would put them in its
    place."""
    root = read_xml(document)
    for box in reversed(list(root.iter(f"{_WORD}txbxContent"))):
        # The outermost paragraph holds the shape twice, for new programs and, as a fallback, for old ones.
        anchor = next((p for p in reversed(list(box.iterancestors(f"{_WORD}p")))), None)
        shape = next(
            (e for e in box.iterancestors() if e.getparent() is not None and e.getparent().tag == f"{_WORD}r"), None
        )
        if anchor is None or shape is None:
            continue
        if not _in_fallback(box):
            for inner in reversed(list(box)):
                anchor.addnext(inner)
        if not any(len(other) for other in shape.iter(f"{_WORD}txbxContent") if not _in_fallback(other)):
            shape.getparent().remove(shape)
    return etree.tostring(root, xml_declaration=True, encoding="UTF-8", standalone=True)


def _in_fallback(element: etree._Element) -> bool:
    return any(etree.QName(outer).localname == "Fallback" for outer in element.iterancestors())


def _replaced(archive: zipfile.ZipFile, name: str, content: bytes) -> bytes:
    """A copy of the archive with other content for one member."""
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as target:
        for member in archive.namelist():
            target.writestr(member, content if member == name else archive.read(member))
    return copy.getvalue()


def _front_metadata(front: str) -> dict[str, object]:
    """The fields of front matter by their names, in small letters, a field within a field after a dot: lists of values,
    dates as ISO 8601 has them, and everything else as it is typed. Empty where it is no YAML, or has aliases, which can
    stand for more than any memory holds. A list's items that are no values are counted in `front_matter_left_out`."""
    import yaml

    class Reader(yaml.SafeLoader):
        """Dates and nothing are themselves; a version such as 1.10 is no number, and `no` is a word."""

        yaml_implicit_resolvers: ClassVar = {
            first: [(tag, form) for tag, form in forms if tag.endswith((":timestamp", ":null"))]
            for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    if len(front) > _FRONT_LIMIT or front.count("[") + front.count("{") > _FRONT_BRACKETS:
        return {}
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(front)):
            return {}
        read = yaml.load(front, Reader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return {}
    found: dict[str, object] = {}
    left_out = _flatten(read, "", found) if isinstance(read, dict) else 0
    return found | ({"front_matter_left_out": left_out} if left_out else {})


def _flatten(fields: dict, prefix: str, found: dict[str, object]) -> int:
    """Put the fields into `found`; how many items of lists are left out."""
    left_out = 0
    for key, value in fields.items():
        name = " ".join(normalise(str(key)).lower().split())
        name = prefix + (name if prefix else _FRONT_NAMES.get(name, name))
        if isinstance(value, dict):
            left_out += _flatten(value, f"{name}.", found)
        elif isinstance(value, list) or name == "authors":
            items = value if isinstance(value, list) else [value]
            found[name] = [_front_text(item) for item in items if not isinstance(item, dict | list)]
            left_out += len(items) - len(found[name])
        else:
            found[name] = _front_text(value)
    return left_out


def _front_text(value: object) -> str:
    """A value as text; nothing as none."""
    if isinstance(value, date):
        return value.isoformat()
    return "" if value is None else str(value)
