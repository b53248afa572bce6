"""The `rag` command: what it prints and in which form, its exit status, and what it says when something is wrong."""

import os
import re
from pathlib import Path

import pytest
import redis

from rag_pipeline.assets import stages
from rag_pipeline.commands.documents import DEMO_QUESTIONS
from rag_pipeline_tests.commands import Command

NOWHERE = "127.0.0.1:9"  # the discard port, where nobody listens

STAGES = ["raw_files", "parsed_text", "token_chunks", "cached_embeddings", "pgvector_index"]

# The keys that DESIGN.md promises.
SEARCH = {"collection", "query", "mode", "degraded", "hits"}
HIT = {"rank", "score", "collection", "path", "page", "heading", "start", "end", "tokens", "content", "also_in"}
ASK = {
    "question",
    "answer",
    "answered",
    "kind",
    "model",
    "cost_usd",
    "sources",
    "tokens",
    "degraded",
    "citations_dropped",
}
SOURCE = {"citation", "collection", "path", "page", "heading", "start", "end", "content"}
INGEST = {
    "files": {"seen", "added", "changed", "removed", "unchanged", "withheld", "forgotten"},
    "parsed": {"documents", "failed"},
    "chunks": {"total", "new"},
    "embeddings": {"cached", "requested", "tokens", "cost_usd"},
    "index": {"inserted", "deleted", "rows"},
    "seconds": {*STAGES, "total"},
}
STATUS = {"collection", "documents", "chunks", "index", "failures", "last_run", "access", "usage", "embeddings"}


@pytest.fixture
def indexed(rag: Command, handbook: Path, parsing_in_process: None) -> Command:
    """The handbook as a collection, ingested."""
    rag.done("ingest", handbook)
    return rag


# From a folder to an answer


def test_a_folder_becomes_a_searchable_collection_of_its_name(rag, handbook, parsing_in_process):
    done = rag.done("ingest", handbook)
    assert done.out.startswith("handbook: 3 files, 3 added\n3 chunks searchable (3 new; 3 embedded")
    assert done.said == ""
    assert rag.done("collection", "list").out == f"handbook\t{handbook}\n"
    done = rag.done("search", "handbook", "how do I reset a password?", "-k", "1")
    assert done.out.startswith("1. handbook/passwords.md › Passwords  ")
    assert "open the account page" in done.out
    done = rag.done("ask", "handbook", "how do I reset a password?")
    assert "[1]" in done.out
    assert "handbook/passwords.md › Passwords [" in done.out


def test_the_second_ingest_does_nothing_and_costs_nothing(indexed, handbook, server):
    server.requests.clear()
    result = indexed.done("ingest", "handbook", "--json").json
    assert result["files"] | {"unchanged": 3, "seen": 3} == result["files"]
    assert sum(result["files"].values()) == 6
    assert result["parsed"] == {"documents": 0, "failed": 0}
    assert result["chunks"] == {"total": 3, "new": 0}
    assert result["index"] == {"inserted": 0, "deleted": 0, "rows": 3}
    assert result["embeddings"]["requested"] == 0
    assert not server.requests


def test_an_edited_a_deleted_and_a_renamed_file(indexed, handbook, server):
    (handbook / "travel.txt").write_text("Planes are preferred by now.\n")
    (handbook / "holidays.md").unlink()
    (handbook / "passwords.md").rename(handbook / "accounts.md")
    server.requests.clear()
    files = indexed.done("ingest", "handbook", "--json").json["files"]
    assert (files["added"], files["changed"], files["removed"]) == (1, 1, 2)
    assert server.embedded_texts() == ["Planes are preferred by now."]
    hits = indexed.done("search", "handbook", "reset planes holidays", "--json").json["hits"]
    assert {hit["path"] for hit in hits} == {"accounts.md", "travel.txt"}


def test_a_removed_collection_is_gone_and_its_files_stay(indexed, handbook):
    assert indexed.done("collection", "remove", "handbook").out == "removed handbook\n"
    assert indexed.done("collection", "list").err.startswith("no collections yet")
    assert len(list(handbook.iterdir())) == 3


def test_demo_answers_three_questions_with_citations(rag, parsing_in_process):
    done = rag.done("demo")
    for question in DEMO_QUESTIONS:
        assert question in done.out
    assert len(re.findall(r"^\[1\] demo/(README.md|docs/)", done.out, re.MULTILINE)) == 3
    # A second time it ingests nothing and answers again.
    assert "nothing changed" in rag.done("demo").out


def test_demo_without_a_key_quotes_the_answers(rag, parsing_in_process):
    """A newcomer's first command: the local model, and sentences of the documentation."""
    out = rag.done("demo", OPENAI_API_KEY="", OPENAI_BASE_URL="").out
    for question, said in zip(DEMO_QUESTIONS, ("recorded with a reason", "OPENAI_BASE_URL |", "30 days"), strict=True):
        assert said in out.partition(question)[2].partition("extractive:")[0]


# JSON to the letter of DESIGN.md


def test_json_of_ingest(rag, handbook, parsing_in_process):
    result = rag.done("ingest", handbook, "--json").json
    assert set(result) == {"collection", "run_id", *INGEST}
    assert {key: set(result[key]) for key in INGEST} == INGEST
    assert result["collection"] == "handbook"
    assert result["seconds"]["total"] >= max(result["seconds"][stage] for stage in STAGES)


def test_json_of_search(indexed):
    result = indexed.done("search", "handbook", "holidays in a year", "-k", "2", "--mode", "vector", "--json").json
    assert set(result) == SEARCH
    assert [set(hit) for hit in result["hits"]] == [HIT, HIT]
    best = result["hits"][0]
    assert (best["rank"], best["path"], best["heading"]) == (1, "holidays.md", ["Holidays"])
    assert best["also_in"] == {"count": 0, "paths": []}
    assert (result["mode"], result["degraded"]) == ("vector", None)


def test_what_steers_a_terminal_is_not_shown(rag, tmp_path, parsing_in_process):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "odd\u202e.md").write_text("# Apples \u202e\u2066\n\nApples \x1b[31m\u202egrow \u2069on trees.\n")
    rag.done("ingest", folder)
    for command in (("search", "odd", "apples grow"), ("show", "odd", "odd\u202e.md"), ("ask", "odd", "apples grow")):
        shown = rag.done(*command).out
        assert "Apples" in shown
        assert not set("\x1b\u202e\u2066\u2069") & set(shown)


def test_several_collections_are_named_with_commas_and_spaces(indexed, tmp_path):
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "a.txt").write_text("Holidays on the moon.")
    indexed.done("ingest", tmp_path / "second")
    hits = indexed.done("search", "handbook, second", "holidays", "--json").json["hits"]
    assert {hit["collection"] for hit in hits} == {"handbook", "second"}
    assert indexed.done("ask", " handbook ,second", "holidays", "--json").json["question"] == "holidays"


def test_json_of_ask(indexed, server):
    server.answer = lambda messages: "Thirty days [1]."
    result = indexed.done("ask", "handbook", "how many holidays in a year?", "--json").json
    assert set(result) == ASK
    assert [set(source) for source in result["sources"]] == [SOURCE]
    assert (result["answer"], result["answered"], result["kind"]) == ("Thirty days [1].", True, "generated")
    assert result["tokens"]["total"] == sum(result["tokens"][part] for part in ("embedding", "prompt", "completion"))


def test_json_of_status(indexed, handbook):
    (handbook / "secret.pdf").write_bytes(b"%PDF-1.7 nothing of the kind")
    run_id = indexed.done("ingest", "handbook", "--json").json["run_id"]
    result = indexed.done("status", "handbook", "--json").json
    assert set(result) == STATUS
    assert result["documents"] == {"total": 4, "indexed": 3, "pending": 0, "failed": 1, "stale": 0}
    assert set(result["index"]) == {"model", "dimensions", "rows", "bytes"}
    (failure,) = result["failures"]
    assert set(failure) == {"path", "stage", "reason", "detail"}
    assert (failure["path"], failure["stage"]) == ("secret.pdf", "parsed_text")
    assert result["last_run"] | {"run_id": run_id, "status": "success"} == result["last_run"]
    assert indexed.done("status", "--json").json["collections"] == [result]
    assert "secret.pdf: " in indexed.done("status").out


def test_show_tells_text_elements_and_chunks_of_a_document(indexed):
    result = indexed.done("show", "handbook", "passwords.md", "--json").json
    assert result["text"].startswith("Passwords\n")
    (chunk,) = result["chunks"]
    assert chunk["content"] == result["text"][chunk["start"] : chunk["end"]]
    assert result["text"][result["elements"][0]["start"] : result["elements"][0]["end"]] == "Passwords"
    printed = indexed.done("show", "handbook", "passwords.md").out
    assert "1 chunks" in printed
    assert "To reset a password" in printed


def test_settings_are_shown_and_changed(indexed):
    assert indexed.done("collection", "show", "handbook", "--json").json["settings"]["chunk_tokens"] is None
    indexed.done("collection", "set", "handbook", "chunk_tokens=64", "embed_headings=off")
    settings = indexed.done("collection", "show", "handbook", "--json").json["settings"]
    assert (settings["chunk_tokens"], settings["embed_headings"]) == (64, False)
    assert "chunk_tokens\t64\n" in indexed.done("collection", "show", "handbook").out
    listed = indexed.done("collection", "list", "--json").json["collections"]
    assert [collection["name"] for collection in listed] == ["handbook"]


# Names and folders


def test_where_a_name_is_a_folder_too_the_collection_wins(rag, handbook, tmp_path, monkeypatch, parsing_in_process):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other.md").write_text("Something else.")
    rag.done("collection", "add", "handbook", "--source", elsewhere)
    monkeypatch.chdir(tmp_path)
    assert rag.done("ingest", "handbook", "--json").json["files"]["seen"] == 1


def test_a_folder_whose_name_another_source_has_is_refused(indexed, tmp_path):
    other = tmp_path / "other" / "handbook"
    other.mkdir(parents=True)
    reason = indexed("ingest", other).reason
    assert reason.startswith("collection handbook has another source")
    assert f"--source {other}" in reason


def test_the_folder_itself_may_be_named_in_any_way(indexed, handbook, monkeypatch):
    monkeypatch.chdir(handbook)
    for way in (".", f"{handbook}/", "../handbook"):
        assert indexed.done("ingest", way, "--json").json["collection"] == "handbook"


@pytest.mark.parametrize("name", ["a.b-c_1", "x" * 100, "7"])
def test_names_that_are_allowed(rag, tmp_path, name):
    (tmp_path / name).mkdir()
    assert rag.done("ingest", tmp_path / name, "--json").json["collection"] == name


@pytest.mark.parametrize("name", ["bad name", "über", "x" * 101, "a...b", "semi;colon"])
def test_names_that_are_not(rag, tmp_path, name):
    (tmp_path / name).mkdir()
    assert "cannot name a collection" in rag("ingest", tmp_path / name).reason
    assert "cannot name a collection" in rag("collection", "add", name, "--source", tmp_path).reason


# What a person can put right: one line, exit status 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["search", "nope", "x"], "there is no collection nope: rag collection list"),
        (["ask", "nope", "x"], "there is no collection nope"),
        (["status", "nope"], "there is no collection nope"),
        (["show", "nope", "x"], "there is no collection nope"),
        (["collection", "show", "nope"], "there is no collection nope"),
        (["collection", "remove", "nope"], "there is no collection nope"),
        (["collection", "set", "nope", "chunk_tokens=64"], "there is no collection nope"),
        (["ingest", "nope"], "nope is neither a collection nor a folder"),
        (["search", "new", "x"], "collection new has nothing indexed yet: rag ingest new"),
        (["ask", "new", "x"], "collection new has nothing indexed yet: rag ingest new"),
        (["show", "new", "nope.md"], "collection new has no document nope.md: rag status new"),
        (["search", "new", "  "], "the question is empty"),
        (["collection", "set", "new", "chunk_tokens=many"], "chunk_tokens=many is not valid: a whole number"),
        (["collection", "set", "new", "colour=red"], "there is no setting 'colour': the settings are embedding_model"),
        (["collection", "set", "new", "chunk_tokens"], "'chunk_tokens' is not of the form KEY=VALUE"),
        (["collection", "set", "new", "embedding_model=x"], "embedding model 'x' is not known"),
        (["collection", "add", "new", "--source", "."], "collection new exists already"),
    ],
)
def test_wrong_names_and_values(rag, tmp_path, arguments, reason):
    rag.done("collection", "add", "new", "--source", tmp_path)
    assert rag(*arguments).reason.startswith(reason)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["search", "handbook"],
        ["search", "handbook", "x", "--mode", "magic"],
        ["search", "handbook", "x", "-k", "0"],
        ["up", "--port", "70000"],
        ["collection", "add", "handbook"],
    ],
)
def test_bad_usage_is_exit_status_2(rag, arguments):
    done = rag(*arguments)
    assert (done.status, done.out) == (2, "")
    assert "Error: " in done.err


def test_a_file_is_not_a_folder(rag, handbook):
    assert "is neither a collection nor a folder" in rag("ingest", handbook / "travel.txt").reason


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/no/such/folder", "there is no folder /no/such/folder: make it, or correct --source"),
        ("nope://docs", "nope://docs is of no known kind: use a folder, or an fsspec URL"),
        ("gs://docs", "gs://docs cannot be read yet: Please install gcsfs"),
    ],
)
def test_a_source_that_cannot_be_one_is_refused(rag, source, reason):
    assert rag("collection", "add", "new", "--source", source).reason.startswith(reason)
    assert rag.done("collection", "list", "--json").json == {"collections": []}


def test_a_collection_that_is_purged_leaves_the_cache_too(rag, handbook, redis_url, parsing_in_process):
    with redis.Redis.from_url(redis_url) as client:
        rag.done("ingest", handbook)
        rag.done("collection", "remove", "handbook")
        assert len(list(client.scan_iter("rag:embedding:*"))) == 3
        assert rag.done("ingest", handbook, "--json").json["embeddings"]["cached"] == 3
        (handbook / "travel.txt").write_text("Nobody flies any more.")
        rag.done("ingest", "handbook")
        (handbook / "passwords.md").unlink()
        rag.done("ingest", "handbook")
        assert len(list(client.scan_iter("rag:embedding:*"))) == 4
        rag.done("collection", "remove", "handbook", "--purge")
        assert list(client.scan_iter("rag:embedding:*")) == []


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_source_that_cannot_be_listed(rag, tmp_path, kind):
    (source := tmp_path / "source").mkdir()
    rag.done("collection", "add", "lost", "--source", source)
    source.rmdir()
    if kind == "a file":
        source.write_text("x")
    reason = rag("ingest", "lost").reason
    assert reason.startswith(f"cannot list {source}, the source of lost: ")
    assert "nothing was changed" in reason
    assert rag.done("status", "lost", "--json").json["last_run"]["status"] == "failure"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_source_that_may_not_be_read(rag, handbook):
    handbook.chmod(0)
    try:
        assert "Permission denied" in rag("ingest", handbook).reason
    finally:
        handbook.chmod(0o755)


@pytest.mark.parametrize("arguments", [["status"], ["ingest", "handbook"], ["ask", "handbook", "x"], ["env"], ["demo"]])
def test_the_database_is_down(rag, arguments):
    reason = rag(*arguments, RAG_DATABASE_URL=f"postgresql://joe:secret@{NOWHERE}/rag").reason
    assert reason.startswith("cannot reach PostgreSQL at ")
    assert "RAG_DATABASE_URL" in reason
    assert "secret" not in reason


def test_redis_down_is_slower_but_not_wrong(rag, handbook, server, parsing_in_process):
    down = {"RAG_REDIS_URL": f"redis://{NOWHERE}/0"}
    assert rag.done("ingest", handbook, "--json", **down).json["embeddings"]["requested"] == 3
    hits = rag.done("search", "handbook", "holidays in a year", "--json", **down).json["hits"]
    assert hits[0]["path"] == "holidays.md"


def test_a_key_that_is_refused_while_ingesting(rag, handbook, server, parsing_in_process):
    server.key = "another"
    reason = rag("ingest", handbook).reason
    assert reason.startswith("3 documents could not be embedded, what is whole is published: holidays.md: ")
    assert reason.endswith("refused the API key: set OPENAI_API_KEY to a valid one")
    status = rag.done("status", "handbook", "--json").json
    assert status["last_run"]["status"] == "failure"
    assert {failure["stage"] for failure in status["failures"]} == {"embedding"}
    assert "  holidays.md, passwords.md, travel.txt: " in rag.done("status", "handbook").out
    server.key = None
    assert rag.done("ingest", "handbook", "--json").json["index"]["rows"] == 3


def test_a_key_that_is_refused_while_asking(indexed, server):
    server.key = "another"
    assert "refused the API key: set OPENAI_API_KEY" in indexed("ask", "handbook", "who may fly?").reason
    assert "--mode text" in indexed("search", "handbook", "who may fly?", "--mode", "vector").reason
    done = indexed.done("search", "handbook", "who may fly?", "--json")
    assert "refused the API key" in done.json["degraded"]
    assert done.said == ""


def test_a_key_that_is_missing(rag, handbook, parsing_in_process):
    model = {"RAG_EMBEDDING_MODEL": "openai/text-embedding-3-small", "OPENAI_API_KEY": ""}
    reason = rag("ingest", handbook, **model).reason
    assert reason.endswith("openai/text-embedding-3-small needs an API key: set OPENAI_API_KEY")


def test_without_a_chat_model_the_answer_is_extractive_and_says_so(indexed, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    answer = indexed.done("ask", "handbook", "how many days of holidays in a year?", "--json", OPENAI_API_KEY="").json
    assert (answer["kind"], answer["model"], answer["tokens"]["completion"]) == ("extractive", None, 0)
    assert "thirty days of holidays" in answer["answer"]
    assert answer["sources"][0]["path"] == "holidays.md"


def test_what_nobody_expected_is_one_line_and_the_run_that_tells_more(indexed, monkeypatch):
    def broken(*arguments, **keywords):
        raise RuntimeError("a gear broke\nand more of it")

    monkeypatch.setattr(stages, "chunk_documents", broken)
    reason = indexed("ingest", "handbook").reason
    run = indexed.done("status", "handbook", "--json").json["last_run"]
    assert (
        reason == f"ingesting handbook failed: RuntimeError: a gear broke; rag up shows where, in run {run['run_id']}"
    )
    assert run["status"] == "failure"


def test_a_mass_removal_waits_for_consent(rag, tmp_path, parsing_in_process):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"Document number {number}.")
    rag.done("ingest", folder)
    for number in range(11):
        (folder / f"{number}.txt").unlink()
    done = rag.done("ingest", folder, "--json")
    assert done.json["files"]["withheld"] == 11
    assert "rag ingest many --allow-mass-removal" in done.err
    result = rag.done("ingest", "many", "--allow-mass-removal", "--json").json
    assert (result["files"]["removed"], result["chunks"]["total"]) == (11, 1)


@pytest.mark.parametrize("url", ["blah", "redis://127.0.0.1:99999/0"])
def test_a_redis_url_that_is_none_is_named(indexed, url):
    assert "RAG_REDIS_URL is no valid Redis URL" in indexed("search", "handbook", "holidays", RAG_REDIS_URL=url).reason


def test_a_folder_whose_name_is_no_collections_name_is_told_the_way_out(rag, tmp_path):
    (tmp_path / "my docs!").mkdir()
    assert "rag collection add NAME --source" in rag("ingest", tmp_path / "my docs!").reason
