"""The jobs: to keep a collection's index in line with its files, to measure its retrieval, and to ask it."""

from dagster import AssetSelection, define_asset_job, in_process_executor, job

from rag_pipeline.assets import ASSETS
from rag_pipeline.assets.quality import retrieval_quality
from rag_pipeline.ops import generate, retrieve

refresh_collection = define_asset_job(
    "refresh_collection",
    selection=AssetSelection.assets(*ASSETS),
    description="Bring one collection's index into line with its files.",
)

# A job of its own, so that an ingest neither waits for it nor pays for its questions.
evaluate_retrieval = define_asset_job(
    "evaluate_retrieval",
    selection=AssetSelection.assets(retrieval_quality),
    description="Measure how well one collection finds the sources of the questions that come with it.",
)


@job(
    executor_def=in_process_executor,
    description="Answer a question from a collection. The run's record keeps both for as long as it is kept itself.",
)
def answer_question() -> None:
    generate(retrieve())
