"""`refresh_collection` brings one collection's index into line with its files."""

from dagster import AssetSelection, define_asset_job

from rag_pipeline.assets import ASSETS

refresh_collection = define_asset_job(
    "refresh_collection",
    selection=AssetSelection.assets(*ASSETS),
    description="Bring one collection's index into line with its files.",
)
