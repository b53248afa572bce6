"""What assets and ops are given: the pipeline of one collection, held by one run at a time, and the query resource."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from dagster import DagsterInstance, InitResourceContext, resource
from psycopg import Connection

from rag_pipeline.client import Rag
from rag_pipeline.core.collections import Collection, get
from rag_pipeline.core.errors import UsageError
from rag_pipeline.core.locking import claim
from rag_pipeline.core.machine import cores
from rag_pipeline.instance import settle_runs
from rag_pipeline.progress import RunProgress
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import Settings

PARTITION_TAG = "dagster/partition"
MASS_REMOVAL_TAG = "rag/allow_mass_removal"
RETRY_TAG = "rag/retry_failed"
# On runs that look at the whole collection, not only at what has changed.
RECONCILE_TAG = "rag/reconcile"


def request_tags(*, allow_mass_removal: bool = False, retry_failed: bool = False) -> dict[str, str]:
    """The tags of a run that is asked for so."""
    return ({MASS_REMOVAL_TAG: "yes"} if allow_mass_removal else {}) | ({RETRY_TAG: "yes"} if retry_failed else {})


class Progress(Protocol):
    """Told by the stages how far they are."""

    def stage(self, name: str, unit: str) -> Callable[[int, int], None]:
        """What to call with (done, total) while a stage runs."""

    def note(self, message: str) -> None:
        """Something a person who waits should know."""


@dataclass
class Pipeline:
    """One collection as a run works on it; no other run writes to it meanwhile."""

    runtime: Runtime
    connection: Connection
    name: str
    progress: Progress
    allow_mass_removal: bool = False
    retry_failed: bool = False
    reconcile: bool = False
    workers: int = field(default_factory=cores)

    @cached_property
    def collection(self) -> Collection:
        """As it was registered when this was first asked: a setting that is changed meanwhile is for the next run."""
        return get(self.connection, self.name)


@contextmanager
def open_pipeline(
    runtime: Runtime,
    instance: DagsterInstance,
    name: str,
    run_id: str,
    progress: Progress,
    *,
    allow_mass_removal: bool = False,
    retry_failed: bool = False,
    reconcile: bool = False,
    wait: bool = True,
) -> Iterator[Pipeline]:
    """The pipeline of a collection for a run, once no other run holds it; raises UsageError if it is not to wait."""

    def waiting(other: str) -> None:
        if not wait:
            raise UsageError(f"run {other} has {name} now: leave --no-wait out to wait until it has ended")
        progress.note(f"waiting for another run of {name} to end")

    with runtime.connect() as connection, runtime.connect() as lock:
        get(connection, name)
        with claim(lock, name, run_id, waiting):
            settle_runs(instance, connection, name)
            yield Pipeline(runtime, connection, name, progress, allow_mass_removal, retry_failed, reconcile)


@resource(description="The collection of the run's partition: its database, providers and settings.")
def pipeline_resource(context: InitResourceContext) -> Iterator[Pipeline]:
    tags = context.run.tags
    if PARTITION_TAG not in tags:
        raise UsageError("no collection is chosen: launch the run for a partition, which is a collection's name")
    runtime, name = Runtime(Settings.from_environment()), tags[PARTITION_TAG]
    with (
        runtime.connect() as connection,
        closing(RunProgress(connection, context.run.run_id, name, context.log.info)) as progress,
        open_pipeline(
            runtime,
            context.instance,
            name,
            context.run.run_id,
            progress,
            allow_mass_removal=MASS_REMOVAL_TAG in tags,
            retry_failed=RETRY_TAG in tags,
            reconcile=RECONCILE_TAG in tags,
        ) as pipeline,
    ):
        yield pipeline


@resource(description="Search and ask, as in rag_pipeline.Rag.")
def rag_resource(context: InitResourceContext) -> Iterator[Rag]:
    # Dagster acts as the owner, whatever key its environment has for others.
    with Rag(Runtime(replace(Settings.from_environment(), api_key=None)), as_owner=True) as rag:
        yield rag
