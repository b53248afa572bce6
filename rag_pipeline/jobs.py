"""`refresh_collection` brings one collection's index into line with its files."""

from dagster import AssetSelection, define_asset_job

from rag_pipeline.assets import ASSETS
from rag_pipeline.partitions import collections_partitions

refresh_collection = define_asset_job(
    "refresh_collection",
    selection=AssetSelection.assets(*ASSETS),
    partitions_def=collections_partitions,
    description="Bring one collection's index into line with its files.",
)
