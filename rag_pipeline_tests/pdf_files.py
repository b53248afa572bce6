"""PDFs made for a test: text at given places, in the fonts that every reader has."""

from dataclasses import dataclass

FONTS = {"plain": "Helvetica", "bold": "Helvetica-Bold", "mono": "Courier"}


@dataclass(frozen=True)
class Text:
    """A line of text whose baseline begins at x, y, in points from the lower left of a page of 612 by 792."""

    x: float
    y: float
    text: str
    size: float = 10
    font: str = "plain"


def make_pdf(
    pages: list[list[Text]],
    outline: list[tuple[str, int, float]] = (),
    contents: bytes | None = None,
    turn: tuple[int, str] = (0, ""),
) -> bytes:
    """A PDF of these pages; outline: title, page from 0, y; contents: the same raw, compressed content for every page
    instead; turn: by how many degrees pages are shown turned, and the matrix that turns their content."""
    objects: dict[int, bytes] = {}
    fonts = {name: number for number, name in enumerate(FONTS, 3)}
    for name, number in fonts.items():
        objects[number] = (
            f"<< /Type /Font /Subtype /Type1 /BaseFont /{FONTS[name]} /Encoding /WinAnsiEncoding >>".encode()
        )
    resources = "<< /Font << " + " ".join(f"/{name} {number} 0 R" for name, number in fonts.items()) + " >> >>"
    first = 6
    if contents is not None:
        objects[first] = b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (len(contents), contents)
    kids = []
    for number, lines in enumerate(pages):
        page, stream = first + 1 + 2 * number, first + 2 + 2 * number if contents is None else first
        if contents is None:
            drawn = [f"BT /{t.font} {t.size} Tf {t.x} {t.y} Td ({_escaped(t.text)}) Tj ET" for t in lines]
            drawn = "\n".join([turn[1], *drawn]).encode("cp1252")
            objects[stream] = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn)
        shown = f"/MediaBox [0 0 612 792] /Rotate {turn[0]} /Resources {resources} /Contents {stream} 0 R"
        objects[page] = f"<< /Type /Page /Parent 2 0 R {shown} >>".encode()
        kids.append(f"{page} 0 R")
    objects[2] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(kids)}] >>".encode()
    entries = max(objects) + 1
    for number, (title, page, y) in enumerate(outline, entries + 1):
        links = f"/Prev {number - 1} 0 R " if number > entries + 1 else ""
        links += f"/Next {number + 1} 0 R " if number < entries + len(outline) else ""
        objects[number] = (
            f"<< /Title ({_escaped(title)}) /Parent {entries} 0 R {links}/Dest [{kids[page]} /XYZ 72 {y} 0] >>".encode()
        )
    objects[1] = b"<< /Type /Catalog /Pages 2 0 R" + (f" /Outlines {entries} 0 R".encode() if outline else b"") + b" >>"
    if outline:
        objects[entries] = f"<< /Type /Outlines /First {entries + 1} 0 R /Last {entries + len(outline)} 0 R >>".encode()
    return _written(objects)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _written(objects: dict[int, bytes]) -> bytes:
    parts, offsets, length = [b"%PDF-1.7\n"], {}, 9
    for number in sorted(objects):
        offsets[number] = length
        parts.append(b"%d 0 obj\n%s\nendobj\n" % (number, objects[number]))
        length += len(parts[-1])
    table = ["xref", f"0 {max(objects) + 1}", "0000000000 65535 f "]
    table += [
        f"{offsets[n]:010} 00000 n " if n in offsets else "0000000000 65535 f " for n in range(1, max(objects) + 1)
    ]
    trailer = f"trailer << /Size {max(objects) + 1} /Root 1 0 R >>\nstartxref\n{length}\n%%EOF\n"
    return b"".join(parts) + "\n".join([*table, trailer]).encode()
