"""retrieval_quality: how well search finds the sources of the questions that come with a collection, over time."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetRecordsFilter,
    DagsterInstance,
    MaterializeResult,
    PreviewWarning,
    ResourceParam,
    asset,
)

from rag_pipeline.assets.faces import OWNER
from rag_pipeline.assets.metadata import Stopwatch, quoting_no_row
from rag_pipeline.assets.stages import pgvector_index
from rag_pipeline.client import Rag
from rag_pipeline.core.evaluation import KnownQuestion
from rag_pipeline.core.files import QUESTIONS
from rag_pipeline.ops import one_line
from rag_pipeline.partitions import shared

# How many measurements are looked back on, and by how much the hit rate may lie below the best of them.
LOOKED_BACK = 30
LARGEST_FALL = 0.05

with warnings.catch_warnings():
    # A check of a partitioned asset is one for each collection only when it is told its partitions, which is new.
    warnings.simplefilter("ignore", PreviewWarning)
    quality_holds = AssetCheckSpec(
        "quality_holds",
        asset="retrieval_quality",
        partitions_def=shared["partitions_def"],
        description=f"The hit rate is no more than {LARGEST_FALL} below the best of the last {LOOKED_BACK} "
        "measurements of the same questions. If it is: see with rag search what the questions find now, and what has "
        "changed since (settings, model, documents that failed or were removed). Questions that no longer fit the "
        f"documents are to be corrected in {QUESTIONS}; then the comparison begins anew.",
    )


@asset(
    **shared, deps=[pgvector_index], kinds={"postgres"}, owners=[OWNER], code_version="1", check_specs=[quality_holds]
)
@quoting_no_row
def retrieval_quality(context: AssetExecutionContext, rag: ResourceParam[Rag]) -> MaterializeResult:
    """Hit rate, MRR and nDCG at 5 of hybrid search over `questions.jsonl` at the root of the collection's source."""
    watch = Stopwatch()
    name = context.partition_key
    with one_line():
        questions = rag.questions(name)
    if not questions:
        found = AssetCheckResult(
            passed=True, description=f"{name} comes without questions: its source has no {QUESTIONS}"
        )
        return MaterializeResult(metadata={**watch.seconds(), "questions": 0}, check_results=[found])
    with one_line():
        evaluation = rag.evaluate(name, questions)
    figures = {key: value for key, value in asdict(evaluation).items() if key in ("hit_rate", "mrr", "ndcg")}
    version = questions_version(questions)
    best = max(hit_rates(context.instance, name, version), default=None)
    return MaterializeResult(
        metadata={
            **watch.seconds(),
            **figures,
            "questions": evaluation.questions,
            "without_source": len(evaluation.without_source),
            "k": evaluation.k,
            "questions_version": version,
        },
        check_results=[judge(evaluation.hit_rate, best)],
    )


def judge(hit_rate: float, best: float | None) -> AssetCheckResult:
    """Whether a hit rate holds against the best one measured before; the first holds."""
    if best is None:
        return AssetCheckResult(passed=True, description="the first measurement of these questions")
    return AssetCheckResult(
        passed=hit_rate >= best - LARGEST_FALL,
        severity=AssetCheckSeverity.WARN,
        metadata={"hit_rate": hit_rate, "best": best},
        description=f"hit rate {hit_rate:.3f}; the best of the last {LOOKED_BACK} measurements is {best:.3f}",
    )


def hit_rates(instance: DagsterInstance, name: str, version: str) -> list[float]:
    """The hit rates last measured for a collection by these questions, the newest first."""
    measured = instance.fetch_materializations(
        AssetRecordsFilter(asset_key=retrieval_quality.key, asset_partitions=[name]), limit=LOOKED_BACK
    )
    told = (record.asset_materialization.metadata for record in measured.records)
    return [
        metadata["hit_rate"].value
        for metadata in told
        if "hit_rate" in metadata and metadata["questions_version"].value == version
    ]


def questions_version(questions: Sequence[KnownQuestion]) -> str:
    """Another one for other questions, and nothing that can be read in it."""
    told = sorted(repr((known.question, sorted(known.sources), known.page)) for known in questions)
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
