"""What becomes of hits that say the same or stand next to each other."""

import itertools
import re
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_pipeline.core import ranking
from rag_pipeline.core.hits import MERGED_TOKENS, AlsoIn, Hit, distinct, fuse, merge
from rag_pipeline.core.retrieval import MODES, Searcher
from rag_pipeline_tests.pipelines import Pipeline

WORDS = re.findall(
    r"\w+", "the marmot sleeps in winter and eats grass all summer long on high green meadows near the old stone hut"
)


def hit(rank: int, content: str, path: str = "a.txt", start: int = 0, collection: str = "docs", **more) -> Hit:
    values = {"page": None, "heading": (), "tokens": 1, "also_in": AlsoIn(0, ()), "score": 1 / rank, **more}
    return Hit(
        rank=rank, content=content, path=path, start=start, end=start + len(content), collection=collection, **values
    )


def varied(*changes: int) -> str:
    """The same sixty words, other ones at these places."""
    words = [f"{word}{number or ''}" for number in range(3) for word in WORDS]
    for place in changes:
        words[place] = f"changed{place}"
    return " ".join(words)


def test_near_identical_hits_give_way_and_are_named():
    hits = [hit(1, varied(), "a"), hit(2, varied(30), "b"), hit(3, "Something else", "c"), hit(4, "A third thing", "d")]
    best, number = distinct(hits, 3)
    assert number == 3
    assert [(h.rank, h.path) for h in best] == [(1, "a"), (2, "c"), (3, "d")]
    assert best[0].also_in == AlsoIn(1, ("b",))
    assert best[1].also_in == AlsoIn(0, ())


def test_near_identical_hits_come_back_where_nothing_else_is_left():
    hits = [hit(1, varied(), "a"), hit(2, varied(30), "b"), hit(3, varied(31), "c"), hit(4, "Something else", "d")]
    best, number = distinct(hits, 3)
    assert ([h.path for h in best], number) == (["a", "d", "b"], 2)
    assert best[0].also_in == AlsoIn(1, ("c",))
    assert [h.path for h in distinct(hits, 9)[0]] == ["a", "d", "b", "c"]


def test_texts_that_differ_in_much_or_are_short_are_not_near_identical():
    assert (
        len(distinct([hit(1, varied(), "a"), hit(2, varied(3, 11, 19, 27, 35, 43), "b")], 1)[0][0].also_in.paths) == 0
    )
    short = [hit(1, "Apples are red.", "a"), hit(2, "Apples are green.", "b"), hit(3, "red", "c"), hit(4, "green", "d")]
    assert [h.path for h in distinct(short, 4)[0]] == ["a", "b", "c", "d"]


def test_the_same_text_in_one_document_twice_is_not_said_to_be_elsewhere():
    assert distinct([hit(1, varied(), "a"), hit(2, varied(5), "a", 500)], 1)[0][0].also_in == AlsoIn(0, ())


def test_what_several_collections_have_is_one_hit():
    one = [hit(1, "alone"), hit(2, "shared", "b.txt", also_in=AlsoIn(1, ("c.txt",)))]
    other = [hit(1, "shared", "x.txt", collection="second"), hit(2, "more", "y.txt", collection="second")]
    best = fuse([one, other])
    assert [(h.collection, h.path) for h in best] == [("second", "x.txt"), ("docs", "a.txt"), ("second", "y.txt")]
    assert best[0].score == pytest.approx(1 / 61 + 1 / 62)
    assert best[0].also_in == AlsoIn(2, ("docs/b.txt", "docs/c.txt"))


@st.composite
def a_text_and_its_spans(draw):
    text = draw(st.text("ab \n.é🦔", min_size=1, max_size=60))
    spans = draw(
        st.lists(st.tuples(st.integers(0, len(text) - 1), st.integers(1, 20)), min_size=1, max_size=6, unique=True)
    )
    return text, [(start, min(len(text), start + size)) for start, size in spans]


def test_merged_hits_have_the_page_of_the_best_of_them():
    text = "The first page. The second page."
    hits = [hit(1, text[16:], start=16, page=2), hit(2, text[:16], page=1), hit(3, "Elsewhere", "b.txt", page=7)]
    assert [(h.rank, h.page, h.start) for h in merge(hits, lambda first, end: text[:end])] == [(1, 2, 0), (3, 7, 0)]


@given(st.permutations(range(12)), st.lists(st.integers(1, MERGED_TOKENS + 9), min_size=12, max_size=12))
def test_merged_hits_have_an_upper_size_and_leave_nothing_out(ranks, sizes):
    """Hits without a gap between them: each merged one is as many as go together, and no more."""
    text = "abcdefghijkl"
    hits = [hit(rank + 1, text[n], start=n, tokens=sizes[n]) for n, rank in enumerate(ranks)]
    merged = merge(hits, lambda first, end: text[first.start : end])
    assert [one.rank for one in merged] == [min(ranks[one.start : one.end]) + 1 for one in merged]
    by_place = sorted(merged, key=lambda one: one.start)
    assert "".join(one.content for one in by_place) == text
    for one, after in itertools.zip_longest(by_place, by_place[1:]):
        tokens = sum(sizes[one.start : one.end])
        assert tokens <= MERGED_TOKENS or len(one.content) == 1
        assert after is None or tokens + sizes[after.start] > MERGED_TOKENS


@settings(deadline=None)
@given(a_text_and_its_spans())
def test_merged_hits_are_spans_and_cover_what_their_parts_covered(case):
    text, spans = case
    hits = [hit(rank, text[start:end], "a", start) for rank, (start, end) in enumerate(spans, 1)]
    merged = merge(hits, lambda first, end: text[first.start : end])
    covered = {place for start, end in spans for place in range(start, end)}
    seen = set()
    for one in merged:
        assert one.content == text[one.start : one.end]
        places = set(range(one.start, one.end))
        assert all(text[place].isspace() for place in places - covered)
        assert not seen & places
        seen |= places
    assert covered <= seen
    assert [one.rank for one in merged] == sorted(one.rank for one in merged)
    assert merged[0].rank == 1
    by_place = sorted(merged, key=lambda one: one.start)
    for one, other in itertools.pairwise(by_place):
        assert text[one.end : other.start].strip()


def test_an_answer_gets_neighbouring_chunks_as_one_passage(pipeline):
    pipeline.change(chunk_tokens=24, chunk_overlap=8)
    paragraphs = "\n\n".join(
        f"Marmot number {n} sleeps 🦔 in burrow {n} through the whole long winter." for n in range(6)
    )
    pipeline.write("a.md", f"# Marmots\n\n## Winter\n\n{paragraphs}\n\n## Summer\n\nMarmots eat grass.")
    pipeline.write("b.md", "# Zebras\n\nA zebra is no marmot.")
    pipeline.run()
    parts = pipeline.rag._searcher.search(["docs"], "marmots in winter", 20)
    merged = pipeline.rag._searcher.search(["docs"], "marmots in winter", 20, merged=True)
    assert len(parts) > 6
    assert {h.path: (h.start, h.end) for h in merged}.keys() == {"a.md", "b.md"}
    for h in merged:
        text = pipeline.text(h.path)
        assert (h.content, h.start, h.end) == (text, 0, len(text))
    assert merged[0].rank == 1
    assert merged[0].score == parts[0].score
    assert {h.path: h.heading for h in merged}["a.md"] == ("Marmots",)


@pytest.mark.parametrize("mode", MODES)
def test_more_near_identical_documents_than_are_read_at_first_give_way_too(pipeline, mode):
    pipeline.change(chunk_tokens=256)
    for number in range(30):
        pipeline.write(f"copy{number}.txt", varied(50).replace("changed50", f"number{number} marmot marmot marmot"))
    for number in range(3):
        pipeline.write(f"other{number}.txt", " ".join(f"{word}{number}" for word in WORDS) + " and there a marmot")
    pipeline.run()
    paths = [h.path[:5] for h in pipeline.search("marmot marmot marmot", 4, mode)]
    assert sorted(paths) == ["copy" + paths[0][4], *["other"] * 3]


def test_near_identical_documents_with_the_rarest_word_give_way_to_those_without_it(pipeline, monkeypatch):
    monkeypatch.setattr(ranking, "CANDIDATES", 3)
    pipeline.change(chunk_tokens=256)
    for number in range(7):
        pipeline.write(f"copy{number}.txt", varied(50) + f" {number} xylophone")
    for number in range(8):
        pipeline.write(f"other{number}.txt", f"The marmot {number}.")
    pipeline.run()
    assert [h.path[:4] for h in pipeline.search("xylophone marmot", 4, "text")] == ["copy", *["othe"] * 3]


def test_what_is_enough_is_read_once(pipeline, monkeypatch):
    read = []
    rank = Searcher._rank
    monkeypatch.setattr(Searcher, "_rank", lambda *args: read.append(args[2].limit) or rank(*args))
    for number in range(30):
        pipeline.write(f"{number}.txt", f"A marmot of the number {number}")
    pipeline.run()
    assert len(pipeline.search("marmot", 5)) == 5
    assert len(pipeline.search("marmot", 100)) == 30
    assert read == [15, 110]


def test_near_identical_documents_give_way_in_a_search(pipeline, tmp_path):
    pipeline.change(chunk_tokens=256)
    for number in range(4):
        pipeline.write(f"copy{number}.txt", varied(50 + number))
    pipeline.write("other.txt", "A marmot, seen once.")
    pipeline.run()
    hits = pipeline.search("marmot", 2)
    assert sorted(h.path[:4] for h in hits) == ["copy", "othe"]
    (copy,) = [h for h in hits if h.path.startswith("copy")]
    assert {copy.path, *copy.also_in.paths} == {f"copy{number}.txt" for number in range(4)}
    with closing(Pipeline(pipeline.runtime, tmp_path / "second", "second", chunk_tokens=256)) as second:
        second.write("same.txt", varied(50))
        second.run()
        hits = pipeline.rag.search(["docs", "second"], "marmot", 2)
        places = [{f"{h.collection}/{h.path}", h.path, *h.also_in.paths} for h in hits]
        assert len(places) == 2
        assert any("other.txt" in place for place in places)
        assert any({"second/same.txt", "docs/copy0.txt"} & place for place in places)
