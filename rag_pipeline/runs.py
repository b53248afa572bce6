"""One run, as whoever asked for it polls it. Read from Dagster's tables, for importing Dagster takes seconds."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from psycopg import Connection
from psycopg.rows import dict_row

from rag_pipeline.core import access
from rag_pipeline.core.errors import UsageError
from rag_pipeline.core.status import published_chunks
from rag_pipeline.ingesting import IngestResult, result_of
from rag_pipeline.runtime import Runtime

STATES = {
    "NOT_STARTED": "queued",
    "QUEUED": "queued",
    "STARTING": "queued",
    "STARTED": "running",
    "CANCELING": "running",
    "SUCCESS": "done",
    "FAILURE": "failed",
    "CANCELED": "canceled",
}

# A queue that nobody has looked at for so long, in seconds, has no daemon: Dagster's sends a sign of life every 30.
DAEMON_GONE = 75


@dataclass(frozen=True)
class Run:
    """A run of a collection: `state` is queued, running, done, failed or canceled.

    While it is running, `stage` is an asset's name, of which `done` of `total` `unit`s (files, documents, chunks) are
    done; None: the stage has not said yet. `result` is what it did once it is done, in the form of `rag ingest --json`,
    `reason` one line when it failed. Times are UTC, in ISO 8601.
    """

    id: str
    collection: str | None
    state: str
    asked_by: str | None
    why: str | None
    started: str | None
    ended: str | None
    stage: str | None = None
    done: int | None = None
    total: int | None = None
    unit: str | None = None
    result: IngestResult | None = None
    reason: str | None = None


def read_run(connection: Connection, run_id: str) -> Run:
    """Raises UsageError when there is no such run."""
    row = None
    if connection.execute("SELECT to_regclass('dagster.runs') IS NOT NULL").fetchone()[0]:
        row = (
            connection.cursor(row_factory=dict_row)
            .execute(
                """SELECT status, start_time, end_time, stage, done, total, unit,
                          (SELECT jsonb_object_agg(key, value) FROM dagster.run_tags WHERE run_id = runs.run_id) AS tags
                   FROM dagster.runs LEFT JOIN rag.run_progress USING (run_id) WHERE run_id = %s""",
                [run_id],
            )
            .fetchone()
        )
    if row is None:
        raise _unknown(run_id)
    tags, state = row["tags"] or {}, STATES[row["status"]]
    collection = tags.get("dagster/partition")
    running = {key: row[key] for key in ("stage", "done", "total", "unit")} if state == "running" else {}
    return Run(
        id=run_id,
        collection=collection,
        state=state,
        asked_by=tags.get("rag/asked_by"),
        why=tags.get("rag/why"),
        started=_time(row["start_time"]),
        ended=_time(row["end_time"]),
        **running,
        result=_result(connection, run_id, collection, row) if state == "done" else None,
        reason=_reason(connection, run_id) if state == "failed" else None,
    )


def visible_run(runtime: Runtime, connection: Connection, run_id: str) -> Run:
    """The run, if it is of a collection that the API key may read; raises what `read_run` raises for all others."""
    run = read_run(connection, run_id)
    api_key = runtime.settings.api_key
    if api_key is not None and run.collection not in access.allowed(connection, api_key):
        raise _unknown(run_id)
    return run


def daemon_answers(connection: Connection) -> bool:
    """Whether somebody executes what is queued."""
    if not connection.execute("SELECT to_regclass('dagster.daemon_heartbeats') IS NOT NULL").fetchone()[0]:
        return False
    return connection.execute(
        """SELECT EXISTS (SELECT FROM dagster.daemon_heartbeats
                          WHERE daemon_type = 'QUEUED_RUN_COORDINATOR'
                                AND timestamp > now() AT TIME ZONE 'UTC' - make_interval(secs => %s))""",
        [DAEMON_GONE],
    ).fetchone()[0]


def _unknown(run_id: str) -> UsageError:
    return UsageError(f"there is no run {run_id}: it was never asked for, or its record has been pruned")


def _result(connection: Connection, run_id: str, name: str | None, run: dict) -> IngestResult | None:
    """What the run did; None for one that did not take all five steps."""
    stages = {}
    for event in _events(connection, run_id, "ASSET_MATERIALIZATION"):
        materialization = event["event_specific_data"]["materialization"]
        stages[materialization["asset_key"]["path"][-1]] = {
            entry["label"]: entry["entry_data"].get("value") for entry in materialization["metadata_entries"]
        }
    try:
        seconds = round(run["end_time"] - run["start_time"], 3)
        return result_of(name, run_id, stages, published_chunks(connection, name), seconds)
    except KeyError:
        return None


def _reason(connection: Connection, run_id: str) -> str:
    """The line that a person is shown: that of the error which started it all."""
    for event in _events(connection, run_id, "STEP_FAILURE", "PIPELINE_FAILURE"):
        details = event["event_specific_data"] or {}
        failure, error = details.get("user_failure_data"), details.get("error")
        if failure and failure.get("description"):
            return failure["description"]
        while error and error["cls_name"].startswith("Dagster") and error["cause"]:
            error = error["cause"]
        if error:
            return re.sub(r"^rag_pipeline\.core\.errors\.\w+: ", "", error["message"].strip()).partition("\n")[0]
        if event.get("message"):
            return event["message"].partition("\n")[0]
    return "no reason was recorded"


def _events(connection: Connection, run_id: str, *kinds: str) -> list[dict]:
    """The run's events of these kinds, in order, as Dagster stores them."""
    rows = connection.execute(
        "SELECT event FROM dagster.event_logs WHERE run_id = %s AND dagster_event_type = ANY (%s) ORDER BY id",
        [run_id, list(kinds)],
    ).fetchall()
    return [json.loads(event)["dagster_event"] for (event,) in rows]


def _time(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else None
