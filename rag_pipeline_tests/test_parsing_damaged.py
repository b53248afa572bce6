"""Damaged files of every format: cut short at every 5 %, bytes flipped at random. None fails a run, leaks a worker, or
harms its neighbour."""

import random
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rag_pipeline.core.media_types import detect
from rag_pipeline.core.parsing import FAILURE_REASONS
from rag_pipeline.core.sandbox import Job, Limits, ParserPool
from rag_pipeline_tests.shared import shared

# One small file of each format.
WHOLE = [
    "fake.docx",
    "fake.doc",
    "fake-power-point.pptx",
    "stanley-cups.xlsx",
    "tests-example.xls",
    "simple.odt",
    "language-docs/eng_spa_mult.epub",
    "fake-doc.rtf",
    "fake-email-attachment.msg",
    "eml/fake-email-attachment.eml",
    "eml/mime-different-plain-html.eml",
    "pdf/fake-memo.pdf",
    "pdf/list-item-example.pdf",
    "fake-html.html",
    "example-steelJIS-datasheet-utf-16.html",
    "factbook.xml",
    "arbitrary-records.json",
    "arbitrary-records.ndjson",
    "stanley-cups.csv",
    "stanley-cups-utf-16.csv",
    "README.md",
    "README.rst",
    "README.org",
    "fake-text.txt",
    "fake-text-utf-32.txt",
]


def mutants(seed: int, flips: int) -> Iterator[tuple[str, bytes]]:
    """Every file cut short at every 5 %, and `flips` copies of each with one to twenty bytes changed."""
    chosen = random.Random(seed)
    for name in WHOLE:
        content = shared("formats", *name.split("/")).read_bytes()
        for percent in range(5, 100, 5):
            yield f"{percent} % of {name}", content[: len(content) * percent // 100]
        for number in range(flips):
            damaged = bytearray(content)
            for _ in range(chosen.randint(1, 20)):
                damaged[chosen.randrange(len(damaged))] = chosen.randrange(256)
            yield f"flip {number} of {name}", bytes(damaged)


def parse_all(files: list[tuple[str, bytes]], folder: Path) -> dict[str, int]:
    """Parse damaged files, a healthy one after every tenth; how often each reason came."""

    def jobs() -> Iterator[Job]:
        for number, (name, content) in enumerate(files):
            path = folder / str(number)
            path.write_bytes(content)
            yield Job(name, path, detect(content[:65536], Path(name).name, path), Path(name).name)
            if number % 10 == 0:
                (folder / f"healthy {number}").write_bytes(b"healthy words")
                yield Job(f"healthy {number}", folder / f"healthy {number}", "text/plain", "a.txt")

    counts: dict[str, int] = {}
    seen = set()
    with ParserPool(2, Limits(seconds=20, memory_mb=1024, file_mb=10)) as pool:
        for outcome in pool.parse_many(jobs()):
            seen.add(outcome.key)
            if outcome.key.startswith("healthy"):
                assert outcome.parsed.text == "healthy words"
                continue
            assert outcome.parsed or outcome.failure.reason in FAILURE_REASONS, outcome.key
            reason = outcome.failure.reason if outcome.failure else "text"
            counts[reason] = counts.get(reason, 0) + 1
    assert {name for name, _ in files} <= seen
    assert not [
        child for child in psutil.Process().children(recursive=True) if "sandbox_worker" in " ".join(child.cmdline())
    ]
    return counts


def test_a_sample_of_damaged_files(tmp_path: Path) -> None:
    files = list(mutants(seed=1, flips=70))
    counts = parse_all(random.Random(1).sample(files, 150), tmp_path)
    assert sum(counts.values()) == 150


@pytest.mark.slow
def test_two_thousand_damaged_files(tmp_path: Path) -> None:
    files = list(mutants(seed=2, flips=70))
    assert len(files) >= 2000
    counts = parse_all(files, tmp_path)
    print(dict(sorted(counts.items())))
    assert sum(counts.values()) == len(files)
