"""`rag forget`: a document leaves everything at once, and its bytes do not come back, whatever was under way."""

import re
from contextlib import closing

import pytest
import redis

from rag_pipeline.core import collections, forgetting
from rag_pipeline.core.errors import ServiceError, UsageError
from rag_pipeline.core.forgetting import Forgotten
from rag_pipeline.core.indexing import active_index
from rag_pipeline.core.status import collection_status
from rag_pipeline_tests.openai_server import Request, error
from rag_pipeline_tests.pipelines import UNPARSABLE, Pipeline, interrupted

SECRET = "zwitscherkasten"
SHARED = "This paragraph stands in many documents and is worth a chunk of its own, word for word the same. " * 3


def forget(pipeline: Pipeline, path: str) -> Forgotten:
    caches = pipeline.runtime.caches(pipeline.connection, pipeline.name)
    return forgetting.forget(pipeline.connection, pipeline.name, path, caches)


def cached(pipeline: Pipeline) -> int:
    with redis.Redis.from_url(pipeline.runtime.settings.redis_url) as client:
        return len(list(client.scan_iter("rag:embedding:*")))


def places(pipeline: Pipeline, text: str) -> list[str]:
    """The tables of the schema in which the text stands."""
    tables = pipeline.rows(
        """SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'rag'
           AND tablename <> 'document'"""
    )
    return [
        table
        for (table,) in tables
        if pipeline.rows(f"SELECT FROM {table} AS row WHERE row::text ILIKE %(text)s LIMIT 1", text=f"%{text}%")
    ]


@pytest.fixture
def secret(fruit: Pipeline) -> Pipeline:
    """The collection `docs` with a fourth document, which has a secret and a chunk that another has too."""
    fruit.change(chunk_overlap=0, embed_headings=False)
    fruit.write("secret.md", f"# A {SECRET}\n\nThe {SECRET} sings at dawn.\n\n# Known\n\n{SHARED}")
    fruit.write("known.md", f"# Known\n\n{SHARED}\n\n# More\n\nAnd something of its own.")
    fruit.run()
    assert fruit.found(SECRET) == {"secret.md"}
    assert {"rag.parsed_text", "rag.indexed_chunk", "rag.index_term"} <= set(places(fruit, SECRET))
    return fruit


def assert_forgotten(pipeline: Pipeline) -> None:
    assert places(pipeline, SECRET) == []
    assert pipeline.found(SECRET) == set()
    assert "secret.md" not in pipeline.served()


def test_a_document_leaves_everything_at_once_and_for_good(secret, server):
    before, others = cached(secret), {path: chunks for path, chunks in secret.served().items() if path != "secret.md"}
    forgotten = forget(secret, "secret.md")
    assert_forgotten(secret)
    assert (forgotten.paths, forgotten.copies) == (["secret.md"], [])
    assert secret.served() == others  # the shared chunk is known.md's as well
    assert cached(secret) == before - forgotten.rows > 0
    secret.assert_words_counted()
    asked = len(server.requests)
    for _ in range(2):
        run = secret.run()
        assert (run.files.forgotten, run.files.added, run.parsed.documents, len(server.requests)) == (1, 0, 0, asked)
    assert_forgotten(secret)
    assert secret.served() == others
    secret.assert_clean()


def test_its_bytes_stay_out_under_any_name_and_other_bytes_are_welcome(secret):
    forget(secret, "secret.md")
    secret.rename("secret.md", "innocent.txt")
    assert secret.run().files.forgotten == 1
    assert_forgotten(secret)
    secret.copy("innocent.txt", "known.md")  # over a document that is served
    secret.run()
    assert_forgotten(secret)
    assert "known.md" not in secret.served()
    secret.write("secret.md", f"The {SECRET} is public now.")
    secret.run()
    assert secret.found(SECRET) == {"secret.md"}
    secret.assert_clean()


def test_other_paths_of_the_same_bytes_go_too_and_copies_and_likenesses_elsewhere_are_named(secret, tmp_path):
    secret.copy("secret.md", "copy.md")
    text = (secret.folder / "secret.md").read_text()
    secret.write("alike.md", text + "\n\n# And\n\nmore.")
    secret.run()
    with closing(Pipeline(secret.runtime, secret.folder, "elsewhere")) as elsewhere:
        elsewhere.run()
        forgotten = forget(secret, "copy.md")
        assert forgotten.paths == ["copy.md", "secret.md"]
        assert forgotten.copies == [{"collection": "elsewhere", "path": path} for path in ("copy.md", "secret.md")]
        assert forgotten.similar[0] == {"path": "alike.md", "shared": 3, "of": 3}
        assert secret.found(SECRET) == {"alike.md"}
        assert elsewhere.found(SECRET) == {"copy.md", "secret.md", "alike.md"}
    secret.run()
    secret.assert_clean()


def test_what_was_cut_otherwise_before_leaves_the_cache_too(secret):
    others = cached(secret)
    secret.change(chunk_tokens=16)
    secret.write("secret.md", f"The {SECRET} had another song before.")
    secret.run()
    secret.change(chunk_tokens=24)
    secret.run()
    assert cached(secret) > others
    before = cached(secret)
    forget(secret, "apples.txt")  # which is one chunk, however it is cut
    assert cached(secret) == before - 1
    secret.rename("secret.md", "renamed.md")
    secret.run()
    for path in ("renamed.md", "known.md", "pears.md", "sub/plums.html"):
        forget(secret, path)
    assert cached(secret) == 0
    assert secret.rows("SELECT * FROM rag.past_text") == []


def test_a_copy_elsewhere_is_named_in_whatever_version_it_is_served(secret, tmp_path):
    with closing(Pipeline(secret.runtime, tmp_path / "elsewhere", "elsewhere")) as elsewhere:
        elsewhere.write("copy.md", (secret.folder / "secret.md").read_bytes())
        elsewhere.run()
        elsewhere.write("copy.md", UNPARSABLE)
        elsewhere.run()
        assert elsewhere.found(SECRET) == {"copy.md"}
        assert forget(secret, "secret.md").copies == [{"collection": "elsewhere", "path": "copy.md"}]


@pytest.mark.parametrize("newer", [UNPARSABLE, "It is about pears now, and nobody embeds them."])
def test_every_version_of_it_is_barred(secret, server, newer):
    """As it is served, and as it was last seen."""
    older = (secret.folder / "secret.md").read_bytes()
    secret.write("secret.md", newer)
    server.intercept = lambda request: error(401, "no", "invalid_api_key")
    secret.run()
    assert secret.found(SECRET) == {"secret.md"}
    forget(secret, "secret.md")
    server.intercept = lambda request: None
    for content in (newer, older):
        secret.write("secret.md", content)
        assert secret.run().files.forgotten == 1
        assert_forgotten(secret)
    assert collection_status(secret.connection, "docs").documents["total"] == 4


def test_what_waits_to_be_deleted_is_deleted(secret, monkeypatch):
    """An earlier version, whose run was killed when it had published."""
    secret.write("secret.md", "All of it was taken out.")
    monkeypatch.setattr("rag_pipeline.core.stages.pgvector_index.collect_garbage", lambda *arguments: 0)
    secret.run()
    assert places(secret, SECRET)
    forget(secret, "secret.md")
    assert_forgotten(secret)


def test_retired_indexes_and_one_under_construction_lose_it_too(secret, server):
    secret.change(chunk_tokens=16)  # what the retired index will have, no chunk is made of any more
    secret.change(embedding_model="openai/another")
    secret.run()
    secret.change(embedding_model="openai/yet-another")
    server.refuses = lambda text: "Apples" in text
    assert not secret.run().published.switched
    states = {index for (index,) in secret.rows("SELECT DISTINCT index_id FROM rag.indexed_chunk")}
    assert len(states) == 3
    forget(secret, "secret.md")
    assert_forgotten(secret)
    secret.assert_words_counted()
    server.refuses = lambda text: False
    assert secret.run().published.switched
    assert_forgotten(secret)
    secret.assert_clean()


def test_a_graph_that_is_being_built_is_not_waited_for(secret, server):
    server.refuses = lambda text: "Apples" in text
    secret.change(embedding_model="openai/another")
    secret.run()
    (building,) = secret.rows("SELECT max(id) FROM rag.vector_index")[0]
    with closing(secret.runtime.connect()) as another, another.transaction():
        another.execute(f"LOCK TABLE rag.indexed_chunk_{building} IN SHARE MODE")
        forget(secret, "secret.md")
        assert secret.found(SECRET) == set()
        assert active_index(secret.connection, "docs").id != building
        assert set(places(secret, SECRET)) == {
            "rag.indexed_chunk",
            f"rag.indexed_chunk_{building}",
            "rag.index_term",
        }
    server.refuses = lambda text: False
    assert secret.run().published.switched
    assert_forgotten(secret)
    secret.assert_clean()


def test_a_run_that_waits_for_the_provider_neither_publishes_keeps_nor_caches_it(fruit, server):
    fruit.write("secret.txt", f"The {SECRET} sings at dawn.")
    fruit.write("figs.txt", "Figs are purple.")
    before = cached(fruit)
    forgotten: list[Forgotten] = []

    def meanwhile(request: Request) -> None:
        if not forgotten:
            with closing(fruit.runtime.connect()) as another:
                caches = fruit.runtime.caches(another, "docs")
                forgotten.append(forgetting.forget(another, "docs", "secret.txt", caches))

    server.intercept = meanwhile
    run = fruit.run()
    assert (run.published.published, fruit.found("figs")) == (1, {"figs.txt"})
    assert_forgotten(fruit)
    assert cached(fruit) == before + 1
    fruit.run()
    assert_forgotten(fruit)
    fruit.assert_clean()


def test_between_any_two_statements_of_a_run(fruit):
    """A new document and an edited one, each forgotten at another moment of the run that takes it in."""
    fruit.write("edited.txt", "Nothing to see here.")
    fruit.run()
    for number, statements in enumerate(range(2, 70, 4)):
        fruit.write("secret.txt", f"The {SECRET} sings at dawn, {number}.")
        fruit.write("edited.txt", f"The {SECRET} sings in the evening, {number}.")
        tried: list[str] = []

        def meanwhile(tried=tried) -> None:
            for path in ("secret.txt", "edited.txt"):
                try:
                    with closing(fruit.runtime.connect()) as another:
                        forgetting.forget(another, "docs", path, fruit.runtime.caches(another, "docs"))
                    tried.append(path)
                except UsageError:
                    pass

        with closing(interrupted(fruit.runtime.database_url, statements, meanwhile)) as connection:
            fruit.run(connection)
        for path in {"secret.txt", "edited.txt"} - set(tried):
            forget(fruit, path)
        fruit.run()
        if "edited.txt" in tried and "edited.txt" in fruit.served():  # forgotten before the edit was seen
            forget(fruit, "edited.txt")
        assert_forgotten(fruit)
        fruit.run()
        assert_forgotten(fruit)
        assert set(fruit.served()) == {"apples.txt", "pears.md", "sub/plums.html"}
        fruit.assert_clean()


def test_redis_that_cannot_confirm_is_told_and_made_good_by_the_next_run(secret, monkeypatch):
    before = cached(secret)

    def fail(self, hashes) -> None:
        raise ServiceError("Redis did not delete 1 cached embeddings (gone): try again")

    with monkeypatch.context() as patch:
        patch.setattr("rag_pipeline.core.cache.EmbeddingCache.forget", fail)
        with pytest.raises(ServiceError, match=r"secret.md is forgotten, but .*gone.*start Redis.*rag ingest docs"):
            forget(secret, "secret.md")
        assert_forgotten(secret)
        assert cached(secret) == before
        assert "gone" in secret.run().published.unforgotten
        assert cached(secret) == before
    assert secret.run().published.unforgotten == ""
    assert cached(secret) < before
    secret.assert_clean()


def test_what_is_not_there_cannot_be_forgotten(fruit):
    with pytest.raises(UsageError, match=r"collection docs has no document nothing\.txt: rag status docs"):
        forget(fruit, "nothing.txt")
    with pytest.raises(UsageError, match="there is no collection nowhere"):
        forgetting.forget(fruit.connection, "nowhere", "apples.txt", [])
    assert len(fruit.served()) == 3


def test_a_collection_that_is_removed_forgets_what_it_forgot(secret, tmp_path):
    forget(secret, "secret.md")
    collections.remove(secret.connection, "docs")
    assert secret.rows("SELECT * FROM rag.forgotten_content") == []


def test_the_command_says_what_went_and_as_json(rag, handbook, parsing_in_process):
    (handbook / "copy.txt").write_bytes((handbook / "travel.txt").read_bytes())
    rag.done("ingest", handbook)
    assert rag.done("forget", "handbook", "travel.txt").out == (
        "forgot handbook/copy.txt\nforgot handbook/travel.txt\n"
        "1 rows left the index; a file with these bytes is not taken in again\n"
    )
    assert rag.done("forget", "handbook", "holidays.md", "--json").json == {
        **{"collection": "handbook", "path": "holidays.md", "paths": ["holidays.md"], "rows": 1},
        **{"copies": [], "similar": []},
    }
    without_redis = rag("forget", "handbook", "passwords.md", RAG_REDIS_URL="redis://127.0.0.1:9").reason
    assert re.fullmatch(
        r"passwords\.md is forgotten, but not its embeddings in the cache: Redis did not delete 1 cached embeddings "
        r"\(.*\); start Redis, then rag ingest handbook deletes them",
        without_redis,
    )
    assert "has no document holidays.md" in rag("forget", "handbook", "holidays.md").reason
    assert rag.done("ingest", "handbook", "--json").json["files"]["forgotten"] == 4
    with redis.Redis.from_url(rag.environment["RAG_REDIS_URL"]) as client:
        assert list(client.scan_iter("rag:embedding:*")) == []
