"""The Dagster instance that commands, the UI and the daemon share, and what it knows of a collection's runs."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote

from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from rag_pipeline.core.collections import list_all
from rag_pipeline.core.database import MIGRATION_LOCK
from rag_pipeline.core.errors import ServiceError
from rag_pipeline.core.locking import is_living
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import PROJECT

if TYPE_CHECKING:
    from dagster import DagsterInstance

# Dagster's tables live in a schema of their own. Its events may lose their last fraction of a second to a power cut,
# and are written ten times as fast for it.
DAGSTER_OPTIONS = "-csearch_path=dagster -csynchronous_commit=off"

ASKED_BY_TAG, WHY_TAG, INGEST_COMMAND = "rag/asked_by", "rag/why", "rag ingest"

UNFINISHED = ("NOT_STARTED", "STARTING", "STARTED", "CANCELING")

# What holds its collection while it runs: the jobs, and what Dagster runs when assets are materialized by hand.
WRITING_JOBS = ("refresh_collection", "reconcile_collection", "__ASSET_JOB")

# A run that was launched elsewhere has this long to import the code, which Dagster watches too and is to judge first
# (start_timeout_seconds in dagster.yaml), and once it has started, to say that it lives.
TIME_TO_START, TIME_TO_CLAIM = timedelta(minutes=5), timedelta(minutes=1)


def dagster_environment(runtime: Runtime) -> dict[str, str]:
    """The variables with which plain `dagster` commands reach the same instance."""
    return {
        "DAGSTER_HOME": str(PROJECT),
        "RAG_HOME": str(runtime.settings.home),
        "RAG_DAGSTER_FILES": str(runtime.settings.home / "dagster"),
        "RAG_DAGSTER_DATABASE_URL": dagster_database_url(runtime.database_url),
    }


def dagster_database_url(database_url: str) -> str:
    """The same database as Dagster's SQLAlchemy wants it named, with psycopg2 and Dagster's own schema."""
    parts = conninfo_to_dict(database_url)
    user, password = (quote(str(parts.pop(key, "")), safe="") for key in ("user", "password"))
    name = quote(str(parts.pop("dbname", "")), safe="")
    parts["options"] = f"{parts.get('options', '')} {DAGSTER_OPTIONS}".strip()
    query = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in parts.items())
    return f"postgresql+psycopg2://{user}:{password}@/{name}?{query}"


@contextmanager
def dagster_instance(runtime: Runtime) -> Iterator["DagsterInstance"]:
    """The instance, its partitions in line with the collections."""
    os.environ.update(dagster_environment(runtime))
    _import_dagster()
    from dagster import DagsterInstance
    from dagster._core.instance.ref import InstanceRef

    from rag_pipeline.partitions import sync_partitions

    # What a command prints is for its terminal: no file is to catch it, as for runs in the background.
    nothing = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
    reference = InstanceRef.from_dir(str(PROJECT), overrides={"compute_logs": nothing})
    with _postgres_answers(), runtime.connect() as connection:
        with connection.transaction():
            # At the first use Dagster makes its tables: one process at a time.
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
            _require_tables(connection)
            instance = DagsterInstance.from_ref(reference)
        names = [collection.name for collection in list_all(connection)]
    with instance:
        with _postgres_answers():
            # Connections are held, as Dagster's web server does it, instead of opened for each of a run's many queries.
            instance.optimize_for_webserver(statement_timeout=0, pool_recycle=3600, max_overflow=20)
            sync_partitions(instance, names)
        yield instance


@contextmanager
def _postgres_answers() -> Iterator[None]:
    """Raises ServiceError, in place of what Dagster raises, where PostgreSQL goes away while its tables are opened."""
    from dagster_postgres.utils import DagsterPostgresException
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except (DagsterPostgresException, OperationalError):
        raise ServiceError("PostgreSQL went away while Dagster opened its tables: run the command again") from None


def _require_tables(connection: Connection) -> None:
    """Raises ServiceError where Dagster has no tables and this login may not make them."""
    (missing,) = connection.execute(
        "SELECT to_regclass('dagster.runs') IS NULL AND NOT has_schema_privilege('dagster', 'CREATE')"
    ).fetchone()
    if missing:
        raise ServiceError(
            "Dagster has no tables yet, and the login of RAG_DATABASE_URL may not make them: run rag doctor once with "
            "that of the schema's owner"
        )


def _import_dagster() -> None:
    """Its modules make objects that stay: looking for garbage among them would be a fifth of a command's time."""
    gc.disable()
    try:
        import dagster_postgres  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()


def last_run(runtime: Runtime, connection: Connection, name: str) -> dict[str, str | None] | None:
    """The newest run of a collection: its id, status, and when it started and ended (UTC); None when it never ran.

    Read from Dagster's tables, for importing Dagster takes longer than everything else `rag status` does.
    """
    (exists,) = connection.execute("SELECT to_regclass('dagster.run_tags') IS NOT NULL").fetchone()
    if not exists:
        return None
    statement = """SELECT run_id, status, start_time, end_time FROM dagster.runs JOIN dagster.run_tags USING (run_id)
                   WHERE key = 'dagster/partition' AND value = %s ORDER BY runs.id DESC LIMIT 1"""
    row = connection.execute(statement, [name]).fetchone()
    if row and row[1] in UNFINISHED and not is_living(connection, row[0]) and _settle(runtime, connection, name):
        row = connection.execute(statement, [name]).fetchone()
    if row is None:
        return None
    run_id, status, started, ended = row
    return {"run_id": run_id, "status": status.lower(), "started": _time(started), "ended": _time(ended)}


def settle_runs(instance: "DagsterInstance", connection: Connection, name: str | None = None) -> list[str]:
    """Record as failed the runs, of one collection or of all, that say they are at work and whose process is gone.

    Returns their ids. A run of `rag ingest` lives from before it is recorded until it has ended; another says so once
    it has started.
    """
    from dagster import DagsterRunStatus, RunsFilter

    unfinished = RunsFilter(
        tags={"dagster/partition": name} if name else {},
        statuses=[DagsterRunStatus(status) for status in UNFINISHED],
    )
    settled = []
    for record in instance.get_run_records(unfinished):
        run = record.dagster_run
        here = run.tags.get(ASKED_BY_TAG) == INGEST_COMMAND
        patience = TIME_TO_START if run.status.value in ("NOT_STARTED", "STARTING") else TIME_TO_CLAIM
        starting = not here and datetime.now(UTC) - record.update_timestamp < patience
        if run.job_name in WRITING_JOBS and not starting and not is_living(connection, run.run_id):
            collection = run.tags.get("dagster/partition", "NAME")
            instance.report_run_failed(
                run, f"The process of this run is gone: rag ingest {collection} goes on where it stopped."
            )
            settled.append(run.run_id)
    return settled


def _settle(runtime: Runtime, connection: Connection, name: str) -> bool:
    """Whether there was a run to settle."""
    with dagster_instance(runtime) as instance:
        return bool(settle_runs(instance, connection, name))


def _time(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else None
