"""Keys x collections x ways to read: the allowed pass, the others learn nothing, not even what there is."""

import queue
import threading
from contextlib import closing

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rag_pipeline.client import Rag
from rag_pipeline.core import access
from rag_pipeline.core.errors import ServiceError, UsageError
from rag_pipeline.core.retrieval import Searcher
from rag_pipeline_tests.access_library import COLLECTIONS, GRANTS, Library

KEYS = (*GRANTS, "unknown")

# Tables that the query role may select from, and the column that tells whose a row is.
TABLES = {
    "collection": "name",
    "document": "collection",
    "parsed_text": "collection",
    "chunking": "collection",
    "token_chunk": "collection",
    "vector_index": "collection",
}

WAYS = {
    "vector": lambda rag, name: rag.search(name, "travel rules", mode="vector"),
    "text": lambda rag, name: rag.search(name, "travel rules", mode="text"),
    "hybrid": lambda rag, name: rag.search(name, "travel rules"),
    "filter": lambda rag, name: rag.search(name, "travel rules", filters=["path=travel*"]),
    "unknown field": lambda rag, name: rag.search(name, "travel rules", filters=["author=Knuth"]),
    "ask": lambda rag, name: rag.ask(name, "What are the travel rules?").sources,
    "several": lambda rag, name: rag.search(["handbook", name], "travel rules", k=10),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_reads_what_it_is_granted_and_learns_nothing_of_the_rest(library: Library, key):
    with library.rag(key) as rag:
        for way, read in WAYS.items():
            for name in COLLECTIONS:
                wanted = {"handbook", name} if way == "several" else {name}
                if way == "unknown field" and wanted <= GRANTS.get(key, set()):
                    assert "author" in refusal(rag, read, name)
                elif wanted <= GRANTS.get(key, set()):
                    assert {hit.collection for hit in read(rag, name)} == wanted
                else:
                    assert refusal(rag, read, name) == refusal(rag, read, "nowhere").replace("nowhere", name)


def refusal(rag: Rag, read, name: str) -> str:
    """Why a read is refused. Which one of several comes first depends on what is granted."""
    with pytest.raises(UsageError) as error:
        read(rag, name)
    return str(error.value)


def test_a_collection_that_is_empty_is_told_from_none_only_to_whom_it_is_granted(library):
    with library.rag("reader") as rag, closing(library.owner.connect()) as connection:
        assert "there is no collection empty" in refusal(rag, WAYS["text"], "empty")
        access.grant(connection, "reader", "empty")
        assert "nothing indexed yet" in refusal(rag, WAYS["text"], "empty")
        access.ungrant(connection, "reader", "empty")
        assert "there is no collection empty" in refusal(rag, WAYS["text"], "empty")


def test_a_key_that_is_revoked_or_expires_reads_nothing_from_the_next_query_on(library):
    with closing(library.owner.connect()) as connection:
        for name, end in (
            ("short", lambda: access.revoke_key(connection, "short")),
            ("brief", lambda: connection.execute("UPDATE rag.api_key SET expires_at = now() WHERE name = 'brief'")),
        ):
            library.secrets[name] = access.create_key(connection, name, {"handbook": False})
            with library.rag(name) as rag:
                assert rag.search("handbook", "travel")
                end()
                for read in WAYS.values():
                    assert "there is no collection handbook" in refusal(rag, read, "handbook")


def test_a_key_that_expires_reads_nothing_more_in_a_transaction_under_way(library):
    with library.raw() as connection, closing(library.owner.connect()) as owner:
        secret = access.create_key(owner, "ending", {"handbook": False})
        identify(connection, secret)
        assert connection.execute("SELECT name FROM rag.collection").fetchall() == [("handbook",)]
        owner.execute("UPDATE rag.api_key SET expires_at = clock_timestamp() WHERE name = 'ending'")
        assert connection.execute("SELECT name FROM rag.collection").fetchall() == []


def test_a_change_of_rights_waits_for_no_advisory_lock(library):
    """Every login may take one, and hold it."""
    with closing(library.owner.connect()) as owner, owner.transaction(force_rollback=True):
        access.grant(owner, "reader", "empty")
        owner.execute("SET CONSTRAINTS ALL IMMEDIATE")
        held = "SELECT locktype FROM pg_locks WHERE pid = pg_backend_pid()"
        assert "advisory" not in {locktype for (locktype,) in owner.execute(held)}


def test_who_lost_a_collection_is_told_of_it_as_of_none(library):
    with library.rag("reader") as rag, closing(library.owner.connect()) as connection:
        access.grant(connection, "reader", "payroll")
        assert rag.search(["handbook", "payroll"], "travel")
        access.ungrant(connection, "reader", "payroll")
        with pytest.raises(UsageError, match="there is no collection payroll"):
            rag.search(["handbook", "payroll"], "travel", filters=["colour=red"])


@pytest.mark.parametrize("key", KEYS)
def test_raw_sql_of_the_query_role_sees_the_rows_of_its_key(library, key):
    with library.raw() as connection:
        for table, column in TABLES.items():
            statement = f"SELECT DISTINCT {column} FROM rag.{table}"
            assert connection.execute(statement).fetchall() == []
            identify(connection, library.secrets[key])
            found = {row[0] for row in connection.execute(statement)}
            assert found == GRANTS.get(key, set())
            connection.rollback()
        identify(connection, library.secrets[key])
        found = connection.execute("SELECT DISTINCT index_id FROM rag.indexed_chunk").fetchall()
        assert len(found) == len(GRANTS.get(key, set()))
        connection.rollback()
        assert connection.execute("SELECT count(*) FROM rag.indexed_chunk").fetchone() == (0,)


@pytest.mark.parametrize("forged", ["reader", "rag_reader", "", "*", "%", "reader' OR true --"])
def test_no_name_and_no_hash_stands_for_a_key(library, forged):
    with closing(library.owner.connect()) as connection:
        hashes = connection.execute("SELECT encode(secret_hash, 'hex'), secret_hash::text FROM rag.api_key").fetchall()
    with library.raw() as connection:
        for identity in (forged, *hashes[0], library.secrets["reader"][:-1], library.secrets["reader"].lower()):
            identify(connection, identity)
            assert connection.execute("SELECT count(*) FROM rag.document").fetchone() == (0,)
            assert connection.execute("SELECT rag.allowed_collections()").fetchone() == ([],)


REFUSED = (
    "SELECT * FROM rag.api_key",
    "SELECT count(*) FROM rag.api_key",
    "SELECT * FROM rag.collection_grant",
    "SELECT * FROM rag.query_log",
    "SELECT * FROM rag.garbage",
    "SELECT * FROM rag.index_term",
    "SELECT lo_creat(-1)",
    "SELECT lo_create(0)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT source FROM rag.collection",
    "SELECT settings FROM rag.collection",
    "SELECT * FROM rag.indexed_chunk_{index}",
    "SELECT count(*) FROM rag.indexed_chunk_{index}",
    "SELECT * FROM dagster.runs",
    "LOCK TABLE rag.rights_lock IN ACCESS SHARE MODE",
    "SELECT rag.collect_rights('{{}}')",
    "INSERT INTO rag.collection_grant VALUES ('reader', 'payroll')",
    "INSERT INTO rag.query_log DEFAULT VALUES",
    "UPDATE rag.document SET path = 'x'",
    "DELETE FROM rag.token_chunk",
    "TRUNCATE rag.document",
    "ALTER TABLE rag.document DISABLE ROW LEVEL SECURITY",
    "CREATE POLICY mine ON rag.document USING (true)",
    "DROP POLICY granted ON rag.document",
    "CREATE TABLE rag.mine (id int)",
    "CREATE FUNCTION rag.mine() RETURNS int LANGUAGE sql RETURN 1",
    "SELECT rag.grant_query_role()",
    "SET ROLE postgres",
    "SELECT set_config('role', 'postgres', false)",
    "SET SESSION AUTHORIZATION postgres",
    "SET row_security = off; SELECT * FROM rag.document",
    "COPY rag.indexed_chunk_{index} TO STDOUT",
    "CREATE STATISTICS rag.mine ON collection, path FROM rag.document",
    "SELECT * FROM pg_statistic",
    "SELECT pg_read_file('postgresql.conf')",
    "LOCK TABLE rag.document",
)


@pytest.mark.parametrize("statement", REFUSED)
def test_the_query_role_may_not(library, statement):
    with closing(library.owner.connect()) as owner:
        (index,) = owner.execute("SELECT active_index FROM rag.collection WHERE name = 'payroll'").fetchone()
    with library.raw() as connection:
        identify(connection, library.secrets["reader"])
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue)):
            connection.execute(statement.format(index=index))


def test_no_statistics_of_the_columns_are_shown(library):
    with closing(library.owner.connect()) as owner:
        owner.execute("ANALYZE rag.document")
        owner.execute("ANALYZE rag.indexed_chunk")
        assert owner.execute("SELECT count(*) > 0 FROM pg_stats WHERE schemaname = 'rag'").fetchone()[0]
    with library.raw() as connection:
        identify(connection, library.secrets["auditor"])
        for view in ("pg_stats", "pg_stats_ext", "pg_stats_ext_exprs"):
            shown = connection.execute(f"SELECT * FROM {view} WHERE schemaname = 'rag' AND tablename <> 'migration'")
            assert shown.fetchall() == []


def test_a_function_of_the_caller_is_shown_no_row_that_the_policy_hides(library):
    with library.raw() as connection:
        identify(connection, library.secrets["reader"])
        connection.execute(
            """CREATE FUNCTION pg_temp.told(path text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$
               BEGIN RAISE NOTICE '%', path; RETURN true; END $$"""
        )
        told = []
        connection.add_notice_handler(lambda notice: told.append(notice.message_primary))
        connection.execute("SELECT count(*) FROM rag.document WHERE pg_temp.told(collection || '/' || path)")
    assert told
    assert all(path.startswith("handbook/") for path in told)


def test_what_a_caller_creates_does_not_come_before_what_the_functions_mean(library):
    with library.raw() as connection:
        identify(connection, library.secrets["reader"])
        connection.execute("CREATE TABLE pg_temp.api_key AS SELECT 'accountant' AS name, sha256('x') AS secret_hash")
        connection.execute(
            "CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT '\\x00'::bytea $$"
        )
        connection.execute("SET LOCAL search_path = pg_temp, rag, pg_catalog")
        assert connection.execute("SELECT rag.allowed_collections()").fetchone() == (["handbook"],)


def test_candidates_of_an_index_that_is_not_granted_are_none(library):
    with closing(library.owner.connect()) as owner:
        indexes = dict(owner.execute("SELECT collection, id FROM rag.vector_index").fetchall())
    count = "SELECT count(*) FROM rag.text_candidates(%s, 'travel'::tsquery)"
    with library.raw() as connection:
        for key in KEYS:
            for name, index in {**indexes, "nowhere": 999_999}.items():
                identify(connection, library.secrets[key])
                assert connection.execute(count, [index]).fetchone() == (int(name in GRANTS.get(key, set())),)


def test_the_words_of_an_index_that_is_not_granted_are_none(library):
    with closing(library.owner.connect()) as owner:
        indexes = dict(owner.execute("SELECT collection, id FROM rag.vector_index").fetchall())
    count = "SELECT count(*) FROM rag.term_counts(%s, '{travel,rule,unheard}')"
    with library.raw() as connection:
        for key in KEYS:
            for name, index in {**indexes, "nowhere": 999_999}.items():
                identify(connection, library.secrets[key])
                assert connection.execute(count, [index]).fetchone() == (2 * (name in GRANTS.get(key, set())),)


def test_what_a_login_sets_for_its_role_changes_no_connection(library):
    login = sql.Identifier(access.EMBEDDED_LOGIN)
    spoilt = {
        "search_path": "nowhere",
        "statement_timeout": "50",
        "default_transaction_read_only": "on",
        "row_security": "off",
        "client_encoding": "LATIN1",
    }
    with library.raw(autocommit=True) as connection:
        for name, value in spoilt.items():
            connection.execute(sql.SQL("ALTER ROLE {} SET {} = {}").format(login, sql.SQL(name), value))
        try:
            with library.rag("reader") as rag:
                assert rag.search("handbook", "travel rules")
            with closing(access.connect_query(library.owner.query_database_url, library.secrets["reader"])) as other:
                for name, value in spoilt.items():
                    assert other.execute(sql.SQL("SHOW {}").format(sql.SQL(name))).fetchone() != (value,)
        finally:
            connection.execute(sql.SQL("ALTER ROLE {} RESET ALL").format(login))


def test_a_login_that_does_not_see_the_vectors_is_told_so_in_one_line(library):
    url = make_conninfo(library.owner.query_database_url, options="-c search_path=nowhere")
    with pytest.raises(ServiceError, match="search_path"):
        access.connect_query(url, library.secrets["reader"])


def test_a_prepared_statement_kept_over_a_change_of_keys_follows_the_key(library):
    with library.raw() as connection:
        connection.prepare_threshold = 0
        for _ in range(8):  # PostgreSQL may keep one plan for all from the sixth execution on.
            for key in KEYS:
                identify(connection, library.secrets[key])
                found = connection.execute("SELECT DISTINCT collection FROM rag.document", prepare=True).fetchall()
                assert {name for (name,) in found} == GRANTS.get(key, set())


def test_a_connection_that_is_handed_on_keeps_nobodys_rights(library):
    with closing(access.connect_query(library.owner.query_database_url, library.secrets["auditor"])) as connection:
        with connection.transaction():
            assert connection.execute("SELECT count(*) FROM rag.collection").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM rag.collection").fetchone() == (0,)
        connection.act_for(library.secrets["reader"])
        with connection.transaction():
            assert connection.execute("SELECT name FROM rag.collection").fetchall() == [("handbook",)]
        connection.act_for(None)
        with connection.transaction():
            assert connection.execute("SELECT name FROM rag.collection").fetchall() == []


@pytest.mark.parametrize("searches", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_two_threads_over_one_pool_never_see_each_others_rows(library, searches):
    pool: queue.Queue[access.QueryConnection] = queue.Queue()
    for _ in range(2):
        pool.put(access.connect_query(library.owner.query_database_url, ""))
    leaks: list[object] = []

    def search(key: str, own: str, other: str) -> None:
        for number in range(searches // 2):
            connection = pool.get()
            try:
                connection.act_for(library.secrets[key])
                searcher = Searcher(connection, lambda *_: None)
                if {hit.collection for hit in searcher.search([own], "travel rules", mode="text")} != {own}:
                    leaks.append(own)
                if number % 10 == 0:
                    with pytest.raises(UsageError):
                        searcher.search([other], "travel rules", mode="text")
            except BaseException as error:  # A thread's own would be lost.
                leaks.append(error)
                raise
            finally:
                pool.put(connection)

    threads = [
        threading.Thread(target=search, args=("reader", "handbook", "payroll")),
        threading.Thread(target=search, args=("accountant", "payroll", "handbook")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while not pool.empty():
        pool.get().close()
    assert leaks == []


def identify(connection: psycopg.Connection, key: str) -> None:
    """Begin a transaction for whoever has this key."""
    connection.rollback()
    connection.execute("SELECT set_config('rag.api_key', %s, true)", [key])
