"""API keys from the command line: making, changing and ending them, and what the other commands do with one."""

import json
import re
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from dagster import build_resources

from rag_pipeline.client import Rag
from rag_pipeline.core import access
from rag_pipeline.core.errors import ServiceError, UsageError
from rag_pipeline.core.evaluation import KnownQuestion
from rag_pipeline.resources import rag_resource
from rag_pipeline_tests.access_library import Library
from rag_pipeline_tests.commands import Command

CANARY = "canary-9f3c"


@pytest.fixture
def command(library: Library):
    """`rag` as the owner of the library runs it, or with a key in RAG_API_KEY."""
    settings = library.owner.settings
    return Command(
        {
            "RAG_HOME": str(settings.home),
            "RAG_DATABASE_URL": settings.database_url,
            "RAG_QUERY_DATABASE_URL": settings.query_database_url,
            "RAG_REDIS_URL": settings.redis_url,
            "RAG_API_KEY": "",
            "RAG_CHAT_MODEL": "",
            "RAG_EMBEDDING_MODEL": settings.embedding_model,
            "OPENAI_API_KEY": "stand-in",
            "OPENAI_BASE_URL": settings.openai_base_url,
        }
    )


@pytest.fixture
def known_questions(tmp_path):
    """A file with one question."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "travel rules", "sources": ["travel.md"]}) + "\n")
    return questions


def test_a_key_is_shown_once_and_kept_as_its_hash_alone(command, library):
    done = command.done("key", "create", "shown", "--grant", "handbook", "--grant", "payroll:write", "--expires", "90d")
    secret = done.out.strip()
    assert re.fullmatch(r"rag_[A-Za-z0-9_-]{43}", secret)
    listed = {key["name"]: key for key in command.done("key", "list", "--json").json["keys"]}
    assert listed["shown"]["grants"] == {"handbook": False, "payroll": True}
    assert listed["shown"]["state"] == "valid"
    assert listed["revoked"]["state"] == "revoked"
    assert listed["expired"]["state"] == "expired"
    with closing(library.owner.connect()) as connection:
        rows = connection.execute(
            "SELECT k::text FROM rag.api_key k UNION ALL SELECT g::text FROM rag.collection_grant g"
        )
        assert secret not in str(rows.fetchall())
        assert connection.execute(
            "SELECT secret_hash = sha256(%s) FROM rag.api_key WHERE name = 'shown'", [secret.encode()]
        ).fetchone()[0]
    assert secret not in command.done("key", "list").out


def test_grants_come_and_go_and_a_revoked_key_stays_so(command):
    secret = command.done("key", "create", "moving", "--grant", "handbook").out.strip()

    def found(name: str) -> bool:
        return command("search", name, "travel rules", "--mode", "text", RAG_API_KEY=secret).status == 0

    assert (found("handbook"), found("payroll")) == (True, False)
    command.done("key", "grant", "moving", "payroll")
    command.done("key", "ungrant", "moving", "handbook")
    assert (found("handbook"), found("payroll")) == (False, True)
    command.done("key", "revoke", "moving")
    assert not found("payroll")
    assert "revoked already" in command("key", "revoke", "moving").reason


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("create", "new", "--grant", "nowhere"), "there is no collection nowhere"),
        (("create", "reader", "--grant", "handbook"), "there is a key reader already"),
        (("create", "a b", "--grant", "handbook"), "cannot name a key"),
        (("create", "new", "--grant", "handbook:read"), "is no grant"),
        (("create", "new", "--grant", "handbook", "--expires", "soon"), "is no expiry"),
        (("create", "new", "--grant", "handbook", "--expires", ""), "is no expiry"),
        (("create", "new", "--grant", "handbook", "--expires", "2020-01-01"), "is past"),
        (("revoke", "nobody"), "there is no key nobody"),
        (("grant", "nobody", "handbook"), "there is no key nobody"),
        (("grant", "reader", "nowhere"), "there is no collection nowhere"),
        (("grant", "revoked", "handbook"), "is revoked"),
        (("grant", "expired", "handbook"), "is expired"),
        (("ungrant", "reader", "payroll"), "is not granted payroll"),
    ],
)
def test_what_cannot_be_done_with_keys_is_one_line(command, arguments, reason):
    assert reason in command("key", *arguments).reason
    assert "new" not in {key["name"] for key in command.done("key", "list", "--json").json["keys"]}


def test_a_collection_granted_twice_keeps_the_right_to_write(command):
    command.done("key", "create", "twice", "--grant", "handbook:write", "--grant", "handbook")
    listed = {key["name"]: key["grants"] for key in command.done("key", "list", "--json").json["keys"]}
    assert listed["twice"] == {"handbook": True}


def test_an_expiry_is_a_date_or_a_number_of_days():
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert access.parse_expiry("90d", now) == now + timedelta(days=90)
    assert access.parse_expiry("2027-01-01", now) == datetime(2027, 1, 1, tzinfo=UTC)
    for text in ("", "d", "-3d", "2027-13-01", "99999d99"):
        with pytest.raises(UsageError):
            access.parse_expiry(text, now)


def test_without_a_key_the_owner_administers_but_does_not_search(command, library, known_questions):
    assert command.done("status", "--json").json["access"] == "by API key"
    for arguments in (("search", "handbook", "x"), ("ask", "handbook", "x"), ("evaluate", "handbook", known_questions)):
        assert "set RAG_API_KEY" in command(*arguments).reason
    with Rag(library.owner) as rag:
        known = [KnownQuestion("travel rules", frozenset({"travel.md"}), "1")]
        for refused in (lambda: rag.evaluate("handbook", known), lambda: rag.questions("handbook")):
            with pytest.raises(UsageError, match="set RAG_API_KEY"):
                refused()
    assert command.done("show", "handbook", "travel.md", "--json").json["text"]


def test_commands_keep_to_what_the_key_is_granted(command, library):
    with closing(library.owner.connect()) as connection:
        writer = access.create_key(connection, "writer", {"handbook": True, "payroll": False})
    reader = library.secrets["reader"]
    for arguments in (
        ("ingest", "payroll"),
        ("forget", "payroll", "travel.md"),
        ("collection", "set", "payroll", "hnsw_m=16"),
        ("show", "payroll", "travel.md"),
        ("plan", "payroll"),
        ("status", "payroll"),
        ("collection", "show", "payroll"),
    ):
        unknown = command(*("nowhere" if part == "payroll" else part for part in arguments), RAG_API_KEY=reader)
        assert command(*arguments, RAG_API_KEY=reader).reason == unknown.reason.replace("nowhere", "payroll")
    for name in ("handbook", "payroll"):
        assert "may write to" in command("collection", "set", name, "hnsw_m=16", RAG_API_KEY=reader).reason
    assert "may write to" in command("forget", "payroll", "travel.md", RAG_API_KEY=writer).reason
    command.done("collection", "set", "handbook", "hnsw_m=16", RAG_API_KEY=writer)
    assert command.done("collection", "list", RAG_API_KEY=reader).out.startswith("handbook\t")
    assert "payroll" not in command.done("collection", "list", RAG_API_KEY=reader).out
    assert "payroll" not in command.done("status", RAG_API_KEY=reader).out


def test_dagsters_own_questions_are_the_owners_whatever_its_environment_says(command, library, monkeypatch):
    for name, value in (command.environment | {"RAG_API_KEY": library.secrets["reader"]}).items():
        monkeypatch.setenv(name, value)
    with build_resources({"rag": rag_resource}) as resources:
        assert resources.rag.questions("payroll") == []
        assert resources.rag.retrieve("payroll", "travel rules")
        question = KnownQuestion("travel rules", frozenset({"travel.md"}), "1")
        assert resources.rag.evaluate("payroll", [question]).hit_rate == 1


def test_collections_are_added_by_the_owner_and_removed_by_whoever_may_write(command, library):
    folder = str(library.owner.settings.home.parent)
    command.done("collection", "add", "fleeting", "--source", folder, "--set", "dimensions=64")
    reader = command.done("key", "create", "looker", "--grant", "fleeting").out.strip()
    writer = command.done("key", "create", "remover", "--grant", "fleeting:write").out.strip()
    for key in (reader, writer):
        for arguments in (("collection", "add", "mine", "--source", folder), ("ingest", folder), ("demo",)):
            assert command(*arguments, RAG_API_KEY=key).status == 1
        added = command("collection", "add", "mine", "--source", folder, RAG_API_KEY=key)
        assert "collections are added by the owner" in added.reason
    assert {c["name"] for c in command.done("collection", "list", "--json").json["collections"]} == {
        "empty", "fleeting", "handbook", "payroll"
    }  # fmt: skip
    unknown = command("collection", "remove", "nowhere", RAG_API_KEY=reader).reason
    for name, key in (("payroll", reader), ("fleeting", reader), ("payroll", writer)):
        assert command("collection", "remove", name, RAG_API_KEY=key).reason == unknown.replace("nowhere", name)
    command.done("collection", "remove", "fleeting", RAG_API_KEY=writer)


def test_a_run_of_a_collection_that_is_not_granted_is_an_unknown_one(command, library):
    run_id = command.done("ingest", "payroll", "--queue", "--json").json["run_id"]
    writer = command.done("key", "create", "canceler", "--grant", "payroll:write").out.strip()
    reader, accountant = library.secrets["reader"], library.secrets["accountant"]
    for arguments in (("status", "--run", run_id), ("status", "--json", "--run", run_id), ("cancel", run_id)):
        unknown = command(*(part.replace(run_id, "no-run") for part in arguments), RAG_API_KEY=reader).reason
        assert command(*arguments, RAG_API_KEY=reader).reason == unknown.replace("no-run", run_id)
    with Rag(Command(command.environment | {"RAG_API_KEY": reader}).runtime()) as rag:
        for method in (rag.run, rag.cancel):
            with pytest.raises(UsageError, match=f"there is no run {run_id}: it was never asked for"):
                method(run_id)
    assert command.done("status", "--json", "--run", run_id, RAG_API_KEY=accountant).json["state"] == "queued"
    assert "may write to" in command("cancel", run_id, RAG_API_KEY=accountant).reason
    command.done("cancel", run_id, RAG_API_KEY=writer)


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_key_is_nobodys(command, library, monkeypatch, empty):
    for name, value in (command.environment | {"RAG_API_KEY": library.secrets["reader"]}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="the API key is empty"):
        Rag.connect(api_key=empty)


@pytest.mark.parametrize(("key", "reason"), [(" ", "is empty"), ("rag_\udcff", "is no text"), ("a\0", "is no text")])
def test_what_cannot_be_a_key_is_one_line(command, key, reason):

    if "\0" in key:  # Which no environment holds.
        with pytest.raises(UsageError, match=reason):
            Rag.connect(api_key=key)
    else:
        done = Command(command.environment | {"RAG_API_KEY": key})("collection", "list")
        assert reason in done.reason


def test_evaluating_goes_by_the_key(command, library, known_questions):
    reader = library.secrets["reader"]
    assert command.done("evaluate", "handbook", known_questions, "--json", RAG_API_KEY=reader).json["hit_rate"] == 1
    unknown = command("evaluate", "nowhere", known_questions, RAG_API_KEY=reader)
    refused = command("evaluate", "payroll", known_questions, RAG_API_KEY=reader)
    assert refused.reason == unknown.reason.replace("nowhere", "payroll")


def test_a_key_beside_a_server_without_a_query_login_is_refused_with_what_makes_one(command, library):
    done = command("search", "handbook", "x", RAG_API_KEY=library.secrets["reader"], RAG_QUERY_DATABASE_URL="")
    assert "CREATE ROLE rag_reader LOGIN PASSWORD '...' IN ROLE rag_query" in done.reason
    assert "RAG_QUERY_DATABASE_URL" in done.reason


def test_a_query_login_that_no_policy_binds_is_refused(library):
    with pytest.raises(ServiceError, match="owns the data"):
        access.connect_query(library.owner.database_url, library.secrets["reader"])
    with closing(library.owner.connect()) as connection:
        connection.execute("CREATE ROLE rag_stranger LOGIN")
        try:
            with pytest.raises(ServiceError, match="GRANT rag_query"):
                access.connect_query(
                    library.owner.settings.query_database_url.replace("rag_reader", "rag_stranger"), "rag_x"
                )
        finally:
            connection.execute("DROP ROLE rag_stranger")


def test_the_python_client_takes_a_key(command, library, monkeypatch):
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAG_API_KEY", library.secrets["accountant"])
    with Rag.connect() as rag:
        assert rag.search("payroll", "travel")
    with Rag.connect(api_key=library.secrets["reader"]) as rag:
        assert rag.search("handbook", "travel")
        with pytest.raises(UsageError):
            rag.search("payroll", "travel")
        for refused in (rag.questions, rag.ingest):
            with pytest.raises(UsageError, match="there is no collection payroll"):
                refused("payroll")


def test_roles_that_a_login_may_not_make_are_told_when_they_are_needed(library):
    with closing(library.owner.connect()) as connection, connection.transaction(force_rollback=True):
        # A login that may neither grant nor make roles: the function says so instead of failing a migration.
        connection.execute("CREATE ROLE rag_modest NOLOGIN")
        connection.execute("GRANT USAGE, CREATE ON SCHEMA rag TO rag_modest")
        connection.execute("ALTER FUNCTION rag.grant_query_role() OWNER TO rag_modest")
        connection.execute("SET LOCAL ROLE rag_modest")
        assert connection.execute("SELECT rag.grant_query_role()").fetchone() == (False,)


@pytest.mark.parametrize("variable", ["RAG_API_KEY", "RAG_QUERY_DATABASE_URL"])
def test_secrets_are_in_no_output(command, library, variable):
    secret = {
        "RAG_API_KEY": f"rag_{CANARY}",
        "RAG_QUERY_DATABASE_URL": f"postgresql://rag_reader:{CANARY}@127.0.0.1:1/rag",
    }[variable]
    environment = {"RAG_API_KEY": library.secrets["reader"], variable: secret}
    for arguments in (
        ("search", "handbook", "x"),
        ("ask", "handbook", "x"),
        ("status",),
        ("env",),
        ("collection", "list"),
    ):
        done = command(*arguments, **environment)
        assert CANARY not in done.out + done.err
    runtime = Command(command.environment | environment).runtime()
    assert CANARY not in repr(runtime)
    with closing(library.owner.connect()) as connection:
        activity = connection.execute("SELECT string_agg(query, ' ') FROM pg_stat_activity").fetchone()[0]
    assert "rag_" + CANARY not in activity


def test_a_key_is_bound_as_a_value_so_that_no_statement_has_it(library):
    secret = library.secrets["reader"]
    with closing(access.connect_query(library.owner.query_database_url, secret)) as connection:
        with connection.transaction(), closing(library.owner.connect()) as owner:
            shown = owner.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", [connection.info.backend_pid])
            assert secret not in shown.fetchone()[0]
        with pytest.raises(psycopg.errors.SyntaxError) as error, connection.transaction():
            connection.execute("SELEC")
        assert secret not in str(error.value)
