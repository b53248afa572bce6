"""parsed_text: planned, parsed shard by shard, summed up."""

from dataclasses import asdict

from dagster import AssetIn, DataVersion, DynamicOutput, MaterializeResult, Nothing, ResourceParam, graph_asset, op

from rag_pipeline.assets.metadata import Stopwatch, counts, quoting_no_row, rates, table
from rag_pipeline.assets.sharding import (
    AFTER,
    PLAN_OUTS,
    SHARD_BYTES,
    SHARD_OUT,
    largest_shard,
    read_shard,
    shard_outputs,
    tried_twice,
)
from rag_pipeline.core.samples import failure_sample
from rag_pipeline.core.stages.parsed_text import ParseReport, parse_shard, plan_parsing
from rag_pipeline.core.versions import result_version
from rag_pipeline.partitions import shared
from rag_pipeline.resources import Pipeline


@op(ins=AFTER, out=PLAN_OUTS)
@quoting_no_row
def plan_texts(pipeline: ResourceParam[Pipeline]) -> tuple[list[DynamicOutput[dict]], dict]:
    """Adopt the texts that are there, and cut the rest into shards of files."""
    watch = Stopwatch()
    shards = plan_parsing(pipeline.connection, pipeline.collection, shard_bytes=largest_shard(pipeline, SHARD_BYTES))
    return shard_outputs(shards), {"started": watch.started}


@op(out=SHARD_OUT)
@tried_twice
@quoting_no_row
def parse_texts(pipeline: ResourceParam[Pipeline], shard: dict) -> dict:
    """Parse a shard of files."""
    report = parse_shard(
        pipeline.connection,
        pipeline.collection,
        read_shard(shard),
        workers=pipeline.workers,
        progress=pipeline.progress.stage("parsed_text", "documents"),
    )
    return asdict(report)


@op
@quoting_no_row
def report_texts(pipeline: ResourceParam[Pipeline], plan: dict, reports: list) -> MaterializeResult:
    """Sum up what was parsed."""
    report = ParseReport()
    for each in reports:
        report.add(ParseReport(**each))
    seconds = Stopwatch(plan["started"]).seconds()
    return MaterializeResult(
        metadata={
            **seconds,
            **counts(report),
            **rates(seconds, documents=report.documents, characters=report.characters),
            **table(report.changes, "path", "characters", "elements", "failure"),
            **table(failure_sample(pipeline.connection, pipeline.name), "path", "stage", "reason", key="failures"),
        },
        data_version=DataVersion(result_version(pipeline.connection, pipeline.name, "parse_key")),
    )


@graph_asset(**shared, ins={"raw_files": AssetIn(dagster_type=Nothing)}, kinds={"postgres", "python"})
def parsed_text(raw_files):
    """The text and structure of every file's content, or the reason why it has none."""
    shards, plan = plan_texts(raw_files)
    return report_texts(plan, shards.map(parse_texts).collect())
