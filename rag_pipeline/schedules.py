"""What happens by the clock: every night every collection is looked at whole, every week the records are pruned."""

from dagster import (
    DefaultScheduleStatus,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    schedule,
)

from rag_pipeline.instance import ASKED_BY_TAG, WHY_TAG
from rag_pipeline.jobs import prune_history, reconcile_collection
from rag_pipeline.partitions import collections_partitions
from rag_pipeline.settings import Settings


def build_schedules(settings: Settings) -> list[ScheduleDefinition]:
    """The schedules, at the hour and in the time zone of the settings."""

    @schedule(
        job=reconcile_collection,
        cron_schedule=f"0 {settings.reconcile_hour} * * *",
        execution_timezone=settings.time_zone,
        default_status=DefaultScheduleStatus.RUNNING,
        description="Every collection looked at whole: part of its files read again whatever their times say, failures "
        "that may pass tried again, and the checks that the index as a whole must pass.",
    )
    def nightly_reconcile(context: ScheduleEvaluationContext) -> list[RunRequest]:
        return [
            RunRequest(
                run_key=f"{name}:{context.scheduled_execution_time.isoformat()}",
                partition_key=name,
                tags={ASKED_BY_TAG: nightly_reconcile.name, WHY_TAG: "every night"},
            )
            for name in sorted(context.instance.get_dynamic_partitions(collections_partitions.name))
        ]

    weekly_prune = ScheduleDefinition(
        name="weekly_prune",
        job=prune_history,
        # On Sunday, before the night's runs.
        cron_schedule=f"0 {(settings.reconcile_hour - 1) % 24} * * 0",
        execution_timezone=settings.time_zone,
        default_status=DefaultScheduleStatus.RUNNING,
        tags={ASKED_BY_TAG: "weekly_prune", WHY_TAG: "every week"},
        description=f"Old runs deleted ({settings.history_days} days are kept), and tables tidied.",
    )
    return [nightly_reconcile, weekly_prune]
