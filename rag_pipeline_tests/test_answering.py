"""ask with a chat model: answers from the passages alone, checked while they come."""

import itertools
import re
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rag_pipeline.core.answering import answer, stream_answer
from rag_pipeline.core.errors import ProviderError
from rag_pipeline.core.models import chat_model
from rag_pipeline.core.prompting import NO_ANSWER, make_prompt
from rag_pipeline.core.reply_check import ReplyCheck
from rag_pipeline.core.tokens import count_tokens
from rag_pipeline_tests.chats import PASSAGES, Writes, hits


@pytest.mark.parametrize("chat", [None, Writes("never")])
def test_without_hits_no_model_is_asked(chat):
    result = answer("What?", hits(question_tokens=3, cost_usd=0.1), chat)
    assert (result.answered, result.sources, result.cost_usd) == (False, (), 0.1)
    assert (result.tokens.embedding, result.tokens.prompt, result.tokens.total) == (3, 0, 3)
    assert result.kind == ("generated" if chat else "extractive")
    assert chat is None or chat.prompts == []


def test_a_generated_answer_has_the_sources_it_cites_and_its_price():
    result = answer(
        "How?", hits(*PASSAGES, question_tokens=7, cost_usd=0.5), Writes("On the page [1]. Then [3], again [1].")
    )
    assert (result.answered, result.kind, result.model) == (True, "generated", "openai/pen")
    assert [(source.citation, source.path) for source in result.sources] == [(1, "1.md"), (3, "3.md")]
    assert (result.tokens.embedding, result.tokens.prompt, result.tokens.completion) == (7, 1000, 100)
    assert result.tokens.total == 1107
    assert result.cost_usd == pytest.approx(0.5 + 0.001 + 0.001)
    assert result.citations_dropped == 0


@pytest.mark.parametrize(
    ("written", "text", "cited", "dropped"),
    [
        ("Yes [9].", "Yes.", [], 1),
        ("Yes [0][1].", "Yes [1].", [1], 1),
        ("Yes [1, 2].", "Yes [1][2].", [1, 2], 0),
        ("Yes [3,1 , 7].", "Yes [3][1].", [3, 1], 1),
        ("Yes [1][1] [4].", "Yes [1][1].", [1], 1),
        ("Yes [1-3].", "Yes [1][2][3].", [1, 2, 3], 0),
        ("Yes [1–2, 3].", "Yes [1][2][3].", [1, 2, 3], 0),
        ("Yes [3-1] [2—9].", "Yes [1][2][3] [2][3].", [1, 2, 3], 1),
        ("Yes [7-9999].", "Yes.", [], 1),
        ("Yes [passage 1][Passages 2 - 3].", "Yes [1][2][3].", [1, 2, 3], 0),
        ("Yes【1】 【9】.", "Yes[1].", [1], 1),
        ("Yes [1 and 2], [1, and 9].", "Yes [1][2], [1].", [1, 2], 1),
        ("Yes [1, passage 2] [passages 1 and 99].", "Yes [1][2] [1].", [1, 2], 1),
        ("Yes [source 1] [Sources: 2, 9] [document #3].", "Yes [1] [2] [3].", [1, 2, 3], 1),
        ("Yes 【1†source】【4:0†source】.", "Yes [1].", [1], 1),
        ("Yes ［1］ [２] ［９］.", "Yes [1] [2].", [1, 2], 1),
        ("Yes [^1] [#2] [**3**] [^9^] [#9] [**9**].", "Yes [1] [2] [3].", [1, 2, 3], 3),
        (r"Yes \[1\] \[9\].", "Yes [1].", [1], 1),
        ("Yes [1: 1.md] [2, page 3] [3 (Guide)] [9: 9.md].", "Yes [1] [2] [3].", [1, 2, 3], 1),
        # A link behind it goes whole, and nothing with it that may be none.
        ("Yes [1](1.md) [2]( 2.md 'Two' ) [3](a(b)c).", "Yes [1] [2] [3].", [1, 2, 3], 0),
        ("Yes [1]( 1.md \"a 'b'\") [2](2.md (Two)).", "Yes [1] [2].", [1, 2], 0),
        ("Yes [1](1.md 'a. [2](a(b c).", "Yes [1] 'a. [2](a(b c).", [1, 2], 0),
        ("是[1]。否[9]。", "是[1]。否。", [1], 1),
        ("Yes [4] [12] [99] [12345] [passage 2024] [1, 2024].", "Yes [1].", [1], 6),
        ("Yes [x] [1a] [].", "Yes [x] [1a] [].", [], 0),
        ("At [10:30] [Section 1] [0.5, 1] [p. 1].", "At [10:30] [Section 1] [0.5, 1] [p. 1].", [], 0),
        # Those behind a remark, and none of the numbers in it.
        ("Yes [1: a.md, 2: b.md].", "Yes [1][2].", [1, 2], 0),
        ("Yes [1, p. 3; 2, p. 4] [1, page 3; 9, page 4].", "Yes [1][2] [1].", [1, 2], 1),
        ("Yes [1, page 3, 2, page 4] [1, pages 2, 3] [1, pp. 2, 3; 9].", "Yes [1][2] [1] [1].", [1, 2], 1),
        ("Yes [1, pages 3, 2, page 4] [3: pages 2, 1: a].", "Yes [1][2] [3][1].", [1, 2, 3], 0),
        ("Yes [1 (parts, 2, 2), 3 (all)] [1: in May, 2024] [1: 3,000].", "Yes [1][3] [1] [1].", [1, 3], 0),
        ("Yes [passage 1: foo, 2] [1: of 2 and 3] [1: a and 3: b].", "Yes [1][2] [1] [1][3].", [1, 2, 3], 0),
        ("Yes [1†L3, 2†L5] [1: see [2]] [1, [9]].", "Yes [1][2] [1][2] [1].", [1, 2], 1),
        ("Yes [1, §3] [1, section 2] [1, line 3] [cite: 2].", "Yes [1] [1] [1] [2].", [1, 2], 0),
        ("Yes [1‐3] [1‑2] [1−2] [1 to 3].", "Yes [1][2][3] [1][2] [1][2] [1][2][3].", [1, 2, 3], 0),
        ("Yes [1 or 2] [1 und 3] [1/2].", "Yes [1][2] [1][3] [1][2].", [1, 2, 3], 0),
        ("Yes [1: a.md, 2-10].", "Yes [1][2][3].", [1, 2, 3], 1),
        ("Yes [1，2] [1、9] [see 2] [Quelle 9].", "Yes [1][2] [1] [2].", [1, 2], 2),
        # Intervals, and fractions of what are not passages.
        ("In [0, 1] [0-5] [1, 0] [0 to 1].", "In [0, 1] [0-5] [1, 0] [0 to 1].", [], 0),
        ("Open [24/7], part [1/9] [1].", "Open [24/7], part [1/9] [1].", [1], 0),
        ("~~~\nx [9] `\n~~~ Yes [9].", "~~~\nx [9] `\n~~~ Yes.", [], 1),
        ("In [2024] and [1999-2001] [1].", "In [2024] and [1999-2001] [1].", [1], 0),
        ("Yes [" + "9" * 5000 + "].", "Yes [" + "9" * 5000 + "].", [], 0),
        ("No citation at all.", "No citation at all.", [], 0),
    ],
)
def test_citations_of_what_was_not_given_are_dropped_and_counted(written, text, cited, dropped):
    result = answer("How?", hits(*PASSAGES), Writes(written))
    assert (result.text, [source.citation for source in result.sources]) == (text, cited)
    assert result.citations_dropped == dropped


@pytest.mark.parametrize(
    ("written", "cited"),
    [
        ("Use argv[1] and argv[0], too [2].", [2]),
        ("Use argv[0], later argv[1] [2].", [2]),
        ("Use cells[1][0] and cells[1, 7] [2].", [2]),
        # A word that no number but a passage's stands behind.
        ("Ten days[1]. At noon[2, 3].", [1, 2, 3]),
        ("Ten days[1][2].", [1, 2]),
        ("Set max_items[1] of v2.0[2] in guide.md[3].", [1, 2, 3]),
        ("Use argv[1:] of argv[1] [2].", [2]),
        # What no citation follows, or only programs write.
        ("Use f(x)[0], cells[i][9] and f(x, y)[9] [2].", [2]),
        ("Use sys.argv[9], of sys.argv[1], max_items[9] and myList[9] [2].", [2]),
    ],
)
def test_numbers_right_behind_a_name_that_is_indexed_are_no_citations(written, cited):
    result = answer("How?", hits(*PASSAGES), Writes(written))
    assert (result.text, [source.citation for source in result.sources]) == (written, cited)
    assert result.citations_dropped == 0


@pytest.mark.parametrize(
    ("written", "text", "cited", "dropped"),
    [
        ("Die Straße[1] ist gut. Die Größe[9] nicht.", "Die Straße[1] ist gut. Die Größe nicht.", [1], 1),
        ("Version 2.0[1] came before 3.0[8].", "Version 2.0[1] came before 3.0.", [1], 1),
        ("30 days[1], or 14 days[9]. A day[2][9], (so)[9].", "30 days[1], or 14 days. A day[2], (so).", [1, 2], 3),
        ("Q3[9] of PostgreSQL[9], in GPT4[1].", "Q3 of PostgreSQL, in GPT4[1].", [1], 2),
        ("Version 2.0[2024], argv[passage 1], argv[0].", "Version 2.0[2024], argv[1], argv[0].", [1], 0),
        ("Use argv[1](//evil.org) and argv[0](//evil.org).", "Use argv[1] and argv[0].", [], 0),
    ],
)
def test_numbers_right_behind_any_other_word_are_citations(written, text, cited, dropped):
    result = answer("How?", hits(*PASSAGES), Writes(written))
    assert (result.text, [source.citation for source in result.sources]) == (text, cited)
    assert result.citations_dropped == dropped


@pytest.mark.parametrize(
    "repeated",
    [
        "a",
        "](a",
        "[1](a",
        "[1",
        "[1] ",
        "[1, ",
        "[",
        ".",
        "]( ",
        "`` `",
        "//a",
        "argv[1]",
        f"{NO_ANSWER} ",
        ". ",
        "~~~~ ",
        "[1: [2] ",
        "[1, p 2, ",
        "[1: [",
        f"[1: {'[' + 'x' * 40 + ']'}",
    ],
)
@pytest.mark.parametrize("size", [3, 300_000])
def test_a_reply_is_checked_in_time_that_its_length_alone_decides(repeated, size):
    # Were each position compared with all that follow, any of these would take many minutes.
    check = ReplyCheck(make_prompt("How?", hits(*PASSAGES), Writes("").model))
    reply = "[1](" + repeated * (150_000 // len(repeated))
    shown = "".join(check.feed(reply[at : at + size]) for at in range(0, len(reply), size)) + check.finish()
    assert shown == check.text


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("HTTPS://evil.org/a, hTtP:\\\\evil.org", "…, …"),
        ('<img src="//evil.org/a"> <img src=//evil.org/a>', '<img src="…"> <img src=…>'),
        ("![a]( https://evil.org/a) [b](  //evil.org/b )", "![a](…) [b](… )"),
        ("[a]( <//evil.org/a> )", "[a](… )"),
        ("[a](b(c)d) [a](b(c 'd')", "[a](…) [a](… 'd')"),
        ("[a][r]\n\n[r]: //evil.org/a 'b'", "[a][r]\n\n[r]: … 'b'"),
        ("See www.evil.org/a and WWW.evil.org.", "See … and …."),
        ("See //user@evil.org/a", "See …"),
        ("Half // full, www alone, and/or", "Half // full, www alone, and/or"),
        ("[r]: //evil%2eorg/x //u$r@evil.org", "[r]: … …"),
        ("<img src='/\\evil.org'> https:/evil.org", "<img src='…'> …"),
        ("[a](<https:/evil.org/?q=s b>)", "[a](<… b>)"),
        # Nor one that comes together where a citation is dropped.
        ("www[9].evil.org/s <img src=//evil[9].org/s>", "www .evil.org/s <img src=//evil .org/s>"),
        ("www [8] [9].evil.org", "www .evil.org"),
        # Nor without a slash, or with its signs written in HTML; nor one that begins like another host or file.
        ("https:evil.org https:&#47;&#47;evil.org/s", "… …"),
        ("https://docs.or https://docs.org/ab [a](https://docs.o)", "… … [a](…)"),
        # What ends an address is none of it.
        ("**https://docs.org/a** “https://docs.org/a” 访问https://docs.org/a，然后|https://docs.org/a|",) * 2,
        ("x = a//b.c, path//to.file", "x = a//b.c, path//to.file"),
        # Nor in code, which a reader's Markdown may not take for code; a comment in it stays.
        ("\\`![a](https://evil.org/?q=s)\\`", "\\`![a](…)\\`"),
        ("Yes ~~~ ![a](https://evil.org/s) [b](//evil.org) ~~~", "Yes ~~~ ![a](…) [b](…) ~~~"),
        ("`curl https://docs.org/a` `x = 1 //see a.b`", "`curl https://docs.org/a` `x = 1 //see a.b`"),
        ("[a]( https://docs.org/a) www.docs.org/b <//docs.org/c>",) * 2,
    ],
)
def test_no_form_of_an_address_that_was_made_up_is_shown(written, text):
    found = hits("See https://docs.org/a, www.docs.org/b and //docs.org/c")
    assert answer("How?", found, Writes(written)).text == text


@pytest.mark.parametrize("written", ["See https://docs.org/a[1].", "请访问https://docs.org/a，然后[1]。"])
def test_a_citation_behind_an_address_is_one(written):
    result = answer("How?", hits("See https://docs.org/a"), Writes(written))
    assert (result.text, [source.citation for source in result.sources]) == (written, [1])


@pytest.mark.parametrize("written", ["[9].", " **[9]**", "- [9](9.md).\n- [8]\n"])
def test_a_reply_of_nothing_but_what_is_dropped_is_no_answer(written):
    stream = stream_answer("How?", hits(*PASSAGES), Writes(list(written)))
    assert list(stream) == ["The documents of docs do not answer this question."]
    assert (stream.answer.answered, stream.answer.citations_dropped > 0) == (False, True)
    for shown in ("…", "[1]."):
        assert answer("How?", hits(*PASSAGES), Writes(shown)).text == shown


def test_what_the_model_says_instead_of_an_answer_counts_in_any_case_at_the_beginning():
    assert not answer("How?", hits(*PASSAGES), Writes("Not in the passages.")).answered
    told = answer("How?", hits(*PASSAGES), Writes("At noon [3]. The day is not in the passages."))
    assert told.text == "At noon [3]. The day is not in the passages."


@pytest.mark.parametrize(
    "written",
    [
        NO_ANSWER,
        f"{NO_ANSWER}.",
        f"  {NO_ANSWER} [1]",
        f"**{NO_ANSWER}** [1]",
        f"`{NO_ANSWER}`",
        f"{NO_ANSWER}: they tell of the canteen only.",
        "[17]",
    ],
)
def test_a_model_that_finds_nothing_has_not_answered(written):
    result = answer("How?", hits(*PASSAGES), Writes(written))
    assert (result.answered, result.sources) == (False, ())
    assert result.text == "The documents of docs do not answer this question."
    assert result.tokens.prompt == 1000  # it was paid for


@pytest.mark.parametrize(
    ("written", "text", "answered"),
    [
        (f"Ten days [1]. The colour: {NO_ANSWER}.", "Ten days [1]. The colour: the documents do not say.", True),
        (f"Sorry: {NO_ANSWER}", "Sorry: the documents do not say", False),
        # What begins with these words and goes on to answer is no refusal.
        ("Not in the passages of the main text, but at noon [3].",) * 2 + (True,),
        (f"{NO_ANSWER}, but at noon [3].", "The documents do not say, but at noon [3].", True),
        (f"{NO_ANSWER}. {'So it is. ' * 30}", f"The documents do not say. {'So it is. ' * 30}".strip(), False),
    ],
)
def test_what_a_model_does_not_find_is_said_in_words(written, text, answered):
    result = answer("How?", hits(*PASSAGES), Writes(written))
    assert (result.text, result.answered) == (text, answered)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("Send `argv[7]` [1].", "Send `argv[7]` [1]."),
        ("```\na[9] = 1\n``` [1]", "```\na[9] = 1\n``` [1]"),
        ("It `never ends [9] [1].", "It `never ends [1]."),
        ("``a `[9]` [9]`` [1] [9]", "``a `[9]` [9]`` [1]"),
    ],
)
def test_what_stands_in_code_is_no_citation(written, text):
    result = answer("How?", hits(*PASSAGES), Writes(written))
    assert (result.text, [source.citation for source in result.sources]) == (text, [1])


@pytest.mark.parametrize(
    ("finish", "said"), [("length", "as much as it may"), ("content_filter", "content filter"), ("stop", None)]
)
def test_an_answer_that_was_cut_short_says_so(finish, said):
    result = answer("How?", hits(*PASSAGES), Writes("On the [1]", finish=finish))
    assert (result.text, result.answered) == ("On the [1]", True)
    assert said in result.degraded if said else result.degraded is None


@pytest.mark.parametrize(
    ("written", "finish", "said"),
    [("", "stop", "empty"), (" \n ", "stop", "empty"), ("", "length", "all it may"), ("", "content_filter", "filter")],
)
def test_an_empty_reply_is_no_answer_of_the_documents(written, finish, said):
    with pytest.raises(ProviderError, match=f"openai/pen gave no answer: .*{said}"):
        answer("How?", hits(*PASSAGES), Writes(written, finish=finish))


def test_a_search_that_was_degraded_is_told_in_the_answer():
    for chat in (Writes("Yes [1]."), None):
        assert answer("password page", hits(*PASSAGES, degraded="no vectors"), chat).degraded == "no vectors"
    cut = answer("How?", hits(*PASSAGES, degraded="no vectors"), Writes("Yes [1].", finish="length"))
    assert cut.degraded.startswith("no vectors; the answer is cut")


def test_tokens_that_are_not_told_are_counted():
    chat = Writes("Yes [1].", billed=None)
    result = answer("How?", hits(*PASSAGES), chat)
    assert result.tokens.prompt == count_tokens(chat.instructions[0]) + count_tokens(chat.prompts[0])
    assert result.tokens.completion == count_tokens("Yes [1].")


def test_a_price_that_is_not_known_is_not_told():
    chat = Writes("Yes [1].")
    chat.model = chat_model("openai/unknown")
    assert answer("How?", hits(*PASSAGES), chat).cost_usd is None
    assert answer("How?", hits(*PASSAGES, cost_usd=None), Writes("Yes [1].")).cost_usd is None


# As it is written


def test_a_stream_gives_the_text_as_it_comes_and_the_answer_at_the_end():
    chat = Writes(["On the ", "settings page ", "[1]. ", "At once."])
    stream = stream_answer("How?", hits(*PASSAGES), chat)
    assert next(stream) == "On the"
    assert not chat.closed
    assert "".join(["On the", *stream]) == "On the settings page [1]. At once." == stream.answer.text
    assert stream.answer == answer("How?", hits(*PASSAGES), chat)


written = st.lists(
    st.sampled_from(
        ["word", " ", "\n", "[1]", "[2", "]", "[", ", 9", "[9]", "1", "(", ")", "http", "://", "evil.org", "`", "```",
         NO_ANSWER, "NOT IN", "*", "![", "é", ".", "https://docs.org/a", "Not in the ", "passages", "//", "www.",
         "HTTPS:", "-3]", "[passage", "【", "】", "<", "\\\\", "5", "\\", "†source", " and ", "^", ": a", "[2024]",
         "argv[0]", "argv[1]", "ß[9]", "a_b[9]", "４", "［", "](", "~~~", "~", ", p. 3; 2", "(a)", " 't", "' )",
         "\\[9\\]", "long words " * 20]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@settings(deadline=None)
@example("So [1][9]. See https://x.org/a.b. And `b[9]` [[9]9], http[9]://evil.org", list(range(60)))
@example("[1: [2]] x", list(range(60)))
@example("~~~ [9] ~~~ [1: see [2]] [1](a 'b') x", list(range(60)))
@given(written, st.lists(st.integers(0, 60)))
def test_a_stream_shows_what_the_whole_reply_would_however_it_is_split(written, cuts):
    cuts = sorted({0, *cuts, 60})
    parts = [*(written[start:end] for start, end in itertools.pairwise(cuts)), written[60:], " x"]
    passages = hits("See https://docs.org/a.", "Two.")
    # The key of the prompt, or else a short address might stand in that of the one and not of the other.
    with mock.patch("rag_pipeline.core.prompting.secrets.token_hex", lambda size: "key"):
        stream = stream_answer("How?", passages, Writes(parts))
        shown = list(stream)
        whole = answer("How?", passages, Writes(written + " x"))
    assert "".join(shown) == stream.answer.text
    assert stream.answer == whole
    code_left_out = re.sub(r"(```|~~~)(?s:.*?)\1|``(?!`)(?:[^`\n]|`(?!`))+``|`[^`\n]*`", "", stream.answer.text)
    assert "[9]" not in re.sub(r"[\w)\]](\[[\d, -]+\])+", "", code_left_out)
    assert "http://evil" not in code_left_out


@pytest.mark.parametrize("part", ["See [31m of it ", "The [figure on the next page "])
def test_a_bracket_that_begins_no_citation_does_not_hold_up_a_stream_for_long(part):
    stream = stream_answer("How?", hits(*PASSAGES), Writes([part, "and more, " * 30, "until the end."]))
    assert next(stream) == part.rstrip()


def test_a_stream_without_a_model_or_without_hits_is_one_piece():
    for chat, found in ((None, hits(*PASSAGES)), (Writes("never"), hits())):
        stream = stream_answer("How do I reset my password?", found, chat)
        assert list(stream) == [stream.answer.text]


def test_nothing_of_what_the_model_says_instead_of_an_answer_is_shown():
    stream = stream_answer("How?", hits(*PASSAGES), Writes(["**NOT", " IN THE PASS", "AGES** and ", "more"]))
    assert list(stream) == ["The documents of docs do not answer this question."]
    assert not stream.answer.answered


def test_a_stream_that_is_closed_stops_the_model_and_has_no_answer():
    chat = Writes(["One ", "two ", "three"])
    stream = stream_answer("How?", hits(*PASSAGES), chat)
    next(stream)
    stream.close()
    assert chat.closed
    with pytest.raises(ProviderError, match="not read to its end"):
        _ = stream.answer
