"""Dagster's records, kept small: old runs go, save those that say what a partition is; and tables are tidied."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from dagster import (
    AssetKey,
    AssetRecordsFilter,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
    In,
    Nothing,
    OpExecutionContext,
    RunsFilter,
    op,
)
from psycopg import Connection

from rag_pipeline.core import audit
from rag_pipeline.core.upkeep import tidy
from rag_pipeline.partitions import collections_partitions
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import Settings

FINISHED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
BATCH = 500


@op(description="Delete the records and folders of old runs; what each partition's newest materialization says stays.")
def prune_runs(context: OpExecutionContext) -> None:
    """One pruning, and how much went."""
    runtime = Runtime(Settings.from_environment())
    before = datetime.now(UTC) - timedelta(days=runtime.settings.history_days)
    runs = prune(context.instance, before)
    folders = delete_folders(context.instance, runtime.settings.home / "dagster", before)
    with runtime.connect() as connection:
        delete_rows(connection)
        audit.prune(connection)
    context.log.info(f"pruned {runs} runs and {folders} folders from before {before:%Y-%m-%d}")


@op(ins={"after": In(Nothing)}, description="Drop the partitions of retired indexes, and vacuum what was deleted from.")
def tidy_tables(context: OpExecutionContext) -> None:
    """What PostgreSQL needs now and then."""
    with Runtime(Settings.from_environment()).connect() as connection:
        context.log.info(f"dropped {tidy(connection)} retired indexes")


def prune(instance: DagsterInstance, before: datetime) -> int:
    """Delete the runs made before that time, with their events; how many went.

    Those under way stay, and those with the newest materialization of an asset for a collection that there is.
    """
    kept = set(_newest_materializations(instance))
    deleted = 0
    for run_id in _old_runs(instance, before):
        if run_id not in kept:
            instance.delete_run(run_id)
            deleted += 1
    return deleted


def delete_folders(instance: DagsterInstance, files: Path, before: datetime) -> int:
    """Delete the folders under `files` of runs that are no more, and what ticks logged before that time."""
    folders = [folder for folder in files.glob("*") if _is_run_id(folder.name)]
    gone = 0
    for batch in _batches(folders):
        living = {run.run_id for run in instance.get_runs(RunsFilter(run_ids=[folder.name for folder in batch]))}
        for folder in batch:
            # A run in the making has its folder before its record.
            if folder.name not in living and folder.stat().st_mtime < datetime.now().timestamp() - 86400:
                shutil.rmtree(folder, ignore_errors=True)
                gone += 1
    for log in files.glob("__repository__/*/*"):
        if log.is_file() and log.stat().st_mtime < before.timestamp():
            log.unlink(missing_ok=True)
    return gone


def delete_rows(connection: Connection) -> None:
    """Delete the progress of runs that were killed, and what steps handed to each other, save where a run that failed
    may be taken up again."""
    connection.execute("DELETE FROM rag.run_progress WHERE at < now() - interval '1 day'")
    connection.execute(
        """DELETE FROM rag.step_output s
           WHERE NOT EXISTS (SELECT FROM dagster.runs r WHERE r.run_id = s.run_id AND r.status <> 'SUCCESS')"""
    )


def _old_runs(instance: DagsterInstance, before: datetime) -> list[str]:
    """The ids of finished runs made before that time."""
    found, cursor = [], None
    while runs := instance.get_runs(RunsFilter(statuses=FINISHED, created_before=before), cursor=cursor, limit=BATCH):
        cursor = runs[-1].run_id
        found += [run.run_id for run in runs]
    return found


def _newest_materializations(instance: DagsterInstance) -> Iterator[str]:
    """The runs of each asset's newest materialization, for each collection and, where an asset has none, for all."""
    partitions = {None, *instance.get_dynamic_partitions(collections_partitions.name)}
    for asset_key in instance.all_asset_keys():
        newest = _newest_by_partition(instance, asset_key)
        for batch in _batches([storage_id for partition, storage_id in newest.items() if partition in partitions]):
            wanted = AssetRecordsFilter(asset_key=asset_key, storage_ids=batch)
            for record in instance.fetch_materializations(wanted, limit=BATCH).records:
                yield record.run_id


def _newest_by_partition(instance: DagsterInstance, asset_key: AssetKey) -> dict[str | None, int]:
    newest = instance.event_log_storage.get_latest_storage_id_by_partition(
        asset_key, DagsterEventType.ASSET_MATERIALIZATION
    )
    unpartitioned = instance.get_latest_materialization_event(asset_key)
    if not newest and unpartitioned:
        return {None: unpartitioned.storage_id}
    return dict(newest)


def _batches(every: list) -> Iterator[list]:
    return (every[start : start + BATCH] for start in range(0, len(every), BATCH))


def _is_run_id(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False
