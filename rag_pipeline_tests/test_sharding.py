"""Stages done in shards, in one process and by Celery workers that get killed: the result is the same."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_pipeline.core.errors import UsageError
from rag_pipeline.core.sharding import cut
from rag_pipeline.core.stages.cached_embeddings import embed_shard, finish_embeddings, plan_embeddings
from rag_pipeline.core.stages.parsed_text import parse_documents, parse_shard, plan_parsing
from rag_pipeline.core.stages.pgvector_index import publish_documents
from rag_pipeline.core.stages.raw_files import update_manifest
from rag_pipeline.core.stages.token_chunks import chunk_documents
from rag_pipeline.executors import executor
from rag_pipeline.history import delete_rows
from rag_pipeline.settings import Settings
from rag_pipeline_tests.commands import Command
from rag_pipeline_tests.openai_server import OpenAIServer, error
from rag_pipeline_tests.test_dagster import metadata
from rag_pipeline_tests.waiting import eventually

WORKER = """
import sys
from importlib import import_module
from importlib.util import find_spec
from rag_pipeline import executors
executors.VISIBILITY_TIMEOUT_S = int(sys.argv[1])
import_module("rag_pipeline.assets.cached_embeddings").SHARD_CHUNKS = 40
import_module("rag_pipeline.assets.parsed_text").SHARD_BYTES = 20_000
from rag_pipeline.worker import app
app.worker_main(["worker", "--concurrency", "1", "--loglevel", "warning"])
"""


@given(sizes=st.lists(st.integers(0, 9), max_size=30), most=st.none() | st.integers(1, 20))
def test_every_key_is_in_one_shard_none_larger_than_asked(sizes, most):
    keys = [(bytes([number]), size) for number, size in enumerate(sizes)]
    shards = cut(keys, most)
    held = [[(key, size) for key, size in keys if shard.first <= key <= shard.last] for shard in shards]
    assert [key for each in held for key in each] == keys
    for shard, each in zip(shards, held, strict=True):
        assert shard.size == sum(size for _, size in each)
        assert most is None or shard.size <= most or len(each) == 1
    if most is None:
        assert len(shards) == bool(keys)


def test_shards_in_any_order_and_twice_amount_to_one_run(pipeline, server):
    for number in range(12):
        pipeline.write(f"{number}.md", f"# Number\n\nA text that others share.\n\n# More\n\nOf {number} alone.")
    pipeline.run()
    expected = pipeline.served()
    pipeline.change(embedding_model="openai/other")
    server.requests.clear()
    runtime = pipeline.runtime
    model = runtime.model(pipeline.collection.settings)
    plan = plan_embeddings(pipeline.connection, pipeline.collection, model, runtime.embedder, shard_chunks=5)
    assert len(plan.shards) > 2
    reports = [
        embed_shard(pipeline.connection, pipeline.collection, shard, runtime.embedder)
        for shard in [*reversed(plan.shards), *plan.shards]
    ]
    assert sum(report.requested for report in reports) == sum(shard.size for shard in plan.shards)
    assert len(server.embedded_texts()) == len(set(server.embedded_texts()))
    assert pipeline.run().embedded.inserted == 0
    assert pipeline.served() == expected
    pipeline.assert_clean()


def test_a_model_that_is_changed_between_two_steps_of_a_run_is_for_the_next(pipeline, server):
    """As with Celery, whose steps each read the settings: no vector of one model is in the index of another."""
    pipeline.write("a.txt", "Apples are red.")
    pipeline.run()
    pipeline.write("b.txt", "Pears are green.")
    runtime, connection = pipeline.runtime, pipeline.connection
    collection, model = pipeline.collection, runtime.model(pipeline.collection.settings)
    update_manifest(connection, collection)
    parse_documents(connection, collection, workers=1)
    chunk_documents(connection, collection, runtime.chunk_settings(collection.settings), runtime.input_limit(model))
    plan = plan_embeddings(connection, collection, model, runtime.embedder)
    pipeline.change(embedding_model="openai/another")
    reports = [embed_shard(connection, pipeline.collection, shard, runtime.embedder) for shard in plan.shards]
    finish_embeddings(connection, pipeline.collection, plan.copied, reports, runtime.embedder)
    publish_documents(connection, pipeline.collection)
    assert {request.body["model"] for request in server.requests} == {"stand-in"}
    assert pipeline.found("pears") == {"b.txt"}
    pipeline.run()
    assert {request.body["model"] for request in server.requests} == {"stand-in", "another"}
    pipeline.assert_as_built_anew()
    pipeline.assert_clean()


def test_a_shard_of_files_is_parsed_alone(pipeline):
    for number in range(5):
        pipeline.write(f"{number}.txt", f"Text number {number}.")
    update_manifest(pipeline.connection, pipeline.collection)
    shards = plan_parsing(pipeline.connection, pipeline.collection, shard_bytes=40)
    assert len(shards) == 3
    reports = [parse_shard(pipeline.connection, pipeline.collection, shard, workers=1) for shard in shards]
    assert [report.documents for report in reports] == [2, 2, 1]
    assert plan_parsing(pipeline.connection, pipeline.collection) == []


# Runs


def test_a_run_in_many_shards_tells_what_one_shard_would(rag, tmp_path, parsing_in_process, monkeypatch):
    folder = write_documents(tmp_path / "docs", 30)
    rag.done("ingest", folder)
    whole = metadata(rag, "docs")
    rag.done("collection", "remove", "docs")
    before = step_outputs(rag)
    for stage, most in (("parsed_text", 10_000), ("cached_embeddings", 40)):
        module = import_module(f"rag_pipeline.assets.{stage}")
        monkeypatch.setattr(module, "largest_shard", lambda pipeline, size, most=most: most)
    rag.done("ingest", folder)
    parts = metadata(rag, "docs")
    for stage, field in (
        ("parsed_text", "documents"),
        ("parsed_text", "characters"),
        ("cached_embeddings", "inputs"),
        ("cached_embeddings", "inserted"),
    ):
        assert parts[stage][field] == whole[stage][field]
    assert (whole["cached_embeddings"]["requested"], parts["cached_embeddings"]["cached"]) == (60, 60)
    assert (whole["cached_embeddings"]["cache_hit_rate"], parts["cached_embeddings"]["cache_hit_rate"]) == (0.0, 1.0)
    assert parts["cached_embeddings"]["truncated_inputs"] == 0
    steps = [step for step in step_outputs(rag) if step not in before]
    assert sum("embed_vectors" in step for step in steps) == 2
    assert sum("parse_texts" in step for step in steps) > 2


def test_a_run_with_nothing_to_do_has_no_shards(rag, handbook, parsing_in_process):
    rag.done("ingest", handbook)
    before = step_outputs(rag)
    rag.done("ingest", "handbook")
    steps = {step.split(".")[1] for step in step_outputs(rag) if step not in before}
    assert steps == {"plan_texts", "plan_vectors"}


def test_step_outputs_hold_keys_and_figures_alone(rag, tmp_path, parsing_in_process):
    rag.done("ingest", write_documents(tmp_path / "docs", 3))
    with closing(rag.runtime().connect()) as connection:
        values = [str(value) for (value,) in connection.execute("SELECT value FROM rag.step_output").fetchall()]
    assert values
    assert not any("canary" in value for value in values)


def test_step_outputs_are_pruned_save_of_runs_that_may_be_taken_up_again(rag, handbook, server, parsing_in_process):
    rag.done("ingest", handbook)
    succeeded = step_outputs(rag)
    server.intercept = lambda request: error(401, "no", "invalid_api_key")
    (handbook / "new.txt").write_text("A text that was not there.")
    assert rag("ingest", "handbook").status == 1
    failed = [step for step in step_outputs(rag) if step not in succeeded]
    with closing(rag.runtime().connect()) as connection:
        delete_rows(connection)
    assert step_outputs(rag) == failed != []


# Celery


@pytest.fixture
def celery(rag: Command, tmp_path: Path) -> dict[str, str]:
    """The environment of a worker and of a run that hands out its steps, over a collection of 60 documents."""
    rag.done("collection", "add", "docs", "--source", write_documents(tmp_path / "docs", 60))
    lines = [line.removeprefix("export ") for line in rag.done("env").out.splitlines()]
    told = dict(line.split("=", 1) for line in lines)
    return {
        **os.environ,
        **rag.environment,
        **{name: value.strip("'\"") for name, value in told.items()},
        "RAG_EXECUTOR": "celery",
    }


@contextmanager
def worker(environment: dict[str, str], visibility_timeout: int = 3600) -> Iterator[psutil.Process]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(visibility_timeout)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield psutil.Process(process.pid)
    finally:
        end(psutil.Process(process.pid) if process.poll() is None else None)
        process.wait()


def end(process: psutil.Process | None) -> None:
    """Kill a process and all it started."""
    for each in [process, *process.children(recursive=True)] if process else []:
        each.kill()


@contextmanager
def materializing(environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    program = Path(sys.executable).parent / "dagster"
    arguments = ("asset", "materialize", "-m", "rag_pipeline.definitions", "--select", "*", "--partition", "docs")
    process = subprocess.Popen(
        [program, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def in_the_middle(server: OpenAIServer) -> bool:
    """Some shards are done, and a request of another one is under way."""
    return len(server.embedded_texts()) > 40 and any(not request.answered_at for request in list(server.requests))


def write_documents(folder: Path, count: int) -> Path:
    """Documents of two chunks each."""
    folder.mkdir()
    long = "Two words. " * 90
    for number in range(count):
        (folder / f"{number:03}.md").write_text(f"# Canary {number}\n\n{long}\n\n# Other {number}\n\n{long}")
    return folder


def step_outputs(rag: Command) -> list[str]:
    with closing(rag.runtime().connect()) as connection:
        rows = connection.execute("SELECT run_id, step_key FROM rag.step_output").fetchall()
    return [f"{run_id}/{step_key}" for run_id, step_key in rows]


def finished(rag: Command, server: OpenAIServer, process: subprocess.Popen) -> None:
    """The run succeeded, everything is served, and nothing but what was in flight at a kill was asked twice."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:]
    status = rag.done("status", "docs", "--json").json
    assert (status["documents"]["indexed"], status["index"]["rows"]) == (60, 120)
    texts = server.embedded_texts()
    assert len(set(texts)) == 120
    assert len(texts) - len(set(texts)) <= 40
    assert rag.done("plan", "docs", "--json").json["to_embed"]["chunks"] == 0


@pytest.mark.slow
def test_celery_does_the_shards_and_survives_the_kill_of_a_step(rag, server, celery):
    server.latency = 0.3
    with worker(celery) as killed, materializing(celery) as run:
        eventually(lambda: in_the_middle(server), seconds=300)
        end_children(killed)
        finished(rag, server, run)
    assert sum("embed_vectors" in step for step in step_outputs(rag)) == 3


@pytest.mark.slow
def test_celery_survives_the_kill_of_a_worker(rag, server, celery):
    server.latency = 0.3
    with worker(celery, 20) as killed, materializing(celery) as run:
        eventually(lambda: in_the_middle(server), seconds=300)
        end(killed)
        with worker(celery, 20):
            finished(rag, server, run)


def end_children(process: psutil.Process) -> None:
    for child in process.children(recursive=True):
        child.kill()


def test_an_executor_that_cannot_be_used_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("RAG_EXECUTOR", "kubernetes")
    with pytest.raises(UsageError, match="RAG_EXECUTOR=kubernetes is not valid: set it to in_process or celery"):
        Settings.from_environment()
    monkeypatch.setenv("RAG_EXECUTOR", "celery")
    monkeypatch.setenv("RAG_REDIS_URL", "")
    if find_spec("dagster_celery"):
        with pytest.raises(UsageError, match="set RAG_REDIS_URL"):
            executor(Settings.from_environment())
    monkeypatch.setitem(sys.modules, "dagster_celery", None)
    with pytest.raises(UsageError, match=r"pip install -c constraints.txt -e '\.\[celery\]'"):
        executor(Settings.from_environment())
