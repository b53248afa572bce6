"""The code location: what Dagster loads."""

from dagster import Definitions, in_process_executor

from rag_pipeline.assets import ASSETS
from rag_pipeline.assets.checks import whole_collection
from rag_pipeline.jobs import reconcile_collection, refresh_collection
from rag_pipeline.resources import pipeline_resource, rag_resource


def build_definitions(**overrides: object) -> Definitions:
    """Everything Dagster is to know; `overrides` replace resources by name."""
    return Definitions(
        assets=ASSETS,
        asset_checks=[whole_collection],
        jobs=[refresh_collection, reconcile_collection],
        resources={"pipeline": pipeline_resource, "rag": rag_resource, **overrides},
        executor=in_process_executor,
    )


defs = build_definitions()
