"""The checks: each finds what it is for, and nothing in what a run leaves behind; and what a reconciling run does."""

import re

import numpy as np
import pytest
from dagster import AssetCheckKey, AssetKey, RunsFilter
from psycopg import sql

from rag_pipeline.assets.cached_embeddings import SAME_MODEL
from rag_pipeline.assets.checks import OF_A_COLLECTION, OF_A_RUN
from rag_pipeline.assets.quality import quality_holds
from rag_pipeline.core import checks, indexing
from rag_pipeline.core.errors import RagError
from rag_pipeline.core.garbage import reclaim_space
from rag_pipeline.core.indexing import active_index, build_graph, insert_chunks
from rag_pipeline.core.status import collection_status
from rag_pipeline.definitions import build_definitions
from rag_pipeline.instance import dagster_instance
from rag_pipeline_tests.openai_server import error
from rag_pipeline_tests.pipelines import DIMENSIONS, UNPARSABLE, Pipeline


def everything(pipeline: Pipeline) -> dict[str, list[str]]:
    """What the checks of a whole collection find, by check; none of them says a word of a document."""
    connection, index = pipeline.connection, active_index(pipeline.connection, pipeline.name)
    found = {
        "incomplete": checks.incomplete_documents(connection, index, None),
        "rows": checks.wrong_rows(connection, index),
        "orphans": checks.orphans(connection, pipeline.name),
        "dimensions": checks.wrong_dimensions(connection, index),
        "statistics": checks.wrong_statistics(connection, index),
    }
    return {check: [each.subject for each in findings] for check, findings in found.items() if findings}


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_found_in_what_a_run_leaves_behind(fruit, server, failing):
    if failing:
        server.intercept = lambda request: error(401, "no", "invalid_api_key")
    fruit.write("apples.txt", "Apples are yellow.")
    fruit.write("bad.txt", UNPARSABLE)
    fruit.write("empty.html", "<p>")
    fruit.rename("pears.md", "renamed.md")
    fruit.run()
    assert everything(fruit) == {}
    assert checks.recall(fruit.connection, active_index(fruit.connection, "docs")) == 1.0


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("DELETE FROM rag.indexed_chunk WHERE input LIKE 'Apples%%'", {"incomplete", "rows", "statistics"}),
        ("DELETE FROM rag.token_chunk WHERE content_hash IN (SELECT content_hash FROM rag.indexed_chunk "
         "WHERE input LIKE 'Apples%%')", {"incomplete", "rows"}),
        ("DELETE FROM rag.parsed_text WHERE text LIKE 'Apples%%'", {"incomplete"}),
        ("UPDATE rag.vector_index SET rows = rows + 1", {"rows"}),
        ("UPDATE rag.vector_index SET words = words - 1", {"statistics"}),
        ("UPDATE rag.index_term SET chunks = chunks + 1 WHERE term = 'appl'", {"statistics"}),
        ("DELETE FROM rag.index_term WHERE term = 'appl'", {"statistics"}),
        ("UPDATE rag.document SET published_chunk_key = NULL, chunk_key = NULL WHERE path = 'apples.txt'; "
         "DELETE FROM rag.garbage", {"rows", "orphans"}),
        ("INSERT INTO rag.parsed_text (collection, parse_key, text) VALUES ('docs', 'x', 'y')", {"orphans"}),
        ("CREATE TABLE rag.indexed_chunk_0 PARTITION OF rag.indexed_chunk FOR VALUES IN (0)", {"orphans"}),
    ],
)  # fmt: skip
def test_damage_is_found(fruit, damage, found):
    assert everything(fruit) == {}
    fruit.connection.execute(damage.replace("%%", "%"))
    try:
        assert everything(fruit).keys() == found
    finally:
        fruit.connection.execute("DROP TABLE IF EXISTS rag.indexed_chunk_0")


@pytest.mark.parametrize("what", ["INDEX rag.indexed_chunk_{}_terms", "TABLE rag.indexed_chunk_{}"])
def test_an_index_that_is_gone_is_found_and_comes_back(fruit, what):
    index = active_index(fruit.connection, "docs")
    fruit.connection.execute(f"DROP {what.format(index.id)}")
    assert everything(fruit)["statistics"] == [f"index {index.id}"]
    assert collection_status(fruit.connection, "docs").documents["indexed"] == 3
    fruit.change(hnsw_m=17)
    fruit.run()
    assert everything(fruit) == {}
    assert fruit.found("red") == {"apples.txt"}


def test_a_row_that_is_missing_comes_back_with_an_index_that_is_built_anew(fruit):
    """What the check says to do."""
    fruit.connection.execute("DELETE FROM rag.indexed_chunk WHERE input LIKE 'Apples%'")
    fruit.change(hnsw_m=17)
    fruit.run()
    assert everything(fruit) == {}
    assert fruit.found("red") == {"apples.txt"}


def test_a_vector_of_other_dimensions_is_found(fruit):
    index = active_index(fruit.connection, "docs")
    fruit.connection.execute(f"DROP INDEX rag.indexed_chunk_{index.id}_hnsw")
    fruit.connection.execute("UPDATE rag.indexed_chunk SET embedding = '[1,2,3]'::vector WHERE input LIKE 'Apples%'")
    assert everything(fruit) == {"incomplete": ["apples.txt"], "dimensions": [f"index {index.id}"]}


def test_a_document_that_is_not_whole_is_not_published_nor_anything_else(fruit, monkeypatch):
    """Whatever makes a run take it for whole: here it believes that nothing is missing."""
    fruit.write("apples.txt", "Apples are yellow.")
    fruit.delete("pears.md")
    monkeypatch.setattr(Pipeline, "_embed", lambda *arguments: None)
    nothing = sql.SQL("SELECT ''::bytea AS chunk_key WHERE false")
    monkeypatch.setattr(indexing, "missing_chunks", lambda index, **options: nothing)
    with pytest.raises(RagError, match=r"1 documents of docs .*apples\.txt: 1 chunks are due: 1 there, 0 indexed"):
        fruit.run()
    assert fruit.found("red") == {"apples.txt"}
    assert fruit.found("cellar") == {"pears.md"}


def test_what_failed_anew_is_told_once_and_only_of_what_is_served(fruit):
    fruit.write("new.txt", UNPARSABLE)
    fruit.run()
    assert checks.newly_failed(fruit.connection, "docs") == []
    fruit.write("apples.txt", UNPARSABLE)
    fruit.run()
    assert [(each.subject, each.problem) for each in checks.newly_failed(fruit.connection, "docs")] == [
        ("apples.txt", "unsupported type (parsed_text)")
    ]
    fruit.run()
    assert checks.newly_failed(fruit.connection, "docs") == []
    fruit.write("apples.txt", "Apples are yellow.")
    fruit.run()
    assert checks.newly_failed(fruit.connection, "docs") == []
    fruit.write("apples.txt", UNPARSABLE + b"again")
    fruit.run()
    assert [each.subject for each in checks.newly_failed(fruit.connection, "docs")] == ["apples.txt"]


def test_recall_tells_a_bad_graph_from_a_good_one(fruit):
    """A graph of two links a node, asked for its nearest among 3,000 random vectors."""
    random = np.random.default_rng(1)
    fruit.change(hnsw_m=2, hnsw_ef_construction=4)
    fruit.run()
    index = active_index(fruit.connection, "docs")
    rows = [(bytes([n % 256, n // 256]) * 16, f"text {n}", random.normal(size=DIMENSIONS)) for n in range(3000)]
    insert_chunks(fruit.connection, index, rows)
    poor = checks.recall(fruit.connection, index)
    fruit.connection.execute(f"DROP INDEX rag.indexed_chunk_{index.id}_hnsw")
    assert checks.recall(fruit.connection, index) == 0
    fruit.connection.execute("UPDATE rag.vector_index SET m = 24, ef_construction = 200 WHERE id = %s", [index.id])
    build_graph(fruit.connection, index)
    assert poor < 0.9 < checks.recall(fruit.connection, index)


def test_space_is_reclaimed(fruit):
    fruit.change(hnsw_m=8)
    fruit.run()
    fruit.connection.execute("UPDATE rag.vector_index SET retired_at = retired_at - interval '1 hour'")
    reclaim_space(fruit.connection, "docs")
    assert len(fruit.rows("SELECT id FROM rag.vector_index")) == 1
    fruit.assert_clean()


# In Dagster


def evaluations(rag, job: str = "refresh_collection") -> dict[str, tuple[bool, str]]:
    """Of the newest run of a job: each check's result, and the partition it is recorded for."""
    with dagster_instance(rag.runtime()) as instance:
        (run,) = instance.get_runs(RunsFilter(job_name=job), limit=1)
        return {
            entry.dagster_event.event_specific_data.check_name: (
                entry.dagster_event.event_specific_data.passed,
                entry.dagster_event.event_specific_data.partition,
            )
            for entry in instance.all_logs(run.run_id)
            if entry.dagster_event and entry.dagster_event.event_type_value == "ASSET_CHECK_EVALUATION"
        }


def test_every_run_says_how_it_left_what_it_touched(rag, handbook, server, parsing_in_process):
    rag.done("ingest", handbook)
    assert evaluations(rag) == {
        "same_model": (True, "handbook"),
        "documents_whole": (True, "handbook"),
        "nothing_newly_failed": (True, "handbook"),
    }
    (handbook / "travel.txt").write_bytes(UNPARSABLE)
    (handbook / "new.txt").write_text("And the provider is gone.")
    server.intercept = lambda request: error(401, "no", "invalid_api_key")
    assert rag("ingest", "handbook").status == 1
    assert evaluations(rag) == {
        "same_model": (True, "handbook"),
        "documents_whole": (True, "handbook"),
        "nothing_newly_failed": (False, "handbook"),
    }


def test_a_reconciling_run_doubts_everything(rag, handbook, monkeypatch, parsing_in_process):
    rag.done("ingest", handbook)
    monkeypatch.setattr("rag_pipeline.assets.stages.REHASH_DAYS", 1)
    with rag.runtime().connect() as connection, dagster_instance(rag.runtime()) as instance:
        connection.execute("UPDATE rag.document SET content_hash = 'x' WHERE path = 'travel.txt'")
        connection.execute("UPDATE rag.vector_index SET rows = rows + 1")
        for name, value in rag.environment.items():
            monkeypatch.setenv(name, value)
        done = (
            build_definitions()
            .resolve_job_def("reconcile_collection")
            .execute_in_process(instance=instance, partition_key="handbook")
        )
        (files,) = [
            event.step_materialization_data.materialization.metadata
            for event in done.get_asset_materialization_events()
            if event.asset_key == AssetKey("raw_files")
        ]
        assert files["changed"].value == 1
    found = evaluations(rag, "reconcile_collection")
    assert found.keys() == {spec.name for spec in (*OF_A_RUN, *OF_A_COLLECTION, SAME_MODEL, quality_holds)}
    assert [name for name, (passed, _) in found.items() if not passed] == ["rows_match_chunks"]
    assert {partition for _, partition in found.values()} == {"handbook"}


def test_every_check_says_what_to_do():
    for spec in (*OF_A_RUN, *OF_A_COLLECTION):
        assert re.search(r"rag (ingest|collection) |: remove the collection", spec.description)
    assert AssetCheckKey(AssetKey("pgvector_index"), "recall_at_10") in {spec.key for spec in OF_A_COLLECTION}
