"""A document cut into chunks: spans that keep meaning together, each with the text that is embedded for it."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from .packing import TINY_SHARE, Packer
from .parsing import ParsedText
from .sections import Section, group_sections, sections
from .tokens import TokenCounter, count_tokens

# Part of every chunk key: raise it whenever the chunks of any document change.
CHUNKER_VERSION = 2

# The headings in front of a span may take this part of the limit at most, and so may a table's header.
_LEAD_SHARE = 4


@dataclass(frozen=True)
class ChunkSettings:
    """How large chunks are, in cl100k tokens, and whether the headings above a chunk are embedded with it."""

    chunk_tokens: int = 512
    chunk_overlap: int = 64
    embed_headings: bool = True


@dataclass(frozen=True)
class InputLimit:
    """What an embedding model takes as one input: at most `max_tokens` of its own tokens, as `count` counts them.

    `tokenizer` names how it counts: chunks made for one are not valid for another.
    """

    max_tokens: int
    count: Callable[[list[str]], list[int]]
    tokenizer: str


@dataclass(frozen=True)
class Chunk:
    """A span [start, end) of the parsed text, in code points, and what is embedded for it.

    `tokens` are the cl100k tokens of the span. `headings` is the path of headings that all of it stands under. The span
    lies in `input` from `input_start`: input[input_start : input_start + end - start] == text[start:end].
    """

    start: int
    end: int
    tokens: int
    first_page: int | None
    last_page: int | None
    headings: tuple[str, ...]
    input: str
    input_start: int


def fingerprint(settings: ChunkSettings, limit: InputLimit) -> str:
    """Everything but the document that shapes its chunks, as one line: part of the chunk key."""
    shape = (settings.chunk_tokens, settings.chunk_overlap, settings.embed_headings)
    return "/".join(map(str, (CHUNKER_VERSION, *shape, limit.max_tokens, limit.tokenizer)))


def chunk_document(parsed: ParsedText, settings: ChunkSettings, limit: InputLimit) -> list[Chunk]:
    """The chunks of a document in order.

    Together they hold every character that is not white space; neighbours in one section share whole sentences of up to
    `chunk_overlap` tokens. No input has more than `chunk_tokens` cl100k tokens, nor more of the model's own tokens than
    its limit; only a single character may exceed either.
    """
    if not parsed.elements:
        return []
    document = _Document(parsed, settings.embed_headings)
    size = min(settings.chunk_tokens, limit.max_tokens)
    spans: list[tuple[int, int]] = []
    for start, end in document.groups(size):
        spans += document.packer.pack(start, end, size, settings.chunk_overlap)
    return document.within(limit, spans, size)


class _Document:
    """A document while it is cut: its sections, and what is embedded in front of a span of it."""

    def __init__(self, parsed: ParsedText, embed_headings: bool):
        self.text = parsed.text
        self.elements = parsed.elements
        self.embed_headings = embed_headings
        self.counter = TokenCounter(parsed.text)
        self.sections = sections(parsed)
        self.section_starts = [section.start for section in self.sections]
        self.packer = Packer(parsed, self.counter, lambda position, limit: self._lead(position, limit)[1])
        self._count_lead = cache(count_tokens)

    def groups(self, size: int) -> Iterator[tuple[int, int]]:
        """The stretches that are packed each by itself."""

        def fits(first: Section, last: Section) -> bool:
            lead = self._lead(first.start, size)[1]
            return self.counter.estimate(first.start, last.end) + lead + 2 <= size

        def tiny(first: Section, last: Section) -> bool:
            return self.counter.estimate(first.start, last.end) <= size // TINY_SHARE

        for group in group_sections(self.text, self.sections, fits, tiny):
            yield group[0].start, group[-1].end

    def within(self, limit: InputLimit, spans: list[tuple[int, int]], size: int) -> list[Chunk]:
        """The chunks of the spans, those cut further whose input is more than the model takes. What an overlap leaves
        wholly inside a neighbour then is no chunk."""
        chunks = [self._chunk(start, end, size) for start, end in spans]
        # No tokenizer makes more tokens than there are bytes, and two that mark the ends.
        doubtful = [i for i, chunk in enumerate(chunks) if len(chunk.input.encode()) + 2 > limit.max_tokens]
        counts = limit.count([chunks[i].input for i in doubtful]) if doubtful else []
        excess = {i: -(-count // limit.max_tokens) for i, count in zip(doubtful, counts, strict=True)}
        kept: list[Chunk] = []
        for i, chunk in enumerate(chunks):
            while kept and kept[-1].start >= chunk.start:
                kept.pop()
            pieces = excess.get(i, 1)
            if pieces <= 1 or chunk.end - chunk.start == 1:
                kept.append(chunk)
                continue
            # Equal parts with a little room, so that the last is not a scrap.
            smaller = max(1, min(size - 1, 9 * count_tokens(chunk.input) // (8 * pieces)))
            parts = list(self.packer.pack(chunk.start, chunk.end, smaller, 0))
            if len(parts) == 1:
                parts = self.packer.halves(chunk.start, chunk.end)
            covered = kept[-1].end if kept else 0
            kept += [piece for piece in self.within(limit, parts, smaller) if piece.end > covered]
        return kept

    def _chunk(self, start: int, end: int, size: int) -> Chunk:
        lead, _ = self._lead(start, size)
        first, last = self.packer.element_at(start), self.packer.element_at(end - 1)
        return Chunk(
            start=start,
            end=end,
            tokens=self.counter.count(start, end),
            first_page=self.elements[first].page,
            last_page=self.elements[last].page,
            headings=self._headings(start, end),
            input=lead + self.text[start:end],
            input_start=len(lead),
        )

    def _section_at(self, position: int) -> int:
        return max(0, bisect_right(self.section_starts, position) - 1)

    def _headings(self, start: int, end: int) -> tuple[str, ...]:
        """The headings that all of a span stands under. Bare headings at its beginning belong to what follows."""
        held = self.sections[self._section_at(start) : self._section_at(end - 1) + 1]
        paths = [section.path for section in held if not section.bare] or [section.path for section in held]
        shared = 0
        while all(len(path) > shared and path[shared] == paths[0][shared] for path in paths):
            shared += 1
        return paths[0][:shared]

    def _lead(self, position: int, size: int) -> tuple[str, int]:
        """What is embedded in front of a span that begins at a position, and its tokens.

        That is the headings above it, the outermost left out where they take too much, and inside a table its header.
        """
        section = self.sections[self._section_at(position)]
        path = section.path if self.embed_headings else ()
        element = self.elements[self.packer.element_at(position)]
        if element.kind == "title":
            path = path[:-1]
        lead, tokens = self._path_lead(path, size // _LEAD_SHARE)
        if element.header_end is not None and position >= element.header_end:
            header = self.text[element.start : element.header_end].rstrip() + "\n"
            header_tokens = self._count_lead(header)
            if header_tokens <= size // _LEAD_SHARE:
                return lead + header, tokens + header_tokens
        return lead, tokens

    def _path_lead(self, path: tuple[str, ...], share: int) -> tuple[str, int]:
        for first in range(len(path)):
            lead = " > ".join(path[first:]) + "\n\n"
            tokens = self._count_lead(lead)
            if tokens <= share:
                return lead, tokens
        return "", 0
