"""Messages: EML and MSG. Subject and correspondents, the body, and the names of what is attached."""

import email
import email.policy
from email.message import EmailMessage
from email.utils import getaddresses, parsedate_to_datetime

from .document import Block, Draft, ParseFailure
from .encodings import decode
from .html import parse_html, read_html
from .plain import parse_plain

HEADERS = ("From", "To", "Cc", "Bcc", "Date")
ENCRYPTED_TYPES = ("multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime")


def parse_eml(content: bytes, name: str) -> Draft:
    """An internet message (RFC 5322 and MIME); messages inside it follow in full."""
    if not content.isascii() or b"\0" in content:
        decoded = decode(content)
        if decoded.encoding.startswith(("utf-16", "utf-32")):
            content = decoded.text.encode("utf-8", "replace")
    message = email.message_from_bytes(content.lstrip(b"\xef\xbb\xbf\r\n"), policy=email.policy.default)
    encoding = _headers_decoded(message)
    draft = _message(message)
    if not draft.blocks:
        raise ParseFailure("empty", "the message holds no text")
    draft.metadata = {
        "title": _header(message, "Subject"),
        "authors": [shown or address for shown, address in getaddresses([_header(message, "From")])],
        "created": _date(_header(message, "Date")),
        "attachments": _attachments(message),
        **encoding,
    }
    return draft


def parse_msg(content: bytes, name: str) -> Draft:
    """A message as Outlook saves it ([MS-OXMSG])."""
    from io import BytesIO

    from oxmsg import Message

    message = Message.load(BytesIO(content))
    kind = (message.message_class or "").lower()
    names = [attachment.file_name for attachment in message.attachments if attachment.file_name]
    if ("smime" in kind and "multipartsigned" not in kind) or any(name.endswith(".pgp-encrypted") for name in names):
        raise ParseFailure("encrypted", "the message is encrypted for its recipients")
    headers = {key.lower(): value for key, value in message.message_headers.items()}
    recipients = ", ".join(
        f"{r.name} <{r.email_address}>" if r.name != r.email_address else r.name for r in message.recipients
    )
    sent = message.sent_date.isoformat() if message.sent_date else ""
    lines = {
        "From": message.sender,
        "To": headers.get("to") or recipients,
        "Cc": headers.get("cc"),
        "Bcc": headers.get("bcc"),
        "Date": sent,
    }
    body = read_html(message.html_body).blocks if message.html_body else []
    if not body and message.body:
        body = parse_plain(message.body.encode("utf-8", "replace"), name).blocks
    metadata = {
        "title": message.subject,
        "authors": [message.sender] if message.sender else [],
        "created": sent,
        "attachments": names,
    }
    return Draft(_blocks(message.subject or "", lines, body, names), metadata)


def _message(message: EmailMessage) -> Draft:
    if message.get_content_type() in ENCRYPTED_TYPES and "signed-data" not in str(message.get("Content-Type", "")):
        raise ParseFailure("encrypted", "the message is encrypted for its recipients")
    headers = {header: _header(message, header) for header in HEADERS}
    return Draft(_blocks(_header(message, "Subject"), headers, _body(message), _attachments(message)))


def _blocks(subject: str, headers: dict[str, str | None], body: list[Block], attachments: list[str]) -> list[Block]:
    blocks = [Block("title", subject, level=1)]
    blocks.append(Block("paragraph", "\n".join(f"{name}: {value}" for name, value in headers.items() if value)))
    blocks += body
    if attachments:
        blocks.append(Block("paragraph", "\n".join(f"Attachment: {name}" for name in attachments)))
    return [block for block in blocks if block.text.strip()]


def _body(message: EmailMessage) -> list[Block]:
    """The text of a message: the richest of alternatives, all inline parts of a mixture, the messages it forwards."""
    kind = message.get_content_type()
    if message.is_multipart():
        parts = list(message.iter_parts()) if kind != "message/rfc822" else []
        if kind == "message/rfc822":
            return [block for inner in message.get_payload() for block in _message(inner).blocks]
        if kind == "multipart/alternative":
            # Beside plain text and what is richer, programs send data of their own, such as text/calendar.
            parts.sort(key=lambda part: (not _is_rich(part), part.get_content_type() != "text/plain"))
            return next(filter(None, map(_body, parts)), [])
        preamble = (
            [] if parts else _text_blocks((message.preamble or "").encode("utf-8", "replace"), "text/plain", None)
        )
        return preamble + [
            block
            for part in parts
            if part.get_content_disposition() != "attachment" or part.get_content_type() == "message/rfc822"
            for block in _body(part)
        ]
    if not kind.startswith("text/") or message.get_content_disposition() == "attachment":
        return []
    return _text_blocks(_payload(message), kind, message.get_content_charset())


def _is_rich(part: EmailMessage) -> bool:
    return part.get_content_type() == "text/html" or part.is_multipart()


def _payload(part: EmailMessage) -> bytes:
    return part.get_payload(decode=True) or b""


def _text_blocks(content: bytes, kind: str, charset: str | None) -> list[Block]:
    if kind == "text/html":
        return read_html(decode(content, charset).text).blocks if charset else parse_html(content, "").blocks
    return parse_plain(decode(content, charset).text.encode("utf-8", "replace"), "").blocks


def _attachments(message: EmailMessage) -> list[str]:
    """The names of all parts that are files, the deepest too; the type of one without a name, unless it is a message,
    which is read."""
    return [
        part.get_filename() or part.get_content_type()
        for part in message.walk()
        if part.get_filename()
        or (part.get_content_disposition() == "attachment" and part.get_content_type() != "message/rfc822")
    ]


def _headers_decoded(message: EmailMessage) -> dict[str, object]:
    """Put characters in place of the bytes beyond ASCII that headers should not hold; what metadata should say of
    it."""
    raw = [
        (part, name, b" ".join(str(value).encode("utf-8", "surrogateescape").split()))
        for part in message.walk()
        for name, value in part.raw_items()
    ]
    raw = [header for header in raw if not header[2].isascii()]
    if not raw:
        return {}
    charset = next((part.get_content_charset() for part in message.walk() if part.get_content_charset()), None)
    decoded = decode(b"\n".join(value for _, _, value in raw), charset)
    for (part, name, _), text in zip(raw, decoded.text.split("\n"), strict=True):
        part.replace_header(name, text)
    return decoded.metadata()


def _header(message: EmailMessage, name: str) -> str:
    """A header, decoded; as it stands where it cannot be."""
    try:
        return " ".join(str(message.get(name, "")).split())
    except (ValueError, LookupError, IndexError, TypeError, AttributeError):
        raw = next((value for key, value in message.raw_items() if key.lower() == name.lower()), "")
        return " ".join(str(raw).split())


def _date(value: str) -> str:
    try:
        return parsedate_to_datetime(value).isoformat()
    except (ValueError, TypeError, IndexError):
        return value
