"""The pipeline role: a login that owns nothing does all that runs and commands do, and nothing to the tables."""

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from rag_pipeline.core import database
from rag_pipeline.core.upkeep import tidy
from rag_pipeline_tests.commands import Command

LOGINS = "rag_boss", "rag_worker", "rag_site"


@pytest.fixture
def logins(empty_database_url: str, services) -> Iterator[tuple[str, str]]:
    """Where an owner who is no superuser and a worker connect; the owner has migrated."""
    boss, worker, _ = (make_conninfo(empty_database_url, user=login) for login in LOGINS)
    with psycopg.connect(empty_database_url, autocommit=True) as superuser:
        superuser.execute("CREATE EXTENSION vector")
        superuser.execute("CREATE ROLE rag_boss LOGIN")
        superuser.execute("CREATE ROLE rag_worker LOGIN IN ROLE rag_pipeline")
        superuser.execute("CREATE ROLE rag_site LOGIN IN ROLE rag_query")
        superuser.execute(f"ALTER DATABASE {superuser.info.dbname} OWNER TO rag_boss")
        try:
            database.migrate(boss)
            yield boss, worker
        finally:
            for role in LOGINS:
                superuser.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER")
                superuser.execute(f"DROP OWNED BY {role}")
                superuser.execute(f"DROP ROLE {role}")


@pytest.fixture
def worker(rag: Command, logins: tuple[str, str]) -> Command:
    return Command(rag.environment | {"RAG_DATABASE_URL": logins[1]})


def test_it_does_all_that_runs_and_commands_do(worker, logins, handbook):
    worker.done("ingest", handbook)
    (handbook / "travel.txt").write_text("Trains alone.\n")
    (handbook / "holidays.md").unlink()
    worker.done("ingest", "handbook")
    with closing(database.connect(logins[1])) as connection:
        (index,) = connection.execute("SELECT active_index FROM rag.collection").fetchone()
        worker.done("collection", "set", "handbook", "hnsw_m=8")
        assert worker.done("ingest", "handbook", "--json").json["index"]["rows"] == 2
        connection.execute("UPDATE rag.vector_index SET retired_at = retired_at - interval '1 hour'")
        assert tidy(connection) == 1
        assert connection.execute("SELECT to_regclass(%s)", [f"rag.indexed_chunk_{index}"]).fetchone() == (None,)
    secret = worker.done("key", "create", "website", "--grant", "handbook").out.strip()
    reader = make_conninfo(logins[0], user="rag_site")
    found = worker.done(
        "search", "handbook", "trains", "--json", RAG_API_KEY=secret, RAG_QUERY_DATABASE_URL=reader
    ).json
    assert found["hits"][0]["path"] == "travel.txt"
    worker.done("forget", "handbook", "travel.txt")
    worker.done("collection", "remove", "handbook")
    with closing(database.connect(logins[1])) as connection:
        partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'rag.indexed_chunk'::regclass"
        assert connection.execute(partitions).fetchone() == (0,)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE rag.document",
        "ALTER TABLE rag.document ADD COLUMN more text",
        "ALTER TABLE rag.document DISABLE ROW LEVEL SECURITY",
        "DROP POLICY granted ON rag.document",
        "CREATE TABLE rag.mine (x int)",
        "TRUNCATE rag.document",
        "INSERT INTO rag.migration (version, name) VALUES (999, 'mine')",
        "CREATE OR REPLACE FUNCTION rag.owns_data() RETURNS boolean LANGUAGE sql RETURN true",
        "SELECT rag.grant_pipeline_role()",
        "SET ROLE rag_boss",
    ],
)
def test_it_may_do_nothing_to_the_tables_themselves(logins, statement):
    with closing(psycopg.connect(logins[1])) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


def test_a_schema_that_it_may_not_change_is_one_line_with_the_remedy(worker, logins):
    with closing(psycopg.connect(logins[0], autocommit=True)) as boss:
        boss.execute("DELETE FROM rag.migration WHERE version = (SELECT max(version) FROM rag.migration)")
    assert "run rag doctor once with that of its owner" in worker("collection", "list").reason


def test_a_login_of_neither_role_is_one_line_with_the_remedy(rag, empty_database_url):
    with psycopg.connect(empty_database_url, autocommit=True) as superuser:
        database.migrate(empty_database_url)
        superuser.execute("CREATE ROLE rag_nobody LOGIN")
        try:
            done = rag("collection", "list", RAG_DATABASE_URL=make_conninfo(empty_database_url, user="rag_nobody"))
        finally:
            superuser.execute("DROP ROLE rag_nobody")
    assert "GRANT rag_pipeline TO" in done.reason
