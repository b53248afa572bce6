"""search: what is found, in which order, by whom it may be asked, and what it says when it cannot."""

import math
import random
import re
from collections import Counter
from contextlib import closing

import numpy as np
import psycopg
import pytest

from rag_pipeline.core import collections, ranking
from rag_pipeline.core.errors import ProviderError, UsageError
from rag_pipeline.core.indexing import active_index
from rag_pipeline.core.models import EmbeddingModel
from rag_pipeline.core.ranking import (
    BM25_B,
    BM25_K1,
    ENOUGH_SAID,
    FOREIGN_VECTOR_WEIGHT,
    MOST_WORDS,
    NEIGHBOUR_WEIGHT,
    OWN_SHARE,
    VECTOR_WEIGHT,
)
from rag_pipeline.core.retrieval import LONGEST_QUESTION, MODES, Searcher
from rag_pipeline.core.stages.cached_embeddings import embed_chunks
from rag_pipeline.core.stages.parsed_text import parse_documents
from rag_pipeline.core.stages.raw_files import update_manifest
from rag_pipeline.core.stages.token_chunks import chunk_documents
from rag_pipeline_tests.openai_server import error, text_vector
from rag_pipeline_tests.pipelines import DIMENSIONS, Pipeline

SENTENCES = {
    "apples.txt": "Apples are red and grow on trees.",
    "bananas.txt": "Bananas are yellow; bananas are long.",
    "cherries.txt": "Cherries grow on trees, high trees in high places where many other things grow as well.",
    "dates.txt": "Dates are sweet.",
}


@pytest.fixture
def fruit(pipeline):
    """Four documents of one chunk each, published."""
    for path, text in SENTENCES.items():
        pipeline.write(path, text)
    pipeline.run()
    return pipeline


@pytest.fixture
def second(fruit, tmp_path):
    """Another collection in the same database."""
    with closing(Pipeline(fruit.runtime, tmp_path / "second", "second")) as second:
        second.write("trees.md", "# Trees\n\nTrees are made of wood.")
        second.write("cars.md", "# Cars\n\nCars are made of steel.")
        second.run()
        yield second


def similarity(one: str, other: str) -> float:
    return float(text_vector(one, DIMENSIONS) @ text_vector(other, DIMENSIONS))


def test_a_vector_search_ranks_all_chunks_by_cosine(fruit):
    query = "red apples on trees"
    hits = fruit.search(query, mode="vector")
    expected = sorted(SENTENCES, key=lambda path: -similarity(query, SENTENCES[path]))
    assert [hit.path for hit in hits][:2] == expected[:2]
    assert {hit.path for hit in hits} == set(SENTENCES)
    for rank, hit in enumerate(hits, 1):
        assert (hit.rank, hit.collection, hit.content) == (rank, "docs", SENTENCES[hit.path])
        assert hit.score == pytest.approx(similarity(query, hit.content), abs=1e-5)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def bm25(query: str, texts: dict[str, str]) -> dict[str, float]:
    """The textbook's BM25, with different words as the length: what a tsvector counts."""
    usual = sum(len(set(words(text))) for text in texts.values()) / len(texts)
    scores: dict[str, float] = {}
    for path, text in texts.items():
        said = Counter(words(text))
        for word in set(words(query)) & set(said):
            having = sum(word in words(other) for other in texts.values())
            idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            norm = BM25_K1 * (1 - BM25_B + BM25_B * len(set(words(text))) / usual)
            scores[path] = scores.get(path, 0.0) + idf * said[word] * (BM25_K1 + 1) / (said[word] + norm)
    return scores


def test_a_text_search_ranks_by_bm25_whatever_was_edited_and_deleted_before(fruit):
    fruit.change(text_search="simple")
    fruit.write("noise.txt", "trees trees trees bananas grow nowhere")
    fruit.run()
    texts = {**SENTENCES, "apples.txt": "Apples are green, and trees are green, and grass is green."}
    fruit.write("apples.txt", texts["apples.txt"])
    fruit.delete("noise.txt")
    fruit.run()
    for query in (
        "trees",
        "green trees grow",
        "bananas or dates",
        "are",
        "Trees, trees!",
        "it's sweet & <b>red</b> | !",
    ):
        expected = bm25(query, texts)
        found = {hit.path: hit.score for hit in fruit.search(query, mode="text")}
        assert found == pytest.approx(expected, rel=1e-4)
        ranks = [hit.path for hit in fruit.search(query, mode="text")]
        assert ranks == sorted(ranks, key=lambda path: -found[path])


def spread(scores: dict[str, float], least: float | None = None) -> dict[str, float]:
    """Scores from 0 (the least) to 1 (the most)."""
    least, most = min(scores.values()) if least is None else least, max(scores.values())
    return {path: (score - least) / (most - least) if most > least else 1.0 for path, score in scores.items()}


def test_a_hybrid_search_weighs_both_scores(fruit):
    for query in ("sweet bananas", "bananas grow on trees", "red"):
        expected = fused(fruit, query)
        assert scores(fruit, query) == pytest.approx(expected)
        assert [hit.score for hit in fruit.search(query)] == pytest.approx(sorted(expected.values(), reverse=True))


def fused(pipeline: Pipeline, query: str, vector_weight: float = VECTOR_WEIGHT, share: float = 1.0) -> dict[str, float]:
    """What a hybrid search is to find where no leg is full, and of the text leg's weight this share counts."""
    vector, text = ({hit.path: hit.score for hit in pipeline.search(query, 50, mode)} for mode in ("vector", "text"))
    vector, text = spread(vector), spread(text, 0)
    weight = share * (1 - vector_weight)
    return {path: vector_weight * vector[path] + weight * text.get(path, 0) for path in vector}


def scores(pipeline: Pipeline, query: str) -> dict[str, float]:
    return {hit.path: hit.score for hit in pipeline.search(query, 50)}


def idf(having: int) -> float:
    return math.log(1 + (len(SENTENCES) - having + 0.5) / (having + 0.5))


def test_a_text_leg_that_says_little_of_the_question_counts_for_less(fruit):
    query = "red marmots whistle underground everywhere"
    said = idf(1) / (4 * idf(0) + idf(1))
    assert scores(fruit, query) == pytest.approx(fused(fruit, query, share=(said / ENOUGH_SAID) ** 2))
    # Of a long question nobody says much.
    query = "red " + " ".join(f"nowhere{number}x" for number in range(60))
    said = idf(1) / (MOST_WORDS * idf(0))
    assert scores(fruit, query) == pytest.approx(fused(fruit, query, share=(said / ENOUGH_SAID) ** 2))


@pytest.mark.parametrize(
    "query",
    [
        "Wie behebe ich heute morgen wieder diesen garstigen Fehler ORA-01555?",
        "Was ist denn nun eigentlich alles neu in v16.4?",
        "什么样的水果看起来是红色",
    ],
)
def test_an_identifier_and_pairs_of_characters_count_in_full_whatever_else_is_asked(pipeline, query):
    texts = ("ORA-01555: snapshot too old.", "Release 16.4 mends it.", "苹果是红色的。", "土拨鼠冬天睡觉。")
    for number, text in enumerate(texts):
        pipeline.write(f"{number}.txt", text)
    pipeline.run()
    assert scores(pipeline, query) == pytest.approx(fused(pipeline, query))


def test_words_that_the_model_does_not_know_count_in_full_whatever_else_is_asked(fruit, monkeypatch):
    monkeypatch.setattr(EmbeddingModel, "understands", lambda *_: False)
    query = "red marmots whistle underground everywhere"
    assert scores(fruit, query) == pytest.approx(fused(fruit, query, FOREIGN_VECTOR_WEIGHT))


def test_a_leg_that_is_full_is_spread_from_its_last(pipeline, monkeypatch):
    """Others say the word too, and were left out for no more than their score."""
    monkeypatch.setattr(ranking, "DEPTH", 12)
    pipeline.change(chunk_tokens=2000)
    for number in range(20):
        pipeline.write(f"{number}.txt", "marmot " + " ".join(f"word{number}x{other}" for other in range(3 * number)))
    pipeline.run()
    legs = [{hit.path: hit.score for hit in list(pipeline.search("marmot", 20, mode))[:12]} for mode in MODES[1:]]
    vector, text = map(spread, legs)
    for hit in pipeline.search("marmot", 2):
        expected = VECTOR_WEIGHT * vector.get(hit.path, 0) + (1 - VECTOR_WEIGHT) * text.get(hit.path, 0)
        assert hit.score == pytest.approx(expected)
    assert min(text.values()) == 0


def test_all_that_say_an_identifier_stand_above_those_that_do_not(pipeline):
    for number in range(40):
        pipeline.write(f"{number}.txt", f"What is it that this is, what is number{number}?")
    pipeline.write("one.txt", "Nothing stands here but ORA-01555.")
    pipeline.write("two.txt", "Here stands ORA-01555, which tells of rollback segments.")
    pipeline.run()
    assert {hit.path for hit in pipeline.search("What is it that ORA-01555 is?", 5)[:2]} == {"one.txt", "two.txt"}


def test_a_chunk_is_raised_by_its_neighbours_and_hardly_lowered(pipeline):
    """One paragraph a chunk: the middle one of three that say the word stands above those that are alone with it."""
    words = "one two three four five six seven eight nine ten"
    texts = {"a.txt": ("apple apple", "apple", "apple apple"), "b.txt": ("pear", "apple", "plum"), "c.txt": ("apple",)}
    for path, paragraphs in texts.items():
        text = (f"{path[0]}{number} {word} {words}" for number, word in enumerate(paragraphs))
        pipeline.write(path, "\n\n".join(text))
    pipeline.change(chunk_tokens=18, chunk_overlap=0, text_search="simple")
    pipeline.run()
    scores = {hit.content.split()[0]: hit.score for hit in pipeline.search("apple", 10, mode="text")}
    once, outer = scores["c0"], scores["a0"]
    twice = (1 + NEIGHBOUR_WEIGHT) * outer - NEIGHBOUR_WEIGHT * once
    middle = (once + 2 * NEIGHBOUR_WEIGHT * twice) / (1 + 2 * NEIGHBOUR_WEIGHT)
    assert once < middle < outer < twice
    # The mean would leave two thirds of b1's own score.
    expected = {"a0": outer, "a1": middle, "a2": outer, "b1": OWN_SHARE * once, "c0": once}
    assert scores == pytest.approx(expected, rel=1e-3)


def test_k_limits_the_hits_and_may_be_more_than_there_are(fruit):
    for mode in ("vector", "hybrid"):
        assert [len(fruit.search("trees", k, mode)) for k in (1, 2, 4, 5, 1000)] == [1, 2, 4, 4, 4]
    assert [len(fruit.search("trees", k, "text")) for k in (1, 2, 5)] == [1, 2, 2]
    assert fruit.search("trees", 1)[0] == fruit.search("trees", 4)[0]


def test_words_that_are_nowhere_find_nothing_by_text(fruit):
    assert list(fruit.search("xylophone", mode="text")) == []
    assert list(fruit.search("the and of", mode="text")) == []
    assert list(fruit.search("?! ... --", mode="text")) == []


def test_every_hit_is_the_span_of_its_documents_text(pipeline):
    pipeline.change(chunk_tokens=24, chunk_overlap=8)
    for path in ("a.md", "b/ü.md"):
        sections = "\n\n".join(
            f"## Sektion {n} 🦔\n\n" + " ".join(f"Satz {n}.{i} über Äpfel 🍎 e\u0301." for i in range(9))
            for n in range(5)
        )
        pipeline.write(path, f"# {path}\n\n{sections}\n\n| a | b |\n|---|---|\n" + "| Äpfel | 1 |\n" * 40)
    pipeline.run()
    hits = [hit for mode in ("text", "vector", "hybrid") for hit in pipeline.search("Äpfel satz", 1000, mode)]
    assert len({(hit.path, hit.start) for hit in hits}) > 10
    for hit in hits:
        assert hit.content == pipeline.text(hit.path)[hit.start : hit.end]
        assert hit.tokens > 0
        for path in hit.also_in.paths:
            assert hit.content in pipeline.text(path)


def test_a_hit_that_stands_in_many_documents_names_the_first_of_them(pipeline):
    for number in range(25):
        pipeline.write(f"{number:02}.txt", "Everywhere alike.")
    pipeline.run()
    (hit,) = pipeline.search("alike")
    assert (hit.path, hit.also_in.count, len(hit.also_in.paths)) == ("00.txt", 24, 20)
    assert hit.also_in.paths == tuple(f"{number:02}.txt" for number in range(1, 21))


def test_what_is_indexed_but_not_published_is_no_hit(fruit):
    """A run that ended after its rows were written: neither its additions nor its new versions show."""
    fruit.write("apples.txt", "Apples are unpublished.")
    fruit.write("new.txt", "Apples are new.")
    connection, collection, runtime = fruit.connection, fruit.collection, fruit.runtime
    model = runtime.model(collection.settings)
    update_manifest(connection, collection)
    parse_documents(connection, collection, workers=1)
    chunk_documents(connection, collection, runtime.chunk_settings(collection.settings), runtime.input_limit(model))
    embed_chunks(connection, collection, model, runtime.embedder)
    assert len(fruit.index_rows()) == 6
    for mode in ("text", "vector", "hybrid"):
        hits = fruit.search("apples are new, apples are unpublished", mode=mode)
        assert {hit.content for hit in hits} <= set(SENTENCES.values())
        assert "apples.txt" in [hit.path for hit in hits]
    assert {hit.path for hit in fruit.search("apples", 4, "vector")} == set(SENTENCES)
    fruit.run()
    assert fruit.found("apples") == {"apples.txt", "new.txt"}


def test_k_hits_come_back_though_the_graph_gives_up_among_rows_that_nobody_may_see(fruit):
    index = active_index(fruit.connection, "docs")
    nearest = text_vector("apples", DIMENSIONS)
    rng = np.random.default_rng(7)
    with fruit.connection.cursor() as cursor:
        cursor.executemany(
            """INSERT INTO rag.indexed_chunk (index_id, content_hash, input, embedding, terms)
               VALUES (%s, sha256(%s), 'apples', %s, to_tsvector('apples'))""",
            [(index.id, str(n).encode(), nearest + rng.normal(0, 0.001, DIMENSIONS)) for n in range(400)],
        )
    fruit.connection.execute("UPDATE rag.vector_index SET rows = rows + 400")
    # So many published chunks that going through all of them looks dearer than the graph.
    fruit.connection.execute(
        """INSERT INTO rag.chunking SELECT 'docs', sha256(n::text::bytea), 'x', 1, 1 FROM generate_series(1, 5000) n;
           INSERT INTO rag.token_chunk
           SELECT 'docs', sha256(n::text::bytea), 0, 0, 1, 1, NULL, NULL, '{}', '', '', sha256(('other' || n)::bytea)
           FROM generate_series(1, 5000) n;
           INSERT INTO rag.document (collection, path, size, chunk_key, published_chunk_key)
           SELECT 'docs', n, 1, sha256(n::text::bytea), sha256(n::text::bytea) FROM generate_series(1, 5000) n;
           ANALYZE rag.document, rag.token_chunk, rag.indexed_chunk"""
    )
    fruit.rag._connection.execute("SET hnsw.max_scan_tuples = 100")
    assert len(fruit.search("apples", 4, "vector")) == 4
    assert len(fruit.search("apples", 10, "vector")) == 4
    assert [hit.path for hit in fruit.search("apples", 4, "text")] == ["apples.txt"]


def test_several_collections_are_fused_by_rank(fruit, second):
    hits = fruit.rag.search(["docs", "second", "docs"], "trees are made of wood", k=4)
    assert hits.collection == "docs,second"
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]
    assert [hit.collection for hit in hits] == ["docs", "second", "docs", "second"]
    alone = {name: fruit.rag.search(name, "trees are made of wood", k=4) for name in ("docs", "second")}
    assert [hit.path for hit in hits if hit.collection == "second"] == [hit.path for hit in alone["second"]]
    assert [hit.score for hit in hits] == pytest.approx([1 / 61, 1 / 61, 1 / 62, 1 / 62])
    assert len(fruit.rag.search(["docs", "second"], "trees", k=50)) == 6
    assert {hit.collection for hit in fruit.rag.search(["second"], "trees", k=50)} == {"second"}


def test_a_question_is_embedded_once_for_several_collections_and_ever_after(fruit, second, server):
    asked = len(server.requests)
    hits = fruit.rag.search(["docs", "second"], "what are trees made of", mode="vector")
    assert (hits.question_tokens > 0, len(server.requests)) == (True, asked + 1)
    again = fruit.rag.search(["docs", "second"], "what are trees made of", mode="hybrid")
    assert (again.question_tokens, again.cost_usd, len(server.requests)) == (0, 0.0, asked + 1)
    with closing(type(fruit.rag)(fruit.runtime)) as another:
        assert another.search("docs", "what are trees made of").question_tokens == 0
    assert len(server.requests) == asked + 1


def test_a_known_price_is_told(fruit):
    fruit.change(embedding_model="openai/text-embedding-3-small")
    fruit.run()
    hits = fruit.search("apples")
    assert hits.cost_usd == pytest.approx(hits.question_tokens * 0.02 / 1e6)
    assert hits.cost_usd > 0


def test_text_mode_asks_no_provider(fruit, server):
    asked = len(server.requests)
    hits = fruit.search("apples", mode="text")
    assert (len(server.requests), hits.question_tokens, hits.cost_usd, hits.degraded) == (asked, 0, 0.0, None)


def test_without_a_provider_a_hybrid_search_falls_back_to_words_and_says_why(fruit, server):
    server.intercept = lambda request: error(401, "no", "invalid_api_key")
    hits = fruit.search("red apples")
    assert "OPENAI_API_KEY" in hits.degraded
    assert "\n" not in hits.degraded
    assert [hit.path for hit in hits] == ["apples.txt"]
    with pytest.raises(ProviderError, match="--mode text"):
        fruit.search("red apples", mode="vector")
    server.intercept = lambda request: None
    assert fruit.search("red apples").degraded is None


def test_without_a_key_the_words_are_still_searched(fruit):
    from dataclasses import replace

    from rag_pipeline.runtime import Runtime

    runtime = Runtime(replace(fruit.runtime.settings, openai_api_key=None))
    with closing(type(fruit.rag)(runtime)) as rag:
        hits = rag.search("docs", "red apples")
        assert "OPENAI_API_KEY" in hits.degraded
        assert [hit.path for hit in hits] == ["apples.txt"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"mode": "fuzzy"}, "fuzzy"),
        ({"k": 0}, "k=0"),
        ({"k": 1001}, "k=1001"),
        ({"query": "  \n"}, "empty"),
        ({"query": "\u200b"}, "empty"),
        ({"query": " ".join(map(str, range(200_000)))}, "shorten it to 50000"),
        ({"query": "a\0b"}, "not valid text"),
        ({"query": "caf\udce9"}, "not valid text"),
        ({"collection": []}, "no collection"),
        ({"collection": "nowhere"}, "rag collection list"),
        ({"collection": ["docs", "nowhere"]}, "nowhere"),
        ({"collection": "a\udcffb"}, "cannot name a collection"),
        ({"collection": ""}, "cannot name a collection"),
    ],
)
def test_what_cannot_be_searched_is_one_line_with_its_name(fruit, arguments, named):
    with pytest.raises(UsageError) as error:
        fruit.rag.search(**{"collection": "docs", "query": "apples", **arguments})
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_the_longest_question_is_searched(fruit):
    chinese = "".join(random.Random(7).choices([chr(code) for code in range(0x4E00, 0x9FFF)], k=LONGEST_QUESTION))
    identifiers = " ".join(f"{n:x}.{n:x}" for n in range(9999))
    for words in (chinese, identifiers, f'"{identifiers}'):
        question = f"apples {words}"[:LONGEST_QUESTION]
        assert len(question) == LONGEST_QUESTION
        assert [hit.path for hit in fruit.search(question, mode="text")] == ["apples.txt"]


def test_a_collection_with_nothing_in_it_says_what_to_do(pipeline):
    for _ in range(2):
        for mode in ("hybrid", "vector", "text"):
            with pytest.raises(UsageError, match="rag ingest docs"):
                pipeline.search("apples", mode=mode)
        pipeline.run()  # of an empty folder


def test_an_index_that_is_switched_while_the_question_is_asked_is_searched_as_it_is_then(fruit):
    """Between reading the index's id and searching it, another model has taken over."""
    rag, switched = fruit.rag, []

    def embed(question: str, model: str, dimensions: int):
        if not switched:
            switched.append(model)
            fruit.change(embedding_model="openai/another", text_search="simple")
            fruit.run()
            fruit.connection.execute("UPDATE rag.vector_index SET retired_at = retired_at - interval '1 hour'")
            fruit.run()  # and the old one is gone
        return rag._searcher.embed(question, model, dimensions)

    with fruit.runtime.connect() as connection:
        hits = Searcher(connection, embed).search(["docs"], "apples")
    assert hits[0].path == "apples.txt"
    assert (switched, active_index(fruit.connection, "docs").model) == (["openai/stand-in"], "openai/another")


def test_an_index_that_is_always_replaced_is_said_to_be(fruit):
    def embed(question: str, model: str, dimensions: int):
        other = {"openai/stand-in": "openai/another", "openai/another": "openai/stand-in"}
        fruit.change(embedding_model=other[model])
        fruit.run()
        return fruit.rag._searcher.embed(question, model, dimensions)

    with fruit.runtime.connect() as connection, pytest.raises(UsageError, match="search again"):
        Searcher(connection, embed).search(["docs"], "apples")


def test_a_collection_that_is_removed_while_the_question_is_asked_is_not_there(fruit):
    def embed(question: str, model: str, dimensions: int):
        collections.remove(fruit.connection, "docs")
        return text_vector(question, dimensions), 1, 0.0

    with fruit.runtime.connect() as connection, pytest.raises(UsageError, match="no collection docs"):
        Searcher(connection, embed).search(["docs"], "apples")


def test_half_precision_finds_the_same(fruit):
    full = [hit.path for hit in fruit.search("red apples on trees", mode="vector")]
    fruit.change(precision="half")
    fruit.run()
    assert [hit.path for hit in fruit.search("red apples on trees", mode="vector")][:2] == full[:2]


def test_more_dimensions_than_a_full_graph_takes_are_indexed_in_half(fruit):
    fruit.change(embedding_model="openai/text-embedding-3-large", dimensions=None)
    fruit.run()
    index = active_index(fruit.connection, "docs")
    assert (index.dimensions, index.precision) == (3072, "half")
    assert fruit.search("red apples", mode="vector")[0].path == "apples.txt"


def test_hits_are_a_frame_with_a_column_a_field(fruit):
    frame = fruit.search("trees", k=2).to_frame()
    assert list(frame.columns) == [
        "rank", "score", "collection", "path", "page", "heading", "start", "end", "tokens", "content", "also_in"
    ]  # fmt: skip
    assert list(frame["rank"]) == [1, 2]
    assert list(fruit.search("xylophone", mode="text").to_frame().columns) == list(frame.columns)


def test_searching_writes_nothing(fruit):
    fruit.search("apples")
    connection = fruit.rag._connection
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), connection.transaction():
        connection.execute("DELETE FROM rag.document")
