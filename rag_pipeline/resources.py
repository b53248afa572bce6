"""What assets and ops are given: the pipeline of one collection, held by one run at a time, and the query resource."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from dagster import InitResourceContext, resource
from psycopg import Connection

from rag_pipeline.client import Rag
from rag_pipeline.core.collections import Collection, get
from rag_pipeline.core.errors import UsageError
from rag_pipeline.core.locking import writer
from rag_pipeline.progress import RunProgress
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import Settings

PARTITION_TAG = "dagster/partition"
MASS_REMOVAL_TAG = "rag/allow_mass_removal"
RECONCILE_TAG = "rag/reconcile"


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
    workers: int = field(default_factory=lambda: _cores())

    @property
    def collection(self) -> Collection:
        """As it is registered now."""
        return get(self.connection, self.name)


@contextmanager
def open_pipeline(
    runtime: Runtime, name: str, progress: Progress, *, allow_mass_removal: bool = False
) -> Iterator[Pipeline]:
    """The pipeline of a collection, once no other run holds it."""
    with runtime.connect() as connection, runtime.connect() as lock:
        get(connection, name)
        with writer(lock, name, lambda: progress.note(f"waiting for another run of {name} to end")):
            yield Pipeline(runtime, connection, name, progress, allow_mass_removal)


@resource(description="The collection of the run's partition: its database, providers and settings.")
def pipeline_resource(context: InitResourceContext) -> Iterator[Pipeline]:
    tags = context.run.tags
    if PARTITION_TAG not in tags:
        raise UsageError("no collection is chosen: launch the run for a partition, which is a collection's name")
    runtime, name = Runtime(Settings.from_environment()), tags[PARTITION_TAG]
    with (
        runtime.connect() as connection,
        closing(RunProgress(connection, context.run.run_id, name, context.log.info)) as progress,
        open_pipeline(runtime, name, progress, allow_mass_removal=MASS_REMOVAL_TAG in tags) as pipeline,
    ):
        yield pipeline


@resource(description="Search and ask, as in rag_pipeline.Rag.")
def rag_resource(context: InitResourceContext) -> Iterator[Rag]:
    with Rag.connect() as rag:
        yield rag


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
