"""raw_files -> parsed_text -> token_chunks -> cached_embeddings -> pgvector_index, partitioned by collection."""

from dagster import Failure, MaterializeResult, ResourceParam, asset

from rag_pipeline.assets.metadata import Stopwatch, counts, quoting_no_row, table
from rag_pipeline.core.samples import chunk_sample, failure_sample
from rag_pipeline.core.stages.cached_embeddings import embed_chunks
from rag_pipeline.core.stages.parsed_text import parse_documents
from rag_pipeline.core.stages.pgvector_index import publish_documents
from rag_pipeline.core.stages.raw_files import update_manifest
from rag_pipeline.core.stages.token_chunks import chunk_documents
from rag_pipeline.partitions import collections_partitions
from rag_pipeline.resources import Pipeline

shared = {"partitions_def": collections_partitions, "group_name": "rag_pipeline"}


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
        progress=pipeline.progress.stage("raw_files", "files"),
    )
    if report.withheld:
        pipeline.progress.note(
            f"{report.withheld} files are gone, more than {collection.settings.max_removal_fraction:.0%} of "
            f"{collection.name}; they stay searchable: rag ingest {collection.name} --allow-mass-removal consents"
        )
    return MaterializeResult(
        metadata={**watch.seconds(), **counts(report), **table(report.changes, "path", "change", "bytes")}
    )


@asset(**shared, deps=[raw_files], kinds={"postgres", "python"})
@quoting_no_row
def parsed_text(pipeline: ResourceParam[Pipeline]) -> MaterializeResult:
    """The text and structure of every file's content, or the reason why it has none."""
    watch = Stopwatch()
    report = parse_documents(
        pipeline.connection,
        pipeline.collection,
        workers=pipeline.workers,
        progress=pipeline.progress.stage("parsed_text", "documents"),
    )
    return MaterializeResult(
        metadata={
            **watch.seconds(),
            **counts(report),
            **table(report.changes, "path", "characters", "elements", "failure"),
            **table(failure_sample(pipeline.connection, pipeline.name), "path", "stage", "reason", key="failures"),
        }
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
        }
    )


@asset(**shared, deps=[token_chunks], kinds={"postgres", "redis", "openai"})
@quoting_no_row
def cached_embeddings(pipeline: ResourceParam[Pipeline]) -> MaterializeResult:
    """A vector for every chunk: from the cache where it is known, else from the provider. Readers do not see it yet."""
    watch = Stopwatch()
    collection, runtime = pipeline.collection, pipeline.runtime
    provider = runtime.provider(runtime.model(collection.settings))
    report = embed_chunks(
        pipeline.connection,
        collection,
        provider,
        runtime.cache(provider),
        progress=pipeline.progress.stage("cached_embeddings", "chunks"),
    )
    return MaterializeResult(
        metadata={
            **watch.seconds(),
            "model": report.index.model,
            "copied": report.copied,
            "inserted": report.inserted,
            **counts(report.embedding),
            "refused": len(report.embedding.refused),
        }
    )


@asset(**shared, deps=[cached_embeddings], kinds={"postgres"})
@quoting_no_row
def pgvector_index(pipeline: ResourceParam[Pipeline]) -> MaterializeResult:
    """What readers see: whole documents published and removals carried out in one transaction, leftovers collected."""
    watch = Stopwatch()
    pipeline.progress.stage("pgvector_index", "documents")
    report = publish_documents(pipeline.connection, pipeline.collection)
    metadata = {**watch.seconds(), **counts(report), **table(report.changes, "path", "change")}
    if report.failures:
        path, reason = report.failures[0]
        raise Failure(
            f"{len(report.failures)} documents could not be embedded, the others are published: {path}: {reason}",
            metadata=metadata,
            allow_retries=False,
        )
    return MaterializeResult(metadata=metadata)
