"""A database of every earlier schema version becomes one of today's, with all that was in it."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg import Connection, sql

from rag_pipeline.core import database
from rag_pipeline.core.database import migrate
from rag_pipeline_tests.openai_server import error
from rag_pipeline_tests.pipelines import UNPARSABLE, Pipeline, stand_in_runtime

MIGRATIONS = {int(path.name.split("_")[0]): path for path in sorted(database.MIGRATIONS.glob("*.sql"))}


def tables(connection: Connection) -> set[str]:
    """The tables that users and runs write to; the partitions of one are none of their own."""
    found = connection.execute(
        """SELECT relname FROM pg_class WHERE relnamespace = 'rag'::regnamespace AND relkind IN ('r', 'p')
                  AND NOT relispartition AND relname <> 'migration'"""
    )
    return {name for (name,) in found}


def columns(connection: Connection, table: str) -> list[str]:
    """The columns of a table that are written, not generated."""
    rows = connection.execute(
        """SELECT column_name FROM information_schema.columns
           WHERE table_schema = 'rag' AND table_name = %s AND is_generated = 'NEVER' ORDER BY ordinal_position""",
        [table],
    ).fetchall()
    return [name for (name,) in rows]


def rows(connection: Connection, table: str, names: list[str]) -> list[tuple]:
    """All rows of a table as text, in an order of their own."""
    fields = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in names)
    statement = sql.SQL("SELECT {} FROM {}").format(fields, sql.Identifier("rag", table))
    return sorted(connection.execute(statement).fetchall(), key=str)


def transplant(new: Connection, old: Connection) -> dict[str, tuple[list[str], list[tuple]]]:
    """Write what a database of today's version holds into one of an earlier version, as far as that has a place for it.

    What was written, by table: the columns, and the rows.
    """
    written = {}
    with old.transaction():
        # No trigger is to see to it that what a row refers to is there before it, or to note garbage.
        old.execute("SET LOCAL session_replication_role = replica")
        for (index_id,) in new.execute("SELECT id FROM rag.vector_index").fetchall():
            make_partition(old, index_id)
        for table in sorted(tables(new) & tables(old)):
            known = set(columns(new, table))
            names = [name for name in columns(old, table) if name in known]
            found = rows(new, table, names)
            types = dict(
                old.execute(
                    "SELECT attname::text, atttypid::regtype::text FROM pg_attribute WHERE attrelid = %s::regclass",
                    [f"rag.{table}"],
                ).fetchall()
            )
            statement = sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})").format(
                sql.Identifier("rag", table),
                sql.SQL(", ").join(map(sql.Identifier, names)),
                sql.SQL(", ").join(sql.SQL("%s::text::{}").format(sql.SQL(types[name])) for name in names),
            )
            old.cursor().executemany(statement, found)
            written[table] = (names, found)
    old.execute("SELECT setval(pg_get_serial_sequence('rag.vector_index', 'id'), max(id)) FROM rag.vector_index")
    return written


def make_partition(connection: Connection, index_id: int) -> None:
    """The table of a vector index, with its graph, as every version so far has made it."""
    table = sql.Identifier("rag", f"indexed_chunk_{index_id}")
    for statement in (
        "CREATE TABLE {table} PARTITION OF rag.indexed_chunk FOR VALUES IN ({id})",
        "CREATE INDEX ON {table} USING hnsw ((embedding::vector(64)) vector_cosine_ops)",
        "CREATE INDEX ON {table} USING gin (terms)",
    ):
        connection.execute(sql.SQL(statement).format(table=table, id=sql.Literal(index_id)))


@pytest.fixture
def earlier(empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> Iterator[str]:
    """A database of an earlier version, with nothing in it."""
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", tmp_path / "sql")
        (tmp_path / "sql").mkdir()
        for number, path in MIGRATIONS.items():
            if number <= version:
                (tmp_path / "sql" / path.name).write_bytes(path.read_bytes())
        migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT max(version) FROM rag.migration").fetchone() == (version,)
    yield empty_database_url


@pytest.mark.parametrize("version", list(MIGRATIONS)[:-1])
def test_nothing_is_lost_and_the_next_run_goes_on(fruit, earlier, redis_url, server, tmp_path):
    fruit.write("stale.txt", "Quinces are hard.")
    fruit.run()
    fruit.write("stale.txt", UNPARSABLE)
    fruit.write("new.txt", "Medlars are brown.")  # seen and chunked, and not yet embedded
    server.replies.append(error(401, "no", "invalid_api_key"))
    fruit.run()
    with psycopg.connect(fruit.runtime.database_url) as new, psycopg.connect(earlier, autocommit=True) as old:
        written = transplant(new, old)
        migrate(earlier)
        for table, (names, before) in written.items():
            assert rows(old, table, names) == before
    served = fruit.served()
    runtime = stand_in_runtime(tmp_path / "home", earlier, redis_url, server)
    with closing(Pipeline(runtime, fruit.folder, "unused")) as upgraded:
        upgraded.name = "docs"
        assert upgraded.served() == served
        for mode in ("text", "vector", "hybrid"):
            assert upgraded.search("red apples", k=1, mode=mode)[0].path == "apples.txt"
        assert upgraded.found("quinces") == {"stale.txt"}
        asked = len(server.embedded_texts())
        run = upgraded.run()
        # Words in an older form make another index, which copies the vectors.
        assert (run.published.published, run.embedded.embedding.inserted) == (1, 1)
        assert server.embedded_texts()[asked:] == ["Medlars are brown."]
        assert upgraded.served() == {**served, "new.txt": upgraded.served()["new.txt"]}
        assert upgraded.found("medlars") == {"new.txt"}
        upgraded.assert_clean()


@pytest.mark.parametrize("version", [9])
def test_a_key_of_before_reads_what_it_was_granted(earlier):
    with psycopg.connect(earlier, autocommit=True) as connection:
        connection.execute("INSERT INTO rag.collection (name, source) VALUES ('docs', '/docs'), ('other', '/other')")
        connection.execute("INSERT INTO rag.api_key (name, secret_hash) VALUES ('reader', sha256('secret'))")
        connection.execute("INSERT INTO rag.collection_grant (key, collection) VALUES ('reader', 'docs')")
        connection.execute(
            """INSERT INTO rag.vector_index (collection, model, dimensions, precision, text_search, m, ef_construction)
               SELECT name, 'openai/stand-in', 3, 'full', 'english', 16, 64 FROM rag.collection ORDER BY name"""
        )
        migrate(earlier)
        connection.execute("SELECT set_config('rag.api_key', 'secret', false)")
        assert connection.execute("SELECT rag.allowed_collections(), rag.allowed_indexes()").fetchone() == (
            ["docs"],
            [1],
        )
