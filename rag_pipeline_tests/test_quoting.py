"""ask without a chat model: the best sentences, as they stand in the passages."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_pipeline.core.answering import answer
from rag_pipeline.core.quoting import MOST_SENTENCES, best_sentences, quotation
from rag_pipeline_tests.chats import PASSAGES, hits


def test_an_extractive_answer_quotes_the_sentence_that_answers():
    result = answer("How do I reset my password?", hits(*PASSAGES), None)
    assert result.text.splitlines()[0] == "“Reset your password on the settings page.” [1]"
    assert (result.kind, result.model, result.answered) == ("extractive", None, True)
    (source, *_) = result.sources
    assert (source.citation, source.collection, source.path, source.page) == (1, "docs", "1.md", 1)
    assert (source.heading, source.start, source.end, source.content) == (("Guide",), 10, 76, PASSAGES[0])
    assert "canteen" not in result.text


words = st.sampled_from(
    ["password", "reset", "page", "days", "noon", "a.b.", "3.5", "e.g.", "Mr.", "“so”", "„ja“", "è", "日本。", "..."]
) | st.sampled_from(["[1]", "<passage>", "\n", "\n\n"])
texts = st.lists(words, max_size=30).map(" ".join)


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=5), texts)
def test_what_an_extractive_answer_quotes_stands_literally_in_the_source_it_cites(contents, question):
    result = answer(question, hits(*contents), None)
    if not result.answered:
        assert result.sources == ()
        return
    found = best_sentences(question, hits(*contents))
    assert 1 <= len(found) <= MOST_SENTENCES
    assert all(sentence in contents[number - 1] for number, sentence in found)
    cited = list(dict.fromkeys(number for number, _ in found))
    assert result.text == "\n".join(f"{quotation(sentence)} [{cited.index(number) + 1}]" for number, sentence in found)
    # Nothing that was quoted ends its quotation, or passes for a citation of ours.
    assert re.findall(r"\[\d\]", result.text) == [f"[{cited.index(number) + 1}]" for number, _ in found]
    assert result.text.count("“") == result.text.count("”") == len(found)
    assert [source.citation for source in result.sources] == list(range(1, len(cited) + 1))
    assert [source.content for source in result.sources] == [contents[number - 1] for number in cited]


LOGS = """6.8. Log files

Log files should usually be named "/var/log/package.log". If you have many log
files, or need a separate directory, you should create "/var/log/package" and
place your log files there.

The command to rotate them:

* once a week, to keep as much of them as anybody is ever going to want to
  read again
* or once a day

setting | default | meaning
max_log_files | 7 | how many are kept"""


@pytest.mark.parametrize(
    ("question", "quoted"),
    [
        # Sentences and list items over the lines they were wrapped at, as they stand.
        (
            "Where to create a separate directory?",
            'If you have many log\nfiles, or need a separate directory, you should create "/var/log/package" and\n'
            "place your log files there.",
        ),
        (
            "What would anybody want to read again?",
            "* once a week, to keep as much of them as anybody is ever going to want to\n  read again",
        ),
        # Rows each by itself, and the words that an identifier is made of.
        ("How many are kept by max files?", "max_log_files | 7 | how many are kept"),
        ("How are log files named?", 'Log files should usually be named "/var/log/package.log".'),
    ],
)
def test_a_sentence_is_quoted_whole(question, quoted):
    assert best_sentences(question, hits(LOGS, heading=("6. Files", "6.8. Log files")))[0] == (1, quoted)


TABLE = """Role | Vacation days
Engineer | 30
Cook | 25

Leave after a birth:
- Mothers: 14 weeks
- Fathers: 2 weeks

See Dr. Smith, Sect. 4 for unpaid leave, and no. 7 for the rest."""


@pytest.mark.parametrize(
    ("question", "quoted"),
    [
        # Rows are about what the columns are headed by, and the heads are no rows.
        ("How many vacation days does an engineer have?", "Engineer | 30"),
        ("Which role has 25 vacation days?", "Cook | 25"),
        # A question's own words are none that an answer has to have.
        ("How many weeks do fathers get?", "- Fathers: 2 weeks"),
        ("What is said of unpaid leave?", "See Dr. Smith, Sect. 4 for unpaid leave, and no. 7 for the rest."),
    ],
)
def test_a_row_an_item_and_a_sentence_with_abbreviations_are_found(question, quoted):
    assert best_sentences(question, hits(TABLE, heading=()))[0] == (1, quoted)


def test_a_row_of_figures_comes_behind_a_sentence():
    table = "mode | p50 | p99 | ratio | more\nembeddings kept | 40.0 | 78.0 | 1.03 | 3,000\ndays | 3 | 4 | 1 | 5"
    sentence = "In the cache, which is Redis, or Valkey, they are kept: embeddings for a month."
    found = best_sentences("How long are embeddings kept?", hits(f"{table}\n\n{sentence}", heading=()))
    assert found[0] == (1, sentence)
    assert best_sentences("How long are embeddings kept?", hits(table, heading=())) != []


@pytest.mark.parametrize("asked", ["{}", "Q: {}", "**{}**", "- {}"])
def test_a_question_is_not_quoted_as_the_answer_to_it(asked):
    text = asked.format("How long is the notice period?") + "\nA: Three months to the end of a quarter."
    assert best_sentences("How long is the notice period?", hits(f"Holidays are paid.\n{text}")) == [
        (1, "A: Three months to the end of a quarter.")
    ]


def test_a_row_with_a_date_is_quoted():
    text = "Each version is released when it is ready.\n\nversion | released | at\n3.2 | 2024-01-31 | 12:00"
    assert best_sentences("When was version 3.2 released?", hits(text, heading=()))[0] == (
        1,
        "3.2 | 2024-01-31 | 12:00",
    )


@pytest.mark.parametrize(
    "word",
    [
        *("many", "much", "long", "often", "far", "old", "get", "got", "whose", "please", "like", "tell"),
        *("really", "would", "know", "want", "need"),
    ],
)
def test_a_word_of_questions_need_not_stand_in_the_answer_and_makes_none(word):
    assert answer(f"How {word} fathers?", hits("- Mothers: 14 weeks\n- Fathers: 2 weeks"), None).answered
    assert not answer(f"What ports {word}?", hits(f"Mothers {word} tea."), None).answered


@pytest.mark.parametrize(
    "sentence",
    [
        "Erlaubt ist z. B. eine Jacke.",
        "Erlaubt ist i. d. R. eine Jacke, d. h. sie, u. a. Hosen, z.B. lange.",
        "Erlaubt hat es bzw. Prof. Dr. Maus, Nr. 5, usw. oder ca. drei etc. von ihnen.",
        "Erlaubt sind evtl. zwei, max. 3.",
        "Erlaubt: e. g. Hats, i. e. red, e.g. these, i.e. Those.",
        "Erlaubt ist es am 25. jeden Monats, am 3. Mai und on Apr. 3.",
    ],
)
def test_an_abbreviation_ends_no_sentence(sentence):
    found = hits(f"Am Anfang. {sentence} Anderes nicht.")
    assert best_sentences("Erlaubt?", found) == [(1, sentence)]


@pytest.mark.parametrize(
    ("question", "table", "quoted"),
    [
        ("days of an engineer", "Engineer | 30 days\nCook | 25 days", "Engineer | 30 days"),
        ("Who is the engineer?", "Engineer | Alice\nCook | Bob", "Engineer | Alice"),
        ("Which role has Alice?", "Name | Role\nAlice | Engineer\n | \nBob | Cook", "Alice | Engineer"),
    ],
)
def test_a_first_row_that_may_be_no_head_of_columns_is_quoted_where_it_answers(question, table, quoted):
    assert best_sentences(question, hits(table, heading=())) == [(1, quoted)]


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("He said “reset it” [3].", "“He said ‘reset it’ (3).” [1]"),
        ("Reset it” [3] „here“ [1][2].", "“Reset it’ (3) ‚here‘ (1)(2).” [1]"),
        ("Reset it [1: see [2]].", "“Reset it (1: see (2)).” [1]"),
        ("Reset it by `argv[3]`.", "“Reset it by `argv[3]`.” [1]"),
    ],
)
def test_what_is_quoted_neither_ends_the_quotation_nor_cites(sentence, shown):
    assert answer("Reset it", hits(sentence), None).text == shown


def test_what_several_passages_say_is_quoted_once():
    same = "A password is reset on the settings page."
    result = answer("How is a password reset?", hits(same, f"{same} Or by mail.", f"Note: x.\n\n{same}"), None)
    assert result.text == f"“{same}” [1]"


def test_a_heading_is_no_answer():
    quoted = best_sentences("What are log files?", hits(LOGS, heading=("6. Files", "6.8. Log files")))
    assert len(quoted) == MOST_SENTENCES
    assert "6.8. Log files" not in {sentence for _, sentence in quoted}


@pytest.mark.parametrize(
    ("question", "contents", "quoted"),
    [
        ("如何重置密码？", ("您可以在设置页面上重置密码。食堂中午开门。",), "您可以在设置页面上重置密码。"),
        (
            "パスワードはどこで変更できますか？",
            ("食堂は正午に開きます。パスワードは設定画面で変更できます。",),
            "パスワードは設定画面で変更できます。",
        ),
        (
            "비밀번호를 어떻게 재설정합니까?",
            ("비밀번호는 설정 페이지에서 재설정할 수 있습니다.",),
            "비밀번호는 설정 페이지에서 재설정할 수 있습니다.",
        ),
        (
            "كيف يمكن تغيير كلمة المرور؟",
            ("يمكن تغيير كلمة المرور من صفحة الإعدادات.",),
            "يمكن تغيير كلمة المرور من صفحة الإعدادات.",
        ),
        ("पासवर्ड कैसे बदलें?", ("सेटिंग पेज पर पासवर्ड बदलें।",), "सेटिंग पेज पर पासवर्ड बदलें।"),
        ("What is C++?", ("Grade C is a pass.", "C++ is a language."), "C++ is a language."),
        ("What is new in v1.2.3?", ("New: 1, 2 and 3.", "In v1.2.3 colours are new."), "In v1.2.3 colours are new."),
        ("What does --dry-run do?", ("--dry-run\n\nShows what would happen.",), "Shows what would happen."),
        (
            "How is a password reset?",
            ("Password reset\n\nA password is reset by mail.",),
            "A password is reset by mail.",
        ),
    ],
)
def test_questions_in_any_script_and_of_identifiers_are_answered_by_sentences(question, contents, quoted):
    assert [sentence for _, sentence in best_sentences(question, hits(*contents))] == [quoted]


@pytest.mark.parametrize("question", ["谁写了哈姆雷特？", "ハムレットを書いたのは誰ですか？", "من كتب هاملت؟"])
def test_a_question_in_another_script_that_nothing_answers_is_not_answered(question):
    passages = hits(
        "您可以在设置页面上重置密码。", "パスワードは設定画面で変更できます。", "يمكن تغيير كلمة المرور من صفحة."
    )
    assert not answer(question, passages, None).answered


def test_a_question_that_the_documents_do_not_answer_is_not_answered():
    result = answer("Who wrote Hamlet?", hits(*PASSAGES), None)
    assert (result.answered, result.sources) == (False, ())
    assert result.text == "The documents of docs do not answer this question."


@pytest.mark.parametrize("question", ["Who won the 1934 world cup in Uruguay?", "What is the population of the world?"])
def test_a_common_word_is_no_answer(question):
    assert not answer(question, hits("Hello, World!", "A test of the parser."), None).answered
