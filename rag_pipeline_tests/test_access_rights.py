"""What a key may read, as it stands in its row: always what its grants say, whoever changes them meanwhile."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection

from rag_pipeline.core import access, collections
from rag_pipeline.core.database import connect
from rag_pipeline_tests.waiting import eventually

KEYS, COLLECTIONS = ("one", "other"), ("fruit", "trees")
SETTINGS = {"embedding_model": "openai/stand-in", "dimensions": 3}


def make_index(connection: Connection, collection: str) -> None:
    connection.execute(
        """INSERT INTO rag.vector_index (collection, model, dimensions, precision, text_search, m, ef_construction)
           VALUES (%s, 'openai/stand-in', 3, 'full', 'english', 16, 64)""",
        [collection],
    )


def recreate(connection: Connection, collection: str) -> None:
    """Remove the collection; the one of the same name that is made then is another."""
    collections.remove(connection, collection)
    collections.add(connection, collection, f"/{collection}", SETTINGS)


CHANGES: dict[str, Callable[[Connection, str, str], None]] = {
    "grant": lambda connection, key, collection: access.grant(connection, key, collection),
    "take": lambda connection, key, collection: connection.execute(
        "DELETE FROM rag.collection_grant WHERE key = %s AND collection = %s", [key, collection]
    ),
    "move": lambda connection, key, collection: connection.execute(
        """UPDATE rag.collection_grant g SET key = %(key)s WHERE collection = %(collection)s AND NOT EXISTS (
               SELECT FROM rag.collection_grant WHERE key = %(key)s AND collection = %(collection)s)""",
        {"key": key, "collection": collection},
    ),
    "truncate": lambda connection, key, collection: connection.execute("TRUNCATE rag.collection_grant"),
    "index": lambda connection, key, collection: make_index(connection, collection),
    "recreate": lambda connection, key, collection: recreate(connection, collection),
}


@pytest.fixture
def owner(module_database_url: str) -> Iterator[Connection]:
    """The owner of two keys and two collections, one of which is granted to one of the keys."""
    with closing(connect(module_database_url)) as connection:
        for collection in COLLECTIONS:
            collections.add(connection, collection, f"/{collection}", SETTINGS)
            make_index(connection, collection)
        for key in KEYS:
            access.create_key(connection, key, {"fruit": False})
        access.ungrant(connection, "other", "fruit")
        yield connection
        for collection in COLLECTIONS:
            collections.remove(connection, collection)
        connection.execute("DELETE FROM rag.api_key")


def assert_rights_are_the_grants(connection: Connection) -> None:
    for collected, granted in connection.execute(
        """SELECT array(SELECT unnest(granted_collections) ORDER BY 1),
                  array(SELECT collection FROM rag.collection_grant WHERE key = name ORDER BY 1)
           FROM rag.api_key"""
    ):
        assert collected == granted
    for collected, granted in connection.execute(
        """SELECT array(SELECT id FROM rag.vector_index WHERE id = ANY (granted_indexes) ORDER BY 1),
                  array(SELECT v.id FROM rag.collection_grant JOIN rag.vector_index v USING (collection)
                        WHERE key = name ORDER BY 1)
           FROM rag.api_key"""
    ):
        assert collected == granted


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(list(CHANGES)), st.sampled_from(KEYS), st.sampled_from(COLLECTIONS))))
def test_after_any_changes_a_keys_row_says_what_its_grants_say(owner, changes):
    for change, key, collection in changes:
        CHANGES[change](owner, key, collection)
        assert_rights_are_the_grants(owner)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("take", "one", "fruit"), ("grant", "one", "trees")),
        (("grant", "one", "trees"), ("take", "one", "fruit")),
        (("index", "one", "trees"), ("grant", "one", "trees")),
        (("grant", "one", "trees"), ("index", "one", "trees")),
    ],
)
def test_of_two_changes_at_once_the_later_sees_the_earlier(owner, module_database_url, first, second):
    def change(name: str, key: str, collection: str) -> None:
        with closing(connect(module_database_url)) as connection:
            CHANGES[name](connection, key, collection)

    with ThreadPoolExecutor() as pool, closing(connect(module_database_url)) as earlier:
        with earlier.transaction():
            CHANGES[first[0]](earlier, *first[1:])
            earlier.execute("SET CONSTRAINTS ALL IMMEDIATE")  # All that its commit does, save to end.
            later = pool.submit(change, *second)
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            eventually(lambda: later.done() or owner.execute(waiting).fetchone()[0])
        later.result()
    assert_rights_are_the_grants(owner)
