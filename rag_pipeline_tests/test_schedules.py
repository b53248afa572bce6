"""What is scheduled, when, and for which collections."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from dagster import DagsterInstance, DefaultScheduleStatus, build_schedule_context

from rag_pipeline.core.errors import UsageError
from rag_pipeline.partitions import collections_partitions
from rag_pipeline.schedules import build_schedules
from rag_pipeline.settings import Settings
from rag_pipeline_tests.commands import Command


def schedules(monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return {each.name: each for each in build_schedules(Settings.from_environment())}


def test_every_night_every_collection_is_asked_for_once(monkeypatch, tmp_path):
    (nightly, _) = schedules(monkeypatch).values()
    assert nightly.job_name == "reconcile_collection"
    assert (nightly.name, nightly.cron_schedule, nightly.execution_timezone) == (
        "nightly_reconcile",
        "0 3 * * *",
        "UTC",
    )
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        instance.add_dynamic_partitions(collections_partitions.name, ["b", "a"])

        def requests(day: int) -> list:
            at = datetime(2026, 11, day, 3, tzinfo=UTC)
            return nightly(build_schedule_context(instance=instance, scheduled_execution_time=at))

        asked = requests(22)
        assert [each.partition_key for each in asked] == ["a", "b"]
        assert asked[0].tags["rag/asked_by"] == "nightly_reconcile"
        assert [each.run_key for each in asked] == [each.run_key for each in requests(22)]
        assert not {each.run_key for each in asked} & {each.run_key for each in requests(23)}


def test_hour_and_time_zone_are_settings_and_both_run_by_themselves(monkeypatch):
    found = schedules(monkeypatch, RAG_RECONCILE_HOUR="0", RAG_TIME_ZONE="Europe/Berlin")
    assert {name: each.cron_schedule for name, each in found.items()} == {
        "nightly_reconcile": "0 0 * * *",
        "weekly_prune": "0 23 * * 0",
    }
    assert {each.execution_timezone for each in found.values()} == {"Europe/Berlin"}
    assert {each.default_status for each in found.values()} == {DefaultScheduleStatus.RUNNING}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RAG_RECONCILE_HOUR", "24"),
        ("RAG_RECONCILE_HOUR", "three"),
        ("RAG_TIME_ZONE", "Berlin"),
        ("RAG_TIME_ZONE", "../etc"),
        ("RAG_HISTORY_DAYS", "0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(monkeypatch, variable, value, tmp_path: Path):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=f"^{variable}={value} is not valid: set it to "):
        Settings.from_environment()
    reason = Command({"RAG_HOME": str(tmp_path), variable: value})("collection", "list").reason
    assert reason.startswith(f"{variable}={value} is not valid")
