"""Changed settings: another index beside the one that serves, and the switch when every document is whole in it."""

import pytest

from rag_pipeline.core.indexing import active_index
from rag_pipeline.core.stages import parsed_text
from rag_pipeline_tests.openai_server import error
from rag_pipeline_tests.pipelines import UNPARSABLE, Pipeline


def age_retired(pipeline: Pipeline) -> None:
    """Make every retired index old enough to be dropped."""
    pipeline.connection.execute("UPDATE rag.vector_index SET retired_at = retired_at - interval '1 hour'")


def indexes(pipeline: Pipeline) -> list[tuple]:
    return pipeline.rows("SELECT id, retired_at IS NOT NULL FROM rag.vector_index ORDER BY id")


@pytest.mark.parametrize(
    "changed", [{"chunk_tokens": 16}, {"embed_headings": False}, {"chunk_tokens": 40, "chunk_overlap": 20}]
)
def test_changed_chunk_settings_chunk_everything_anew_and_parse_nothing(pipeline, changed):
    pipeline.write("a.md", "# Fruit\n\n" + "Apples are red. Pears are green. " * 10)
    pipeline.write("bad.txt", UNPARSABLE)
    pipeline.run()
    before = pipeline.served()
    pipeline.change(**changed)
    run = pipeline.run()
    assert (run.parsed.documents, run.parsed.failed, run.chunks.documents) == (0, 0, 1)
    assert pipeline.served() != before
    assert all(headings == ("Fruit",) for _, _, _, headings, *_ in pipeline.served()["a.md"])
    if changed == {"embed_headings": False}:
        assert all(text == pipeline.text("a.md")[start:end] for start, end, _, _, text, *_ in pipeline.served()["a.md"])
    pipeline.assert_clean()
    assert pipeline.run().chunks.documents == 0


@pytest.mark.parametrize(
    "changed", [{"embedding_model": "openai/another"}, {"embedding_model": "openai/text-embedding-3-small"}]
)
def test_a_changed_model_builds_another_index_beside_and_switches(fruit, server, changed):
    old = active_index(fruit.connection, "docs")
    asked = len(server.requests)
    fruit.change(**changed)
    assert fruit.found("apples", "hybrid")  # the old one serves
    run = fruit.run()
    new = active_index(fruit.connection, "docs")
    assert run.published.switched
    assert (new.id > old.id, new.model, run.embedded.copied) == (True, changed["embedding_model"], 0)
    assert len(server.requests) > asked
    assert indexes(fruit) == [(old.id, True), (new.id, False)]
    assert fruit.search("apples are red")[0].path == "apples.txt"
    fruit.assert_clean()
    assert not fruit.run().published.switched  # the retired one may still have readers
    assert len(indexes(fruit)) == 2
    age_retired(fruit)
    fruit.run()
    assert indexes(fruit) == [(new.id, False)]
    fruit.assert_clean()


@pytest.mark.parametrize(
    ("changed", "shape"),
    [
        ({"text_search": "german"}, {"text_search": "german"}),
        ({"hnsw_m": 8}, {"m": 8}),
        ({"hnsw_ef_construction": 100}, {"ef_construction": 100}),
        ({"precision": "half"}, {"precision": "half"}),
    ],
)
def test_a_changed_shape_of_the_index_takes_the_vectors_over(fruit, server, changed, shape):
    server.requests.clear()
    fruit.change(**changed)
    run = fruit.run()
    index = active_index(fruit.connection, "docs")
    assert run.published.switched
    assert {key: getattr(index, key) for key in shape} == shape
    assert (run.embedded.copied, run.embedded.inserted, server.requests) == (index.rows, index.rows, [])
    assert fruit.found("apples", "vector") >= {"apples.txt"}
    fruit.assert_clean()
    assert not fruit.run().published.switched


def test_another_language_is_searched_by_its_own_words(pipeline):
    pipeline.write("a.txt", "Die Häuser der Stadt.")
    pipeline.run()
    assert pipeline.found("Haus") == set()
    pipeline.change(text_search="german")
    pipeline.run()
    assert pipeline.found("Haus") == {"a.txt"}


def test_the_old_index_serves_until_the_new_one_is_whole_and_shows_what_it_can(fruit, server):
    """A new model that refuses a text: the switch waits, and nothing else does."""
    old = active_index(fruit.connection, "docs")
    server.refuses = lambda text: "red" in text
    fruit.change(embedding_model="openai/another")
    fruit.rename("pears.md", "renamed.md")
    fruit.delete("sub/plums.html")
    run = fruit.run()
    assert not run.published.switched
    assert [path for path, _ in run.published.failures] == ["apples.txt"]
    assert active_index(fruit.connection, "docs").id == old.id
    assert (fruit.found("apples", "hybrid") >= {"apples.txt"}, fruit.found("plums")) == (True, set())
    assert fruit.found("pears") == {"renamed.md"}
    assert set(fruit.served()) == {"apples.txt", "renamed.md"}
    server.refuses = lambda text: False
    asked = len(server.requests)
    assert fruit.run().published.switched
    assert [text for request in server.requests[asked:] for text in request.inputs] == [
        "Apples are red and grow on trees."
    ]
    fruit.assert_clean()


@pytest.mark.parametrize("settings", [{}, {"chunk_tokens": 32, "chunk_overlap": 0}])
def test_new_content_is_served_while_a_switch_waits_and_is_paid_for_once_in_each_model(fruit, server, settings):
    """The old index goes on taking in what is new or edited, and nothing that is only cut anew."""
    old = active_index(fruit.connection, "docs")
    server.refuses = lambda text: "red" in text
    fruit.change(embedding_model="openai/another", **settings)
    fruit.write("pears.md", "# Pears\n\nPears are yellow.")
    fruit.write("quinces.txt", "Quinces are sour.")
    assert set(fruit.run().published.touched) >= {"pears.md", "quinces.txt"}
    assert active_index(fruit.connection, "docs").id == old.id
    assert (fruit.found("yellow"), fruit.found("quinces")) == ({"pears.md"}, {"quinces.txt"})
    asked = [text for request in server.requests if request.body["model"] == "stand-in" for text in request.inputs]
    assert sum("Plums" in text for text in asked) == 1
    again = len(server.requests)
    fruit.run()
    assert all("red" in text for request in server.requests[again:] for text in request.inputs)
    server.refuses = lambda text: False
    assert fruit.run().published.switched
    fruit.assert_clean()


def test_a_model_changed_back_before_the_switch_leaves_nothing_of_the_other(fruit, server):
    old = active_index(fruit.connection, "docs")
    server.refuses = lambda text: "red" in text
    fruit.change(embedding_model="openai/another")
    fruit.run()
    fruit.change(embedding_model="openai/stand-in")
    run = fruit.run()
    assert (run.published.failures, fruit.failures()) == ([], {})
    assert active_index(fruit.connection, "docs").id == old.id
    age_retired(fruit)
    fruit.run()
    assert indexes(fruit) == [(old.id, False)]
    fruit.assert_clean()


def test_a_new_parser_parses_everything_anew(fruit, monkeypatch):
    served = fruit.served()
    monkeypatch.setattr(parsed_text, "PARSER_VERSION", parsed_text.PARSER_VERSION + 1)
    run = fruit.run()
    assert (run.parsed.documents, run.embedded.inserted, run.published.published) == (3, 0, 3)
    assert fruit.served() == served
    fruit.assert_clean()
    assert fruit.run().parsed.documents == 0


def test_an_addition_that_outgrows_the_index_builds_another(fruit, monkeypatch):
    monkeypatch.setattr("rag_pipeline.core.indexing.SMALL_INDEX", 5)
    old = active_index(fruit.connection, "docs")
    for number in range(8):
        fruit.write(f"{number}.txt", f"Fruit number {number} is edible.")
    run = fruit.run()
    assert (run.published.switched, run.embedded.copied) == (True, old.rows)
    fruit.assert_clean()
    fruit.write("9.txt", "Fruit number 9 is edible.")
    assert not fruit.run().published.switched
    fruit.delete(*(f"{number}.txt" for number in range(8)))
    fruit.run()
    fruit.write("10.txt", "Fruit number 10 is edible.")
    assert fruit.run().published.switched  # more dead rows than living
    fruit.assert_clean()


def test_a_switch_and_a_removal_take_effect_together(fruit):
    fruit.change(embedding_model="openai/another")
    fruit.delete("apples.txt")
    run = fruit.run()
    assert (run.published.switched, run.published.removed) == (True, 1)
    assert (fruit.found("apples"), fruit.found("pears", "hybrid")) == (set(), {"pears.md", "sub/plums.html"})
    fruit.assert_clean()


def test_a_switch_waits_for_a_document_that_has_moved_and_is_not_embedded_anew(pipeline, server):
    pipeline.write("apples.txt", "Apples are red.")
    pipeline.run()
    pipeline.rename("apples.txt", "moved.txt")
    pipeline.change(embedding_model="openai/another")
    server.intercept = lambda request: error(401, "no", "invalid_api_key")
    run = pipeline.run()
    assert (run.published.switched, run.published.removed) == (False, 1)
    assert pipeline.found("apples") == {"moved.txt"}  # in the old index, which has its text
    server.intercept = lambda request: None
    assert pipeline.run().published.switched
    assert pipeline.found("apples", "hybrid") == {"moved.txt"}
    pipeline.assert_clean()
