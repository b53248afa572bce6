"""Access is open until the first key is made, and closed from then on."""

from contextlib import closing

import pytest

from rag_pipeline.core import access
from rag_pipeline.core.errors import UsageError


def test_the_first_key_closes_what_was_open_to_a_reader_under_way_too(fruit):
    with closing(fruit.runtime.connect()) as connection:
        assert access.is_open(connection)
        assert fruit.search("apples")
        access.create_key(connection, "first", {"docs": False})
        try:
            with pytest.raises(UsageError, match="RAG_API_KEY"):
                fruit.search("apples")
            with pytest.raises(UsageError, match="RAG_API_KEY"):
                fruit.rag.ask("docs", "What colour are apples?")
            access.revoke_key(connection, "first")
            with pytest.raises(UsageError, match="RAG_API_KEY"):
                fruit.search("apples")
        finally:
            connection.execute("DELETE FROM rag.api_key")
    assert fruit.search("apples")


def test_status_tells_whether_access_is_open(rag):
    assert "access: open" in rag.done("status").out
    assert rag.done("status", "--json").json["access"] == "open"
