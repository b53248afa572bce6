"""Asking and measuring in Dagster: answer_question, and retrieval_quality with its check."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterEventType, RunsFilter, validate_run_config

from rag_pipeline.assets.quality import LARGEST_FALL, judge, retrieval_quality
from rag_pipeline.definitions import build_definitions
from rag_pipeline.instance import dagster_instance
from rag_pipeline_tests.openai_server import error

# In a document, a question and an answer; nowhere else.
CANARY = "zwitscherkasten"


@pytest.fixture
def indexed(rag, handbook, monkeypatch, parsing_in_process):
    """A published handbook, in an environment that leads Dagster's resources to it."""
    (handbook / "bird.md").write_text(f"# Birds\n\nA {CANARY} sings at dawn.\n")
    rag.done("ingest", handbook)
    for name, value in rag.environment.items():
        monkeypatch.setenv(name, value)
    return rag


@contextmanager
def launched(rag, job, **options):
    """A run as the UI launches it, of a job or of the assets that are selected, and the instance that records it."""
    with dagster_instance(rag.runtime()) as instance:
        definitions = build_definitions()
        job_def = definitions.resolve_job_def(job) if job else definitions.resolve_implicit_global_asset_job_def()
        result = job_def.execute_in_process(instance=instance, raise_on_error=False, **options)
        yield result, instance


def asked(**values: object) -> dict:
    return {"ops": {"retrieve": {"config": values}}}


def tables_with(rag, text: str) -> set[str]:
    """The tables of Dagster in which a text stands."""
    with rag.runtime().connect() as connection:
        tables = connection.execute(
            "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'dagster'"
        ).fetchall()
        return {
            table
            for (table,) in tables
            if connection.execute(
                f"SELECT count(*) FROM dagster.{table} AS row WHERE row::text ILIKE %s", [f"%{text}%"]
            ).fetchone()[0]
        }


# answer_question


def test_a_question_is_answered_with_its_sources_and_tokens_as_metadata(indexed, server):
    server.answer = lambda messages: f"The {CANARY} sings at dawn [1][9]."
    config = asked(question=f"when does the {CANARY} sing?", collection="handbook")
    with launched(indexed, "answer_question", run_config=config) as (result, instance):
        assert result.success
        answer = result.output_for_node("generate")
        assert answer.text == f"The {CANARY} sings at dawn [1]."
        (output,) = [
            event for event in result.all_events if event.is_successful_output and event.step_key == "generate"
        ]
        metadata = output.event_specific_data.metadata
        told = {key: value.value for key, value in metadata.items()}
        assert told["answer"] == answer.text
        assert (told["answered"], told["kind"], told["citations_dropped"]) == (True, "generated", 1)
        assert told["model"] == "openai/gpt-4.1-mini"
        assert told["total_tokens"] == answer.tokens.total > told["prompt_tokens"] > told["completion_tokens"] > 0
        assert told["cost_usd"] == answer.cost_usd > 0
        (source,) = [record.data for record in metadata["sources"].records]
        assert (source["citation"], source["collection"], source["path"]) == (1, "handbook", "bird.md")
        assert (source["heading"], source["end"]) == ("Birds", answer.sources[0].end)
        # The question is in the run's configuration, the answer in its metadata, and both go with the run.
        assert tables_with(indexed, CANARY) == {"runs", "event_logs"}
        assert not [entry for entry in instance.all_logs(result.run_id) if CANARY in (entry.user_message or "")]
        files = [file for file in (Path(indexed.environment["RAG_HOME"]) / "dagster").rglob("*") if file.is_file()]
        assert not [file for file in files if CANARY.encode() in file.read_bytes()]
        instance.delete_run(result.run_id)
        assert tables_with(indexed, CANARY) == set()


def test_a_question_without_an_answer(indexed, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "")
    monkeypatch.setenv("RAG_EMBEDDING_MODEL", "openai/text-embedding-3-small")
    config = asked(question="who won the holidays cup in Uruguay in 1930?", collection="handbook", k=2)
    with launched(indexed, "answer_question", run_config=config) as (result, _):
        assert result.success
        assert (result.output_for_node("generate").answered, len(result.output_for_node("retrieve"))) == (False, 1)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (asked(question="who?", collection="nowhere"), "there is no collection nowhere"),
        (asked(question=" ", collection="handbook"), "the question is empty"),
    ],
)
def test_what_cannot_be_asked_fails_the_run_with_one_line(indexed, config, reason):
    with launched(indexed, "answer_question", run_config=config) as (result, _):
        (failure,) = [event for event in result.all_events if event.event_type == DagsterEventType.STEP_FAILURE]
        assert reason in failure.event_specific_data.user_failure_data.description
        assert failure.event_specific_data.error.cause is None


def test_a_model_that_fails_fails_the_run_once_with_its_line(indexed, server):
    server.intercept = lambda request: (
        error(401, "no", "invalid_api_key") if request.path.endswith("completions") else None
    )
    config = asked(question="who may fly?", collection="handbook")
    with launched(indexed, "answer_question", run_config=config) as (result, _):
        (failure,) = [event for event in result.all_events if event.event_type == DagsterEventType.STEP_FAILURE]
        assert failure.step_key == "generate"
        assert "set OPENAI_API_KEY" in failure.event_specific_data.user_failure_data.description


@pytest.mark.parametrize("wrong", [{}, {"collection": "a"}, {"collection": "a", "question": "b", "k": 0}])
def test_a_configuration_that_is_not_whole_is_refused_before_the_run(wrong):
    job = build_definitions().resolve_job_def("answer_question")
    validate_run_config(job, asked(collection="a", question="b"))
    with pytest.raises(Exception, match=r"k|question|config"):
        build_definitions().resolve_job_def("answer_question").execute_in_process(run_config=asked(**wrong))


# retrieval_quality


def measured(instance) -> dict:
    """The newest measurement of the handbook."""
    event = instance.get_latest_materialization_event(AssetKey("retrieval_quality"))
    assert event.asset_materialization.partition == "handbook"
    return {key: value.value for key, value in event.asset_materialization.metadata.items()}


def checked(result) -> tuple[bool, str]:
    (check,) = result.get_asset_check_evaluations()
    assert (check.asset_key, check.check_name, check.partition) == (
        AssetKey("retrieval_quality"),
        "quality_holds",
        "handbook",
    )
    return check.passed, check.severity.value


def ask(folder: Path, *questions: tuple[str, str]) -> None:
    lines = [json.dumps({"question": question, "sources": [path]}) for question, path in questions]
    (folder / "questions.jsonl").write_text("\n".join(lines))


def test_retrieval_is_measured_and_compared_with_the_best_measurement_of_the_same_questions(indexed, handbook):
    def measure():
        return launched(indexed, None, partition_key="handbook", asset_selection=[retrieval_quality.key])

    with measure() as (result, instance):
        assert (result.success, checked(result)) == (True, (True, "ERROR"))
        assert measured(instance)["questions"] == 0
        assert "hit_rate" not in measured(instance)
    ask(handbook, ("flights need consent", "travel.txt"), ("how to reset a password", "passwords.md"))
    with measure() as (result, instance):
        assert checked(result)[0]
        figures = measured(instance)
        assert (figures["hit_rate"], figures["mrr"], figures["ndcg"]) == (1.0, 1.0, 1.0)
        assert (figures["questions"], figures["without_source"], figures["k"]) == (2, 0, 5)
        assert tables_with(indexed, "flights need") == set()
    (handbook / "travel.txt").unlink()
    indexed.done("ingest", "handbook")
    for _ in range(2):
        with measure() as (result, instance):
            assert (result.success, checked(result)) == (True, (False, "WARN"))
            assert (measured(instance)["hit_rate"], measured(instance)["without_source"]) == (0.5, 1)
    ask(handbook, ("who may travel by train?", "travel.txt"), ("how to reset a password", "passwords.md"))
    with measure() as (result, _):
        assert checked(result)[0]


def test_questions_that_cannot_be_read_fail_the_run_with_one_line(indexed, handbook):
    (handbook / "questions.jsonl").write_text('{"question": "who may fly?"}')
    with launched(indexed, None, partition_key="handbook", asset_selection=[retrieval_quality.key]) as (result, _):
        (failure,) = [event for event in result.all_events if event.event_type == DagsterEventType.STEP_FAILURE]
        assert "questions.jsonl is no question" in failure.event_specific_data.user_failure_data.description
        assert failure.event_specific_data.error.cause is None


@pytest.mark.parametrize(
    ("hit_rate", "best", "holds"),
    [(0.1, None, True), (0.9, 0.9, True), (0.9 - LARGEST_FALL / 2, 0.9, True), (0.8, 0.9, False), (1.0, 0.9, True)],
)
def test_a_fall_is_judged_by_its_size(hit_rate, best, holds):
    assert judge(hit_rate, best).passed == holds


def test_an_ingest_does_not_measure(indexed, handbook):
    ask(handbook, ("who may fly?", "travel.txt"))
    indexed.done("ingest", "handbook")
    with dagster_instance(indexed.runtime()) as instance:
        (run,) = instance.get_runs(RunsFilter(job_name="refresh_collection"), limit=1)
        steps = {event.step_key for event in instance.all_logs(run.run_id) if event.step_key}
    assert retrieval_quality.key.to_user_string() not in steps
