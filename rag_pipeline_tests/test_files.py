"""Listing a source: every file that is meant and no other, whatever its name; the whole of it or a SourceError."""

import os
import re
import socket
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_pipeline.core import files
from rag_pipeline.core.collections import Collection, CollectionSettings
from rag_pipeline.core.errors import SourceError
from rag_pipeline.core.files import YOUNG_NS, list_source, location, open_file

ODD_NAMES = [
    "with space.txt",
    " leading.txt",
    "trailing ",
    "new\nline.txt",
    "tab\t.txt",
    "quote'\".txt",
    "back\\slash.txt",
    "per%cent %20.txt",
    "què?*[x]{y}.txt",
    "日本語.txt",
    "e\u0301.txt",
    "\u00e9.txt",
    "🦔.txt",
    "-dash",
    "~tilde",
    "#hash;&.txt",
    "x" * 250 + ".txt",
]


def collection(source: Path | str, **settings: object) -> Collection:
    return Collection("docs", str(source), CollectionSettings("local/all-MiniLM-L6-v2", **settings), None)


def listed(source: Path | str, **settings: object) -> set[str]:
    return set(list_source(collection(source, **settings)).files)


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)


@pytest.fixture
def memory():
    """fsspec's file system in memory, emptied."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield filesystem
    filesystem.store.clear()


def test_a_listing_has_every_file_at_every_depth_with_size_and_time(tmp_path):
    write(tmp_path, "a.txt", "b/c.txt", "b/d/e/f.md")
    os.utime(tmp_path / "a.txt", ns=(5, 1_600_000_000_000_000_007))
    listing = list_source(collection(tmp_path))
    assert set(listing.files) == {"a.txt", "b/c.txt", "b/d/e/f.md"}
    assert all(path == file.path and file.size == len(path) for path, file in listing.files.items())
    assert listing.files["a.txt"].stamp == "1600000000000000007"
    assert listing.files["a.txt"].modified == pytest.approx(1_600_000_000)


def test_a_file_written_just_now_has_no_stamp_that_could_be_trusted(tmp_path, monkeypatch):
    write(tmp_path, "a.txt")
    assert list_source(collection(tmp_path)).files["a.txt"].stamp is None
    later = time.time_ns() + YOUNG_NS + 1
    monkeypatch.setattr(files.time, "time_ns", lambda: later)
    assert list_source(collection(tmp_path)).files["a.txt"].stamp is not None


def test_a_file_written_late_in_a_long_listing_is_young_too(tmp_path, monkeypatch):
    write(tmp_path, "a.txt")
    began, scandir = time.time_ns(), os.scandir
    a_minute_later = began + 60_000_000_000

    def slow(path: str):
        monkeypatch.setattr(files.time, "time_ns", lambda: a_minute_later)
        os.utime(tmp_path / "a.txt", ns=(began, a_minute_later - 1))
        return scandir(path)

    monkeypatch.setattr(files.time, "time_ns", lambda: began)
    monkeypatch.setattr(files.os, "scandir", slow)
    assert list_source(collection(tmp_path)).files["a.txt"].stamp is None


def test_what_is_hidden_is_skipped_and_counted(tmp_path):
    write(tmp_path, "a.txt", ".hidden", ".git/config", "b/.DS_Store", "b/c.txt", "b/.d/e.txt")
    listing = list_source(collection(tmp_path))
    assert set(listing.files) == {"a.txt", "b/c.txt"}
    assert listing.skipped == 4


def test_odd_names_are_names(tmp_path):
    write(tmp_path, *ODD_NAMES, *(f"{name}.folder/{name}" for name in ODD_NAMES[:-1]))
    assert listed(tmp_path) == {*ODD_NAMES, *(f"{name}.folder/{name}" for name in ODD_NAMES[:-1])}
    for name in ODD_NAMES:
        with open_file(location(str(tmp_path), name)) as stream:
            assert stream.read() == name.encode()


def test_a_name_that_is_no_utf8_is_listed_with_escapes(tmp_path):
    folder = os.fsencode(tmp_path)
    os.mkdir(os.path.join(folder, b"folder-\xff"))  # noqa: PTH102, PTH118
    for name in (b"a.txt", b"latin1-\xe9.txt", b"folder-\xff/b.txt"):
        os.close(os.open(os.path.join(folder, name), os.O_CREAT | os.O_WRONLY))  # noqa: PTH118
    assert listed(tmp_path) == {"a.txt", "latin1-\\udce9.txt", "folder-\\udcff/b.txt"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"include": ("*.md",)}, "README.md docs/guide.md docs/de/guide.md"),
        ({"include": ("README.md",)}, "README.md"),
        ({"include": ("*.md", "*.txt")}, "README.md docs/guide.md docs/de/guide.md docs/a.txt notes.txt"),
        ({"include": ("docs/*",)}, "docs/guide.md docs/a.txt"),
        ({"include": ("docs/**",)}, "docs/guide.md docs/a.txt docs/de/guide.md docs/de/x.html"),
        ({"include": ("/docs/*.md",)}, "docs/guide.md"),
        ({"include": ("**/guide.md",)}, "docs/guide.md docs/de/guide.md"),
        ({"include": ("docs/**/guide.md",)}, "docs/guide.md docs/de/guide.md"),
        ({"include": ("*/a.txt",)}, "docs/a.txt"),
        ({"include": ("[nR]*",)}, "README.md notes.txt"),
        ({"include": ("?otes.txt",)}, "notes.txt"),
        ({"exclude": ("*.md", "*.html")}, "docs/a.txt notes.txt"),
        ({"exclude": ("docs/**",)}, "README.md notes.txt"),
        ({"exclude": ("**/de/**",)}, "README.md docs/guide.md docs/a.txt notes.txt"),
        ({"include": ("*.md",), "exclude": ("docs/de/*",)}, "README.md docs/guide.md"),
        ({"include": ("nothing",)}, ""),
        ({"include": ("GUIDE.MD",)}, ""),
    ],
)
def test_globs_choose_by_name_or_by_path(tmp_path, settings, expected):
    write(tmp_path, "README.md", "notes.txt", "docs/guide.md", "docs/a.txt", "docs/de/guide.md", "docs/de/x.html")
    listing = list_source(collection(tmp_path, **settings))
    assert set(listing.files) == set(expected.split())
    assert listing.skipped == 6 - len(listing.files)


def test_links_are_followed_inside_the_source_only_and_never_round_in_circles(tmp_path):
    source = tmp_path / "source"
    write(source, "a.txt", "b/c.txt")
    write(tmp_path, "outside.txt", "source-of-another/d.txt")
    for link, target in {
        "link.txt": "a.txt",
        "b/up": "..",  # a folder that holds the link
        "b/itself": "../b",
        "b2": "b",
        "absolute.txt": source / "a.txt",
        "out.txt": "../outside.txt",
        "out": "..",
        "neighbour": "../source-of-another",
        "broken": "nowhere",
        "self": "self",
        "ping": "pong",
        "pong": "ping",
        "system": "/etc/hostname",
    }.items():
        (source / link).symlink_to(target)
    assert listed(source) == {"a.txt", "b/c.txt", "link.txt", "b2/c.txt", "absolute.txt"}


def test_two_folders_that_link_to_each_other_end(tmp_path):
    write(tmp_path, "a/x.txt", "b/y.txt")
    (tmp_path / "a/b").symlink_to("../b")
    (tmp_path / "b/a").symlink_to("../a")
    assert listed(tmp_path) == {"a/x.txt", "b/y.txt", "a/b/y.txt", "b/a/x.txt"}


def test_a_source_that_is_a_link_itself_is_its_target(tmp_path):
    write(tmp_path / "real", "a.txt")
    (tmp_path / "real/link.txt").symlink_to("a.txt")
    (tmp_path / "source").symlink_to("real")
    assert listed(tmp_path / "source") == {"a.txt", "link.txt"}


def test_what_is_no_regular_file_is_skipped_and_never_opened(tmp_path):
    write(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        listing = list_source(collection(tmp_path))
    assert (set(listing.files), listing.skipped) == ({"a.txt"}, 2)


def test_a_file_that_goes_while_its_folder_is_listed_holds_up_no_other(tmp_path, monkeypatch):
    write(tmp_path, "a.txt", "gone.tmp")
    scandir = os.scandir

    @contextmanager
    def late(folder: str):
        with scandir(folder) as entries:
            found = list(entries)
        (tmp_path / "gone.tmp").unlink()
        yield found

    monkeypatch.setattr("rag_pipeline.core.files.os.scandir", late)
    assert listed(tmp_path) == {"a.txt"}


def test_an_empty_folder_is_an_empty_listing(tmp_path):
    (tmp_path / "sub/sub").mkdir(parents=True)
    assert list_source(collection(tmp_path)).files == {}


@pytest.mark.parametrize(
    "source", ["nowhere", "file.txt", "memory://nowhere", "memory://file.txt", "nosuch://bucket/x"]
)
def test_a_source_that_cannot_be_listed_is_one_line_with_its_name(tmp_path, memory, source):
    write(tmp_path, "file.txt")
    memory.pipe_file("/file.txt", b"x")
    source = source if "://" in source else str(tmp_path / source)
    with pytest.raises(SourceError) as error:
        listed(source)
    assert source in str(error.value)
    assert "nothing was changed" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_read_fails_the_listing(tmp_path, monkeypatch):
    write(tmp_path, "a.txt", "locked/b.txt")
    scandir = os.scandir

    def refuse(path: str):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(files.os, "scandir", refuse)
    with pytest.raises(SourceError, match="Permission denied"):
        listed(tmp_path)


def test_a_remote_listing_has_every_file_with_size_and_time(memory):
    memory.pipe(
        {"/docs/a.txt": b"12345", "/docs/b/c.md": b"", "/docs/.git/x": b"", "/docs/b/.y": b"", "/docsother/z": b""}
    )
    listing = list_source(collection("memory://docs/", include=("*.txt", "*.md")))
    assert {path: file.size for path, file in listing.files.items()} == {"a.txt": 5, "b/c.md": 0}
    assert listing.skipped == 2
    assert abs(listing.files["a.txt"].modified - time.time()) < 60
    with open_file(location("memory://docs/", "a.txt")) as stream:
        assert stream.read() == b"12345"


def test_odd_remote_names_are_names(memory):
    names = [name for name in ODD_NAMES if name == name.strip()]
    memory.pipe({f"/docs/{name}": name.encode() for name in names})
    assert listed("memory://docs") == set(names)
    for name in names:
        with open_file(location("memory://docs", name)) as stream:
            assert stream.read() == name.encode()


class Flaky(MemoryFileSystem):
    """In memory, but one folder cannot be listed."""

    protocol = "flaky"
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("flaky:/"))

    def ls(self, path, detail=True, **kwargs):
        if path.rstrip("/").endswith("locked"):
            raise PermissionError("Access Denied")
        return super().ls(path, detail, **kwargs)


def test_a_remote_folder_that_cannot_be_read_fails_the_listing():
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky().pipe({"/docs/a.txt": b"", "/docs/b/locked/c.txt": b""})
    with pytest.raises(SourceError, match="Access Denied"):
        listed("flaky://docs")


YESTERDAY = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("entry", "stamp", "seconds"),
    [
        ({"ETag": '"abc"', "LastModified": YESTERDAY}, "abc", YESTERDAY.timestamp()),
        ({"etag": "abc", "updated": "2026-01-01T00:00:00Z", "mtime": YESTERDAY}, "abc", YESTERDAY.timestamp()),
        ({"etag": "0x8D", "last_modified": YESTERDAY}, "0x8D", YESTERDAY.timestamp()),
        ({"mtime": 1_700_000_000}, str(1_700_000_000 * 10**9), 1_700_000_000),
        ({"mtime": 1_700_000_000, "created": 5}, str(1_700_000_000 * 10**9), 1_700_000_000),
        ({"name": "of a server that tells nothing"}, None, 0),
    ],
)
def test_a_remote_file_is_told_apart_by_etag_else_by_time_else_not_at_all(entry, stamp, seconds):
    assert files._remote_version(entry) == (stamp, seconds)


def test_a_remote_time_that_is_young_is_no_stamp():
    assert files._remote_version({"mtime": time.time()})[0] is None


@settings(deadline=None)
@given(st.lists(st.text("ab*?[]!/.", min_size=1, max_size=6), max_size=3))
def test_the_globs_of_a_setting_either_fail_by_name_or_work(globs):
    from rag_pipeline.core.collections import parse_settings
    from rag_pipeline.core.errors import UsageError

    try:
        parsed = parse_settings({"include": ",".join(globs)})
    except UsageError as error:
        assert re.match("include=", str(error))
        return
    files._filter(parsed["include"], ())("a/b.txt")
