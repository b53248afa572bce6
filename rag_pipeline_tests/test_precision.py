"""The graph of a vector index: its precision, what a change of that costs, and how its building is shown."""

import numpy as np
import pytest

from rag_pipeline.core import indexing
from rag_pipeline.core.indexing import active_index, build_graph, choose_target, insert_chunks
from rag_pipeline_tests.pipelines import Pipeline


def graph(pipeline: Pipeline) -> str:
    """The definition of the active index's graph."""
    index = active_index(pipeline.connection, "docs")
    ((definition,),) = pipeline.rows(
        "SELECT indexdef FROM pg_indexes WHERE tablename = %(table)s AND indexdef LIKE '%%hnsw%%'",
        table=f"indexed_chunk_{index.id}",
    )
    return definition


def fill(pipeline: Pipeline) -> Pipeline:
    pipeline.write("apples.txt", "Apples are red and grow on trees.")
    pipeline.write("pears.txt", "Pears are green.")
    pipeline.write("plums.txt", "Plums are blue.")
    pipeline.run()
    return pipeline


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"dimensions": 2000}, "(embedding)::vector(2000)) vector_cosine_ops"),
        ({"dimensions": 2000, "precision": "half"}, "(embedding)::halfvec(2000)) halfvec_cosine_ops"),
        ({"dimensions": 2001}, "(embedding)::halfvec(2001)) halfvec_cosine_ops"),
        ({"dimensions": None}, "(embedding)::halfvec(3072)) halfvec_cosine_ops"),
    ],
)
def test_the_graph_is_of_half_precision_where_set_and_where_a_full_one_is_impossible(pipeline, settings, expected):
    pipeline.change(embedding_model="openai/text-embedding-3-large", **settings)
    fill(pipeline)
    assert expected in graph(pipeline)
    for query, path in (("red apples", "apples.txt"), ("green pears", "pears.txt"), ("blue plums", "plums.txt")):
        assert pipeline.search(query, k=1, mode="vector")[0].path == path
        assert pipeline.search(query, k=1)[0].path == path
    assert not pipeline.run().published.switched
    pipeline.assert_clean()


def test_from_full_to_half_and_back_embeds_nothing_and_keeps_every_vector(pipeline, server):
    fill(pipeline)
    served, asked = pipeline.served(), len(server.embedded_texts())
    for precision in ("half", "full"):
        pipeline.change(precision=precision)
        run = pipeline.run()
        assert (run.published.switched, run.embedded.copied) == (True, 3)
        assert ("halfvec" in graph(pipeline)) == (precision == "half")
        assert pipeline.served() == served
        assert pipeline.search("green pears", k=1, mode="vector")[0].path == "pears.txt"
        pipeline.assert_clean()
    assert set(server.embedded_texts()[asked:]) == {"green pears"}  # the question


def begin(pipeline: Pipeline, rows: int) -> indexing.VectorIndex:
    """An index under construction with so many rows."""
    pipeline.change(dimensions=384)
    model = pipeline.runtime.model(pipeline.collection.settings)
    index = choose_target(pipeline.connection, pipeline.collection, model)
    vectors = np.random.default_rng(7).standard_normal((rows, 384)).astype(np.float32)
    insert_chunks(
        pipeline.connection,
        index,
        [(number.to_bytes(32, "big"), f"text {number}", vector) for number, vector in enumerate(vectors)],
    )
    return indexing.target_index(pipeline.connection, "docs")


def test_a_long_build_says_how_far_it_is(pipeline, monkeypatch):
    monkeypatch.setattr(indexing, "SECONDS_BETWEEN_LOOKS", 0.01)
    told: list[tuple[int, int]] = []
    build_graph(pipeline.connection, begin(pipeline, 3000), lambda done, total: told.append((done, total)))
    assert told
    assert told == sorted(told)
    assert all(0 < done <= total == 3000 for done, total in told)


def test_nobody_watches_a_build_that_is_short(pipeline, monkeypatch):
    monkeypatch.setattr(indexing.psycopg, "connect", lambda *_, **__: pytest.fail("another connection was opened"))
    monkeypatch.setattr(indexing, "SECONDS_BETWEEN_LOOKS", 60.0)
    build_graph(pipeline.connection, begin(pipeline, 10))
