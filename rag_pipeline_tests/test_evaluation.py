"""evaluate: the figures of questions with known sources, and the files such questions are in."""

import json
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_pipeline.core.errors import ProviderError, SourceError, UsageError
from rag_pipeline.core.evaluation import KnownQuestion, measures, read_questions, source_questions
from rag_pipeline.core.retrieval import AlsoIn, Hit
from rag_pipeline_tests.openai_server import error

FORM = {"collection", "mode", "k", "questions", "hit_rate", "mrr", "ndcg"}


def lines(*questions: dict) -> bytes:
    return b"".join(json.dumps(question).encode() + b"\n" for question in questions)


def found(*paths: str | tuple[str, ...]) -> list[Hit]:
    """A hit for each path, or for content that stands in several; number n is on page n."""
    places = [path if isinstance(path, tuple) else (path,) for path in paths]
    return [
        Hit(n, 1 / n, "docs", path, n, (), 0, 1, 1, "x", AlsoIn(len(others), tuple(others)))
        for n, (path, *others) in enumerate(places, 1)
    ]


def known(*sources: str, page: int | None = None) -> KnownQuestion:
    return KnownQuestion("?", frozenset(sources), "q", page)


# The figures of one question


@pytest.mark.parametrize(
    ("hits", "question", "figures"),
    [
        (found("a", "b"), known("a"), (1, 1, 1)),
        (found("b", "a"), known("a"), (1, 1 / 2, 1 / log2(3))),
        (found("b", "c"), known("a"), (0, 0, 0)),
        ([], known("a"), (0, 0, 0)),
        # Several chunks of one source count once, whatever their ranks.
        (found("a", "a", "a"), known("a"), (1, 1, 1)),
        # Two sources: the best ranking shows them first and second.
        (found("a", "x", "b"), known("a", "b"), (1, 1, (1 + 1 / 2) / (1 + 1 / log2(3)))),
        (found("x", "a", "a"), known("a", "b"), (1, 1 / 2, (1 / log2(3)) / (1 + 1 / log2(3)))),
        # More sources than k: k of them are the best that can be shown.
        (found("a", "b", "c"), known("a", "b", "c", "d", "e"), (1, 1, 1)),
        # Content that stands in two sources is shown by one hit, and that is the best there can be.
        (found(("x", "a")), known("a"), (1, 1, 1)),
        (found(("a", "b"), "x"), known("a", "b"), (1, 1, 1)),
        # Only what begins on the page counts, where one is known.
        (found("a", "a"), known("a", page=2), (1, 1 / 2, 1 / log2(3))),
        (found("a", "a"), known("a", page=7), (0, 0, 0)),
    ],
)
def test_the_figures_of_a_question(hits, question, figures):
    assert measures(hits, question, k=3) == pytest.approx(figures)


def test_hits_beyond_k_do_not_count():
    assert measures(found("x", "a"), known("a"), k=1) == (0, 0, 0)


paths = st.sampled_from("abcdef")
places = st.lists(paths, min_size=1, max_size=3, unique=True).map(tuple)


@given(
    st.lists(st.lists(paths, min_size=1, max_size=3, unique=True).map(tuple), max_size=8), st.sets(paths, min_size=1)
)
def test_figures_lie_between_none_and_all(places, sources):
    hit_rate, reciprocal_rank, ndcg = measures(found(*places), known(*sources), k=5)
    assert 0 <= reciprocal_rank <= hit_rate <= 1
    assert 0 <= ndcg <= 1 + 1e-9
    assert (hit_rate == 0) == (reciprocal_rank == 0) == (ndcg == 0)


# Files of questions


def test_questions_are_read_from_json_lines():
    text = '\ufeff{"question": "Why?", "sources": ["a.md", "b.md"], "id": 7, "page": 3, "by": "me"}\r\n\n'
    text += '{"question": "Wie spät?", "sources": ["c.md"]}'
    assert read_questions(text.encode().splitlines(keepends=True), "q.jsonl") == [
        KnownQuestion("Why?", frozenset({"a.md", "b.md"}), "7", 3),
        KnownQuestion("Wie spät?", frozenset({"c.md"}), "in line 3", None),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"Why?", "no JSON object"),
        (b'["Why?"]', "no JSON object"),
        (b"\xff\xfe", "no JSON object in UTF-8"),
        (b"[" * 200_000, "no JSON object in UTF-8"),
        (b'{"sources": ["a"]}', '"question" is no text'),
        (b'{"question": " ", "sources": ["a"]}', '"question" is no text'),
        (b'{"question": "Why?"}', '"sources" are no list'),
        (b'{"question": "Why?", "source": "a"}', '"sources" are no list'),
        (b'{"question": "Why?", "sources": "a"}', '"sources" are no list'),
        (b'{"question": "Why?", "sources": []}', '"sources" are no list'),
        (b'{"question": "Why?", "sources": [1]}', '"sources" are no list'),
        (b'{"question": "Why?", "sources": ["a"], "page": "3"}', '"page" is no number'),
        (b'{"question": "Why?", "sources": ["a"], "page": true}', '"page" is no number'),
        (b'{"question": "Why?", "sources": ["a"], "page": 0}', '"page" is no number'),
    ],
)
def test_a_line_that_is_no_question_is_refused_with_its_number(line, reason):
    with pytest.raises(UsageError) as raised:
        read_questions([*lines({"question": "Why?", "sources": ["a"]}).splitlines(), b"", line], "q.jsonl")
    assert str(raised.value).startswith("line 3 of q.jsonl is no question: ")
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_without_questions_is_refused():
    with pytest.raises(UsageError, match=r"q.jsonl has no questions"):
        read_questions([b"\n", b"  \n"], "q.jsonl")


def test_questions_come_with_a_collection_and_are_no_document_of_it(fruit):
    assert fruit.rag.questions("docs") == []
    fruit.write("questions.jsonl", lines({"question": "What are apples?", "sources": ["apples.txt"]}))
    fruit.write("sub/questions.jsonl", '{"question": "What is this?"}')
    assert fruit.run().files.added == 1
    assert set(fruit.served()) == {"apples.txt", "pears.md", "sub/plums.html", "sub/questions.jsonl"}
    assert [question.question for question in fruit.rag.questions("docs")] == ["What are apples?"]
    fruit.write("questions.jsonl", "no question")
    with pytest.raises(UsageError, match=r"line 1 of .*/docs/questions.jsonl is no question"):
        fruit.rag.questions("docs")
    (fruit.folder / "questions.jsonl").unlink()
    (fruit.folder / "questions.jsonl").mkdir()
    with pytest.raises(SourceError, match=r"cannot read .*/docs/questions.jsonl"):
        source_questions(fruit.collection)


# Whole evaluations


def test_a_collection_is_evaluated_through_its_own_search(fruit):
    questions = [
        KnownQuestion("apples grow on trees", frozenset({"apples.txt"}), "q0"),
        KnownQuestion("apples", frozenset({"nowhere.txt"}), "q1"),
        KnownQuestion("plums blue", frozenset({"sub/plums.html"}), "q2"),
    ]
    told = []
    evaluation = fruit.rag.evaluate("docs", questions, k=1, mode="text", progress=lambda *at: told.append(at))
    assert (evaluation.collection, evaluation.mode, evaluation.k, evaluation.questions) == ("docs", "text", 1, 3)
    assert (evaluation.hit_rate, evaluation.mrr, evaluation.ndcg) == (0.666667, 0.666667, 0.666667)
    assert evaluation.without_source == ("q1",)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_source_counts_however_many_documents_have_its_content(fruit):
    for number in range(30):
        fruit.write(f"copies/{number:02}.txt", "Quinces grow in gardens, and are boiled.")
    fruit.write("other.txt", "Nobody boils what is no quince.")
    fruit.run()
    questions = [
        KnownQuestion("quinces grow in gardens", frozenset({f"copies/{number:02}.txt"}), str(number))
        for number in (0, 20, 29)
    ] + [KnownQuestion("quinces grow in gardens", frozenset({"apples.txt"}), "other")]
    (hit,) = fruit.rag.search("docs", "quinces grow in gardens", k=1, mode="text")
    assert len(hit.also_in.paths) < hit.also_in.count == 29
    evaluation = fruit.rag.evaluate("docs", questions, k=1, mode="text")
    assert (evaluation.hit_rate, evaluation.mrr, evaluation.ndcg) == (0.75, 0.75, 0.75)


def test_a_search_that_fell_back_to_words_is_not_measured_as_what_it_is_not(fruit, server):
    server.intercept = lambda request: error(401, "no", "invalid_api_key")
    questions = [known("apples.txt")]
    with pytest.raises(ProviderError, match=r"OPENAI_API_KEY.*--mode text"):
        fruit.rag.evaluate("docs", questions)
    assert fruit.rag.evaluate("docs", questions, mode="text").questions == 1


def test_nothing_is_evaluated_by_no_question(fruit):
    with pytest.raises(UsageError, match="no question to evaluate"):
        fruit.rag.evaluate("docs", [])


def test_the_command(rag, handbook, tmp_path, server, parsing_in_process):
    rag.done("ingest", handbook)
    file = tmp_path / "q.jsonl"
    file.write_bytes(
        lines(
            {"question": "how to reset a password", "sources": ["passwords.md"]},
            {"question": "how many days of holidays", "sources": ["holidays.md"]},
            {"question": "who pays", "sources": ["gone.md"], "id": "pay"},
        )
    )
    done = rag.done("evaluate", "handbook", file, "--json")
    assert set(done.json) == FORM
    assert done.json == {"collection": "handbook", "mode": "hybrid", "k": 5, "questions": 3} | {
        name: pytest.approx(2 / 3, abs=1e-5) for name in ("hit_rate", "mrr", "ndcg")
    }
    assert done.said == "handbook has none of the sources of question pay: it counts as not found\n"
    told = rag.done("evaluate", "handbook", file, "-k", "1", "--mode", "text")
    assert told.out.startswith("handbook: 3 questions, text search, k = 1\n  hit_rate  0.667\n")
    file.write_text("who?")
    assert "line 1 of q.jsonl is no question" in rag("evaluate", "handbook", file).reason
    assert rag("evaluate", "handbook", tmp_path / "none.jsonl").status == 2
    file.write_bytes(lines({"question": "who?", "sources": ["a"]}))
    assert "there is no collection nope" in rag("evaluate", "nope", file).reason
