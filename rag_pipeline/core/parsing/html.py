"""HTML to blocks, straight from the tree that lxml builds: about thirty times as fast as unstructured, with headings'
levels and tables' rows."""

import re
from collections.abc import Iterator

from lxml import etree

from .document import Block, Draft, ParseFailure, table_block
from .encodings import decode

HEADINGS = {f"h{level}": level for level in range(1, 7)}
LIST_ITEMS = {"li", "dt", "dd"}
_BLOCKS = """address article aside blockquote body caption center details dialog dir div dl fieldset figcaption figure
    footer form header hgroup hr html legend main menu nav ol p pre section summary table tbody td tfoot th thead
    tr ul"""
BLOCKS = {*HEADINGS, *LIST_ITEMS, *_BLOCKS.split()}
# What a browser shows nothing of, or controls to operate, or a way to other pages.
_UNREAD = """applet area audio base button canvas datalist embed frame frameset head iframe input link map meta nav
    noembed noframes noscript object optgroup option param progress script select source style svg template textarea
    title track video"""
UNREAD = set(_UNREAD.split())
UNREAD_ROLES = {"navigation", "search", "contentinfo", "menu", "menubar", "toolbar", "alertdialog"}
NOTE_ROLES = {"doc-footnote", "doc-endnote", "doc-endnotes"}
NOTE_CLASSES = {"footnote", "footnotes"}
# Beyond so many columns a cell keeps its text, but no longer its place.
MAX_COLUMNS = 1000
# Navigation, consent notices and permalinks by the names that page generators and consent tools give them. A notice's
# name may begin and end with more: "cookie-law-info-bar", "js-cookie-notice-2", "cookie-consent__body".
_UNREAD_NAME = re.compile(
    r"(?:^|\s)(?:nav|navbar|navheader|navfooter|navigation|site-nav|main-nav|breadcrumbs?|skip-?link|skip-?nav|headerlink|"
    r"(?:[\w-]*[-_])?(?:cookies?|gdpr|ccpa)[-_]{0,2}(?:banner|notice|consent|bar|popup|message|overlay|modal|law|dialog|wrapper|"
    r"policy-banner)(?:[-_][\w-]*)?|consent-(?:banner|popup|notice|modal)|onetrust[\w-]*|CybotCookiebot\w*)(?=\s|$)",
    re.I,
)
_NOTICE_LABEL = re.compile(r"cookie|consent", re.I)
# Of other elements the id is a place to link to, which says nothing of what they are.
NAMED_BY_ID = {"aside", "div", "form", "header", "ol", "table", "ul"}
# Panels that are closed until a reader opens them.
PANEL_ROLES = {"region", "tabpanel"}
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_CHARSET = re.compile(
    rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)|^\s*<\?xml[^>]+encoding\s*=\s*[\"']([\w.:-]+)", re.I
)
_XML_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
META_NAMES = {
    "author": "authors",
    "dc.creator": "authors",
    "dcterms.creator": "authors",
    "article:author": "authors",
    "article:published_time": "created",
    "dcterms.created": "created",
    "dc.date": "created",
    "date": "created",
    "article:modified_time": "modified",
    "dcterms.modified": "modified",
    "last-modified": "modified",
    "dc.language": "language",
    "og:title": "title",
    "dc.title": "title",
}


def parse_html(content: bytes, name: str) -> Draft:
    """An HTML page, in the encoding it declares or the one that is detected."""
    declared = _CHARSET.search(content[:4096])
    decoded = decode(content, (declared[1] or declared[2]).decode("ascii") if declared else None)
    draft = read_html(decoded.text)
    draft.metadata.update(decoded.metadata())
    return draft


def read_html(page: str, keep_navigation: bool = False) -> Draft:
    """The blocks and metadata of a page. When all of it looks like navigation, navigation is what the page is about and
    is kept; `keep_navigation`: as in what was never a web page."""
    # Deep nesting needs huge_tree, or libxml2 stops in silence in the middle of the page; encoded anew, whatever it
    # declares.
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True, no_network=True)
    root = etree.fromstring(_XML_DECLARATION.sub("", page, count=1).encode("utf-8", "replace"), parser)
    if root is None:
        return Draft()
    if any(entry.level_name == "FATAL" for entry in parser.error_log):
        raise ParseFailure("corrupt", "nested too deeply")
    return Draft(read_blocks(root, keep_navigation) or read_blocks(root, keep_navigation=True), _metadata(root))


def read_blocks(root: etree._Element, keep_navigation: bool = False) -> list[Block]:
    """The blocks below an element, in order."""
    blocks: list[Block] = []
    inline: list[str] = []
    kinds: list[tuple[str, int | None]] = [("paragraph", None)]
    counters: list[int] = []  # of the ordered lists around, the next number each
    marker = ""

    def flush() -> None:
        nonlocal marker
        text = "\n".join(line for line in (" ".join(part.split()) for part in "".join(inline).split("\0")) if line)
        inline.clear()
        if text:
            kind, level = kinds[-1]
            blocks.append(Block(kind, marker + text, level=level))
            marker = ""

    walker = etree.iterwalk(root, events=("start", "end"))
    whole = None  # the element that was dealt with at its start, inside and all
    for event, element in walker:
        tag = element.tag
        if event == "start":
            unread = element is not root and _unread(element, tag, keep_navigation)
            if unread or tag == "pre" or (tag == "table" and _is_data(element)):
                if tag in BLOCKS:
                    flush()
                if not unread:
                    blocks.append(_code(element) if tag == "pre" else _table(element))
                walker.skip_subtree()
                whole = element
                continue
            if tag in BLOCKS:
                flush()
                kinds.append(_kind(element, kinds[-1]))
            if tag == "ol":
                counters.append(_number(element, "start", 1))
            elif tag == "li":
                marker = _marker(element, counters) if counters and element.getparent().tag == "ol" else ""
            elif tag == "br":
                inline.append("\0")
            if element.text:
                inline.append(element.text)
        else:
            if tag in BLOCKS and element is not whole:
                flush()
                kinds.pop()
                if tag == "ol":
                    counters.pop()
            if element.tail and element is not root:
                inline.append(element.tail)
    flush()
    return blocks


def _kind(element: etree._Element, outer: tuple[str, int | None]) -> tuple[str, int | None]:
    tag = element.tag
    if tag in HEADINGS:
        return "title", HEADINGS[tag]
    if element.get("role") in NOTE_ROLES or not NOTE_CLASSES.isdisjoint(element.get("class", "").split()):
        return "footnote", None
    if outer[0] == "footnote":
        return outer
    if tag in LIST_ITEMS:
        return "list_item", None
    if tag in ("td", "th", "blockquote", "figcaption", "table"):
        return "paragraph", None
    return outer


def _marker(item: etree._Element, counters: list[int]) -> str:
    """What a browser writes before an item of an ordered list; counts it."""
    number = _number(item, "value", counters[-1])
    counters[-1] = number + 1
    kind = item.get("type") or item.getparent().get("type") or "1"
    if kind in "aA" and 1 <= number <= 26:
        return f"{chr(ord(kind) + number - 1)}. "
    if kind in "iI" and 1 <= number < 40:
        roman = "x" * (number // 10) + ("", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix")[number % 10]
        return f"{roman if kind == 'i' else roman.upper()}. "
    return f"{number}. "


def _number(element: etree._Element, name: str, default: int) -> int:
    value = element.get(name, "").strip()
    return int(value) if re.fullmatch(r"-?\d{1,9}", value, re.A) else default


def _unread(element: etree._Element, tag: str, keep_navigation: bool) -> bool:
    """Whether an element is none of the page's own text."""
    if tag in UNREAD:
        return not (keep_navigation and tag == "nav") and not (tag == "button" and _opens_text(element))
    attributes = element.attrib
    if not attributes:
        return tag == "footer" and not keep_navigation and _is_page_footer(element)
    role = attributes.get("role")
    if role == "doc-backlink" or (role not in PANEL_ROLES and _is_hidden(attributes)):
        return True
    if keep_navigation or tag == "body":
        return False
    if role in UNREAD_ROLES or (tag == "footer" and _is_page_footer(element)):
        return True
    if role == "dialog" and _NOTICE_LABEL.search(attributes.get("aria-label", "")):
        return True
    names = attributes.get("class", "")
    if tag in NAMED_BY_ID:
        names = f"{names} {attributes.get('id', '')}"
    return _UNREAD_NAME.search(names) is not None and not _holds_the_page(element)


def _is_hidden(attributes: etree._Attrib) -> bool:
    if attributes.get("hidden", "until-found") != "until-found":
        return True
    return attributes.get("aria-hidden") == "true" or _HIDDEN.search(attributes.get("style", "")) is not None


def _opens_text(button: etree._Element) -> bool:
    """Whether a button is the heading of what it opens, as in lists of questions and answers."""
    if "accordion" in button.get("class", ""):
        return True
    heading = next(button.iterancestors(*HEADINGS, "dt", "summary"), None)
    return heading is not None and _letters("".join(heading.itertext())) == _letters("".join(button.itertext()))


def _holds_the_page(element: etree._Element) -> bool:
    """Whether an element that is named like navigation or a notice is a section about it, whose name is made of its
    heading, or holds the page's text and only notes the state of a notice."""
    name = _letters(element.get("id", ""))
    return any(
        inner.tag in ("article", "h1", "main") or _letters("".join(inner.itertext())) == name
        for inner in element.iterdescendants("article", "main", *HEADINGS)
    )


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()


def _is_page_footer(element: etree._Element) -> bool:
    return not any(outer.tag in ("article", "main", "section") for outer in element.iterancestors())


def _is_data(table: etree._Element) -> bool:
    """Whether a table holds data, not the page's layout: it has header cells, or some row has two cells with text and
    none has a page inside."""
    if table.get("role") == "presentation":
        return False
    rows = list(_rows(table))
    if any(row.find("th") is not None for row in rows):
        return True
    if next(table.iterdescendants("table", *HEADINGS, "form"), None) is not None:
        return False
    return any(sum(1 for cell in row.iterchildren("td") if "".join(cell.itertext()).strip()) > 1 for row in rows)


def _table(table: etree._Element) -> Block:
    """A data table; a cell that spans columns is followed by empty ones, so that columns stay columns."""
    rows: list[list[str]] = []
    header_rows = 0
    below: dict[int, int] = {}  # column -> rows that a cell above still spans there
    for row in _rows(table):
        cells: list[str] = []

        def skip_spanned(cells: list[str] = cells) -> None:
            while below.get(len(cells), 0) > 0 and len(cells) < MAX_COLUMNS:
                below[len(cells)] -= 1
                cells.append("")

        found = [cell for cell in row if cell.tag in ("td", "th")]
        for cell in found:
            skip_spanned()
            rowspan = _span(cell, "rowspan")
            text = " ".join(block.text for block in read_blocks(cell))
            for column in range(min(_span(cell, "colspan"), max(MAX_COLUMNS - len(cells), 1))):
                if rowspan > 1:
                    below[len(cells)] = rowspan - 1
                cells.append("" if column else text)
        skip_spanned()
        if (
            header_rows == len(rows)
            and found
            and (row.getparent().tag == "thead" or all(cell.tag == "th" for cell in found))
        ):
            header_rows += 1
        rows.append(cells)
    block = table_block(rows, header_rows if header_rows < len(rows) else 0)
    captions = [" ".join(b.text for b in read_blocks(caption)) for caption in table.iterchildren("caption")]
    if captions and captions[0]:
        block.text = f"{captions[0]}\n{block.text}"
        block.header = f"{captions[0]}\n{block.header}" if block.header else captions[0]
    return block


def _rows(table: etree._Element) -> Iterator[etree._Element]:
    """A table's own rows, not those of tables inside it."""
    for child in table:
        if child.tag == "tr":
            yield child
        elif child.tag in ("thead", "tbody", "tfoot"):
            yield from child.iterchildren("tr")


def _span(cell: etree._Element, name: str) -> int:
    """A cell's span; no more than 1000, as in the HTML standard (4.9.11), and 0 and nonsense are 1."""
    return min(max(_number(cell, name, 1), 1), 1000)


def _code(element: etree._Element) -> Block:
    pieces = []
    for event, inner in etree.iterwalk(element, events=("start", "end")):
        if event == "start":
            pieces.append("\n" if inner.tag == "br" else inner.text)
        elif inner is not element:
            pieces.append(inner.tail)
    return Block("code", "".join(filter(None, pieces)))


def _metadata(root: etree._Element) -> dict[str, object]:
    found: dict[str, object] = {}
    title = root.find(".//head/title")
    if title is not None and title.text:
        found["title"] = title.text
    for meta in root.iterfind(".//head/meta"):
        key = META_NAMES.get((meta.get("name") or meta.get("property") or meta.get("http-equiv") or "").lower())
        value = (meta.get("content") or "").strip()
        if key == "authors" and value:
            found.setdefault("authors", []).append(value)
        elif key and value:
            found.setdefault(key, value)
    language = root.get("lang") or root.get("{http://www.w3.org/XML/1998/namespace}lang") or root.get("xml:lang")
    if language:
        found["language"] = language
    return found
