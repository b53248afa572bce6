"""Pruning: old runs and what they left on disk go, what the newest materializations say stays."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from dagster import AssetKey, AssetRecordsFilter, RunsFilter

from rag_pipeline.core.upkeep import tidy
from rag_pipeline.definitions import build_definitions
from rag_pipeline.history import delete_folders, delete_rows, prune
from rag_pipeline.instance import dagster_instance
from rag_pipeline.progress import RunProgress

LATER = datetime.now(UTC) + timedelta(days=1)


def runs_of(instance, name: str) -> list[str]:
    """The ids of a collection's runs, the newest first."""
    return [run.run_id for run in instance.get_runs(RunsFilter(tags={"dagster/partition": name}))]


def test_the_newest_materializations_and_what_is_young_stay(rag, handbook, tmp_path, parsing_in_process):
    (other := tmp_path / "other").mkdir()
    for folder in (handbook, handbook, other):
        rag.done("ingest", folder)
    with dagster_instance(rag.runtime()) as instance:
        newest, oldest = runs_of(instance, "handbook")
        others = runs_of(instance, "other")
        assert prune(instance, datetime.now(UTC) - timedelta(days=1)) == 0
        assert prune(instance, LATER) == 1
        assert runs_of(instance, "handbook") == [newest]
        assert runs_of(instance, "other") == others
        wanted = AssetRecordsFilter(asset_key=AssetKey("pgvector_index"), asset_partitions=["handbook"])
        assert [each.run_id for each in instance.fetch_materializations(wanted, limit=9).records] == [newest]
        assert not instance.all_logs(oldest)
        assert prune(instance, LATER) == 0
        # A run under way stays, however old.
        queued = rag.done("ingest", "handbook", "--queue").out.strip()
        assert prune(instance, LATER) == 0
        assert runs_of(instance, "handbook") == [queued, newest]
    # Of a collection that is no more, nothing is kept.
    rag.done("collection", "remove", "other")
    with dagster_instance(rag.runtime()) as instance:
        assert prune(instance, LATER) == 1
        assert runs_of(instance, "other") == []
        instance.report_run_canceled(instance.get_run_by_id(queued))


def test_folders_of_runs_that_are_no_more_go(rag, handbook, tmp_path, parsing_in_process):
    rag.done("ingest", handbook)
    files = tmp_path / "files"

    def folder(name: str, days: int) -> Path:
        logs = files / name / "compute_logs"
        logs.mkdir(parents=True)
        (logs / "a.err").write_text("")
        when = (datetime.now(UTC) - timedelta(days=days)).timestamp()
        for path in (logs / "a.err", logs, logs.parent):
            os.utime(path, (when, when))
        return logs.parent

    with dagster_instance(rag.runtime()) as instance:
        living = folder(runs_of(instance, "handbook")[0], days=9)
        gone, fresh, alien = folder(str(uuid4()), days=9), folder(str(uuid4()), days=0), folder("mine", days=9)
        tick = folder("__repository__", days=9) / "compute_logs" / "a.err"
        assert delete_folders(instance, files, datetime.now(UTC) - timedelta(days=3)) == 1
    assert not gone.exists()
    assert not tick.exists()
    assert living.exists()
    assert fresh.exists()
    assert alien.exists()


def test_rows_that_killed_runs_left_go(rag):
    with dagster_instance(rag.runtime()), rag.runtime().connect() as connection:
        connection.execute("INSERT INTO rag.step_output (run_id, step_key, name, value) VALUES ('r', 's', 'n', '{}')")
        for run_id in ("old", "new"):
            RunProgress(connection, run_id, "handbook", print).stage("raw_files", "files")
        connection.execute("UPDATE rag.run_progress SET at = now() - interval '2 days' WHERE run_id = 'old'")
        delete_rows(connection)
        assert connection.execute("SELECT run_id FROM rag.run_progress").fetchall() == [("new",)]
        assert connection.execute("SELECT run_id FROM rag.step_output WHERE run_id = 'r'").fetchall() == []
        connection.execute("DELETE FROM rag.run_progress")


def test_retired_indexes_are_dropped(fruit):
    fruit.change(hnsw_m=8)
    fruit.run()
    fruit.connection.execute("UPDATE rag.vector_index SET retired_at = retired_at - interval '1 hour'")
    assert tidy(fruit.connection) == 1
    assert tidy(fruit.connection) == 0
    assert len(fruit.rows("SELECT id FROM rag.vector_index")) == 1
    fruit.assert_clean()


def test_the_job_prunes_and_tidies(rag, handbook, parsing_in_process, monkeypatch: pytest.MonkeyPatch):
    for _ in range(2):
        rag.done("ingest", handbook)
    for name, value in rag.environment.items():
        monkeypatch.setenv(name, value)
    with rag.runtime().connect() as connection:
        connection.execute("UPDATE dagster.runs SET create_timestamp = create_timestamp - interval '40 days'")
    with dagster_instance(rag.runtime()) as instance:
        result = build_definitions().resolve_job_def("prune_history").execute_in_process(instance=instance)
        assert result.success
        assert len(runs_of(instance, "handbook")) == 1
