"""Token counts: exact cl100k, of any text and of any span of it."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rag_pipeline.core import tokens
from rag_pipeline.core.tokens import TokenCounter, count_tokens, encoding

# Characters on which cl100k's splitting pattern turns: letters, digits, marks, signs, every kind of white space,
# contractions.
TURNS = "aZſ9½٣汉ก\u0301ि.,'\"(-_|/😀\u200d\x1c \t\n\r\x0b\x85\xa0\u2028\u3000"
texts = st.text(st.sampled_from(TURNS) | st.characters(exclude_categories=["Cs"]), max_size=60)


def test_the_encoding_is_cl100k():
    assert encoding().encode_ordinary("hello world") == [15339, 1917]
    assert count_tokens("<|endoftext|>") == 7


@given(texts, st.data())
@settings(max_examples=200, deadline=None)
@example("it's (a)b 12345.\n\n  x", None)
def test_the_tokens_of_a_span_are_those_of_its_text(text, data):
    counter = TokenCounter(text)
    ends = range(len(text) + 1)
    some = [(a, b) for a in ends for b in ends if a <= b]
    chosen = some if data is None else data.draw(st.lists(st.sampled_from(some), max_size=20))
    for start, end in chosen:
        assert counter.count(start, end) == len(encoding().encode_ordinary(text[start:end]))


@given(st.lists(texts, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_text_counted_in_blocks_is_counted_the_same(parts):
    text = "word ".join(parts)
    whole = TokenCounter(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_BLOCK", 50)
        blocks = TokenCounter(text)
    assert whole.estimate(0, len(text)) == count_tokens(text)
    words = [i for i in range(len(text)) if text.startswith("word ", i)]
    assert all(blocks.count(i, i + 4) == whole.count(i, i + 4) == 1 for i in words)


@pytest.mark.parametrize("text", ["x" + " " * 1_020_000 + "y", "x.\n" + "\n \n" * 340_000 + "\t\ty"])
def test_a_million_spaces_do_not_overflow_the_tokenizer(text):
    counter = TokenCounter(text)
    assert counter.count(0, len(text)) == counter.estimate(0, len(text)) == count_tokens(text)


@pytest.mark.parametrize("space", [" ", "\n", " \n", "\u3000", "\t \n \t"])
@pytest.mark.parametrize("before", ["a", "a.", ""])
def test_text_parted_at_long_white_space_has_the_tokens_of_the_whole(space, before):
    text = before + space * 60_000 + "b c"
    assert count_tokens(text) == len(encoding().encode_ordinary(text))


def test_the_reach_is_the_farthest_end_with_so_many_tokens():
    text = "Pumps move water. " * 50
    counter = TokenCounter(text)
    end = counter.reach(18, 12)
    assert counter.estimate(18, end) <= 12 < counter.estimate(18, end + 1)
    start = counter.reach_back(90, 12)
    assert counter.estimate(start, 90) <= 12 < counter.estimate(start - 1, 90)
