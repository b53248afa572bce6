"""The stage parsed_text: files that cannot be read when they are to be parsed."""

import errno
from pathlib import Path

import fsspec
import pytest

from rag_pipeline.core import sandbox_worker
from rag_pipeline.core.sandbox import Job, Limits, ParserPool
from rag_pipeline_tests.pipelines import UNPARSABLE

LIMITS = Limits(seconds=20, memory_mb=1024, file_mb=1)


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on the disk fails where this file lies."""
    read = sandbox_worker.read

    def fail(path: str, file_mb: int) -> bytes:
        if Path(path).name == name:
            raise OSError(errno.EIO, "Input/output error")
        return read(path, file_mb)

    monkeypatch.setattr(sandbox_worker, "read", fail)


def test_a_file_that_cannot_be_read_is_tried_again_by_itself(pipeline, monkeypatch):
    pipeline.write("a.txt", "Apples are red.")
    pipeline.write("b.txt", "Pears are green.")
    with monkeypatch.context() as patch:
        unreadable(patch, "a.txt")
        run = pipeline.run()
        assert (run.parsed.documents, run.parsed.failed, run.published.published) == (1, 1, 1)
        assert pipeline.failures() == {"a.txt": "unreadable"}
        assert not pipeline.rows("SELECT FROM rag.parsed_text WHERE failure_reason IS NOT NULL")
        assert pipeline.run().parsed.failed == 1
    assert pipeline.run().parsed.documents == 1
    assert pipeline.failures() == {}
    assert pipeline.found("apples") == {"a.txt"}


def test_an_older_version_stays_while_the_newest_cannot_be_read(fruit, monkeypatch):
    fruit.write("apples.txt", "Apples are yellow.")
    unreadable(monkeypatch, "apples.txt")
    fruit.run()
    assert fruit.failures() == {"apples.txt": "unreadable"}
    assert fruit.found("red") == {"apples.txt"}


def test_retrying_what_failed_tries_it_too(rag, handbook, parsing_in_process, monkeypatch):
    with monkeypatch.context() as patch:
        unreadable(patch, "travel.txt")
        assert rag.done("ingest", handbook, "--json").json["parsed"] == {"documents": 2, "failed": 1}
    (failure,) = rag.done("status", "handbook", "--json").json["failures"]
    assert (failure["path"], failure["stage"], failure["reason"]) == ("travel.txt", "parsed_text", "unreadable")
    assert rag.done("ingest", "handbook", "--retry-failed", "--json").json["parsed"] == {"documents": 1, "failed": 0}


def test_what_failed_stays_marked_until_it_is_retried(rag, handbook, parsing_in_process):
    rag.done("ingest", handbook)
    (handbook / "travel.txt").write_bytes(UNPARSABLE)
    rag.done("ingest", handbook)
    away = handbook.rename(handbook.with_name("away"))
    assert "nothing was changed" in rag("ingest", "handbook", "--retry-failed").reason
    (failure,) = rag.done("status", "handbook", "--json").json["failures"]
    assert (failure["path"], failure["reason"]) == ("travel.txt", "unsupported type")
    away.rename(handbook)
    assert rag.done("ingest", "handbook", "--retry-failed", "--json").json["parsed"] == {"documents": 0, "failed": 1}


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and does not read")
def test_a_worker_tells_the_file_that_cannot_be_read_from_the_one_that_is_corrupt():
    with ParserPool(1, LIMITS) as pool:
        (outcome,) = pool.parse_many([Job("a", Path("/proc/self/mem"), "text/plain", "mem.txt")])
    assert (outcome.unreadable, outcome.failure) == ("Input/output error", None)


def test_a_remote_file_that_cannot_be_read_fails_alone(monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe("/closed/a.txt", b"words")
    memory.pipe("/closed/b.txt", b"other words")
    opened = type(memory)._open

    def refuse(self, path, *arguments, **options):
        if path.endswith("a.txt"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(self, path, *arguments, **options)

    monkeypatch.setattr(type(memory), "_open", refuse)
    with ParserPool(1, LIMITS) as pool:
        jobs = [Job(name, f"memory://closed/{name}", "text/plain", name) for name in ("a.txt", "b.txt")]
        outcomes = {outcome.key: outcome for outcome in pool.parse_many(jobs)}
    assert outcomes["a.txt"].unreadable == "Permission denied"
    assert outcomes["b.txt"].parsed.text == "other words"
