"""Chunks: limits kept exactly, nothing lost, cuts where the author cut."""

import re

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_pipeline.core.chunking import Chunk, ChunkSettings, InputLimit, chunk_document, fingerprint
from rag_pipeline.core.parsing import Element, ParsedText
from rag_pipeline.core.tokens import count_tokens

OPENAI = InputLimit(8192, lambda texts: [count_tokens(text) for text in texts], "cl100k_base")
SCRIPTS = (
    "The pump failed. Dr. Smith replaced it at 3.14 p.m.; nobody knew why!",
    "Насос вышел из строя. Почему? Никто не знал!",
    "水泵坏了。工程师更换了它，但没有人知道原因！",
    "ポンプが故障した。原因は不明である。",
    "펌프가 고장났다. 아무도 이유를 몰랐다.",
    "تعطلت المضخة. هل يعرف أحد السبب؟ لا أحد.",
    "המשאבה התקלקלה. איש לא ידע מדוע.",
    "पंप खराब हो गया। किसी को कारण नहीं पता था।",
    "ปั๊มเสียและไม่มีใครรู้สาเหตุ",
    "👩‍👩‍👧‍👦🇩🇪🇫🇷👍🏽 e\u0301a\u0308o\u0308 \u200d\u200b\u202e",
    "https://example.org/a/very/long/path?with=query&and=more#fragment",
    "x" * 70,
    "-" * 40 + "\t" * 5,
    "'s 'S 'ſ don't (a)b ((c)) 1234567 ½ ⅷ ١٢٣",
)
KINDS = ("paragraph", "list_item", "table", "code", "record", "title")


def document(*elements: tuple[str, str] | tuple[str, str, int]) -> ParsedText:
    """A document of (kind, text) or ('title', text, level), a blank line between them."""
    text, made = "", []
    for kind, content, *level in elements:
        text += "\n\n" if text else ""
        header_end = len(text) + len(content.split("\n")[0]) if kind == "table" and "\n" in content else None
        made.append(Element(kind, len(text), len(text) + len(content), None, level[0] if level else None, header_end))
        text += content
    return ParsedText(text, tuple(made), {})


def chunks_of(parsed: ParsedText, tokens: int = 512, overlap: int = 0, limit: InputLimit = OPENAI, **more) -> list[Chunk]:
    """The document's chunks, after everything that holds of all chunks was found to hold of them."""
    chunks = chunk_document(parsed, ChunkSettings(tokens, overlap, **more), limit)
    position = 0
    for chunk in chunks:
        span = parsed.text[chunk.start : chunk.end]
        assert not parsed.text[position : chunk.start].strip()
        assert chunk.end > position
        assert span.rstrip() == span
        assert span.strip()
        assert chunk.tokens == count_tokens(span)
        assert chunk.input[chunk.input_start : chunk.input_start + len(span)] == span
        assert chunk.input_start + len(span) == len(chunk.input)
        assert count_tokens(chunk.input) <= tokens
        position = chunk.end
    assert not parsed.text[position:].strip()
    assert all(count <= limit.max_tokens for count in limit.count([chunk.input for chunk in chunks]))
    return chunks


def spans(parsed: ParsedText, chunks: list[Chunk]) -> list[str]:
    return [parsed.text[chunk.start : chunk.end] for chunk in chunks]


def sentences(count: int, start: int = 0) -> str:
    return " ".join(f"Sentence number {i} tells of pump {i * 7919 % 1000}." for i in range(start, start + count))


texts = st.lists(st.sampled_from(SCRIPTS) | st.text(min_size=1, max_size=40), min_size=1, max_size=12).map(" ".join).filter(str.strip)
elements = st.one_of(
    st.tuples(st.sampled_from(KINDS[:-1]), texts),
    st.tuples(st.just("table"), st.lists(texts, min_size=1, max_size=6).map(lambda rows: "\n".join(rows))),
    st.tuples(st.just("title"), st.text(min_size=1, max_size=60).filter(str.strip), st.integers(1, 6)),
)


@given(st.lists(elements, min_size=1, max_size=15), st.integers(16, 120), st.data())
@settings(max_examples=300, deadline=None)
def test_any_document_is_cut_within_limits_and_loses_nothing(made, tokens, data):
    overlap = data.draw(st.integers(0, tokens // 2))
    chunks_of(document(*made), tokens, overlap)


@given(st.lists(elements, min_size=1, max_size=8), st.integers(16, 80), st.integers(16, 60))
@settings(max_examples=100, deadline=None)
def test_the_models_own_limit_rules(made, tokens, most):
    by_characters = InputLimit(most, lambda texts: [len(text) // 2 + 2 for text in texts], "half-characters")
    chunks_of(document(*made), tokens, 0, by_characters)


@given(texts, st.integers(16, 60))
@settings(max_examples=100, deadline=None)
def test_cuts_leave_characters_whole(text, tokens):
    parsed = document(("paragraph", text))
    whole = {match.start() for match in regex.finditer(r"\X", text)}
    for chunk in chunks_of(parsed, tokens):
        if not any(count_tokens(c) > tokens - 4 for c in regex.findall(r"\X", text)):
            assert chunk.start in whole


def test_the_empty_document_has_no_chunks():
    assert chunk_document(ParsedText("", (), {}), ChunkSettings(), OPENAI) == []
