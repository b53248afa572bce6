"""What Dagster is told, and what it is not: runs, materializations, partitions, and not a word of any document."""

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster import AssetKey, AssetRecordsFilter, DagsterEventType, DagsterInstance, RunsFilter

from rag_pipeline.definitions import build_definitions
from rag_pipeline.instance import dagster_instance
from rag_pipeline.partitions import collections_partitions
from rag_pipeline.settings import PROJECT
from rag_pipeline_tests.commands import Command, Done
from rag_pipeline_tests.openai_server import error

STAGES = ["raw_files", "parsed_text", "token_chunks", "cached_embeddings", "pgvector_index"]

# In a document, a question and an answer; nowhere else.
CANARY = "zwitscherkasten"


@contextmanager
def opened(rag: Command) -> Iterator[DagsterInstance]:
    with dagster_instance(rag.runtime()) as instance:
        yield instance


def metadata(rag: Command, name: str) -> dict[str, dict]:
    """The metadata of each asset's newest materialization for a collection."""
    with opened(rag) as instance:
        return {
            stage: {
                key: value.value
                for key, value in instance.fetch_materializations(
                    AssetRecordsFilter(asset_key=AssetKey(stage), asset_partitions=[name]), limit=1
                )
                .records[0]
                .asset_materialization.metadata.items()
            }
            for stage in STAGES
        }


def changes(metadata: dict) -> list[dict]:
    return [record.data for record in metadata["changes"].records]


# Partitions


def test_partitions_are_the_collections(rag, handbook, tmp_path, parsing_in_process):
    def partitions() -> set[str]:
        with opened(rag) as instance:
            return set(instance.get_dynamic_partitions(collections_partitions.name))

    rag.done("collection", "add", "a.b-c_1", "--source", tmp_path)
    assert partitions() == {"a.b-c_1"}
    rag.done("ingest", handbook)
    assert partitions() == {"a.b-c_1", "handbook"}
    rag.done("collection", "remove", "a.b-c_1")
    assert partitions() == {"handbook"}
    with opened(rag) as instance:
        instance.add_dynamic_partitions(collections_partitions.name, ["stray"])
        instance.delete_dynamic_partition(collections_partitions.name, "handbook")
    rag.done("env")
    assert partitions() == {"handbook"}


# Materializations


def test_every_materialization_carries_counts_seconds_and_what_changed(rag, handbook, parsing_in_process):
    (handbook / "broken.pdf").write_bytes(b"%PDF-1.7 nothing of the kind")
    rag.done("ingest", handbook)
    told = metadata(rag, "handbook")
    assert all(told[stage]["seconds"] >= 0 for stage in STAGES)
    assert (told["raw_files"]["seen"], told["raw_files"]["added"]) == (4, 4)
    assert {(each["path"], each["change"]) for each in changes(told["raw_files"])} == {
        (path.name, "added") for path in handbook.iterdir()
    }
    assert (told["parsed_text"]["documents"], told["parsed_text"]["failed"]) == (3, 1)
    failures = {each["path"]: each["failure"] for each in changes(told["parsed_text"]) if each["failure"]}
    assert list(failures) == ["broken.pdf"]
    assert (told["token_chunks"]["documents"], told["token_chunks"]["new"]) == (3, 3)
    assert told["cached_embeddings"]["model"] == "openai/text-embedding-3-small"
    assert (told["cached_embeddings"]["requested"], told["cached_embeddings"]["inserted"]) == (3, 3)
    assert (told["pgvector_index"]["published"], told["pgvector_index"]["rows"]) == (3, 3)
    (handbook / "travel.txt").unlink()
    rag.done("ingest", "handbook")
    told = metadata(rag, "handbook")
    assert changes(told["pgvector_index"]) == [{"path": "travel.txt", "change": "removed"}]
    assert "changes" not in told["token_chunks"]


# Runs


def run_of(rag: Command, name: str):
    """The newest run of a collection, and the errors in its events: of the step that failed, and of the run."""
    with opened(rag) as instance:
        (run,) = instance.get_runs(RunsFilter(tags={"dagster/partition": name}), limit=1)
        events = [entry.dagster_event for entry in instance.all_logs(run.run_id) if entry.dagster_event]
    return run, [
        event.event_specific_data.error.to_string()
        for event in events
        if event.event_type in (DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_FAILURE)
    ]


def test_a_run_says_who_asked_for_it(rag, handbook, parsing_in_process):
    rag.done("ingest", handbook)
    run, errors = run_of(rag, "handbook")
    assert (run.job_name, run.status.value, errors) == ("refresh_collection", "SUCCESS", [])
    assert run.tags["rag/asked_by"] == "rag ingest"


def test_a_failed_run_carries_the_line_that_the_person_saw(rag, tmp_path):
    (tmp_path / "nowhere").mkdir()
    rag.done("collection", "add", "lost", "--source", tmp_path / "nowhere")
    (tmp_path / "nowhere").rmdir()
    reason = rag("ingest", "lost").reason
    run, errors = run_of(rag, "lost")
    assert run.status.value == "FAILURE"
    assert len(errors) == 2
    assert all(reason in error for error in errors)


def test_a_provider_that_refuses_fails_the_run_with_its_reason(rag, handbook, server, parsing_in_process):
    server.key = "another"
    reason = rag("ingest", handbook).reason
    run, errors = run_of(rag, "handbook")
    assert run.status.value == "FAILURE"
    assert all(reason in error for error in errors)


# What Dagster must not know


def database_rows(rag: Command, schema: str, text: str) -> dict[str, int]:
    """In which tables of a schema `text` stands, and in how many rows."""
    with rag.runtime().connect() as connection:
        tables = connection.execute(
            "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = %s", [schema]
        ).fetchall()
        found = {
            table: connection.execute(
                f"SELECT count(*) FROM {schema}.{table} AS row WHERE row::text ILIKE %s", [f"%{text}%"]
            ).fetchone()[0]
            for (table,) in tables
        }
    return {table: number for table, number in found.items() if number}


def files_with(folder: Path, text: str) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes().lower()]


def test_no_word_of_a_document_a_question_or_an_answer_reaches_dagster(rag, handbook, server, parsing_in_process):
    # Headings are shown, with the samples of chunks.
    (handbook / "bird.md").write_text(f"# The bird\n\nA {CANARY} sings at dawn.\n")
    (handbook / "bird.json").write_text(f'{{"{CANARY}": ')
    (handbook / "bird.html").write_text(f"<p>{CANARY}</{CANARY}>")
    (handbook / "bird.xml").write_text(f"<{CANARY}></bird>")
    rag.done("ingest", handbook)
    rag.done("ask", "handbook", f"when does the {CANARY} sing?")
    server.intercept = lambda request: error(400, f"I do not like {CANARY}")
    (handbook / "more.md").write_text(f"Another {CANARY}.")
    assert CANARY not in rag("ingest", "handbook").reason
    assert database_rows(rag, "rag", CANARY)
    assert database_rows(rag, "dagster", "bird.md")
    assert database_rows(rag, "dagster", CANARY) == {}
    assert files_with(Path(rag.environment["RAG_HOME"]) / "dagster", CANARY) == []


def test_a_database_error_is_told_without_the_row_it_quotes(rag, handbook, parsing_in_process):
    (handbook / "bird.txt").write_text(f"A {CANARY} sings at dawn.\n")
    with rag.runtime().connect() as connection:
        connection.execute(f"ALTER TABLE rag.parsed_text ADD CONSTRAINT quiet CHECK (text NOT LIKE '%{CANARY}%')")
        try:
            done = rag("ingest", handbook)
        finally:
            connection.execute("ALTER TABLE rag.parsed_text DROP CONSTRAINT quiet")
    assert 'CheckViolation: new row for relation "parsed_text" violates check constraint "quiet"' in done.reason
    assert database_rows(rag, "dagster", "check constraint")
    assert database_rows(rag, "dagster", CANARY) == {}


# Dagster's own commands


def test_rag_env_prints_export_lines_only(rag):
    done = rag.done("env", RAG_HOME="/tmp/a home's home")
    assert done.err == ""
    exports = dict(re.fullmatch(r"export ([A-Z_]+)=(.*)", line).groups() for line in done.out.splitlines())
    assert {name: shlex.split(value) for name, value in exports.items()} | {
        "DAGSTER_HOME": [str(PROJECT)],
        "RAG_HOME": ["/tmp/a home's home"],
    } == {name: shlex.split(value) for name, value in exports.items()}


def shell(rag: Command, folder: Path, script: str) -> Done:
    """A script, given in `folder` with the commands of this environment in its path."""
    setting = f"cd {shlex.quote(str(folder))}; PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH;"
    return Done.of(rag.start("-c", setting + script, program="/bin/sh"))


def test_plain_dagster_materializes_what_rag_env_points_at(rag, handbook, tmp_path):
    rag.done("collection", "add", "handbook", "--source", handbook)
    before = set(PROJECT.iterdir())
    done = shell(
        rag,
        tmp_path,
        """eval "$(rag env)" &&
        dagster asset materialize -m rag_pipeline.definitions --select '*' --partition handbook""",
    )
    assert done.status == 0, done.err
    assert rag.done("status", "handbook", "--json").json["documents"]["indexed"] == 3
    run, errors = run_of(rag, "handbook")
    assert (run.status.value, errors) == ("SUCCESS", [])
    # Nothing is written into the clone, nor where the command was given.
    assert set(PROJECT.iterdir()) <= before
    assert [path.name for path in tmp_path.iterdir()] == ["handbook"]


def test_two_commands_at_once_make_the_tables_of_a_new_database(rag, handbook, tmp_path, empty_database_url):
    new = Command(rag.environment | {"RAG_DATABASE_URL": empty_database_url})
    (other := tmp_path / "other").mkdir()
    processes = [new.start("ingest", folder) for folder in (handbook, other)]
    assert [(done.status, done.said) for done in map(Done.of, processes)] == [(0, ""), (0, "")]
    with opened(new) as instance:
        assert set(instance.get_dynamic_partitions(collections_partitions.name)) == {"handbook", "other"}
        assert [run.status.value for run in instance.get_runs()] == ["SUCCESS", "SUCCESS"]


def test_definitions_are_valid_without_a_warning(rag, tmp_path):
    done = shell(rag, tmp_path, 'eval "$(rag env)" && dagster definitions validate -m rag_pipeline.definitions')
    assert done.status == 0, done.err
    assert "All code locations passed validation" in done.err + done.out
    # Dagster warns of its own commands, for which it has successors.
    assert re.findall(r"\w*[Ww]arning", done.err) == ["SupersessionWarning"]


def test_resources_may_be_replaced():
    class Nobody:
        pass

    definitions = build_definitions(pipeline=Nobody())
    resources = {"pipeline", "rag", "step_outputs", "in_memory"}
    assert definitions.get_repository_def().get_top_level_resources().keys() == resources
    job = definitions.resolve_job_def("refresh_collection")
    assert [node.name for node in job.nodes_in_topological_order] == STAGES
    assert job.partitions_def == collections_partitions


def test_a_run_without_a_collection_is_told_to_choose_one(rag):
    with opened(rag) as instance:
        result = (
            build_definitions()
            .resolve_job_def("refresh_collection")
            .execute_in_process(instance=instance, raise_on_error=False)
        )
        (failure,) = [event for event in result.all_events if event.event_type == DagsterEventType.RUN_FAILURE]
    assert "no collection is chosen" in failure.event_specific_data.error.to_string()
