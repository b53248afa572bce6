"""The code location: what Dagster loads."""

from dagster import Definitions, mem_io_manager

from rag_pipeline.assets import ASSETS
from rag_pipeline.assets.checks import whole_collection
from rag_pipeline.assets.quality import retrieval_quality
from rag_pipeline.executors import executor
from rag_pipeline.jobs import answer_question, prune_history, reconcile_collection, refresh_collection
from rag_pipeline.resources import pipeline_resource, rag_resource
from rag_pipeline.schedules import build_schedules
from rag_pipeline.sensors import new_files
from rag_pipeline.settings import Settings
from rag_pipeline.step_outputs import STEP_OUTPUTS, step_outputs


def build_definitions(**overrides: object) -> Definitions:
    """Everything Dagster is to know; `overrides` replace resources by name."""
    settings = Settings.from_environment()
    return Definitions(
        assets=[*ASSETS, retrieval_quality],
        asset_checks=[whole_collection],
        jobs=[refresh_collection, reconcile_collection, prune_history, answer_question],
        sensors=[new_files],
        schedules=build_schedules(settings),
        resources={
            "pipeline": pipeline_resource,
            "rag": rag_resource,
            STEP_OUTPUTS: step_outputs,
            "in_memory": mem_io_manager,
            **overrides,
        },
        executor=executor(settings),
    )


defs = build_definitions()
