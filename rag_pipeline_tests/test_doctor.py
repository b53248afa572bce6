"""`rag doctor`: a line for everything that is needed, and the remedy where something is wrong."""

import re

from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, SensorInstigatorData

from rag_pipeline.core.watching import Cursor
from rag_pipeline_tests.commands import Command, Done
from rag_pipeline_tests.openai_server import error
from rag_pipeline_tests.test_dagster import opened


def lines(done: Done) -> dict[str, tuple[str, str]]:
    """What is said of each thing, with the mark before it."""
    found = re.findall(r"^(ok|failed|note) +(\w+) +(.+)$", done.out, re.MULTILINE)
    assert len(found) == len(done.out.splitlines()), done.out
    return {what: (mark, says) for mark, what, says in found}


def test_a_healthy_installation_is_told_so_line_by_line(rag: Command, handbook, parsing_in_process):
    rag.done("ingest", handbook)
    told = lines(rag.done("doctor"))
    things = ["disk", "postgres", "redis", "embedding", "answers", "dagster", "daemon", "sources", "collections"]
    assert list(told) == things
    assert {mark for mark, _ in told.values()} <= {"ok", "note"}
    assert re.search(r"^PostgreSQL 18\.\d+, pgvector 0\.8\.\d+, migration \d+, as postgres; ", told["postgres"][1])
    assert told["embedding"] == ("ok", "openai/text-embedding-3-small answers with 1536 dimensions")
    assert told["collections"] == ("ok", "1, and no document of them has failed")


def test_what_is_wrong_is_told_with_its_remedy(rag: Command, handbook, server, parsing_in_process):
    (handbook / "broken.pdf").write_bytes(b"%PDF-1.7 nothing of the kind")
    rag.done("ingest", handbook)
    server.intercept = lambda request: error(401, "no such key")
    done = rag("doctor", RAG_REDIS_URL="redis://127.0.0.1:9/0")
    assert done.status == 1
    told = lines(done)
    assert {what for what, (mark, _) in told.items() if mark == "failed"} == {"redis", "embedding"}
    assert "correct RAG_REDIS_URL" in told["redis"][1]
    assert "correct OPENAI_API_KEY" in told["embedding"][1]
    assert told["collections"] == ("note", "1; documents have failed in handbook: rag status NAME tells why")


def test_what_the_sensor_could_not_take_in_is_told(rag: Command):
    origin = RemoteInstigatorOrigin(
        RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("rag_pipeline"), "__repository__"), "new_files"
    )
    data = SensorInstigatorData(cursor=Cursor(unfit={"two words": "rename it"}).to_json())
    with opened(rag) as instance:
        instance.add_instigator_state(
            InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.DECLARED_IN_CODE, data)
        )
    told = lines(rag.done("doctor"))
    assert told["sources"] == ("note", "the folder two words becomes no collection: rename it")


def test_without_a_database_the_rest_is_told_all_the_same(rag: Command):
    done = rag("doctor", RAG_DATABASE_URL="postgresql://rag:secret@127.0.0.1:9/rag")
    assert done.status == 1
    told = lines(done)
    assert told["postgres"][0] == "failed"
    assert "secret" not in done.out
    assert told["redis"][0] == "ok"
    assert "collections" not in told
