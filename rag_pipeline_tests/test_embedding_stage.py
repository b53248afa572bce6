"""The stage cached_embeddings: its bill, and a model that changes under its name."""

import numpy as np
import pytest
from dagster import AssetCheckKey, AssetKey

from rag_pipeline.core.models import embedding_model
from rag_pipeline.core.stages import cached_embeddings
from rag_pipeline.definitions import build_definitions
from rag_pipeline_tests.commands import Command
from rag_pipeline_tests.openai_server import embeddings_reply
from rag_pipeline_tests.pipelines import DIMENSIONS
from rag_pipeline_tests.test_dagster import metadata, opened


def become_another_model(server) -> None:
    """The server answers with other vectors from now on."""
    chance = np.random.default_rng(1)

    def answer(request):
        dimensions = request.body.get("dimensions", DIMENSIONS)
        vectors = chance.standard_normal((len(request.inputs), dimensions)).astype(np.float32)
        return embeddings_reply(vectors, "stand-in", 1)

    server.intercept = answer


def test_a_model_that_changed_is_noticed_when_it_is_asked(fruit, server):
    assert len(server.probes) == 1
    fruit.write("new.txt", "Quinces are hard.")
    assert fruit.run().embedded.same_model is True
    become_another_model(server)
    assert fruit.run().embedded.same_model is True  # nothing to embed, nothing asked: as it was
    assert len(server.probes) == 2
    fruit.write("newer.txt", "Medlars are soft.")
    run = fruit.run()
    assert (run.embedded.same_model, run.published.published) == (False, 1)
    assert fruit.run().embedded.same_model is False  # a run that asks nothing clears no alarm


def test_an_index_that_takes_over_vectors_takes_over_their_probe(fruit, server):
    fruit.change(hnsw_m=8)
    fruit.run()
    become_another_model(server)
    fruit.write("new.txt", "Quinces are hard.")
    assert fruit.run().embedded.same_model is False


def test_a_provider_that_does_not_answer_the_probe_fails_nothing(fruit, server, monkeypatch):
    def silent(provider):
        raise cached_embeddings.ProviderError("no answer")

    monkeypatch.setattr(cached_embeddings, "probe", silent)
    fruit.write("new.txt", "Quinces are hard.")
    run = fruit.run()
    assert (run.embedded.same_model, run.published.published) == (True, 1)


def same_model(rag: Command, name: str) -> bool | None:
    """What the newest check of this collection says."""
    with opened(rag) as instance:
        records = instance.event_log_storage.get_asset_check_execution_history(
            AssetCheckKey(AssetKey("cached_embeddings"), "same_model"), limit=1
        )
    evaluation = records[0].event.dagster_event.event_specific_data if records else None
    assert evaluation is None or evaluation.partition == name
    return evaluation.passed if evaluation else None


def test_the_check_says_so_for_its_collection(rag, handbook, server, parsing_in_process):
    rag.done("ingest", handbook)
    assert same_model(rag, "handbook") is True
    become_another_model(server)
    (handbook / "new.txt").write_text("A text that was not there.\n")
    rag.done("ingest", "handbook")
    assert same_model(rag, "handbook") is False


def test_reconciling_asks_the_probe_though_nothing_is_to_be_embedded(
    rag, handbook, server, parsing_in_process, monkeypatch
):
    rag.done("ingest", handbook)
    become_another_model(server)
    for name, value in rag.environment.items():
        monkeypatch.setenv(name, value)
    with opened(rag) as instance:
        job = build_definitions().resolve_job_def("reconcile_collection")
        job.execute_in_process(instance=instance, partition_key="handbook")
    assert same_model(rag, "handbook") is False


def test_a_materialization_carries_the_bill(rag, handbook, parsing_in_process):
    rag.done("ingest", handbook)
    told = metadata(rag, "handbook")["cached_embeddings"]
    assert (told["inputs"], told["cached"], told["requested"], told["truncated_inputs"]) == (3, 0, 3, 0)
    assert (told["requests"], told["retries"], told["refused"], told["cache_hit_rate"]) == (1, 0, 0, 0.0)
    assert told["cost_usd"] == told["tokens"] * 0.02 / 1e6 > 0
    assert all(told[f"{each}_per_second"] > 0 for each in ("inputs", "tokens", "requests"))
    rag.done("ingest", "handbook")
    told = metadata(rag, "handbook")["cached_embeddings"]
    assert (told["inputs"], told["requests"], told["cost_usd"]) == (0, 0, 0.0)
    assert "inputs_per_second" not in told


def test_the_rates_of_the_environment_bound_what_is_asked(rag, handbook, parsing_in_process):
    runtime = Command({**rag.environment, "RAG_TOKENS_PER_MINUTE": "120000"}).runtime()
    provider = runtime.provider(embedding_model("openai/text-embedding-3-small"))
    assert provider.batch_tokens == 30_000
    assert runtime.provider(embedding_model("openai/text-embedding-3-small")) is provider
    assert runtime.provider(embedding_model("openai/text-embedding-3-large")) is not provider


def test_what_a_killed_run_spent_is_on_the_bill(pipeline, server, monkeypatch):
    """The totals are written with the vectors, not at the end."""
    pipeline.write("a.md", "\n\n".join(f"# Heading {number}\n\n{'Words. ' * 40}" for number in range(80)))
    insert, calls = cached_embeddings.insert_chunks, []

    def fail_later(connection, index, rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return insert(connection, index, rows)

    monkeypatch.setattr(cached_embeddings, "insert_chunks", fail_later)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run()
    ((requested, tokens),) = pipeline.rows("SELECT requested, tokens FROM rag.embedding_total")
    assert requested == calls[0]
    assert tokens > 0
