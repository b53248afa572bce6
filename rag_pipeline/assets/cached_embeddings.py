"""cached_embeddings: planned, embedded shard by shard, summed up."""

import warnings
from dataclasses import asdict

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetIn,
    DataVersion,
    DynamicOutput,
    MaterializeResult,
    Nothing,
    Out,
    PreviewWarning,
    ResourceParam,
    graph_asset,
    op,
)

from rag_pipeline.assets.metadata import Stopwatch, counts, quoting_no_row, rates
from rag_pipeline.assets.sharding import (
    AFTER,
    PLAN_OUTS,
    SHARD_CHUNKS,
    SHARD_OUT,
    largest_shard,
    read_shard,
    shard_outputs,
    tried_twice,
)
from rag_pipeline.core.stages.cached_embeddings import (
    EmbeddedReport,
    embed_for_active,
    embed_shard,
    finish_embeddings,
    plan_embeddings,
)
from rag_pipeline.core.versions import result_version
from rag_pipeline.partitions import collections_partitions, shared
from rag_pipeline.resources import Pipeline

with warnings.catch_warnings():
    # Without a partition one collection's pass would hide another's failure; Dagster calls that a preview.
    warnings.simplefilter("ignore", PreviewWarning)
    SAME_MODEL = AssetCheckSpec(
        "same_model",
        asset="cached_embeddings",
        partitions_def=collections_partitions,
        description=(
            "The provider answers a fixed text with the vector it gave when the index was first embedded. Otherwise "
            "the model has changed under its name, and its new vectors do not fit the old ones: set embedding_model "
            "or dimensions to others, and the next ingest builds a new index; or remove the collection with --purge, "
            "and add it again."
        ),
    )


@op(ins=AFTER, out=PLAN_OUTS)
@quoting_no_row
def plan_vectors(pipeline: ResourceParam[Pipeline]) -> tuple[list[DynamicOutput[dict]], dict]:
    """Take over the vectors that a sibling index has, and cut the rest into shards of chunks."""
    watch = Stopwatch()
    collection, runtime = pipeline.collection, pipeline.runtime
    plan = plan_embeddings(
        pipeline.connection,
        collection,
        runtime.model(collection.settings),
        runtime.embedder,
        shard_chunks=largest_shard(pipeline, SHARD_CHUNKS),
    )
    return shard_outputs(plan.shards), {"started": watch.started, "copied": plan.copied, "stopped": plan.stopped}


@op(out=SHARD_OUT)
@tried_twice
@quoting_no_row
def embed_vectors(pipeline: ResourceParam[Pipeline], shard: dict) -> dict:
    """Embed a shard of chunks."""
    report = embed_shard(
        pipeline.connection,
        pipeline.collection,
        read_shard(shard),
        pipeline.runtime.embedder,
        progress=pipeline.progress.stage("cached_embeddings", "chunks"),
    )
    return asdict(report)


@op(out={"result": Out(Nothing), "same_model": Out(Nothing, is_required=False)})
@quoting_no_row
def report_vectors(pipeline: ResourceParam[Pipeline], plan: dict, reports: list):
    """Sum up what was embedded, and ask whether the model is still the same."""
    collection, runtime = pipeline.collection, pipeline.runtime
    report = finish_embeddings(
        pipeline.connection,
        collection,
        plan["copied"],
        [EmbeddedReport(**each) for each in reports],
        runtime.embedder,
        stopped=plan["stopped"],
        check_model=pipeline.reconcile,
    )
    report.embedding.add(embed_for_active(pipeline.connection, collection, runtime.embedder))
    embedded, seconds = report.embedding, Stopwatch(plan["started"]).seconds()
    yield MaterializeResult(
        metadata={
            **seconds,
            "model": report.index.model,
            "copied": report.copied,
            **counts(embedded),
            "inserted": report.inserted,
            "cache_hit_rate": round(embedded.cached / embedded.inputs, 3) if embedded.inputs else 1.0,
            **rates(seconds, inputs=embedded.inputs, tokens=embedded.tokens, requests=embedded.requests),
        },
        data_version=DataVersion(
            result_version(pipeline.connection, pipeline.name, "chunk_key", report.index.model, report.index.dimensions)
        ),
    )
    if report.same_model is not None:
        yield AssetCheckResult(
            asset_key="cached_embeddings",
            check_name="same_model",
            passed=report.same_model,
            severity=AssetCheckSeverity.ERROR,
            metadata={"model": report.index.model},
        )


@graph_asset(
    **shared,
    ins={"token_chunks": AssetIn(dagster_type=Nothing)},
    kinds={"postgres", "redis"},
    check_specs=[SAME_MODEL],
)
def cached_embeddings(token_chunks):
    """A vector for every chunk: from the cache where it is known, else from the provider. Readers do not see it yet."""
    shards, plan = plan_vectors(token_chunks)
    result, same_model = report_vectors(plan, shards.map(embed_vectors).collect())
    return {"result": result, "cached_embeddings_same_model": same_model}
