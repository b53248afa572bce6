"""raw_files, token_chunks and pgvector_index: the assets that are one step each."""

from collections.abc import Iterator

from dagster import AssetCheckResult, DataVersion, Failure, MaterializeResult, ResourceParam, asset

from rag_pipeline.assets.cached_embeddings import cached_embeddings
from rag_pipeline.assets.checks import OF_A_RUN, check_run
from rag_pipeline.assets.metadata import Stopwatch, counts, quoting_no_row, table
from rag_pipeline.assets.parsed_text import parsed_text
from rag_pipeline.core.collections import forgive_failures
from rag_pipeline.core.garbage import reclaim_space
from rag_pipeline.core.indexing import active_index
from rag_pipeline.core.samples import chunk_sample
from rag_pipeline.core.stages.pgvector_index import publish_documents
from rag_pipeline.core.stages.raw_files import update_manifest
from rag_pipeline.core.stages.token_chunks import chunk_documents
from rag_pipeline.core.versions import result_version
from rag_pipeline.partitions import shared
from rag_pipeline.resources import Pipeline

# Runs of reconcile_collection, one a night, read each file again once in so many of them.
REHASH_DAYS = 30

# Failures that had their cause in the machine and not, or not surely, in the file.
PASSING_FAILURES = ["timed out", "crashed", "out of memory", "unreadable"]


@asset(**shared, kinds={"postgres"})
@quoting_no_row
def raw_files(pipeline: ResourceParam[Pipeline]) -> MaterializeResult:
    """The manifest: every file of the collection's source, and what of it has changed since the last run."""
    watch = Stopwatch()
    collection = pipeline.collection
    report = update_manifest(
        pipeline.connection,
        collection,
        allow_mass_removal=pipeline.allow_mass_removal,
        rehash_fraction=1 / REHASH_DAYS if pipeline.reconcile else 0.0,
        progress=pipeline.progress.stage("raw_files", "files"),
    )
    # Once the source is known to be there: what cannot be parsed now stays marked with its reason.
    if pipeline.retry_failed or pipeline.reconcile:
        forgive_failures(pipeline.connection, collection.name, None if pipeline.retry_failed else PASSING_FAILURES)
    if report.withheld:
        pipeline.progress.note(
            f"{report.withheld} files are gone, too large a part of {collection.name} to go by themselves; they stay "
            f"searchable: rag ingest {collection.name} --allow-mass-removal consents"
        )
    return MaterializeResult(
        metadata={**watch.seconds(), **counts(report), **table(report.changes, "path", "change", "bytes")},
        data_version=DataVersion(result_version(pipeline.connection, pipeline.name, "content_hash")),
    )


@asset(**shared, deps=[parsed_text], kinds={"postgres", "python"})
@quoting_no_row
def token_chunks(pipeline: ResourceParam[Pipeline]) -> MaterializeResult:
    """Every text cut into chunks: spans of it that keep meaning together and fit the embedding model."""
    watch = Stopwatch()
    collection, runtime = pipeline.collection, pipeline.runtime
    report = chunk_documents(
        pipeline.connection,
        collection,
        runtime.chunk_settings(collection.settings),
        runtime.input_limit(runtime.model(collection.settings)),
        progress=pipeline.progress.stage("token_chunks", "documents"),
    )
    sample = chunk_sample(pipeline.connection, collection.name, [path for path, _, _ in report.changes])
    return MaterializeResult(
        metadata={
            **watch.seconds(),
            **counts(report),
            **table(report.changes, "path", "chunks", "tokens"),
            **table(sample, "path", "heading", "span", "tokens", key="sample"),
        },
        data_version=DataVersion(result_version(pipeline.connection, pipeline.name, "chunk_key")),
    )


@asset(**shared, deps=[cached_embeddings], kinds={"postgres"}, check_specs=OF_A_RUN)
def pgvector_index(pipeline: ResourceParam[Pipeline]) -> Iterator[AssetCheckResult | MaterializeResult]:
    """What readers see: whole documents published and removals carried out in one transaction, leftovers collected."""
    metadata, failures, results = _publish(pipeline)
    yield from results
    if failures:
        path, reason = failures[0]
        raise Failure(
            f"{len(failures)} documents could not be embedded, what is whole is published: {path}: {reason}",
            metadata=metadata,
            allow_retries=False,
        )
    index = active_index(pipeline.connection, pipeline.name)
    version = result_version(pipeline.connection, pipeline.name, "published_chunk_key", index and index.id)
    yield MaterializeResult(metadata=metadata, data_version=DataVersion(version))


@quoting_no_row
def _publish(pipeline: Pipeline) -> tuple[dict[str, object], list[tuple[str, str]], list[AssetCheckResult]]:
    """Publish: what to tell of it, what could not be embedded, and what the checks find."""
    watch = Stopwatch()
    progress = pipeline.progress.stage("pgvector_index", "rows")
    caches = pipeline.runtime.caches(pipeline.connection, pipeline.name)
    report = publish_documents(pipeline.connection, pipeline.collection, caches, progress=progress)
    if report.unforgotten:
        pipeline.progress.note(report.unforgotten)
    if pipeline.reconcile:
        reclaim_space(pipeline.connection, pipeline.name)
    metadata = {**watch.seconds(), **counts(report), **table(report.changes, "path", "change")}
    return metadata, report.failures, list(check_run(pipeline, report))
