"""Where a run's steps are done: in the run's own process, or by Celery workers on any number of machines."""

from typing import TYPE_CHECKING

from dagster import ExecutorDefinition, in_process_executor

from rag_pipeline.core.errors import UsageError
from rag_pipeline.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

# A step whose whole worker is gone is given to another after this time. It has to be longer than any step lasts, or
# two workers would do the same one; a worker that lives and loses the process of a step gives it back at once.
VISIBILITY_TIMEOUT_S = 3600


def executor(settings: Settings) -> ExecutorDefinition:
    """The executor that RAG_EXECUTOR names. Raises UsageError when it lacks something."""
    if settings.executor == "in_process":
        return in_process_executor
    config = _celery_config(settings)
    from dagster_celery import celery_executor

    return celery_executor.configured(config, name="celery")


def celery_app(settings: Settings) -> "Celery":
    """The Celery application of a worker: it takes the steps that runs with RAG_EXECUTOR=celery hand out.

    Raises UsageError when it lacks something.
    """
    config = _celery_config(settings)
    from dagster_celery.executor import CeleryExecutor
    from dagster_celery.make_app import make_app
    from dagster_celery.tasks import create_task

    app = make_app(CeleryExecutor.for_cli(**config).app_args())
    create_task(app)
    return app


def _celery_config(settings: Settings) -> dict[str, object]:
    """Broker, backend and configuration, the same for who hands steps out and who does them."""
    try:
        import dagster_celery  # noqa: F401
    except ImportError:
        raise UsageError(
            "RAG_EXECUTOR=celery needs dagster-celery: pip install -c constraints.txt -e '.[celery]'"
        ) from None
    if settings.redis_url is None:
        raise UsageError("RAG_EXECUTOR=celery needs a Redis that every worker reaches: set RAG_REDIS_URL")
    url = _celery_url(settings.redis_url)
    return {
        "broker": url,
        "backend": url,
        "config_source": {
            # A step is acknowledged when it is done: until then it belongs to nobody who may die with it.
            "task_acks_late": True,
            "task_reject_on_worker_lost": True,
            "worker_prefetch_multiplier": 1,
            "broker_transport_options": {"visibility_timeout": VISIBILITY_TIMEOUT_S},
            "broker_connection_retry_on_startup": True,
        },
    }


def _celery_url(redis_url: str) -> str:
    """The Redis as Celery names it, who has words of its own for a socket."""
    if not redis_url.startswith("unix://"):
        return redis_url
    return redis_url.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=")
