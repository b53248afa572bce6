"""Chunks: limits kept exactly, nothing lost, cuts where the author cut."""

import itertools
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


def chunks_of(
    parsed: ParsedText, tokens: int = 512, overlap: int = 0, limit: InputLimit = OPENAI, **more
) -> list[Chunk]:
    """The document's chunks, after everything that holds of all chunks was found to hold of them."""
    chunks = chunk_document(parsed, ChunkSettings(tokens, overlap, **more), limit)
    position = 0
    for chunk in chunks:
        span = parsed.text[chunk.start : chunk.end]
        assert not parsed.text[position : chunk.start].strip()
        assert chunk.end > position
        assert span.rstrip() == span
        assert span.strip()
        assert span[0].strip() or any(element.kind == "code" for element in parsed.elements)
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


texts = (
    st.lists(st.sampled_from(SCRIPTS) | st.text(min_size=1, max_size=40), min_size=1, max_size=12)
    .map(" ".join)
    .filter(str.strip)
)
elements = st.one_of(
    st.tuples(st.sampled_from(KINDS[:-1]), texts),
    st.tuples(st.just("table"), st.lists(texts, min_size=1, max_size=6).map(lambda rows: "\n".join(rows))),
    st.tuples(st.just("title"), st.text(min_size=1, max_size=60).filter(str.strip), st.integers(1, 6)),
)


@given(st.lists(elements, min_size=1, max_size=15), st.integers(16, 120), st.data())
@settings(max_examples=150, deadline=None)
def test_any_document_is_cut_within_limits_and_loses_nothing(made, tokens, data):
    overlap = data.draw(st.integers(0, tokens // 2))
    chunks_of(document(*made), tokens, overlap)


@given(st.lists(elements, min_size=1, max_size=8), st.integers(16, 80), st.integers(16, 60))
@settings(max_examples=60, deadline=None)
def test_the_models_own_limit_rules(made, tokens, most):
    by_characters = InputLimit(most, lambda texts: [len(text) // 2 + 2 for text in texts], "half-characters")
    chunks_of(document(*made), tokens, 0, by_characters)


@given(st.lists(elements, min_size=1, max_size=8), st.integers(24, 80), st.integers(16, 60), st.data())
@settings(max_examples=100, deadline=None)
def test_no_chunk_lies_inside_a_neighbour_whatever_the_models_limit_parts(made, tokens, most, data):
    by_characters = InputLimit(most, lambda texts: [len(text) // 2 + 2 for text in texts], "half-characters")
    chunks = chunks_of(document(*made), tokens, data.draw(st.integers(1, tokens // 2)), by_characters)
    for before, after in itertools.pairwise(chunks):
        assert before.start < after.start
        assert before.end < after.end


@given(texts, st.integers(16, 60))
@settings(max_examples=60, deadline=None)
def test_cuts_leave_characters_whole(text, tokens):
    parsed = document(("paragraph", text))
    whole = {match.end() - len(match[0].lstrip()) for match in regex.finditer(r"\X", text)}
    for chunk in chunks_of(parsed, tokens):
        if not any(count_tokens(c) > tokens - 4 for c in regex.findall(r"\X", text)):
            assert chunk.start in whole


def test_the_empty_document_has_no_chunks():
    assert chunk_document(ParsedText("", (), {}), ChunkSettings(), OPENAI) == []


def test_a_document_that_fits_is_one_chunk():
    parsed = document(("title", "Pumps", 1), ("paragraph", sentences(3)), ("paragraph", sentences(3, 3)))
    (chunk,) = chunks_of(parsed)
    assert (chunk.start, chunk.end, chunk.headings) == (0, len(parsed.text), ("Pumps",))
    assert chunk.input == parsed.text


def test_cuts_fall_between_paragraphs_before_they_fall_between_sentences():
    paragraphs = [sentences(6, 6 * i) for i in range(12)]
    parsed = document(*(("paragraph", paragraph) for paragraph in paragraphs))
    chunks = chunks_of(parsed, 200)
    assert len(chunks) > 3
    assert "\n\n".join(spans(parsed, chunks)) == parsed.text
    assert all(paragraph in paragraphs for span in spans(parsed, chunks) for paragraph in span.split("\n\n"))


def test_a_paragraph_too_long_is_cut_between_sentences():
    parsed = document(("paragraph", sentences(60)))
    chunks = chunks_of(parsed, 100)
    assert " ".join(spans(parsed, chunks)) == parsed.text
    assert all(span.startswith("Sentence") and span.endswith(".") for span in spans(parsed, chunks))


@pytest.mark.parametrize(
    "text",
    [
        "As shown by Dr. Smith et al. in Fig. 3 of vol. 12, e.g. by J. R. Miller, the flow is 3.14 l/s, cf. p. 7. ",
        "Die Pumpe, z.B. nach DIN 24 255, fördert ggf. 3,14 l/s in 9 bzw. 7 min Takt. ",
    ],
)
def test_abbreviations_end_no_sentence(text):
    parsed = document(("paragraph", (text * 12).strip()))
    chunks = chunks_of(parsed, 60)
    assert len(chunks) >= 6
    assert all(span.startswith(text[:6]) for span in spans(parsed, chunks))


@pytest.mark.parametrize("sentence", ["水泵坏了，工程师更换了它！", "पंप खराब हो गया। ", "ポンプが故障した。"])
def test_sentences_end_in_every_script(sentence):
    parsed = document(("paragraph", (sentence * 40).strip()))
    chunks = chunks_of(parsed, 60)
    assert all(span.startswith(sentence[:4]) and span.endswith(sentence.strip()[-1]) for span in spans(parsed, chunks))


def test_words_and_urls_stay_whole():
    words = ["https://example.org/" + "/".join(f"part{i * j}" for j in range(6)) for i in range(60)]
    chunks = chunks_of(parsed := document(("paragraph", " ".join(words))), 120)
    assert " ".join(spans(parsed, chunks)).split() == words


@pytest.mark.parametrize("overlap", [16, 28, 40, 64])
def test_neighbours_repeat_whole_sentences_up_to_the_overlap(overlap):
    parsed = document(*(("paragraph", sentences(7, 7 * i)) for i in range(20)))
    chunks = chunks_of(parsed, 150, overlap)
    for before, after in itertools.pairwise(chunks):
        shared = parsed.text[after.start : before.end]
        assert re.fullmatch(r"(Sentence number \d+ tells of pump \d+\.\s*)+", shared)
        assert overlap - 12 <= count_tokens(shared) <= overlap


def test_a_chunk_goes_without_overlap_where_that_keeps_a_sentence_whole():
    short, long = "It was " + "so and " * 13 + "so.", "The pump " + "moves water and " * 25 + "rests."
    assert count_tokens(short) < 40 < 100 < count_tokens(short) + count_tokens(long)
    parsed = document(("paragraph", " ".join([short, short, long] * 6)))
    assert spans(parsed, chunks_of(parsed, 100, 40)) == [f"{short} {short}", long] * 6


def test_overlap_stays_inside_a_section():
    parsed = document(
        *(part for i in range(8) for part in (("title", f"Part {i}", 1), ("paragraph", sentences(20, 20 * i))))
    )
    chunks = chunks_of(parsed, 150, 40)
    first_of_section = {parsed.text.index(f"Part {i}") for i in range(8)}
    assert first_of_section <= {chunk.start for chunk in chunks}
    assert all(
        after.start >= before.end for before, after in itertools.pairwise(chunks) if after.start in first_of_section
    )


def test_a_tail_that_the_overlap_holds_is_no_chunk():
    for count in range(20, 60):
        chunks = chunks_of(document(("paragraph", sentences(count))), 100, 50)
        assert all(before.end < after.end for before, after in itertools.pairwise(chunks))


def test_headings_part_chunks_and_lead_their_inputs():
    parsed = document(
        ("title", "Guide", 1),
        ("paragraph", sentences(30)),
        ("title", "Setup", 2),
        ("paragraph", sentences(30, 30)),
        ("title", "Use", 2),
        ("paragraph", sentences(30, 60)),
    )
    chunks = chunks_of(parsed, 200, 30)
    for chunk, span in zip(chunks, spans(parsed, chunks), strict=True):
        lead = chunk.input[: chunk.input_start]
        inner = re.findall("Guide|Setup|Use", span)
        assert len(inner) <= 1
        assert not inner or span.startswith(inner[0])
        assert lead == "".join(f"{path}\n\n" for path in [" > ".join(chunk.headings[: -1 if inner else None])] if path)
    assert next(chunk.headings for chunk in chunks if "Use" in chunk.headings) == ("Guide", "Use")
    plain = chunks_of(parsed, 200, 30, embed_headings=False)
    assert all(chunk.input_start == 0 for chunk in plain)
    assert {chunk.headings for chunk in plain} == {chunk.headings for chunk in chunks}


def test_a_heading_is_never_left_behind_alone():
    parsed = document(
        ("title", "Guide", 1),
        ("title", "Setup", 2),
        ("paragraph", sentences(40)),
        ("title", "Use", 2),
        ("paragraph", sentences(9)),
    )
    chunks = chunks_of(parsed, 120)
    assert spans(parsed, chunks)[0].startswith("Guide\n\nSetup\n\nSentence number 0")
    assert chunks[0].headings == ("Guide", "Setup")


def test_a_bare_heading_goes_with_what_follows_even_at_its_own_level():
    parsed = document(("title", "Part One", 1), ("title", "Beginnings", 1), ("paragraph", sentences(40)))
    chunks = chunks_of(parsed, 120)
    assert spans(parsed, chunks)[0].startswith("Part One\n\nBeginnings\n\nSentence number 0")
    assert {chunk.headings for chunk in chunks} == {("Beginnings",)}


def test_sections_meet_only_when_both_are_tiny():
    sections = [("title", f"Entry {i}", 2, 3 if i % 5 == 0 else 1) for i in range(40)]
    made = [
        part
        for kind, title, level, size in sections
        for part in ((kind, title, level), ("paragraph", sentences(size * 2)))
    ]
    parsed = document(*made)
    chunks = chunks_of(parsed, 512)
    assert len(chunks) < 40
    for span in spans(parsed, chunks):
        entries = re.split(r"(?=Entry \d+\n)", span)[1:]
        assert len(entries) == 1 or all(count_tokens(entry) <= 64 for entry in entries)


def test_an_overlong_heading_path_takes_a_quarter_of_the_limit_at_most():
    parsed = document(
        *(("title", f"{name} {sentences(4)}", i) for i, name in enumerate("abcdef", 1)), ("paragraph", sentences(60))
    )
    for chunk in chunks_of(parsed, 256)[2:]:
        assert chunk.input_start > 0
        assert count_tokens(chunk.input[: chunk.input_start]) <= 64


def test_a_table_is_cut_between_rows_and_its_header_embedded_with_each_part():
    rows = [f"pump {i} | {i * 37 % 100} bar | {sentences(1, i)}" for i in range(60)]
    parsed = document(("paragraph", "All pumps."), ("table", "\n".join(["name | pressure | note", *rows])))
    chunks = chunks_of(parsed, 200, 50)
    assert len(chunks) > 4
    assert [line for span in spans(parsed, chunks) for line in span.split("\n") if line.startswith("pump")] == rows
    assert all(chunk.input.startswith("name | pressure | note\npump") for chunk in chunks[1:])
    assert all("name" not in span for span in spans(parsed, chunks)[1:])


def test_code_is_cut_between_top_level_blocks_with_its_lines_whole():
    blocks = [
        f"def pump_{i}(flow):\n    total = flow * {i}\n\n    if total > 9:\n        return total\n    return {i}"
        for i in range(30)
    ]
    parsed = document(("code", "\n\n\n".join(blocks)))
    chunks = chunks_of(parsed, 150)
    assert len(chunks) > 4
    assert all(span.startswith("def pump_") and span.endswith(tuple("0123456789")) for span in spans(parsed, chunks))
    long = "\n".join(f"    step_{i} = run({i})" for i in range(200))
    parsed = document(("code", f"def pump():\n{long}"))
    lines = parsed.text.split("\n")
    assert all(line in lines for span in spans(parsed, chunks_of(parsed, 150)) for line in span.split("\n"))


def test_records_are_chunks_of_their_own_unless_tiny():
    records = [f"id: {i}\nbody: {sentences(12, i)}" for i in range(10)]
    parsed = document(*(("record", record) for record in records))
    assert spans(parsed, chunks_of(parsed, 512)) == records


def test_slides_are_chunks_of_their_own_unless_tiny():
    text, made = "", []
    for slide in range(1, 7):
        for kind, content, level in (("title", f"Slide {slide}", 1), ("list_item", sentences(12, slide * 20), None)):
            if kind == "title" and slide in (3, 4):
                continue
            text += "\n\n" if text else ""
            made.append(Element(kind, len(text), len(text) + len(content), slide, level))
            text += content
    chunks = chunks_of(ParsedText(text, tuple(made), {"pages": "slides"}))
    assert [(chunk.first_page, chunk.last_page) for chunk in chunks] == [(slide, slide) for slide in range(1, 7)]
    assert [chunk.headings for chunk in chunks][1:4] == [("Slide 2",), (), ()]


def test_pages_are_those_of_the_first_and_the_last_character():
    text = sentences(90)
    cut = text.index("Sentence number 30")
    elements = (Element("paragraph", 0, cut - 1, 4), Element("paragraph", cut, len(text), 5))
    chunks = chunks_of(ParsedText(text, elements, {}), 300)
    for chunk in chunks:
        assert (chunk.first_page, chunk.last_page) == (4 if chunk.start < cut else 5, 4 if chunk.end <= cut else 5)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 300_000,
        "水" * 100_000,
        " ".join("word" for _ in range(60_000)),
        "x" + " " * 1_200_000 + "y",
        "👩‍👩‍👧‍👦" * 5_000,
        "\u0301" * 20_000,
    ],
    ids=["one word", "no spaces", "one line", "white space", "emoji", "marks"],
)
def test_a_line_without_an_end_is_cut_whole(text):
    chunks_of(document(("paragraph", text)), 512, 64)


def test_the_same_text_makes_the_same_inputs_wherever_it_stands():
    section = (("title", "Shared", 1), ("paragraph", sentences(80)))
    one = chunks_of(document(*section), 200, 30)
    other = chunks_of(document(("title", "Before", 1), ("paragraph", sentences(33, 500)), *section), 200, 30)
    assert [chunk.input for chunk in other if chunk.headings == ("Shared",)] == [chunk.input for chunk in one]


def manual(sizes: list[int]) -> list[list[tuple]]:
    return [
        [("title", f"Section {i}", 2), *(("paragraph", sentences(6, 1000 * i + 6 * j)) for j in range(size))]
        for i, size in enumerate(sizes)
    ]


def inputs(sections: list[list[tuple]], tokens: int, overlap: int) -> set[str]:
    return {
        chunk.input
        for chunk in chunks_of(
            document(("title", "Manual", 1), *(part for section in sections for part in section)), tokens, overlap
        )
    }


@given(
    st.lists(st.integers(0, 6), min_size=20, max_size=100),
    st.data(),
    st.sampled_from([(512, 64), (256, 32), (512, 0), (1024, 128)]),
)
@settings(max_examples=60, deadline=None)
def test_an_edit_changes_the_chunks_around_it_and_no_others(sizes, data, limits):
    sections = manual(sizes)
    before = inputs(sections, *limits)
    at = data.draw(st.integers(0, len(sections) - 1))
    words = data.draw(st.integers(1, 30))
    edited = [list(section) for section in sections]
    edited[at][-1] = (edited[at][-1][0], "Changed. " * words, *edited[at][-1][2:])
    assert len(inputs(edited, *limits) - before) <= 3
    inserted = [("title", "Inserted", 2), ("paragraph", "New. " * words)]
    own = len(inputs([inserted], *limits))
    assert len(inputs([*sections[:at], inserted, *sections[at:]], *limits) - before) <= own + 2


@pytest.mark.parametrize("at", [0, 20, 50, 99])
def test_tiny_sections_of_one_size_do_not_all_shift(at):
    sections = [[("title", f"Entry {100 + i}", 2), ("paragraph", f"Pump {100 + i} moves water.")] for i in range(100)]
    before = inputs(sections, 160, 20)
    assert 15 < len(before) < 60
    inserted = [("title", "Entry 500", 2), ("paragraph", "Pump 500 moves water.")]
    assert len(inputs([*sections[:at], inserted, *sections[at:]], 160, 20) - before) <= 3
    edited = [("title", f"Entry {100 + at}", 2), ("paragraph", "Pump 501 moves oil.")]
    assert len(inputs([*sections[:at], edited, *sections[at + 1 :]], 160, 20) - before) <= 3


def test_what_shapes_chunks_is_in_the_fingerprint():
    def count(texts):
        return [len(text) for text in texts]

    limit = InputLimit(512, count, "characters")
    prints = {
        fingerprint(ChunkSettings(), limit),
        fingerprint(ChunkSettings(chunk_tokens=511), limit),
        fingerprint(ChunkSettings(chunk_overlap=63), limit),
        fingerprint(ChunkSettings(embed_headings=False), limit),
        fingerprint(ChunkSettings(), InputLimit(256, count, "characters")),
        fingerprint(ChunkSettings(), InputLimit(512, count, "words")),
    }
    assert len(prints) == 6
    assert fingerprint(ChunkSettings(), limit) in prints
