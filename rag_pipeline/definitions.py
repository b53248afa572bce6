"""The code location: what Dagster loads."""

from dagster import Definitions, in_process_executor, mem_io_manager

from rag_pipeline.assets import ASSETS
from rag_pipeline.assets.quality import retrieval_quality
from rag_pipeline.jobs import answer_question, evaluate_retrieval, refresh_collection
from rag_pipeline.resources import pipeline_resource, rag_resource


def build_definitions(**overrides: object) -> Definitions:
    """Everything Dagster is to know; `overrides` replace resources by name."""
    return Definitions(
        assets=[*ASSETS, retrieval_quality],
        jobs=[refresh_collection, evaluate_retrieval, answer_question],
        resources={"pipeline": pipeline_resource, "rag": rag_resource, "in_memory": mem_io_manager, **overrides},
        executor=in_process_executor,
    )


defs = build_definitions()
