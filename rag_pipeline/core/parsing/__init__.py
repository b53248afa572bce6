"""From the bytes of any file to clean text with its structure, or to a failure with a name.

One module a family of formats; each takes the bytes and hands over a Draft, and imports its libraries only when called:
a worker that sees nothing but HTML never pays for the others.
"""

from collections.abc import Callable
from importlib import import_module

from .document import FAILURE_REASONS, Draft, Element, ParsedText, ParseFailure, assemble
from .pdf import PdfPart, join_parts, page_count, parse_pages

__all__ = [
    "FAILURE_REASONS",
    "PARSER_VERSION",
    "Element",
    "ParseFailure",
    "ParsedText",
    "PdfPart",
    "join_parts",
    "page_count",
    "parse",
    "parse_pages",
]

# Part of every parse key: raise it whenever the text or the elements of any format change.
PARSER_VERSION = 4

# Media type -> module and function, `function(content: bytes, name: str) -> Draft`. The name is for messages only: the
# same bytes of the same type are the same text under any name, as parse keys have it.
PARSERS = {
    "text/plain": ("plain", "parse_plain"),
    "text/x-source": ("plain", "parse_source"),
    "text/markdown": ("markup", "parse_markdown"),
    "text/x-rst": ("markup", "parse_rst"),
    "text/org": ("markup", "parse_org"),
    "text/html": ("html", "parse_html"),
    "text/csv": ("sheets", "parse_csv"),
    "text/tab-separated-values": ("sheets", "parse_tsv"),
    "application/json": ("data", "parse_json"),
    "application/x-ndjson": ("data", "parse_json_lines"),
    "application/xml": ("data", "parse_xml"),
    "application/pdf": ("pdf", "parse_pdf"),
    "application/rtf": ("rtf", "parse_rtf"),
    "application/epub+zip": ("epub", "parse_epub"),
    "application/vnd.oasis.opendocument.text": ("markup", "parse_odt"),
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ("markup", "parse_docx"),
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ("office", "parse_pptx"),
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ("sheets", "parse_xlsx"),
    "application/msword": ("office", "parse_doc"),
    "application/vnd.ms-powerpoint": ("office", "parse_ppt"),
    "application/vnd.ms-excel": ("sheets", "parse_xls"),
    "application/x-encrypted-office": ("office", "refuse_encrypted"),
    "application/vnd.ms-outlook": ("mail", "parse_msg"),
    "message/rfc822": ("mail", "parse_eml"),
}


def parse(content: bytes, media_type: str, name: str) -> ParsedText:
    """The text of a file of that media type, parsed in this process. Raises ParseFailure, and nothing else but
    MemoryError."""
    if not content.strip(b" \t\r\n\0\xef\xbb\xbf\xfe\xff"):
        raise ParseFailure("empty", "the file holds no text")
    if media_type not in PARSERS:
        raise ParseFailure("unsupported type", f"{media_type} holds no text that can be read")
    module, function = PARSERS[media_type]
    parser: Callable[[bytes, str], Draft] = getattr(import_module(f".{module}", __name__), function)
    try:
        return assemble(parser(content, name))
    except (ParseFailure, MemoryError):
        raise
    except ImportError as error:
        raise ParseFailure("unsupported type", f"what reads it is not installed: {error}") from error
    except RecursionError:
        raise ParseFailure("corrupt", "nested too deeply") from None
    except Exception as error:
        raise ParseFailure("corrupt", f"{type(error).__name__}: {error}") from error
