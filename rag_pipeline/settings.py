"""The environment, read once into one typed object. Nothing else in the project reads `os.environ`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zoneinfo import ZoneInfo

from dotenv import dotenv_values

from rag_pipeline.core.errors import UsageError

# The clone: where dagster.yaml, workspace.yaml and sql/ lie.
PROJECT = Path(__file__).parents[1]

# Where a run's steps are executed: in the run's own process, or on machines with Celery workers.
EXECUTORS = ("in_process", "celery")


@dataclass(frozen=True)
class Settings:
    """What the environment says; None where it says nothing. Secrets stay out of its repr."""

    home: Path
    documents: Path
    database_url: str | None = field(repr=False)
    query_database_url: str | None = field(repr=False)
    redis_url: str | None = field(repr=False)
    executor: str
    openai_api_key: str | None = field(repr=False)
    openai_base_url: str | None
    embedding_model: str
    chat_model: str | None
    api_key: str | None = field(repr=False)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    reconcile_hour: int = 3
    time_zone: str = "UTC"
    history_days: int = 30

    def __post_init__(self) -> None:
        if self.api_key is not None:
            _require_key(self.api_key)

    @classmethod
    def from_environment(cls) -> "Settings":
        """What the environment sets and, where it does not, the file `.env` in the clone.

        Raises UsageError for a value that cannot be meant.
        """
        environment = {**dotenv_values(PROJECT / ".env"), **os.environ}

        def value(name: str) -> str | None:
            return (environment.get(name) or "").strip() or None

        openai_api_key = value("OPENAI_API_KEY")
        return cls(
            home=Path(value("RAG_HOME") or PROJECT / ".rag").expanduser().absolute(),
            documents=Path(value("RAG_DOCUMENTS") or PROJECT / "documents").expanduser().absolute(),
            database_url=value("RAG_DATABASE_URL"),
            query_database_url=value("RAG_QUERY_DATABASE_URL"),
            redis_url=value("RAG_REDIS_URL"),
            executor=_one_of(EXECUTORS, "RAG_EXECUTOR", value("RAG_EXECUTOR")),
            openai_api_key=openai_api_key,
            openai_base_url=value("OPENAI_BASE_URL"),
            embedding_model=value("RAG_EMBEDDING_MODEL")
            or ("openai/text-embedding-3-small" if openai_api_key else "local/all-MiniLM-L6-v2"),
            chat_model=value("RAG_CHAT_MODEL") or ("openai/gpt-4.1-mini" if openai_api_key else None),
            # A blank one is not taken for none, which would be the owner.
            api_key=environment["RAG_API_KEY"].strip() if environment.get("RAG_API_KEY") else None,
            requests_per_minute=_within(1, 10**9, "RAG_REQUESTS_PER_MINUTE", value("RAG_REQUESTS_PER_MINUTE")),
            tokens_per_minute=_within(1, 10**12, "RAG_TOKENS_PER_MINUTE", value("RAG_TOKENS_PER_MINUTE")),
            reconcile_hour=_within(0, 23, "RAG_RECONCILE_HOUR", value("RAG_RECONCILE_HOUR"), 3),
            time_zone=_time_zone(value("RAG_TIME_ZONE") or "UTC"),
            history_days=_within(1, 10_000, "RAG_HISTORY_DAYS", value("RAG_HISTORY_DAYS"), 30),
        )


def _require_key(api_key: str) -> None:
    """Raises UsageError for what no API key can be, and never quotes it."""
    if not api_key.strip():
        raise UsageError("the API key is empty: give one that rag key create printed, or leave it out")
    if not api_key.isprintable():
        raise UsageError("the API key is no text: give it as rag key create printed it")


def _one_of(names: Sequence[str], variable: str, text: str | None) -> str:
    """One of the names, the first when there is no text."""
    if text is not None and text not in names:
        raise UsageError(f"{variable}={text} is not valid: set it to {' or '.join(names)}, or leave it out")
    return text or names[0]


def _within(least: int, most: int, variable: str, text: str | None, default: int | None = None) -> int | None:
    """A whole number in this range, the default when there is no text."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise UsageError(f"{variable}={text} is not valid: set it to a whole number from {least} to {most}")
    return int(text)


def _time_zone(name: str) -> str:
    """The name of a time zone that this machine knows."""
    try:
        return ZoneInfo(name).key
    except (ValueError, OSError, KeyError):
        raise UsageError(f"RAG_TIME_ZONE={name} is not valid: set it to a name such as Europe/Berlin or UTC") from None
