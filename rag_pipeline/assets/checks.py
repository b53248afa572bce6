"""The checks of pgvector_index: of what a run touched in every run, of the whole collection in reconcile_collection."""

import warnings
from collections.abc import Iterator

from dagster import (
    AssetCheckKey,
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetKey,
    PreviewWarning,
    ResourceParam,
    multi_asset_check,
)

from rag_pipeline.assets.metadata import table
from rag_pipeline.core import checks
from rag_pipeline.core.checks import Finding
from rag_pipeline.core.indexing import active_index
from rag_pipeline.core.stages.pgvector_index import IndexReport
from rag_pipeline.partitions import collections_partitions
from rag_pipeline.resources import Pipeline

INDEX = AssetKey("pgvector_index")
FINDINGS_SHOWN = 50
LEAST_RECALL = 0.95

BUILD_ANEW = (
    "Build the index anew: rag collection set NAME hnsw_m=…, then rag ingest NAME; no vector that is known is asked "
    "for again."
)


def _specs(**descriptions: str) -> list[AssetCheckSpec]:
    with warnings.catch_warnings():
        # Without its partition, one collection's result would hide another's.
        warnings.simplefilter("ignore", PreviewWarning)
        return [
            AssetCheckSpec(name, asset=INDEX, description=description, partitions_def=collections_partitions)
            for name, description in descriptions.items()
        ]


OF_A_RUN = _specs(
    documents_whole="Every document that this run published has all its chunks in the index. Else: rag ingest NAME, "
    "which publishes nothing that is not whole.",
    nothing_newly_failed="No document that was served before failed in this run; it is served still, as it was. "
    "Else: correct the file, or rag ingest NAME --retry-failed; rag status NAME tells the details.",
)

OF_A_COLLECTION = _specs(
    chunks_have_vectors="Every published document has its text, its chunks, and for each of them a row in the index. "
    f"{BUILD_ANEW} Where a text or chunks are not there: remove the collection and add it again.",
    rows_match_chunks=f"The index has a row for each distinct text of its documents, and no other. {BUILD_ANEW}",
    no_orphans="No text, chunk or partition is left of what documents let go of; nobody finds them. Else: remove the "
    "collection and add it again; of a partition, DROP TABLE rag.NAME.",
    dimensions_agree=f"Every vector has the dimensions of the index's model. {BUILD_ANEW}",
    word_statistics_agree=f"The words that rank a text search are counted as they stand in the index. {BUILD_ANEW}",
    recall_at_10=f"The HNSW graph finds at least {LEAST_RECALL:.0%} of what comparing every row finds, on a sample of "
    "the index's vectors. Else: rag collection set NAME hnsw_m=… hnsw_ef_construction=… to something larger; "
    "a recall of 0 means that there is no graph.",
)

WHOLE_COLLECTION_KEYS = [AssetCheckKey(INDEX, spec.name) for spec in OF_A_COLLECTION]


def check_run(pipeline: Pipeline, report: IndexReport) -> Iterator[AssetCheckResult]:
    """What a run that has published can say of the documents it touched."""
    index = active_index(pipeline.connection, pipeline.name)
    whole = (
        checks.incomplete_documents(pipeline.connection, index, None if report.switched else report.touched)
        if index and (report.switched or report.touched)
        else []
    )
    yield _result("documents_whole", whole)
    yield _result("nothing_newly_failed", checks.newly_failed(pipeline.connection, pipeline.name), warn=True)


@multi_asset_check(specs=OF_A_COLLECTION, name="whole_collection")
def whole_collection(pipeline: ResourceParam[Pipeline]) -> Iterator[AssetCheckResult]:
    """Everything that must be true of a collection's index, whoever touched it last."""
    connection, index = pipeline.connection, active_index(pipeline.connection, pipeline.name)
    yield _result("no_orphans", checks.orphans(connection, pipeline.name))
    yield _result("chunks_have_vectors", checks.incomplete_documents(connection, index, None) if index else [])
    yield _result("rows_match_chunks", checks.wrong_rows(connection, index) if index else [])
    yield _result("dimensions_agree", checks.wrong_dimensions(connection, index) if index else [])
    yield _result("word_statistics_agree", checks.wrong_statistics(connection, index) if index else [])
    recall = checks.recall(connection, index) if index else 1.0
    yield AssetCheckResult(
        asset_key=INDEX,
        check_name="recall_at_10",
        passed=recall >= LEAST_RECALL,
        severity=AssetCheckSeverity.WARN,
        metadata={"recall": round(recall, 4)},
    )


def _result(name: str, findings: list[Finding], *, warn: bool = False) -> AssetCheckResult:
    rows = [(each.subject, each.problem) for each in findings[:FINDINGS_SHOWN]]
    return AssetCheckResult(
        asset_key=INDEX,
        check_name=name,
        passed=not findings,
        severity=AssetCheckSeverity.WARN if warn else AssetCheckSeverity.ERROR,
        metadata={"findings": len(findings), **table(rows, "subject", "problem", key="details")},
    )
