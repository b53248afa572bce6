"""Running the pipeline for a collection from a command: a Dagster run in this process, and what it did."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING
from uuid import uuid4

from rag_pipeline.core.errors import ProviderError, RagError
from rag_pipeline.core.status import published_chunks
from rag_pipeline.instance import ASKED_BY_TAG, INGEST_COMMAND, dagster_instance
from rag_pipeline.runtime import Runtime

if TYPE_CHECKING:
    from rag_pipeline.resources import Progress


@dataclass(frozen=True)
class IngestResult:
    """What a run did, in the form `rag ingest --json` prints it."""

    collection: str
    run_id: str
    files: dict[str, int]
    parsed: dict[str, int]
    chunks: dict[str, int]
    embeddings: dict[str, object]
    index: dict[str, int]
    seconds: dict[str, float]


def ingest(
    runtime: Runtime,
    name: str,
    progress: "Progress",
    *,
    allow_mass_removal: bool = False,
    retry_failed: bool = False,
    wait: bool = True,
) -> IngestResult:
    """Run `refresh_collection` for a collection now, in this process, and wait for it.

    Raises the RagError of the stage that failed, or one that names the run, whose record in Dagster tells more; and
    UsageError when another run has the collection and this one is not to `wait`.
    """
    started, run_id = perf_counter(), str(uuid4())
    with _quiet_dagster(), dagster_instance(runtime) as instance:
        from rag_pipeline.definitions import build_definitions
        from rag_pipeline.resources import open_pipeline, request_tags

        asked = {"allow_mass_removal": allow_mass_removal, "retry_failed": retry_failed}
        with open_pipeline(runtime, instance, name, run_id, progress, **asked, wait=wait) as pipeline:
            with _one_line(run_id, name):
                result = (
                    build_definitions(pipeline=pipeline)
                    .resolve_job_def("refresh_collection")
                    .execute_in_process(
                        instance=instance,
                        partition_key=name,
                        run_id=run_id,
                        tags={ASKED_BY_TAG: INGEST_COMMAND} | request_tags(**asked),
                        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                    )
                )
            stages = {
                event.asset_key.to_user_string(): {
                    key: value.value for key, value in event.step_materialization_data.materialization.metadata.items()
                }
                for event in result.get_asset_materialization_events()
            }
            chunks = published_chunks(pipeline.connection, name)
    return result_of(name, run_id, stages, chunks, round(perf_counter() - started, 3))


@contextmanager
def _quiet_dagster() -> Iterator[None]:
    """Keep what Dagster logs off the terminal, tracebacks of a database that went away among it: a person is shown one
    line, and the rest is in the run's record. Our own warnings are printed as ever."""
    root, ours, nowhere = logging.getLogger(), logging.getLogger("rag_pipeline"), logging.NullHandler()
    if root.handlers:
        yield
        return
    root.addHandler(nowhere)
    ours.addHandler(logging.lastResort)
    try:
        yield
    finally:
        root.removeHandler(nowhere)
        ours.removeHandler(logging.lastResort)


@contextmanager
def _one_line(run_id: str, name: str) -> Iterator[None]:
    """A run's failure as the one line a person is shown; the traceback is in Dagster's record of the run."""
    from dagster import DagsterExecutionInterruptedError, Failure

    try:
        yield
    except RagError:
        raise
    except DagsterExecutionInterruptedError:
        raise KeyboardInterrupt from None
    except Failure as failure:
        raise ProviderError(failure.description) from None
    except Exception as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise RagError(
            f"ingesting {name} failed: {type(error).__name__}: {reason}; rag up shows where, in run {run_id}"
        ) from error


def result_of(name: str, run_id: str, stages: dict[str, dict], chunks: int, total_seconds: float) -> IngestResult:
    """What a run did, from its materializations' metadata by asset. Raises KeyError when one is missing."""
    files, parsed = stages["raw_files"], stages["parsed_text"]
    embedded, published = stages["cached_embeddings"], stages["pgvector_index"]
    return IngestResult(
        collection=name,
        run_id=run_id,
        files={
            key: files[key] for key in ("seen", "added", "changed", "removed", "unchanged", "withheld", "forgotten")
        },
        parsed={key: parsed[key] for key in ("documents", "failed")},
        chunks={"total": chunks, "new": stages["token_chunks"]["new"]},
        embeddings={key: embedded.get(key) for key in ("cached", "requested", "tokens", "cost_usd")},
        index={"inserted": embedded["inserted"], "deleted": published["deleted"], "rows": published["rows"]},
        seconds={**{stage: metadata["seconds"] for stage, metadata in stages.items()}, "total": total_seconds},
    )
