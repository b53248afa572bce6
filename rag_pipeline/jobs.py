"""`refresh_collection` brings one collection's index into line with its files, `prune_history` keeps records small."""

from dagster import AssetSelection, define_asset_job, job

from rag_pipeline.assets import ASSETS
from rag_pipeline.history import prune_runs, tidy_tables

refresh_collection = define_asset_job(
    "refresh_collection",
    selection=AssetSelection.assets(*ASSETS),
    description="Bring one collection's index into line with its files.",
)


@job(description="Delete the records of old runs, save what each partition's newest materialization says; tidy tables.")
def prune_history() -> None:
    tidy_tables(after=prune_runs())
