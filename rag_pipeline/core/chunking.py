"""A document cut into chunks: spans that keep meaning together, each with the text that is embedded for it."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .boundaries import inside, sentences
from .parsing import ParsedText
from .sections import Section, groups, sections
from .tokens import TokenCounter, count_tokens

# Part of every chunk key: raise it whenever the chunks of any document change.
CHUNKER_VERSION = 1

# What is put in front of a span may take this part of the limit at most.
_PREFIX_SHARE = 4
# A piece smaller than this part of the limit is not worth a chunk of its own where the next may begin inside what follows.
_TINY_SHARE = 8


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

    `tokens` are the cl100k tokens of the span. `headings` is the path of headings that all of it stands under. The span lies in
    `input` from `input_start`: input[input_start : input_start + end - start] == text[start:end].
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
    parts = (CHUNKER_VERSION, settings.chunk_tokens, settings.chunk_overlap, settings.embed_headings, limit.max_tokens, limit.tokenizer)
    return "/".join(map(str, parts))


def chunk_document(parsed: ParsedText, settings: ChunkSettings, limit: InputLimit) -> list[Chunk]:
    """The chunks of a document in order. Together they hold every character that is not white space; neighbours in one section share
    whole sentences of up to `chunk_overlap` tokens. No input has more than `chunk_tokens` cl100k tokens, nor more of the model's
    own tokens than its limit."""
    if not parsed.elements:
        return []
    packer = _Packer(parsed, settings.embed_headings)
    chunk_tokens = min(settings.chunk_tokens, limit.max_tokens)

    def tokens(first: Section, last: Section) -> int:
        return packer.tokens(first.start, last.end)

    chunks: list[Chunk] = []
    for group in groups(parsed.text, sections(parsed), tokens, chunk_tokens):
        path = group[0].path
        ...
    return chunks
