"""The code location: what Dagster loads."""

from dagster import Definitions, in_process_executor

from rag_pipeline.assets import ASSETS
from rag_pipeline.jobs import prune_history, refresh_collection
from rag_pipeline.resources import pipeline_resource, rag_resource
from rag_pipeline.schedules import build_schedules
from rag_pipeline.sensors import new_files
from rag_pipeline.settings import Settings


def build_definitions(**overrides: object) -> Definitions:
    """Everything Dagster is to know; `overrides` replace resources by name."""
    return Definitions(
        assets=ASSETS,
        jobs=[refresh_collection, prune_history],
        sensors=[new_files],
        schedules=build_schedules(Settings.from_environment()),
        resources={"pipeline": pipeline_resource, "rag": rag_resource, **overrides},
        executor=in_process_executor,
    )


defs = build_definitions()
