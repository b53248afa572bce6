"""Collections: what may be registered and set, what is refused by name, what goes when one is removed."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_pipeline.core import collections, database
from rag_pipeline.core.chunking import ChunkSettings
from rag_pipeline.core.collections import CollectionSettings, parse_settings, require_name
from rag_pipeline.core.errors import ServiceError, UsageError
from rag_pipeline.core.models import embedding_model
from rag_pipeline.core.polling import adopt_folders
from rag_pipeline_tests.pipelines import UNPARSABLE, Pipeline
from rag_pipeline_tests.waiting import eventually

LOCAL = {"embedding_model": "local/all-MiniLM-L6-v2"}
SMALL = {"embedding_model": "openai/text-embedding-3-small"}


@pytest.fixture
def connection(database_url):
    with database.connect(database_url) as connection:
        yield connection


def test_a_valid_name_is_taken_and_kept(connection, tmp_path):
    for name in ("a", "handbook", "a.b-c_1", ".hidden", "0", "A" * 100):
        added = collections.add(connection, name, str(tmp_path), LOCAL)
        assert collections.get(connection, name) == added
        assert (added.name, added.source, added.active_index) == (name, str(tmp_path), None)


def test_another_name_is_refused_and_found_nowhere(connection, tmp_path):
    for name in ("", "a b", "a/b", "ü", "a" * 101, "a\n", "a...b", ".", "..", "a,b", "'; DROP TABLE x", "\0", "\udcff"):
        with pytest.raises(UsageError, match="cannot name a collection"):
            collections.add(connection, name, str(tmp_path), LOCAL)
        with pytest.raises(UsageError, match="there is no collection"):
            collections.get(connection, name)
    assert collections.list_all(connection) == []


@settings(deadline=None)
@given(st.text(max_size=120))
def test_every_name_that_is_taken_is_a_partition_and_a_folder(name):
    try:
        require_name(name)
    except UsageError:
        return
    assert name.isascii()
    assert 1 <= len(name) <= 100
    assert name not in (".", "..")
    assert not set(name) & set("/\\,\n\0 ")


def test_a_second_collection_of_one_name_is_refused(connection, tmp_path):
    collections.add(connection, "docs", str(tmp_path), LOCAL)
    with pytest.raises(UsageError, match="docs exists already"):
        collections.add(connection, "docs", "/elsewhere", SMALL)
    assert collections.get(connection, "docs").source == str(tmp_path)


def test_a_local_source_is_made_absolute_and_a_url_is_kept(connection, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    assert collections.add(connection, "a", "docs", LOCAL).source == str(tmp_path / "docs")
    assert collections.add(connection, "b", "file://docs", LOCAL).source == str(tmp_path / "docs")
    assert collections.add(connection, "c", "memory://docs", LOCAL).source == "memory://docs"
    assert [each.name for each in collections.list_all(connection)] == ["a", "b", "c"]


def test_what_lies_above_a_link_is_above_what_it_leads_to(tmp_path, monkeypatch):
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    monkeypatch.chdir(tmp_path)
    assert collections.absolute_source("link/../b") == str(tmp_path / "real/b")
    assert collections.absolute_source("link/b") == str(tmp_path / "link/b")
    assert collections.absolute_source(".././x") == str(tmp_path.parent / "x")
    assert collections.same_source(str(tmp_path / "link"), str(tmp_path / "real/deep"))
    assert not collections.same_source(str(tmp_path / "link"), "memory://link")


def test_a_source_that_is_a_link_is_what_it_leads_to_at_each_run(pipeline):
    for release in ("one", "two"):
        (pipeline.folder / release).mkdir()
        pipeline.write(f"{release}/{release}.txt", f"Apples of release {release}.")
    link = pipeline.folder.with_name("current")
    link.symlink_to(pipeline.folder / "one")
    with closing(Pipeline(pipeline.runtime, link, "current")) as current:
        current.run()
        assert current.found("apples") == {"one.txt"}
        link.unlink()
        link.symlink_to(pipeline.folder / "two")
        current.run()
        assert current.found("apples") == {"two.txt"}
        current.assert_clean()


def test_folders_are_adopted_once_by_whatever_links_they_are_named(connection, tmp_path):
    root, known = tmp_path / "documents", {}
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
    (root / "link").symlink_to("b")
    (root / "release").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").symlink_to(root)
    collections.add(connection, "a", str(tmp_path / "linked/a"), LOCAL)
    for expected in (["b", "release"], []):
        known = {each.name: each for each in collections.list_all(connection)}
        made, unfit = adopt_folders(connection, root, known, LOCAL["embedding_model"])
        assert ([each.name for each in made], unfit) == (expected, {})
    assert collections.get(connection, "release").source == str(root / "release")


def test_every_setting_is_read_back_as_it_was_typed(connection, tmp_path):
    typed = {
        "embedding_model": "openai/text-embedding-3-large",
        "dimensions": "256",
        "chunk_tokens": "300",
        "chunk_overlap": "30",
        "embed_headings": "off",
        "text_search": "german",
        "include": "*.md, docs/**",
        "exclude": "drafts/*",
        "max_file_mb": "7",
        "parse_timeout_s": "8",
        "parse_memory_mb": "900",
        "hnsw_m": "10",
        "hnsw_ef_construction": "110",
        "precision": "half",
        "max_removal_fraction": "0.25",
        "max_embedding_tokens_per_run": "1200",
        "log_questions": "on",
    }
    assert typed.keys() == CollectionSettings.__dataclass_fields__.keys()
    assert collections.add(connection, "docs", str(tmp_path), parse_settings(typed)).settings == CollectionSettings(
        "openai/text-embedding-3-large", 256, 300, 30, False, "german", ("*.md", "docs/**"), ("drafts/*",),
        7, 8, 900, 10, 110, "half", 0.25, 1200, True,
    )  # fmt: skip
    cleared = dict.fromkeys(("dimensions", "chunk_tokens", "chunk_overlap", "max_embedding_tokens_per_run"), "none")
    after = collections.change(connection, "docs", parse_settings({**cleared, "include": "", "exclude": ""})).settings
    assert (after.dimensions, after.chunk_tokens, after.chunk_overlap) == (None, None, None)
    assert (after.include, after.exclude, after.max_embedding_tokens_per_run) == ((), (), None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chunk_size", "5"),
        ("", "5"),
        ("chunk_tokens", "15"),
        ("chunk_tokens", "8193"),
        ("chunk_tokens", "ten"),
        ("chunk_tokens", "-5"),
        ("chunk_tokens", "1.5"),
        ("chunk_tokens", "²"),
        ("chunk_overlap", "-1"),
        ("dimensions", "0"),
        ("dimensions", "4001"),
        ("embed_headings", "maybe"),
        ("embedding_model", ""),
        ("text_search", ""),
        ("precision", "double"),
        ("max_removal_fraction", "1.1"),
        ("max_removal_fraction", "nan"),
        ("max_removal_fraction", "half"),
        ("hnsw_m", "1"),
        ("hnsw_m", "101"),
        ("hnsw_ef_construction", "1001"),
        ("max_file_mb", "0"),
        ("parse_timeout_s", "0"),
        ("parse_memory_mb", "1"),
        ("include", "docs/a**b"),
        ("exclude", "ok,**x"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(key, value):
    with pytest.raises(UsageError) as error:
        parse_settings({"max_file_mb": "5", key: value})
    assert key in str(error.value)
    assert "\n" not in str(error.value)


MISFITS = [
    ({"embedding_model": "openai/unknown"}, "openai/unknown"),
    ({"embedding_model": "nobody/model", "dimensions": 3}, "nobody/model"),
    ({"dimensions": 2000}, "1536"),
    ({"embedding_model": "local/all-MiniLM-L6-v2", "dimensions": 100}, "384"),
    ({"embedding_model": "openai/huge", "dimensions": 4001}, "dimensions=4001"),
    ({"chunk_tokens": 100, "chunk_overlap": 51}, "chunk_overlap=51"),
    ({"chunk_overlap": 257}, "chunk_overlap=257"),
    ({"chunk_tokens": 63, "chunk_overlap": 32}, "chunk_overlap=32"),
    ({"text_search": "klingon"}, "text_search=klingon"),
    ({"text_search": "a b.c.d"}, "text_search=a b.c.d"),
    ({"hnsw_m": 40}, "hnsw_m=40"),
    ({"hnsw_ef_construction": 20}, "hnsw_ef_construction=20"),
]


def test_settings_that_do_not_fit_together_are_refused_and_nothing_changes(connection, tmp_path):
    before = collections.add(connection, "docs", str(tmp_path), SMALL)
    for misfit, named in MISFITS:
        with pytest.raises(UsageError) as error:
            collections.add(connection, "other", str(tmp_path), {**SMALL, **misfit})
        assert named in str(error.value)
        with pytest.raises(UsageError) as error:
            collections.change(connection, "docs", misfit)
        assert named in str(error.value)
    assert collections.list_all(connection) == [before]


def test_a_text_search_configuration_is_kept_as_the_server_names_it(connection, tmp_path):
    collections.add(connection, "docs", str(tmp_path), {**LOCAL, "text_search": "pg_catalog.German"})
    assert collections.get(connection, "docs").settings.text_search == "german"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (SMALL, (512, 64)),
        (LOCAL, (192, 0)),
        ({**SMALL, "chunk_tokens": 100}, (100, 25)),
        ({**SMALL, "chunk_tokens": 1000}, (1000, 64)),
        ({**SMALL, "chunk_tokens": 100, "chunk_overlap": 0}, (100, 0)),
        ({**SMALL, "chunk_overlap": 100}, (512, 100)),
        ({**LOCAL, "chunk_tokens": 100}, (100, 0)),
    ],
)
def test_chunks_are_sized_as_set_else_as_suits_the_model(chosen, expected):
    chosen = CollectionSettings(**chosen)
    assert collections.chunk_size(chosen, embedding_model(chosen.embedding_model)) == expected
    assert ChunkSettings(*expected).chunk_overlap * 2 <= expected[0]


def test_only_what_differs_from_the_defaults_is_stored(connection, tmp_path):
    collections.add(connection, "docs", str(tmp_path), {**LOCAL, "max_file_mb": 200, "hnsw_m": 12})
    stored = connection.execute("SELECT settings FROM rag.collection").fetchone()[0]
    assert stored == {**LOCAL, "hnsw_m": 12}


def test_changing_a_collection_that_is_not_there_says_so(connection):
    for action in (lambda: collections.change(connection, "docs", {}), lambda: collections.remove(connection, "docs")):
        with pytest.raises(UsageError, match="there is no collection docs"):
            action()


def test_removing_a_collection_leaves_nothing_of_it_and_everything_of_others(pipeline, tmp_path):
    pipeline.write("a.txt", "Apples are red.")
    pipeline.write("bad.txt", UNPARSABLE)
    pipeline.run()
    pipeline.change(hnsw_m=8)
    pipeline.run()  # a retired index beside the active one
    collections.add(pipeline.connection, "other", str(tmp_path), LOCAL)
    other = asdict(collections.get(pipeline.connection, "other"))
    tables = """SELECT (SELECT count(*) FROM pg_class WHERE relname LIKE 'indexed\\_chunk\\_%%' AND relkind = 'r'),
                       (SELECT count(*) FROM rag.indexed_chunk)"""
    assert pipeline.rows(tables)[0][0] == 2
    collections.remove(pipeline.connection, "docs")
    assert pipeline.rows(tables) == [(0, 0)]
    for table in ("document", "parsed_text", "chunking", "token_chunk", "vector_index", "garbage"):
        assert pipeline.rows(f"SELECT * FROM rag.{table}") == []
    assert asdict(collections.get(pipeline.connection, "other")) == other
    with pytest.raises(UsageError, match="there is no collection docs"):
        pipeline.search("apples")


def test_a_removed_collection_can_be_made_again(pipeline):
    pipeline.write("a.txt", "Apples are red.")
    pipeline.run()
    served = pipeline.served()
    collections.remove(pipeline.connection, "docs")
    collections.add(
        pipeline.connection, "docs", str(pipeline.folder), {"embedding_model": "openai/stand-in", "dimensions": 64}
    )
    assert pipeline.run().embedded.embedding.requested == 0  # the cache still knows
    assert pipeline.served() == served
    pipeline.assert_clean()


def test_a_collection_is_not_removed_half(pipeline, monkeypatch):
    """And a backup that reads for an hour does not keep everybody from searching for as long."""
    monkeypatch.setattr(collections, "REMOVALS_TRIED", 2)
    pipeline.write("a.txt", "Apples are red.")
    pipeline.run()
    with psycopg.connect(pipeline.runtime.database_url) as backup:
        backup.execute("SELECT * FROM rag.indexed_chunk")
        with pytest.raises(ServiceError, match="docs is not removed: a long query or a backup reads the database"):
            collections.remove(pipeline.connection, "docs")
        assert pipeline.found("apples") == {"a.txt"}
    collections.remove(pipeline.connection, "docs")


def test_removing_and_what_locks_the_collection_first_are_in_nobodys_way(pipeline):
    """`rag forget` locks the collection, and then reads its index."""
    pipeline.write("a.txt", "Apples are red.")
    pipeline.run()
    with psycopg.connect(pipeline.runtime.database_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SELECT FROM rag.collection WHERE name = 'docs' FOR UPDATE")
        removed = pool.submit(collections.remove, pipeline.runtime.connect(), "docs")
        eventually(lambda: other.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall())
        assert len(other.execute("SELECT FROM rag.indexed_chunk").fetchall()) == 1
        other.commit()
        removed.result()
    assert collections.find(pipeline.connection, "docs") is None


def test_of_two_changes_at_once_none_is_lost(pipeline):
    with psycopg.connect(pipeline.runtime.database_url) as other, ThreadPoolExecutor(2) as pool:
        other.execute("SELECT FROM rag.collection WHERE name = 'docs' FOR UPDATE")
        changes = [
            pool.submit(collections.change, pipeline.runtime.connect(), "docs", setting)
            for setting in ({"hnsw_m": 20}, {"max_file_mb": 7})
        ]
        eventually(lambda: len(other.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall()) == 2)
        other.commit()
        for change in changes:
            change.result()
    settings = pipeline.collection.settings
    assert (settings.hnsw_m, settings.max_file_mb) == (20, 7)


def test_changing_a_limit_forgives_the_failures_it_caused_and_no_others(pipeline):
    pipeline.change(max_file_mb=1)
    pipeline.write("large.txt", "Melons are large. " * 70_000)
    pipeline.write("bad.txt", UNPARSABLE)
    assert pipeline.run().parsed.failed == 2
    assert pipeline.failures() == {"large.txt": "too large", "bad.txt": "unsupported type"}
    assert pipeline.run().parsed.failed == 0  # what failed is not tried again by itself
    pipeline.change(hnsw_m=17)
    assert pipeline.run().parsed.documents == 0
    pipeline.change(chunk_tokens=4096, max_file_mb=2)
    assert pipeline.failures() == {"bad.txt": "unsupported type"}
    run = pipeline.run()
    assert (run.parsed.documents, run.parsed.failed) == (1, 0)
    assert "large.txt" in pipeline.found("melons")
    pipeline.assert_clean()


def test_all_failures_can_be_forgiven(pipeline):
    pipeline.write("bad.txt", UNPARSABLE)
    pipeline.run()
    collections.forgive_failures(pipeline.connection, "docs")
    assert pipeline.failures() == {}
    assert pipeline.run().parsed.failed == 1
    assert pipeline.failures() == {"bad.txt": "unsupported type"}
