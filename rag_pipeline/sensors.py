"""`new_files`: looks at every source and asks for the runs that bring the indexes into line."""

from dataclasses import replace
from datetime import UTC, datetime
from time import sleep, time

from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunRequest,
    RunsFilter,
    SensorEvaluationContext,
    SensorResult,
    sensor,
)
from psycopg import Connection

from rag_pipeline.core.collections import Collection, list_all
from rag_pipeline.core.errors import SourceError
from rag_pipeline.core.files import YOUNG_NS
from rag_pipeline.core.polling import Poller, adopt_folders
from rag_pipeline.core.stages.raw_files import read_manifest
from rag_pipeline.core.watching import Cursor, Seen, Watch, compare, decide, digest_of, settings_digest
from rag_pipeline.instance import ASKED_BY_TAG, WHY_TAG, settle_runs
from rag_pipeline.jobs import refresh_collection
from rag_pipeline.partitions import sync_partitions
from rag_pipeline.resources import PARTITION_TAG
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import Settings

# It outlives the ticks, and so does a listing that takes longer than one.
_poller = Poller()

# A run of another job, of one asset alone, say, tells nothing of how a collection is.
INGESTING_JOBS = ("refresh_collection", "reconcile_collection")

UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
FINISHED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]


@sensor(
    job=refresh_collection,
    minimum_interval_seconds=5,
    default_status=DefaultSensorStatus.RUNNING,
    description="Ingests a collection when files of its source are added, change or go, when its settings change, "
    "and again when a run of it failed. Every folder in RAG_DOCUMENTS becomes a collection.",
)
def new_files(context: SensorEvaluationContext) -> SensorResult:
    """One tick: look, decide, ask; where only files too young were seen, look at these again."""
    runtime, now = Runtime(Settings.from_environment()), time()
    cursor = Cursor.from_json(context.cursor)
    with runtime.connect() as connection:
        known = {collection.name: collection for collection in list_all(connection)}
        made, unfit = adopt_folders(connection, runtime.settings.documents, known, runtime.settings.embedding_model)
        known |= {collection.name: collection for collection in made}
        sync_partitions(context.instance, known)
        settle_runs(context.instance, connection)
        busy, ended, runs_until = _runs(context.instance, cursor.runs_until)
        seen = _look(connection, list(known.values()), cursor, busy, ended, now)
        requests, following = decide(cursor, seen, now)
        young = [known[name] for name, each in seen.items() if each.young and not each.busy]
        if young and not requests:
            # Nobody waits for this tick, and before the next one what was just written is old enough.
            sleep(YOUNG_NS / 1e9)
            now = time()
            seen |= _look(connection, young, cursor, busy, ended, now)
            requests, following = decide(cursor, seen, now)
    following = replace(following, runs_until=runs_until, unfit=unfit)
    for line in (news := [reason for reason in following.reasons() if reason not in cursor.reasons()]):
        context.log.warning(line)
    return SensorResult(
        run_requests=[
            RunRequest(
                run_key=request.key,
                partition_key=request.collection,
                tags={ASKED_BY_TAG: new_files.name, WHY_TAG: request.why},
            )
            for request in requests
        ],
        cursor=following.to_json(),
        skip_reason=None if requests else "; ".join(news or following.reasons()) or "nothing has changed",
    )


def _look(
    connection: Connection,
    collections: list[Collection],
    cursor: Cursor,
    busy: set[str],
    ended: dict[str, str],
    now: float,
) -> dict[str, Seen]:
    """Every collection as it is now; the manifest is read only of those whose listing is another than before."""
    listings = _poller.list(c for c in collections if cursor.is_due(c.name, now))

    def look(collection: Collection) -> Seen:
        name, listing = collection.name, listings.get(collection.name)
        seen = {
            "settings": settings_digest(collection.settings),
            "remote": "://" in collection.source,
            "busy": name in busy,
            "ended": ended.get(name),
        }
        if listing is None:
            return Seen(**seen)
        if isinstance(listing, SourceError):
            return Seen(**seen, error=str(listing))
        digest = digest_of(listing.files.values())
        if digest == cursor.watches.get(name, Watch(since=0)).digest:
            return Seen(**seen, digest=digest)
        return Seen(**seen, digest=digest, changes=compare(listing.files, read_manifest(connection, name), now))

    return {collection.name: look(collection) for collection in collections}


def _runs(instance: DagsterInstance, since: float) -> tuple[set[str], dict[str, str], float]:
    """The collections with a run that is queued or under way; by name, how the last run that ended after `since` did,
    in seconds since 1970; and when the last of all ended."""
    unfinished = instance.get_runs(RunsFilter(statuses=UNFINISHED))
    records = instance.get_run_records(
        RunsFilter(statuses=FINISHED, updated_after=datetime.fromtimestamp(since, UTC) if since else None),
        limit=1000,
    )
    ended = {}
    for record in sorted(records, key=lambda record: record.update_timestamp):
        if record.dagster_run.job_name in INGESTING_JOBS:
            ended[record.dagster_run.tags.get(PARTITION_TAG)] = record.dagster_run.status.value.lower()
        since = max(since, record.update_timestamp.timestamp())
    return {run.tags.get(PARTITION_TAG) for run in unfinished}, ended, since
