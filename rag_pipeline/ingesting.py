"""Running the pipeline for a collection from a command: a Dagster run in this process, and what it did."""

from dataclasses import dataclass

from rag_pipeline.core.status import published_chunks
from rag_pipeline.instance import dagster_instance
from rag_pipeline.resources import MASS_REMOVAL_TAG, Progress, open_pipeline
from rag_pipeline.runtime import Runtime


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


def ingest(runtime: Runtime, name: str, progress: Progress, *, allow_mass_removal: bool = False) -> IngestResult:
    """Run `refresh_collection` for a collection now, in this process, and wait for it.

    Raises what the stages raise; the run is recorded in Dagster either way.
    """
    with dagster_instance(runtime) as instance:
        from rag_pipeline.definitions import build_definitions

        with open_pipeline(runtime, name, progress, allow_mass_removal=allow_mass_removal) as pipeline:
            job = build_definitions(pipeline=pipeline).resolve_job_def("refresh_collection")
            result = job.execute_in_process(
                instance=instance,
                partition_key=name,
                tags={"rag/asked_by": "rag ingest"} | ({MASS_REMOVAL_TAG: "yes"} if allow_mass_removal else {}),
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            stages = {
                event.asset_key.to_user_string(): {
                    key: value.value for key, value in event.step_materialization_data.materialization.metadata.items()
                }
                for event in result.get_asset_materialization_events()
            }
            return _result(name, result.run_id, stages, published_chunks(pipeline.connection, name))


def _result(name: str, run_id: str, stages: dict[str, dict], chunks: int) -> IngestResult:
    files, parsed = stages["raw_files"], stages["parsed_text"]
    embedded, published = stages["cached_embeddings"], stages["pgvector_index"]
    seconds = {stage: metadata["seconds"] for stage, metadata in stages.items()}
    return IngestResult(
        collection=name,
        run_id=run_id,
        files={key: files[key] for key in ("seen", "added", "changed", "removed", "unchanged", "withheld")},
        parsed={key: parsed[key] for key in ("documents", "failed")},
        chunks={"total": chunks, "new": stages["token_chunks"]["new"]},
        embeddings={key: embedded.get(key) for key in ("cached", "requested", "tokens", "cost_usd")},
        index={"inserted": embedded["inserted"], "deleted": published["deleted"], "rows": published["rows"]},
        seconds={**seconds, "total": round(sum(seconds.values()), 3)},
    )
