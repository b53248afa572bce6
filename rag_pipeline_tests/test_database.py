"""The connection and the migrations: one schema, whoever comes first, or one line that says why not."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_pipeline.core import database
from rag_pipeline.core.database import MIGRATION_LOCK, connect, masked, migrate
from rag_pipeline.core.errors import ServiceError
from rag_pipeline_tests.waiting import eventually


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_migrating_makes_the_schema_and_doing_it_again_changes_nothing(empty_database_url):
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        first = connection.execute("SELECT * FROM rag.migration ORDER BY version").fetchall()
        assert connection.execute("SELECT to_regclass('rag.indexed_chunk')").fetchone()[0]
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT * FROM rag.migration ORDER BY version").fetchall() == first
    assert [version for version, *_ in first] == list(range(1, len(first) + 1))


def test_two_processes_migrate_an_empty_database_at_once(empty_database_url):
    program = "import sys; from rag_pipeline.core.database import migrate; migrate(sys.argv[1])"
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        processes = [subprocess.Popen([sys.executable, "-c", program, empty_database_url]) for _ in range(2)]
        waiting = """SELECT count(*) = 2 FROM pg_locks JOIN pg_database d ON d.oid = database
                     WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"""
        eventually(lambda: connection.execute(waiting).fetchone()[0], 60)
        connection.execute("SELECT pg_advisory_unlock(%s)", [MIGRATION_LOCK])
        assert [process.wait(60) for process in processes] == [0, 0]
        versions = connection.execute("SELECT version FROM rag.migration").fetchall()
    assert len(versions) == len(set(versions)) > 0


def test_a_migration_that_fails_leaves_the_version_before_it(empty_database_url, tmp_path, monkeypatch):
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE rag.first (id int)")
    (tmp_path / "0002_second.sql").write_text("CREATE TABLE rag.second (id int); SELECT 1 / 0")
    monkeypatch.setattr(database, "MIGRATIONS", tmp_path)
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT version, name FROM rag.migration").fetchall() == [(1, "0001_first")]
        assert connection.execute("SELECT to_regclass('rag.second')").fetchone()[0] is None
    (tmp_path / "0002_second.sql").write_text("CREATE TABLE rag.second (id int)")
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT to_regclass('rag.second')").fetchone()[0]


def test_a_database_newer_than_the_code_is_refused_by_its_version(database_url):
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO rag.migration (version, name) VALUES (9999, '9999_later')")
    with pytest.raises(ServiceError) as error:
        migrate(database_url)
    assert "9999" in one_line(error)
    assert "update rag_pipeline" in one_line(error)


def test_a_pgvector_that_is_too_old_is_refused_by_its_version(empty_database_url, monkeypatch):
    monkeypatch.setattr(database, "OLDEST_PGVECTOR", (99, 1, 2))
    with pytest.raises(ServiceError, match=r"pgvector \d+\.\d+\.\d+ is too old, 99\.1\.2 is needed: install"):
        migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT to_regnamespace('rag')").fetchone()[0] is None


def test_a_database_of_another_encoding_is_refused(services, empty_database_url):
    with psycopg.connect(services.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with pytest.raises(ServiceError, match=r"LATIN1.*UTF8"):
            migrate(services.database_url.replace("/rag?", "/latin1?"))
    finally:
        with psycopg.connect(services.database_url, autocommit=True) as connection:
            connection.execute("DROP DATABASE latin1 WITH (FORCE)")


@pytest.mark.parametrize("open_it", [connect, migrate])
def test_no_server_is_one_line_without_the_password(open_it):
    with pytest.raises(ServiceError) as error:
        open_it("postgresql://reader:s3cret@127.0.0.1:1/library?sslpassword=s3cret")
    message = one_line(error)
    assert "s3cret" not in message
    assert all(part in message for part in ("reader", "127.0.0.1", "library", "RAG_DATABASE_URL", "refused"))


def test_a_wrong_password_is_one_line_without_it():
    with refusing_server() as port, pytest.raises(ServiceError) as error:
        connect(f"postgresql://reader:s3cret@127.0.0.1:{port}/library?sslmode=disable")
    message = one_line(error)
    assert "password authentication failed" in message
    assert "s3cret" not in message


@pytest.mark.parametrize("url", ["library s3cret", "host=x password='s3cret", "postgresql://reader:s3cret@[::1/x"])
def test_what_is_no_url_is_refused_without_repeating_it(url):
    with pytest.raises(ServiceError) as error:
        connect(url)
    assert "s3cret" not in one_line(error)
    assert "RAG_DATABASE_URL" in one_line(error)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1).map("§{}§".format))
def test_no_password_is_shown_however_it_is_written(password):
    escaped = password.replace("\\", "\\\\").replace("'", "\\'")
    for url in (
        f"postgresql://reader:{quote(password, safe='')}@127.0.0.1/library",
        f"postgresql://reader@127.0.0.1/library?password={quote(password, safe='')}",
        f"host=127.0.0.1 user=reader password='{escaped}' dbname=library",
    ):
        shown = masked(url)
        assert "§" not in shown
        assert "%C2%A7" not in shown
        assert "reader" in shown


@pytest.mark.parametrize(
    "userinfo",
    [
        "reader:s3c@ret",
        "reader:s3c/ret",
        "reader:/s3cret",
        "reader:s3cret@",
        "reader:ab@s3cret/x",
        "reader:1234/s3cret",
    ],
)
def test_nothing_is_shown_of_a_url_whose_password_is_not_percent_encoded(userinfo):
    url = f"postgresql://{userinfo}@127.0.0.1:1/library"
    assert masked(url) == "postgresql://... (percent-encode the special characters of its password)"
    with pytest.raises(ServiceError) as error:
        connect(url)
    for part in ("s3c", "ret"):
        assert part not in one_line(error)
    assert "RAG_DATABASE_URL" in one_line(error)


def test_a_url_without_its_server_shows_no_password():
    with pytest.raises(ServiceError) as error:
        connect("postgresql://reader:s3cret")
    assert "s3cret" not in one_line(error)


@contextmanager
def refusing_server() -> Iterator[int]:
    """The port of a server that asks for a password and takes none (PostgreSQL's protocol 3.0)."""
    error = b'SFATAL\0C28P01\0Mpassword authentication failed for user "reader"\0\0'

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(4096)
            client.sendall(b"R" + (8).to_bytes(4, "big") + (3).to_bytes(4, "big"))
            client.recv(4096)
            client.sendall(b"E" + (4 + len(error)).to_bytes(4, "big") + error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)
