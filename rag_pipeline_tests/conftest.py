"""What every test shares: one PostgreSQL and one Valkey a session, a database of its own for each test that asks.

No test reaches a developer's real state: RAG_HOME is the session's temporary home, the environment's keys are hidden.
"""

import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis

from rag_pipeline.services import Services, start_postgres, start_valkey, stop

pytest_plugins = ("rag_pipeline_tests.pipelines", "rag_pipeline_tests.commands", "rag_pipeline_tests.access_library")

_numbers = itertools.count(1)

# A shell makes what it starts in the background deaf to Ctrl-C, which children inherit: tests press it on commands.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(scope="session")
def session_home() -> Iterator[Path]:
    """The RAG_HOME of the session; whatever runs under it at the end is stopped."""
    # A directory of its own under /tmp, for pytest's are nested too deep for a socket.
    with tempfile.TemporaryDirectory(prefix="rag-tests-", dir="/tmp") as directory:
        home = Path(directory).resolve() / "home"
        try:
            yield home
        finally:
            stop(home)


@pytest.fixture(scope="session")
def services(session_home: Path) -> Services:
    """The session's two servers."""
    return Services(start_postgres(session_home), start_valkey(session_home))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, session_home: Path) -> None:
    """An environment without the caller's keys and settings."""
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "RAG_", "DAGSTER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RAG_HOME", str(session_home))


@pytest.fixture(scope="session")
def migrated_template(services: Services) -> str:
    """The name of a database with all migrations applied, to be copied."""
    from rag_pipeline.core.database import migrate

    with psycopg.connect(services.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE template_rag")
    migrate(_named(services, "template_rag"))
    return "template_rag"


@pytest.fixture
def database_url(services: Services, migrated_template: str) -> Iterator[str]:
    """A fresh database with the schema and no rows."""
    with _database(services, migrated_template) as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(services: Services, migrated_template: str) -> Iterator[str]:
    """A database with the schema for all tests of a module, who clean up after themselves."""
    with _database(services, migrated_template) as url:
        yield url


@pytest.fixture
def empty_database_url(services: Services) -> Iterator[str]:
    """A fresh database with nothing in it."""
    with _database(services, "template1") as url:
        yield url


@pytest.fixture
def redis_url(services: Services) -> str:
    """The session's Valkey, emptied."""
    with redis.Redis.from_url(services.redis_url) as client:
        client.flushall()
    return services.redis_url


@contextmanager
def _database(services: Services, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    with psycopg.connect(services.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    try:
        yield _named(services, name)
    finally:
        with psycopg.connect(services.database_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _named(services: Services, database: str) -> str:
    return services.database_url.replace("/rag?", f"/{database}?")
