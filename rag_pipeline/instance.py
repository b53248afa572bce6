"""The Dagster instance that commands, the UI and the daemon share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import PROJECT

if TYPE_CHECKING:
    from dagster import DagsterInstance

# Dagster's tables live in a schema of their own. Its events may lose their last fraction of a second to a power cut, and
# are written ten times as fast for it.
DAGSTER_OPTIONS = "-csearch_path=dagster -csynchronous_commit=off"


def dagster_environment(runtime: Runtime) -> dict[str, str]:
    """The variables with which plain `dagster` commands reach the same instance."""
    return {
        "DAGSTER_HOME": str(PROJECT),
        "RAG_HOME": str(runtime.settings.home),
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
    from dagster import DagsterInstance

    from rag_pipeline.core.collections import list_all
    from rag_pipeline.partitions import sync_partitions

    with DagsterInstance.get() as instance:
        with runtime.connect() as connection:
            sync_partitions(instance, [collection.name for collection in list_all(connection)])
        yield instance


def last_run(instance: "DagsterInstance", collection: str) -> dict[str, str | None] | None:
    """The newest run of a collection: its id, status, and when it started and ended (UTC); None when it never ran."""
    from dagster import RunsFilter

    records = instance.get_run_records(RunsFilter(tags={"dagster/partition": collection}), limit=1)
    if not records:
        return None
    (record,) = records
    return {
        "run_id": record.dagster_run.run_id,
        "status": record.dagster_run.status.value.lower(),
        "started": _time(record.start_time),
        "ended": _time(record.end_time),
    }


def _time(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else None
