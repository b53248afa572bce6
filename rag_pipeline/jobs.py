"""`refresh_collection` brings one collection's index into line with its files, `reconcile_collection` doubts the rest
as well, `answer_question` asks it, and `prune_history` keeps records small."""

from dagster import AssetSelection, define_asset_job, in_process_executor, job

from rag_pipeline.assets import ASSETS
from rag_pipeline.assets.checks import WHOLE_COLLECTION_KEYS
from rag_pipeline.assets.quality import retrieval_quality
from rag_pipeline.history import prune_runs, tidy_tables
from rag_pipeline.ops import generate, retrieve
from rag_pipeline.resources import RECONCILE_TAG

refresh_collection = define_asset_job(
    "refresh_collection",
    selection=AssetSelection.assets(*ASSETS) - AssetSelection.checks(*WHOLE_COLLECTION_KEYS),
    description="Bring one collection's index into line with its files.",
)

reconcile_collection = define_asset_job(
    "reconcile_collection",
    selection=AssetSelection.assets(*ASSETS, retrieval_quality),
    tags={RECONCILE_TAG: "yes"},
    description="Refresh one collection, read a sample of its files again, retry what may pass now, check and "
    "measure all of it.",
)


@job(description="Delete the records of old runs, save what each partition's newest materialization says; tidy tables.")
def prune_history() -> None:
    tidy_tables(after=prune_runs())


@job(
    executor_def=in_process_executor,
    description="Answer a question from a collection. The run's record keeps both for as long as it is kept itself.",
)
def answer_question() -> None:
    generate(retrieve())
