"""Runs for the daemon: asked for from any process, executed by whoever serves, canceled again."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag_pipeline.core.collections import get
from rag_pipeline.core.errors import UsageError
from rag_pipeline.instance import ASKED_BY_TAG, dagster_instance
from rag_pipeline.runs import visible_run
from rag_pipeline.runtime import Runtime

if TYPE_CHECKING:
    from dagster._core.remote_origin import RemoteJobOrigin

JOB = "refresh_collection"


def queue_runs(
    runtime: Runtime,
    names: Sequence[str],
    asked_by: str,
    *,
    allow_mass_removal: bool = False,
    retry_failed: bool = False,
) -> list[str]:
    """Hand `refresh_collection` for each of these collections to the daemon; the ids of the runs, which wait for it.

    Raises UsageError when there is no such collection: then none is queued.
    """
    with runtime.connect() as connection:
        for name in names:
            get(connection, name)
    with dagster_instance(runtime) as instance:
        from dagster import DagsterEvent

        from rag_pipeline.definitions import defs
        from rag_pipeline.resources import PARTITION_TAG, request_tags

        job = defs.resolve_job_def(JOB)
        tags = {
            ASKED_BY_TAG: asked_by,
            **request_tags(allow_mass_removal=allow_mass_removal, retry_failed=retry_failed),
        }
        runs = [
            instance.create_run_for_job(job, tags={PARTITION_TAG: name, **tags}, remote_job_origin=_origin())
            for name in names
        ]
        for run in runs:
            # What QueuedRunCoordinator.submit_run does, which wants the code location loaded a second time.
            instance.report_dagster_event(DagsterEvent.job_enqueue(run), run.run_id)
        return [run.run_id for run in runs]


def cancel_run(runtime: Runtime, run_id: str) -> None:
    """Cancel a run that is queued, or end one that the daemon has launched; what it did until now is kept.

    Raises UsageError when there is no such run, when the API key may not write to its collection, when it has ended, or
    when it belongs to a terminal.
    """
    with runtime.connect() as connection:
        run = visible_run(runtime, connection, run_id)
        runtime.require_grant(connection, run.collection, to_write=True)
    if run.state not in ("queued", "running"):
        raise UsageError(f"run {run_id} has ended already: rag status --run {run_id} tells how")
    with dagster_instance(runtime) as instance:
        # Where its process listens. Dagster would call a run without it canceled, and leave it at work.
        launched = ".dagster/grpc_info" in instance.get_run_by_id(run_id).tags
        if (run.state == "running" and not launched) or not instance.run_coordinator.cancel_run(run_id):
            raise UsageError(f"run {run_id} was not launched by the daemon: end it with Ctrl-C where it runs")


def _origin() -> "RemoteJobOrigin":
    """Where the daemon finds the job: the code location of workspace.yaml."""
    from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
    from dagster._core.remote_origin import (
        ManagedGrpcPythonEnvCodeLocationOrigin,
        RemoteJobOrigin,
        RemoteRepositoryOrigin,
    )
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

    location = ManagedGrpcPythonEnvCodeLocationOrigin(
        LoadableTargetOrigin(module_name="rag_pipeline.definitions"), location_name="rag_pipeline"
    )
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME), JOB)
