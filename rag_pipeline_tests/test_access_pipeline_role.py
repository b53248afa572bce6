"""The pipeline role: a login that owns nothing does all that runs and commands do, and nothing to the tables."""

from collections.abc import Iterator
from contextlib import closing, suppress

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from rag_pipeline.core import database
from rag_pipeline.core.upkeep import tidy
from rag_pipeline_tests.commands import Command

LOGINS = "rag_boss", "rag_worker", "rag_another", "rag_site"


@pytest.fixture
def logins(empty_database_url: str, services) -> Iterator[tuple[str, str]]:
    """Where an owner who is no superuser and a worker connect; the owner has migrated."""
    boss, worker, *_ = (make_conninfo(empty_database_url, user=login) for login in LOGINS)
    with psycopg.connect(empty_database_url, autocommit=True) as superuser:
        superuser.execute("CREATE EXTENSION vector")
        for role in "rag_pipeline", "rag_query":
            with suppress(psycopg.errors.DuplicateObject):
                superuser.execute(f"CREATE ROLE {role} NOLOGIN")
        superuser.execute("CREATE ROLE rag_boss LOGIN")
        superuser.execute("CREATE ROLE rag_worker LOGIN IN ROLE rag_pipeline")
        superuser.execute("CREATE ROLE rag_another LOGIN IN ROLE rag_pipeline")
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
    assert "run rag doctor once with that of the schema's owner" in worker("ingest", handbook).reason
    worker("doctor", RAG_DATABASE_URL=logins[0])
    worker.done("ingest", handbook)
    (handbook / "travel.txt").write_text("Trains alone.\n")
    (handbook / "holidays.md").unlink()
    worker.done("ingest", "handbook", RAG_DATABASE_URL=make_conninfo(logins[1], user="rag_another"))
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
        "CREATE VIEW dagster.runs AS SELECT 1",
        "REINDEX TABLE rag.migration",
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


def test_what_it_puts_before_an_operator_runs_with_its_own_rights_alone(logins):
    with closing(psycopg.connect(logins[0], autocommit=True)) as boss:
        boss.execute("CREATE SCHEMA trap")
        boss.execute("GRANT ALL ON SCHEMA trap TO rag_worker")
    with closing(psycopg.connect(logins[1], autocommit=True)) as connection:
        connection.execute("CREATE TABLE trap.ran_as (role name)")
        connection.execute("GRANT INSERT ON trap.ran_as TO PUBLIC")
        connection.execute(
            """CREATE FUNCTION trap.same(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
                   INSERT INTO trap.ran_as VALUES (current_user);
                   RETURN $1 OPERATOR(pg_catalog.=) $2;
               END $$"""
        )
        connection.execute("CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.same)")
        connection.execute("INSERT INTO rag.collection (name, source) VALUES ('kept', '/'), ('gone', '/')")
        connection.execute(
            "INSERT INTO rag.document (collection, path, size, parse_key) VALUES ('gone', 'a', 1, 'key')"
        )
        connection.execute("SET search_path = trap, pg_catalog")
        connection.execute("DELETE FROM rag.collection WHERE name = 'gone'")
        assert connection.execute("SELECT DISTINCT role FROM trap.ran_as").fetchall() == [("rag_worker",)]


def test_a_superuser_may_grant_the_role_its_rights_too(worker, logins, empty_database_url, handbook):
    with psycopg.connect(empty_database_url, autocommit=True) as superuser:
        superuser.execute("DROP OWNED BY rag_pipeline")
        assert superuser.execute("SELECT rag.grant_pipeline_role()").fetchone() == (True,)
    worker("doctor", RAG_DATABASE_URL=logins[0])
    worker.done("ingest", handbook)


def test_a_newer_schema_is_named(worker, logins):
    with closing(psycopg.connect(logins[0], autocommit=True)) as boss:
        boss.execute("INSERT INTO rag.migration (version, name) VALUES (999, 'later')")
    assert "update rag_pipeline" in worker("collection", "list").reason


def test_a_role_that_was_granted_nothing_is_one_line_with_the_remedy(worker, logins):
    with closing(psycopg.connect(logins[0], autocommit=True)) as boss:
        boss.execute("REVOKE USAGE ON SCHEMA rag FROM rag_pipeline")
    assert "SELECT rag.grant_pipeline_role()" in worker("collection", "list").reason


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
