"""Whole runs: what readers see afterwards, what it cost, and that nothing is left over."""

import pytest

from rag_pipeline.core.stages.pgvector_index import publish_documents
from rag_pipeline.core.status import collection_status, published_chunks, show_document
from rag_pipeline_tests.openai_server import error, text_vector
from rag_pipeline_tests.pipelines import DIMENSIONS, UNPARSABLE


def test_everything_there_is_becomes_searchable(fruit):
    assert {word: fruit.found(word) for word in ("apples", "cellar", "blue")} == {
        "apples": {"apples.txt"},
        "cellar": {"pears.md"},
        "blue": {"sub/plums.html"},
    }
    for path, chunks in fruit.served().items():
        for start, end, _, headings, text, vector, _ in chunks:
            assert text.endswith(fruit.text(path)[start:end])
            assert set(headings) <= {"Pears", "Storing", "Plums"}
            expected = text_vector(text, DIMENSIONS)
            assert list(map(float, vector.strip("[]").split(","))) == pytest.approx(
                list(map(float, expected)), abs=1e-6
            )
    fruit.assert_clean()


def test_a_second_run_asks_nobody_writes_no_row_and_parses_nothing(fruit, server):
    rows, asked = fruit.index_rows(), len(server.requests)
    every = """SELECT 'document', ctid::text, xmin::text FROM rag.document UNION ALL
               SELECT 'parsed_text', ctid::text, xmin::text FROM rag.parsed_text UNION ALL
               SELECT 'token_chunk', ctid::text, xmin::text FROM rag.token_chunk UNION ALL
               SELECT 'vector_index', rows::text, words::text FROM rag.vector_index"""
    before = fruit.rows(every)
    run = fruit.run()
    assert (run.parsed.documents, run.chunks.documents, run.embedded.inserted) == (0, 0, 0)
    assert (run.published.published, run.published.removed, run.published.deleted) == (0, 0, 0)
    assert len(server.requests) == asked
    assert fruit.index_rows() == rows
    assert set(fruit.rows(every)) == set(before)


def test_an_edit_costs_that_document_alone(fruit, server):
    rows, asked = fruit.index_rows(), len(server.requests)
    fruit.write("apples.txt", "Apples are yellow.")
    run = fruit.run()
    assert (run.files.changed, run.parsed.documents, run.chunks.documents, run.published.published) == (1, 1, 1, 1)
    assert [text for request in server.requests[asked:] for text in request.inputs] == ["Apples are yellow."]
    assert len(fruit.index_rows() - rows) == 1
    assert (fruit.found("yellow"), fruit.found("red")) == ({"apples.txt"}, set())
    fruit.assert_clean()


def test_an_edit_embeds_only_the_chunks_that_are_new(pipeline, server):
    first, second = "Apples are red. " * 12, "Pears are green. " * 12
    pipeline.change(chunk_overlap=0)
    pipeline.write("a.md", f"# Fruit\n\n## Apples\n\n{first}\n\n## Pears\n\n{second}")
    chunks = pipeline.run().chunks.new
    asked = len(server.embedded_texts())
    pipeline.write(
        "a.md", f"# Fruit\n\n## Apples\n\n{first}\n\n## Pears\n\n{second}\n\n## Plums\n\n{'Plums are blue. ' * 12}"
    )
    run = pipeline.run()
    assert run.chunks.new > chunks
    assert all("Plums" in text for text in server.embedded_texts()[asked:])
    pipeline.assert_clean()


def test_a_touched_file_costs_nothing_more(fruit, server):
    rows, asked = fruit.index_rows(), len(server.requests)
    fruit.write("apples.txt", (fruit.folder / "apples.txt").read_text())
    assert fruit.run().parsed.documents == 0
    assert (len(server.requests), fruit.index_rows()) == (asked, rows)


def test_an_older_version_that_is_served_keeps_its_text(pipeline, server):
    """Its newest one is parsed, and nobody embeds it: passages are cut from the text of what readers see."""
    text = "\n\n".join(f"# Part {n}\n\n" + f"Walrus number {n} swims far. " * 30 for n in range(4))
    pipeline.write("a.md", text)
    pipeline.run()
    server.intercept = lambda request: error(401, "no", "invalid_api_key")
    pipeline.write("a.md", text.replace("Walrus", "Seal"))
    pipeline.run()
    passages = pipeline.rag.retrieve("docs", "walrus", k=10)
    assert "Walrus number 1" in "".join(passage.content for passage in passages)
    pipeline.assert_no_orphans()
    server.intercept = lambda request: None
    pipeline.run()
    assert pipeline.rows("SELECT count(*) FROM rag.parsed_text") == [(1,)]
    pipeline.assert_clean()


def test_a_deleted_file_is_found_no_more_in_any_mode(fruit):
    fruit.delete("apples.txt")
    run = fruit.run()
    assert (run.files.removed, run.published.removed, run.published.deleted) == (1, 1, 1)
    for mode in ("text", "vector", "hybrid"):
        assert "apples.txt" not in fruit.found("apples are red", mode)
    assert published_chunks(fruit.connection, "docs") == len(fruit.index_rows())
    fruit.assert_clean()


def test_a_renamed_file_is_found_under_its_new_path_and_embedded_by_nobody(fruit, server):
    rows, asked = fruit.index_rows(), len(server.requests)
    fruit.rename("apples.txt", "sub/red apples.txt")
    run = fruit.run()
    assert (run.parsed.documents, run.chunks.documents, run.embedded.inserted, run.published.deleted) == (0, 0, 0, 0)
    assert (len(server.requests), fruit.index_rows()) == (asked, rows)
    assert fruit.found("apples") == {"sub/red apples.txt"}
    assert set(fruit.served()) == {"sub/red apples.txt", "pears.md", "sub/plums.html"}
    fruit.assert_clean()


def test_files_that_swap_their_names_swap_their_contents(fruit, server):
    fruit.write("b.txt", "Quinces are hard.")
    fruit.run()
    asked = len(server.requests)
    fruit.rename("apples.txt", "c.txt")
    fruit.rename("b.txt", "apples.txt")
    fruit.rename("c.txt", "b.txt")
    fruit.run()
    assert (fruit.found("apples"), fruit.found("quinces")) == ({"b.txt"}, {"apples.txt"})
    assert len(server.requests) == asked
    fruit.assert_clean()


def test_a_copy_is_one_hit_that_is_in_both_places(fruit, server):
    rows, asked = fruit.index_rows(), len(server.requests)
    fruit.copy("apples.txt", "copy.txt")
    assert fruit.run().published.published == 1
    assert (len(server.requests), fruit.index_rows()) == (asked, rows)
    (hit,) = fruit.search("apples", mode="text")
    assert (hit.path, hit.also_in.count, hit.also_in.paths) == ("apples.txt", 1, ("copy.txt",))
    assert published_chunks(fruit.connection, "docs") == len(rows) + 1
    fruit.delete("apples.txt")
    fruit.run()
    (hit,) = fruit.search("apples", mode="text")
    assert (hit.path, hit.also_in.count, hit.also_in.paths) == ("copy.txt", 0, ())
    assert fruit.index_rows() == rows
    fruit.assert_clean()


def test_identical_texts_are_stored_and_asked_once(pipeline, server):
    for number in range(5):
        pipeline.write(f"{number}.txt", "The same everywhere.")
    run = pipeline.run()
    assert (run.files.added, run.parsed.documents, run.chunks.new, run.embedded.inserted) == (5, 1, 1, 1)
    assert server.embedded_texts() == ["The same everywhere."]
    (hit,) = pipeline.search("everywhere", mode="text")
    assert (hit.also_in.count, hit.also_in.paths) == (4, ("1.txt", "2.txt", "3.txt", "4.txt"))
    pipeline.assert_clean()


def test_a_text_that_a_document_repeats_is_one_row(pipeline):
    pipeline.change(embed_headings=False, chunk_overlap=0)
    same = "Exactly the same paragraph of text, long enough to be a chunk of its own. " * 3
    pipeline.write("a.md", f"# One\n\n{same}\n\n# Two\n\n{same}")
    pipeline.run()
    assert pipeline.served()["a.md"]
    pipeline.assert_clean()


def test_a_version_that_does_not_parse_leaves_the_old_one_served_and_says_stale(fruit):
    served = fruit.served()
    fruit.write("apples.txt", UNPARSABLE)
    run = fruit.run()
    assert (run.parsed.failed, run.published.failures) == (1, [])
    assert fruit.failures() == {"apples.txt": "unsupported type"}
    assert fruit.served() == served
    status = collection_status(fruit.connection, "docs")
    assert status.documents == {"total": 3, "indexed": 3, "pending": 0, "failed": 1, "stale": 1}
    assert [(each["path"], each["stage"]) for each in status.failures] == [("apples.txt", "parsed_text")]
    fruit.assert_clean()
    assert fruit.run().parsed.failed == 0  # and is not tried again
    fruit.write("apples.txt", "Apples are yellow.")
    fruit.run()
    assert (fruit.found("yellow"), fruit.found("red"), fruit.failures()) == ({"apples.txt"}, set(), {})
    fruit.assert_clean()


def test_a_document_that_never_parsed_is_failed_and_not_stale(fruit):
    fruit.write("bad.txt", UNPARSABLE)
    fruit.run()
    documents = collection_status(fruit.connection, "docs").documents
    assert documents == {"total": 4, "indexed": 3, "pending": 0, "failed": 1, "stale": 0}
    fruit.delete("bad.txt")
    fruit.run()
    assert (fruit.failures(), collection_status(fruit.connection, "docs").documents["total"]) == ({}, 3)
    fruit.assert_clean()


def test_going_back_to_the_old_content_costs_nothing(fruit, server):
    rows, asked = fruit.index_rows(), len(server.requests)
    original = (fruit.folder / "apples.txt").read_text()
    fruit.write("apples.txt", UNPARSABLE)
    fruit.run()
    fruit.write("apples.txt", original)
    run = fruit.run()
    assert (run.parsed.documents, len(server.requests), fruit.index_rows(), fruit.failures()) == (0, asked, rows, {})
    fruit.assert_clean()


def test_going_back_to_the_old_content_after_another_was_published(fruit, server):
    original = (fruit.folder / "apples.txt").read_text()
    served = fruit.served()
    fruit.write("apples.txt", "Something else for a while.")
    fruit.run()
    fruit.write("apples.txt", original)
    asked = len(server.requests)
    run = fruit.run()
    assert (run.embedded.embedding.cached, len(server.requests)) == (1, asked)
    assert fruit.served() == served
    fruit.assert_clean()


def test_a_refused_text_holds_up_its_document_alone(fruit, server):
    server.refuses = lambda text: "poison" in text
    fruit.write("apples.txt", "Apples are poison.")
    fruit.write("new.txt", "Quinces are hard.")
    fruit.delete("sub/plums.html")
    run = fruit.run()
    assert [path for path, _ in run.published.failures] == ["apples.txt"]
    assert "400" in run.published.failures[0][1]
    assert (run.published.published, run.published.removed) == (1, 1)
    assert (fruit.found("red"), fruit.found("poison")) == ({"apples.txt"}, set())
    assert (fruit.found("quinces"), fruit.found("plums")) == ({"new.txt"}, set())
    assert fruit.failures() == {"apples.txt": "refused"}
    documents = collection_status(fruit.connection, "docs").documents
    assert (documents["indexed"], documents["failed"], documents["stale"]) == (3, 1, 1)
    fruit.assert_no_orphans()
    server.refuses = lambda text: False
    run = fruit.run()  # nothing else had to happen
    assert (run.published.published, run.published.failures, fruit.failures()) == (1, [], {})
    assert (fruit.found("red"), fruit.found("poison")) == (set(), {"apples.txt"})
    fruit.assert_clean()


@pytest.mark.parametrize("failure", [error(401, "no", "invalid_api_key"), error(404, "no", "model_not_found")])
def test_while_the_provider_is_gone_removals_and_renames_take_effect_and_the_rest_waits(fruit, server, failure):
    fruit.write("apples.txt", "Apples are yellow.")
    fruit.rename("pears.md", "pears and more.md")
    fruit.delete("sub/plums.html")
    server.intercept = lambda request: failure
    run = fruit.run()
    assert [path for path, _ in run.published.failures] == ["apples.txt"]
    assert fruit.failures() == {"apples.txt": "stopped"}
    assert (run.published.published, run.published.removed) == (1, 2)
    hits = fruit.search("red apples")
    assert hits.degraded
    assert [hit.path for hit in hits] == ["apples.txt"]
    assert "red" in hits[0].content
    assert (fruit.found("pears"), fruit.found("plums")) == ({"pears and more.md"}, set())
    server.intercept = lambda request: None
    run = fruit.run()
    assert (run.published.failures, fruit.failures(), fruit.found("yellow")) == ([], {}, {"apples.txt"})
    fruit.assert_clean()


def test_a_first_run_without_a_provider_is_made_good_by_the_next(pipeline, server):
    pipeline.write("a.txt", "Apples are red.")
    server.intercept = lambda request: error(401, "no", "invalid_api_key")
    assert len(pipeline.run().published.failures) == 1
    assert pipeline.served() == {}
    server.intercept = lambda request: None
    pipeline.run()
    assert pipeline.found("apples", "vector") == {"a.txt"}
    pipeline.assert_clean()


def test_without_redis_it_is_slower_and_never_wrong(pipeline, server, tmp_path):
    from dataclasses import replace

    from rag_pipeline.runtime import Runtime

    settings = replace(pipeline.runtime.settings, redis_url=f"unix://{tmp_path}/nothing.sock")
    pipeline.runtime = Runtime(settings)
    pipeline.write("a.txt", "Apples are red.")
    pipeline.run()
    assert pipeline.found("apples") == {"a.txt"}
    pipeline.write("a.txt", "Pears are green.")
    pipeline.run()
    assert (pipeline.found("apples"), pipeline.found("pears", "hybrid")) == (set(), {"a.txt"})
    pipeline.assert_clean()


def test_a_moved_file_stays_under_its_old_path_until_the_new_one_is_published(fruit, server):
    """Its chunks differ, for it is parsed as another type now, and nobody embeds them."""
    fruit.write("quinces.txt", "# Quinces\n\nQuinces are hard.")
    fruit.run()
    fruit.rename("quinces.txt", "quinces.md")
    server.intercept = lambda request: error(401, "no", "invalid_api_key")
    fruit.run()
    assert fruit.found("quinces") == {"quinces.txt"}
    server.intercept = lambda request: None
    fruit.run()
    assert fruit.found("quinces") == {"quinces.md"}
    fruit.assert_clean()


def test_a_file_moved_over_another_stays_until_it_is_published_there(fruit, server):
    fruit.write("a.txt", "# Quinces\n\nQuinces are hard.")
    fruit.write("b.md", "Old content of b.")
    fruit.run()
    fruit.rename("a.txt", "b.md")
    server.intercept = lambda request: error(401, "no", "invalid_api_key")
    fruit.run()
    assert (fruit.found("quinces"), fruit.found("content")) == ({"a.txt"}, {"b.md"})
    server.intercept = lambda request: None
    fruit.run()
    assert (fruit.found("quinces"), fruit.found("content")) == ({"b.md"}, set())
    fruit.assert_clean()


def test_a_file_moved_to_where_it_does_not_parse_is_gone(fruit):
    fruit.rename("apples.txt", "apples.json")
    fruit.run()
    assert fruit.failures() == {"apples.json": "corrupt"}
    assert fruit.found("apples") == set()
    fruit.assert_clean()


def test_a_file_without_any_text_is_named(pipeline):
    pipeline.write("a.txt", " \n\n\t ")
    pipeline.write("b.txt", b"")
    pipeline.run()
    assert pipeline.failures() == {"a.txt": "empty", "b.txt": "empty"}
    pipeline.assert_clean()


def test_an_empty_folder_is_a_run_that_does_nothing(pipeline, server):
    run = pipeline.run()
    assert (run.files.seen, run.published.published, run.published.rows, server.requests) == (0, 0, 0, [])
    pipeline.write("a.txt", "Apples are red.")
    pipeline.run()
    assert pipeline.found("apples") == {"a.txt"}
    pipeline.delete("a.txt")
    assert pipeline.run().published.rows == 0
    pipeline.assert_clean()


def test_a_document_is_shown_as_the_pipeline_sees_it(fruit):
    shown = show_document(fruit.connection, "docs", "pears.md")
    assert (shown["indexed"], shown["media_type"], shown["failure_reason"]) == (True, "text/markdown", None)
    assert [element["kind"] for element in shown["elements"]] == ["title", "paragraph", "title", "paragraph"]
    assert all(chunk["content"] == shown["text"][chunk["start"] : chunk["end"]] for chunk in shown["chunks"])
    assert "cellar" in shown["chunks"][-1]["content"]


def test_the_files_are_parsed_by_worker_processes(pipeline, monkeypatch):
    monkeypatch.undo()  # as it is outside of these tests
    pipeline.write("a.txt", "Apples are red.")
    pipeline.write("b.md", "# Pears\n\nPears are green.")
    pipeline.write("bad.txt", UNPARSABLE)
    run = pipeline.run()
    assert (run.parsed.documents, run.parsed.failed) == (2, 1)
    assert pipeline.failures() == {"bad.txt": "unsupported type"}
    assert (pipeline.found("apples"), pipeline.found("pears")) == ({"a.txt"}, {"b.md"})


def test_leftovers_are_collected_in_batches(pipeline, monkeypatch):
    monkeypatch.setattr("rag_pipeline.core.garbage.BATCH", 2)
    for number in range(7):
        pipeline.write(f"{number}.txt", f"Fruit number {number}")
    pipeline.run()
    pipeline.delete(*(f"{number}.txt" for number in range(7)))
    assert pipeline.run().published.deleted == 7
    pipeline.assert_clean()


def test_publishing_without_an_index_carries_removals_out(pipeline):
    pipeline.write("a.txt", "one")
    from rag_pipeline.core.stages.raw_files import update_manifest

    update_manifest(pipeline.connection, pipeline.collection)
    pipeline.delete("a.txt")
    update_manifest(pipeline.connection, pipeline.collection)
    assert publish_documents(pipeline.connection, pipeline.collection).removed == 1
    assert pipeline.rows("SELECT * FROM rag.document") == []


def test_a_run_that_would_cost_too_much_asks_nothing_and_still_removes(fruit, server):
    fruit.change(max_embedding_tokens_per_run=5)
    server.requests.clear()
    fruit.write("figs.txt", "Figs are purple and sweet, and they are eaten fresh or dried.")
    fruit.delete("apples.txt")
    run = fruit.run()
    assert "max_embedding_tokens_per_run=5" in run.embedded.embedding.stopped
    assert not server.requests
    assert fruit.failures() == {"figs.txt": "stopped"}
    assert fruit.found("apples") == set()

    fruit.change(max_embedding_tokens_per_run=1000)
    fruit.run()
    assert fruit.found("figs") == {"figs.txt"}
    fruit.assert_clean()
