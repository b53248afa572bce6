"""The sections of a document: what stands between two headings, and which of them are shown together."""

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

from .parsing import ParsedText

# The level of a record, which has no heading: below every heading, and beside the other records.
_RECORD_LEVEL = 7


@dataclass(frozen=True)
class Section:
    """A heading and the text under it, down to the next heading of any level.

    `path` are the headings it stands under, its own last. `bare`: it is a heading with nothing under it.
    """

    start: int
    end: int
    level: int
    path: tuple[str, ...]
    bare: bool


def sections(parsed: ParsedText) -> list[Section]:
    """The sections in the order of the text, which together hold all of it. Text before the first heading has level 0.

    A record is a section of its own, and so is each slide of a presentation (metadata `pages`: "slides").
    """
    text, elements = parsed.text, parsed.elements
    found: list[Section] = []
    headings: list[tuple[int, str]] = []
    slides = parsed.metadata.get("pages") == "slides"
    starts = [i for i, element in enumerate(elements) if i == 0 or element.kind in ("title", "record")]
    if slides:
        turns = (i for i in range(1, len(elements)) if elements[i].page != elements[i - 1].page)
        starts = sorted({*starts, *turns})
    for first, last in zip(starts, [*starts[1:], len(elements)], strict=True):
        element = elements[first]
        level = headings[-1][0] if headings else 0
        if element.kind == "title":
            level = element.level or 1
            while headings and headings[-1][0] >= level:
                headings.pop()
            headings.append((level, " ".join(text[element.start : element.end].split())))
        elif element.kind == "record":
            level = _RECORD_LEVEL
        elif slides:
            headings.clear()
            level = 1
        start = element.start if first else 0
        end = elements[last].start if last < len(elements) else len(text)
        bare = element.kind == "title" and last == first + 1
        found.append(Section(start, end, level, tuple(title for _, title in headings), bare))
    return found


def group_sections(
    text: str, found: list[Section], fits: Callable[[Section, Section], bool], tiny: Callable[[Section, Section], bool]
) -> list[list[Section]]:
    """The sections that share a chunk, or begin one: each group is packed by itself.

    A section joins the one before when it lies inside it and both fit one chunk; when the one before is but a heading,
    or, above it, says next to nothing; or, side by side, when both are tiny. Which tiny neighbours are parted is
    decided by what they say, so that an insertion regroups its own neighbourhood only. `fits` and `tiny` tell the size
    of all from one section to another.
    """
    grouped: list[list[Section]] = []
    for section in found:
        if grouped and _joins(text, grouped[-1], section, fits, tiny):
            grouped[-1].append(section)
        else:
            grouped.append([section])
    return grouped


def _joins(
    text: str,
    group: list[Section],
    section: Section,
    fits: Callable[[Section, Section], bool],
    tiny: Callable[[Section, Section], bool],
) -> bool:
    first, before = group[0], group[-1]
    if not fits(first, before):
        return False
    bare = all(member.bare for member in group)
    if section.level > before.level:
        return bare or fits(first, section) or tiny(first, before)
    if bare and not section.bare:
        return True
    if not (tiny(before, before) and tiny(section, section) and fits(first, section)):
        return False
    return crc32(text[section.start : section.end].encode(errors="replace")) % 4 != 0
