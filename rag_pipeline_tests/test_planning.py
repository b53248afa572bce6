"""`rag plan`: what an ingest would do and cost is what it then does and costs; planning itself does nothing."""

import json

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag_pipeline.core.errors import SourceError
from rag_pipeline.core.forgetting import forget
from rag_pipeline.core.planning import IngestPlan, plan_ingest
from rag_pipeline.core.stages.parsed_text import parse_documents
from rag_pipeline.core.stages.raw_files import update_manifest
from rag_pipeline_tests.pipelines import MODEL, UNPARSABLE, Pipeline, Run

PATHS = ["a.md", "b.md", "c.txt"]
SENTENCES = [f"Sentence {number} tells of a thing that no other sentence tells of." for number in range(12)]


def plan(pipeline: Pipeline) -> IngestPlan:
    runtime, collection = pipeline.runtime, pipeline.collection
    model = runtime.model(collection.settings)
    provider = runtime.provider(model)
    return plan_ingest(
        pipeline.connection,
        collection,
        runtime.chunk_settings(collection.settings),
        runtime.input_limit(model),
        provider,
        runtime.cache(provider),
    )


def parse_all(pipeline: Pipeline) -> None:
    """The first two stages: every text is there, and nothing else."""
    update_manifest(pipeline.connection, pipeline.collection)
    parse_documents(pipeline.connection, pipeline.collection, workers=1)


def asked(run: Run) -> tuple[int, int]:
    return run.embedded.embedding.requested, run.embedded.embedding.tokens


def words(kind: str) -> str:
    return " ".join(f"The {kind} of tree {number} is {number * number} days old." for number in range(100))


def files(plan: IngestPlan, run: Run) -> tuple[dict, dict]:
    return plan.files, {key: getattr(run.files, key) for key in plan.files}


def rows(pipeline: Pipeline) -> list[tuple]:
    """Every row of the pipeline's tables, as the transaction that wrote it."""
    tables = ("collection", "document", "parsed_text", "chunking", "token_chunk", "vector_index", "embedding_total")
    return [
        (table, *row)
        for table in tables
        for row in pipeline.connection.execute(f"SELECT ctid::text, xmin::text FROM rag.{table}").fetchall()
    ]


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"),
            st.sampled_from(PATHS),
            st.lists(st.sampled_from(SENTENCES), max_size=9),
        ),
        st.tuples(st.just("delete"), st.sampled_from(PATHS), st.none()),
        st.tuples(
            st.just("change"),
            st.sampled_from(
                [
                    {"chunk_tokens": 24},
                    {"chunk_tokens": 64},
                    {"embed_headings": False},
                    {"embedding_model": "openai/other"},
                    {"embedding_model": MODEL},
                    {"hnsw_m": 8},
                    {"hnsw_m": 16},
                ]
            ),
            st.none(),
        ),
        st.tuples(st.just("run"), st.none(), st.none()),
        st.tuples(st.just("parse"), st.none(), st.none()),
        st.tuples(st.just("lose the cache"), st.none(), st.none()),
    ),
    min_size=2,
    max_size=8,
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_of_parsed_text_a_plan_is_what_the_run_then_asks(steps, pipeline, redis_url, server):
    """One collection goes through all examples, each from where the last one left it."""
    for step, argument, sentences in steps:
        if step == "write":
            pipeline.write(argument, "# A heading\n\n" + "\n\n".join(sentences))
        elif step == "delete" and (pipeline.folder / argument).exists():
            pipeline.delete(argument)
        elif step == "change":
            pipeline.change(**argument)
        elif step == "run":
            pipeline.run()
        elif step == "parse":
            parse_all(pipeline)
        elif step == "lose the cache":
            redis.Redis.from_url(redis_url).flushall()
    seen = plan(pipeline).files["seen"]
    parse_all(pipeline)
    requests, state = len(server.requests), rows(pipeline)
    planned = plan(pipeline)
    assert (planned.estimated, planned.to_parse) == (False, 0)
    assert (len(server.requests), rows(pipeline)) == (requests, state)
    run = pipeline.run()
    assert asked(run) == (planned.to_embed.chunks, planned.to_embed.tokens)
    assert run.files.seen == seen
    assert plan(pipeline).to_embed.chunks == 0


def test_a_plan_counts_files_and_estimates_what_is_not_parsed(fruit, server):
    requests = len(server.requests)
    fruit.write("apples.txt", words("apple"))
    fruit.write("new.txt", words("quince"))
    fruit.delete("pears.md")
    planned = plan(fruit)
    assert (planned.to_parse, planned.estimated) == (2, True)
    assert len(server.requests) == requests
    run = fruit.run()
    told, counted = files(planned, run)
    assert told == counted == {"seen": 3, "added": 1, "changed": 1, "removed": 1, "unchanged": 1, "withheld": 0}
    assert 0.5 < planned.to_embed.tokens / run.embedded.embedding.tokens < 2
    assert plan(fruit).to_embed.chunks == 0


def test_a_plan_knows_what_is_withheld_and_what_does_not_parse(pipeline):
    for number in range(15):
        pipeline.write(f"{number}.txt", f"Text number {number}.")
    pipeline.write("broken.pdf", UNPARSABLE)
    pipeline.run()
    pipeline.delete(*(f"{number}.txt" for number in range(12)))
    pipeline.change(chunk_tokens=32)
    planned = plan(pipeline)
    assert (planned.files["withheld"], planned.files["removed"], planned.to_parse) == (12, 0, 0)
    run = pipeline.run()
    told, counted = files(planned, run)
    assert told == counted
    assert asked(run) == (planned.to_embed.chunks, planned.to_embed.tokens)


def test_a_plan_refuses_what_the_run_would_an_empty_folder_in_place_of_the_source(fruit):
    fruit.folder.rename(fruit.folder.with_name("mounted"))
    fruit.folder.mkdir()
    with pytest.raises(SourceError, match="has no file and is not the folder it was"):
        plan(fruit)


def test_a_plan_leaves_out_what_was_forgotten(fruit):
    forget(fruit.connection, fruit.name, "apples.txt", [])
    planned = plan(fruit)
    run = fruit.run()
    assert (planned.to_parse, planned.to_embed.chunks) == (run.parsed.documents, run.embedded.embedding.requested)
    told, counted = files(planned, run)
    assert told == counted


def test_a_plan_of_a_priced_model_tells_dollars(pipeline):
    pipeline.write("a.txt", "A text of some words.")
    pipeline.change(embedding_model="openai/text-embedding-3-small", dimensions=None)
    parse_all(pipeline)
    embed = plan(pipeline).to_embed
    assert embed.cost_usd == pytest.approx(embed.tokens * 0.02 / 1e6)
    assert embed.tokens > 0


def test_the_command_prints_one_object_or_two_lines(rag, handbook, parsing_in_process):
    rag.done("collection", "add", "handbook", "--source", handbook)
    told = rag.done("plan", "handbook", "--json").json
    assert set(told) == {"collection", "files", "to_parse", "to_embed", "estimated"}
    assert set(told["to_embed"]) == {"chunks", "tokens", "cost_usd"}
    assert (told["files"]["added"], told["to_parse"], told["estimated"]) == (3, 3, True)
    rag.done("ingest", "handbook")
    done = rag.done("plan", "handbook")
    assert done.out == "handbook: 3 files, nothing changed; 0 to parse\nto embed: 0 chunks, 0 tokens, $0.0000\n"
    assert "no collection" in rag("plan", "nowhere").reason


def test_status_sums_the_bill_over_the_collections_life(rag, handbook, parsing_in_process):
    told = [json.loads(rag.done("ingest", handbook, "--json").out)["embeddings"]]
    (handbook / "travel.txt").write_text("Ships are slow, and need the consent of nobody.\n")
    told.append(json.loads(rag.done("ingest", "handbook", "--json").out)["embeddings"])
    spent = rag.done("status", "handbook", "--json").json["embeddings"]
    assert spent["tokens"] == sum(each["tokens"] for each in told)
    assert spent["cost_usd"] == pytest.approx(sum(each["cost_usd"] for each in told))
    assert spent["requests"] == 2
    assert f"{spent['tokens']} tokens" in rag.done("status", "handbook").out
