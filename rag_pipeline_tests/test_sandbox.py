"""Worker processes: what a file does to its worker costs that file, and nothing else."""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rag_pipeline.core.errors import SourceError
from rag_pipeline.core.media_types import DOCX, XLSX
from rag_pipeline.core.parsing import parse
from rag_pipeline.core.sandbox import Job, Limits, Outcome, ParserPool
from rag_pipeline_tests.pdf_files import Text, make_pdf
from rag_pipeline_tests.shared import shared

CHILD = "a child of a parser"
STUB = "rag_pipeline_tests.parser_stubs:misbehave"
ROOMY = Limits(seconds=60, memory_mb=1024, file_mb=100)
TIGHT = Limits(seconds=2, memory_mb=300, file_mb=1)


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    """Nothing that a test started is running when it ends."""
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not [
        process for process in psutil.process_iter(["cmdline"]) if (process.info["cmdline"] or [])[-1:] == [CHILD]
    ]


def parse_files(
    folder: Path, files: dict[str, bytes], limits: Limits, media_type: str = "text/plain", **options: str
) -> dict[str, Outcome]:
    """The outcome of each of these files, parsed together by two workers."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    jobs = [Job(name, folder / name, media_type, name) for name in files]
    with ParserPool(2, limits, **options) as pool:
        return {outcome.key: outcome for outcome in pool.parse_many(jobs)}


def result(outcome: Outcome) -> str:
    return outcome.failure.reason if outcome.failure else outcome.parsed.text if outcome.parsed else "nothing"


def test_files_are_parsed_and_the_very_bytes_are_hashed(tmp_path: Path) -> None:
    outcomes = parse_files(tmp_path, {f"{n}.txt": f"words {n}".encode() for n in range(20)}, ROOMY)
    assert {name: result(outcome) for name, outcome in outcomes.items()} == {
        f"{n}.txt": f"words {n}" for n in range(20)
    }
    assert outcomes["3.txt"].content_hash == hashlib.sha256(b"words 3").digest()


def test_a_pool_that_parses_nothing_starts_nothing() -> None:
    with ParserPool(2, ROOMY) as pool:
        assert list(pool.parse_many([])) == []
        assert not psutil.Process().children()


def test_jobs_are_taken_only_a_little_ahead(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"words")
    taken = []

    def jobs() -> Iterator[Job]:
        for number in range(1000):
            taken.append(threading.get_ident())
            yield Job(number, tmp_path / "a", "text/plain", "a")

    with ParserPool(2, ROOMY) as pool:
        outcomes = pool.parse_many(jobs())
        for _ in range(10):
            next(outcomes)
        outcomes.close()
    assert 10 <= len(taken) <= 16
    assert set(taken) == {threading.get_ident()}


def test_changed_and_vanished_files_are_told_apart_from_failures(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new words")
    expected = hashlib.sha256(b"old words").digest()
    jobs = [
        Job("changed", tmp_path / "a", "text/plain", "a", expected),
        Job("gone", tmp_path / "b", "text/plain", "b"),
        Job("same", tmp_path / "a", "text/plain", "a", hashlib.sha256(b"new words").digest()),
    ]
    with ParserPool(2, ROOMY) as pool:
        outcomes = {outcome.key: outcome for outcome in pool.parse_many(jobs)}
    assert outcomes["changed"].changed
    assert outcomes["changed"].content_hash == hashlib.sha256(b"new words").digest()
    assert outcomes["changed"].parsed is outcomes["changed"].failure is None
    assert outcomes["gone"].missing
    assert result(outcomes["same"]) == "new words"


@pytest.mark.parametrize(
    ("word", "reason", "detail"),
    [
        ("hang", "timed out", "longer than 2 s"),
        ("hang-in-child", "timed out", "longer than 2 s"),
        ("segfault", "crashed", "SIGSEGV"),
        ("kill", "crashed", "SIGKILL"),
        ("exit", "crashed", "status 3"),
        ("swell", "out of memory", "300 MB"),
        ("swell-slowly", "out of memory", "300 MB"),
        ("swell-natively", "out of memory", "300 MB"),
    ],
)
def test_a_parser_that_misbehaves_costs_one_file(word: str, reason: str, detail: str, tmp_path: Path) -> None:
    files = {f"{n}": b"healthy words" for n in range(6)}
    files["3"] = word.encode()
    outcomes = parse_files(tmp_path, files, TIGHT, parser=STUB)
    assert outcomes["3"].failure.reason == reason
    assert detail in outcomes["3"].failure.detail
    assert {result(outcomes[n]) for n in files if n != "3"} == {"healthy words"}


def test_too_large_files_and_odd_ones_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    jobs = [Job("pipe", tmp_path / "pipe", "text/plain", "pipe")]
    (tmp_path / "large").write_bytes(b"x" * (2**20 + 1))
    (tmp_path / "fits").write_bytes(b"x" * 2**20)
    jobs += [Job(name, tmp_path / name, "text/plain", name) for name in ("large", "fits")]
    with ParserPool(1, TIGHT) as pool:
        outcomes = {outcome.key: outcome for outcome in pool.parse_many(jobs)}
    assert {name: result(outcome)[:16] for name, outcome in outcomes.items()} == {
        "pipe": "unsupported type",
        "large": "too large",
        "fits": "x" * 16,
    }


def test_a_parser_reaches_no_network_and_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        files = {
            "connect": b"connect %d" % port,
            "download": b"download http://127.0.0.1:%d/x" % port,
            "environment": b"environment",
        }
        outcomes = parse_files(tmp_path, files, TIGHT, parser=STUB)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "no network while parsing" in outcomes["connect"].failure.detail
    assert outcomes["download"].failure
    assert "OPENAI_API_KEY" not in outcomes["environment"].parsed.text


def test_remote_files_are_fetched_for_the_worker(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/docs/a.txt", b"remote words")
    memory.pipe("/docs/large.txt", b"x" * (2**20 + 1))
    memory.pipe("/docs/book.pdf", make_pdf([[Text(72, 700, f"page number {n}")] for n in range(230)]))
    names = ("a.txt", "large.txt", "none.txt", "book.pdf")
    types = ("text/plain", "text/plain", "text/plain", "application/pdf")
    jobs = [Job(name, f"memory://docs/{name}", type_, name) for name, type_ in zip(names, types, strict=True)]
    with ParserPool(2, TIGHT) as pool:
        outcomes = {outcome.key: outcome for outcome in pool.parse_many(jobs)}
    assert result(outcomes["a.txt"]) == "remote words"
    assert outcomes["a.txt"].content_hash == hashlib.sha256(b"remote words").digest()
    assert result(outcomes["large.txt"]) == "too large"
    assert outcomes["none.txt"].missing
    assert outcomes["book.pdf"].parsed.elements[-1].page == 230


def test_a_source_that_cannot_be_read_is_an_error_of_the_run() -> None:
    job = Job("a", "nosuchprotocol://bucket/a.txt", "text/plain", "a.txt")
    with ParserPool(1, TIGHT) as pool, pytest.raises(SourceError, match="nosuchprotocol"):
        list(pool.parse_many([job]))


def test_a_large_pdf_is_read_in_shards_and_joined_as_if_whole(tmp_path: Path) -> None:
    content = make_pdf([[Text(72, 700, f"These are words of page {n}.")] for n in range(1, 451)])
    (tmp_path / "a.pdf").write_bytes(content)
    with ParserPool(2, ROOMY) as pool:
        (outcome,) = pool.parse_many([Job("a", tmp_path / "a.pdf", "application/pdf", "a.pdf")])
    assert outcome.parsed == parse(content, "application/pdf", "a.pdf")
    assert outcome.content_hash == hashlib.sha256(content).digest()


def xlsx(rows: str) -> bytes:
    """A workbook of one sheet that claims to be as large as can be."""
    schemas = "http://schemas.openxmlformats.org"
    main, office = f"{schemas}/spreadsheetml/2006/main", f"{schemas}/officeDocument/2006/relationships"
    kind = "application/vnd.openxmlformats"

    def link(name: str, target: str) -> str:
        relation = f'<Relationship Id="r1" Type="{office}/{name}" Target="{target}"/>'
        return f'<Relationships xmlns="{schemas}/package/2006/relationships">{relation}</Relationships>'

    types = "".join(
        f'<Override PartName="/xl/{part}" ContentType="{kind}-officedocument.spreadsheetml.{name}+xml"/>'
        for part, name in (("workbook.xml", "sheet.main"), ("worksheets/sheet1.xml", "worksheet"))
    )
    types += f'<Default Extension="rels" ContentType="{kind}-package.relationships+xml"/>'
    sheets = '<sheets><sheet name="S" sheetId="1" r:id="r1"/></sheets>'
    claim = '<dimension ref="A1:XFD1048576"/>'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", f'<Types xmlns="{schemas}/package/2006/content-types">{types}</Types>')
        archive.writestr("_rels/.rels", link("officeDocument", "xl/workbook.xml"))
        archive.writestr("xl/_rels/workbook.xml.rels", link("worksheet", "worksheets/sheet1.xml"))
        archive.writestr("xl/workbook.xml", f'<workbook xmlns="{main}" xmlns:r="{office}">{sheets}</workbook>')
        sheet = f'<worksheet xmlns="{main}">{claim}<sheetData>{rows}</sheetData></worksheet>'
        archive.writestr("xl/worksheets/sheet1.xml", sheet)
    return buffer.getvalue()


def zip_bomb() -> bytes:
    """A Word file whose document unpacks to 400 MB of white space."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("word/document.xml", b" " * 400 * 2**20)
    return buffer.getvalue()


def entity_bomb() -> bytes:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    return f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a0 "ha">{entities}]><a>&a9;</a>'.encode()


def bombs(secret: Path, rows: int, pages: int) -> dict[str, tuple[str, bytes]]:
    """Files that are more than they look: media type and content."""
    last_cell = '<row r="1048576"><c r="A1048576" t="inlineStr"><is><t>last words</t></is></c></row>'
    empty_rows = "".join(f'<row r="{n}"/>' for n in range(1, rows + 1))
    return {
        "zip.docx": (DOCX, zip_bomb()),
        "entities.xml": ("application/xml", entity_bomb()),
        "external.xml": (
            "application/xml",
            f'<!DOCTYPE a [<!ENTITY x SYSTEM "{secret.as_uri()}">]><a>words &x;</a>'.encode(),
        ),
        "rows.xlsx": (XLSX, xlsx(empty_rows + last_cell)),
        "far.xlsx": (XLSX, xlsx(last_cell)),
        "deep.html": ("text/html", b"<div>" * 200_000 + b"bottom"),
        "deep.json": ("application/json", b"[" * 200_000),
        "deep.xml": ("application/xml", b"<a>" * 200_000 + b"x" + b"</a>" * 200_000),
        "spans.html": ("text/html", b"<table>" + b"<tr><th colspan=999999 rowspan=999999>x<td>y" * 500 + b"</table>"),
        "pages.pdf": ("application/pdf", make_pdf([[Text(72, 700, "page")]] * pages)),
        "stream.pdf": ("application/pdf", make_pdf([[]], contents=zlib.compress(b" " * 300 * 2**20))),
        "long.json": ("application/json", json.dumps({"a" * 1000: ["b" * 1000] * 50}).encode()),
    }


def blow_up(folder: Path, rows: int, pages: int) -> None:
    """Parse every bomb beside a healthy file, and see what became of each."""
    secret = folder / "secret.txt"
    secret.write_text("the secret")
    files = bombs(secret, rows, pages)
    jobs = []
    for name, (media_type, content) in files.items():
        (folder / name).write_bytes(content)
        (folder / f"{name}.txt").write_bytes(b"healthy words")
        jobs += [
            Job(name, folder / name, media_type, name),
            Job(f"{name}.txt", folder / f"{name}.txt", "text/plain", "a"),
        ]
    with ParserPool(2, Limits(seconds=60, memory_mb=400, file_mb=100)) as pool:
        outcomes = {outcome.key: outcome for outcome in pool.parse_many(jobs)}
    results = {name: result(outcomes[name]) for name in files}
    assert {result(outcomes[f"{name}.txt"]) for name in files} == {"healthy words"}
    assert "secret" not in results["external.xml"]
    assert outcomes["pages.pdf"].parsed.elements[-1].page == pages
    assert results["spans.html"].count("x") == 500
    wanted = {
        "zip.docx": "out of memory",
        "entities.xml": "corrupt",
        "external.xml": "words \ufffd",
        "rows.xlsx": "S\n\nlast words",
        "far.xlsx": "S\n\nlast words",
        "deep.html": "corrupt",
        "deep.json": "corrupt",
        "deep.xml": "corrupt",
        "stream.pdf": "out of memory",
    }
    assert {name: results[name] for name in wanted} == wanted


def test_bombs_cost_one_file_each(tmp_path: Path) -> None:
    blow_up(tmp_path, rows=20_000, pages=300)


@pytest.mark.slow
def test_a_million_rows_and_ten_thousand_pages_cost_one_file_each(tmp_path: Path) -> None:
    blow_up(tmp_path, rows=1_000_000, pages=10_000)


@pytest.mark.slow
def test_a_manual_of_2415_pages_takes_less_than_500_mb_a_worker() -> None:
    path = shared("corpora", "r-manuals", "refman.pdf")
    with ParserPool(2, Limits(seconds=120, memory_mb=500, file_mb=100)) as pool:
        (outcome,) = pool.parse_many([Job("refman", path, "application/pdf", "refman.pdf")])
    assert outcome.failure is None
    assert outcome.parsed.metadata["pages"] == 2415


def test_workers_leave_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    (tmp_path / "hang").write_bytes(b"hang")
    (tmp_path / "words").write_bytes(b"words")
    script = f"""
from pathlib import Path
from rag_pipeline.core.sandbox import Job, Limits, ParserPool
jobs = [Job(name, Path({str(tmp_path)!r}, name), "text/plain", name) for name in ("words", "hang")]
with ParserPool(2, Limits(seconds=1, memory_mb=300, file_mb=1), parser={STUB!r}) as pool:
    for outcome in pool.parse_many(jobs):
        print(outcome.key, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "words\n"
        workers = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_abandoned_work_is_ended_at_once(tmp_path: Path) -> None:
    names = ["words", "hang", "hang too"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    jobs = [Job(name, tmp_path / name, "text/plain", name) for name in names]
    with ParserPool(2, Limits(seconds=3600, memory_mb=300, file_mb=1), parser=STUB) as pool:
        outcomes = pool.parse_many(jobs)
        assert result(next(outcomes)) == "words"
        outcomes.close()
        assert result(next(pool.parse_many(jobs[:1]))) == "words"
