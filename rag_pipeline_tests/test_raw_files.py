"""raw_files: what the manifest learns from a listing, and what is read for it."""

import os
from datetime import date
from types import SimpleNamespace

import fsspec
import pytest

from rag_pipeline.core import collections
from rag_pipeline.core.errors import SourceError
from rag_pipeline.core.stages import raw_files
from rag_pipeline.core.stages.raw_files import SMALL_REMOVAL, FilesReport, update_manifest
from rag_pipeline_tests.pipelines import UNPARSABLE, Aborted, Pipeline


def update(pipeline: Pipeline, **options: bool | float) -> FilesReport:
    return update_manifest(pipeline.connection, pipeline.collection, **options)


def manifest(pipeline: Pipeline) -> dict[str, tuple]:
    rows = pipeline.rows(
        """SELECT path, size, encode(content_hash, 'hex'), media_type, removed, failure_reason
           FROM rag.document WHERE collection = %(name)s"""
    )
    return {path: tuple(values) for path, *values in rows}


def counts(report: FilesReport) -> dict[str, int]:
    """The figures that are not 0."""
    return {key: value for key, value in vars(report).items() if value and key != "changes"}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were opened, in any order."""
    opened: list[str] = []
    open_file = raw_files.open_file

    def remember(where: str):
        opened.append(where.rpartition("/")[2])
        return open_file(where)

    monkeypatch.setattr(raw_files, "open_file", remember)
    return opened


def refuse(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make these files unreadable, for the superuser too."""
    open_file = raw_files.open_file

    def refusing(where: str):
        if where.rpartition("/")[2] in names:
            raise PermissionError(13, "Permission denied", where)
        return open_file(where)

    monkeypatch.setattr(raw_files, "open_file", refusing)


def test_a_first_run_records_every_file(pipeline):
    pipeline.write("a.txt", "one")
    pipeline.write("b/c.md", "# two")
    (pipeline.folder / ".hidden").touch()
    report = update(pipeline)
    assert counts(report) == {"seen": 2, "added": 2, "skipped": 1}
    assert sorted(report.changes) == [("a.txt", "added", 3), ("b/c.md", "added", 5)]
    sha256 = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # of "one"
    assert manifest(pipeline)["a.txt"] == (3, sha256, "text/plain", False, None)
    assert manifest(pipeline)["b/c.md"][2] == "text/markdown"


def test_a_second_run_reads_nothing_and_writes_nothing(pipeline, read):
    pipeline.write("a.txt", "one")
    pipeline.write("b.txt", "two")
    update(pipeline)
    read.clear()
    before = pipeline.rows("SELECT ctid, xmin FROM rag.document")
    assert counts(update(pipeline)) == {"seen": 2, "unchanged": 2}
    assert read == []
    assert pipeline.rows("SELECT ctid, xmin FROM rag.document") == before


def test_a_changed_file_alone_is_read_again(pipeline, read):
    pipeline.write("a.txt", "one")
    pipeline.write("b.txt", "two")
    update(pipeline)
    before = manifest(pipeline)
    read.clear()
    pipeline.write("a.txt", "won")
    assert counts(update(pipeline)) == {"seen": 2, "changed": 1, "unchanged": 1}
    assert read == ["a.txt"]
    assert manifest(pipeline)["a.txt"][1] != before["a.txt"][1]
    assert manifest(pipeline)["b.txt"] == before["b.txt"]


def test_a_touched_file_is_read_once_and_has_not_changed(pipeline, read):
    pipeline.write("a.txt", "one")
    update(pipeline)
    pipeline.write("a.txt", "one")
    read.clear()
    assert counts(update(pipeline)) == {"seen": 1, "unchanged": 1}
    assert counts(update(pipeline)) == {"seen": 1, "unchanged": 1}
    assert read == ["a.txt"]


def test_an_edit_of_the_same_size_within_the_same_tick_is_seen(pipeline):
    file = pipeline.folder / "a.txt"
    file.write_text("one")
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    update(pipeline)
    file.write_text("two")
    os.utime(file, ns=times)
    assert counts(update(pipeline)) == {"seen": 1, "changed": 1}


def test_a_change_under_the_old_time_is_seen_once_the_parser_met_it(pipeline):
    """`cp -p` of a file of the same size shows in no listing; the parser, which hashes what it reads, sees it."""
    pipeline.write("a.txt", "one apple")
    times = (pipeline.folder / "a.txt").stat()
    update(pipeline)
    pipeline.write("a.txt", "two pears")
    os.utime(pipeline.folder / "a.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert pipeline.run().parsed.postponed == 1
    run = pipeline.run()
    assert (run.files.changed, run.parsed.documents, run.published.published) == (1, 1, 1)
    assert pipeline.found("pears") == {"a.txt"}


def test_a_deleted_file_is_marked_and_comes_back_as_added(pipeline):
    file = pipeline.write("a.txt", "one")
    update(pipeline)
    file.unlink()
    report = update(pipeline)
    assert counts(report) == {"removed": 1}
    assert report.changes == [("a.txt", "removed", 3)]
    assert manifest(pipeline)["a.txt"][3]
    assert counts(update(pipeline)) == {}  # gone already
    pipeline.write("a.txt", "one")
    assert counts(update(pipeline)) == {"seen": 1, "added": 1}
    assert not manifest(pipeline)["a.txt"][3]


def test_a_renamed_file_is_an_addition_and_a_removal_of_the_same_content(pipeline):
    pipeline.write("a.txt", "one")
    update(pipeline)
    pipeline.rename("a.txt", "b.txt")
    assert counts(update(pipeline)) == {"seen": 1, "added": 1, "removed": 1}
    assert manifest(pipeline)["a.txt"][1] == manifest(pipeline)["b.txt"][1]


def test_a_copy_is_an_addition(pipeline):
    pipeline.write("a.txt", "one")
    update(pipeline)
    pipeline.copy("a.txt", "b.txt")
    assert counts(update(pipeline)) == {"seen": 2, "added": 1, "unchanged": 1}


def test_an_unreadable_file_is_recorded_and_holds_up_nothing(pipeline, monkeypatch):
    pipeline.write("a.txt", "one")
    pipeline.write("b.txt", "two")
    with monkeypatch.context() as patch:
        refuse(patch, "a.txt")
        for _ in range(2):  # it is looked at every time
            report = update(pipeline)
            assert (report.seen, report.unreadable) == (2, 1)
        assert manifest(pipeline)["a.txt"] == (3, None, None, False, "unreadable")
        assert manifest(pipeline)["b.txt"][1]
    assert update(pipeline).changed == 1
    assert manifest(pipeline)["a.txt"][4] is None


def test_a_file_that_becomes_unreadable_stays_served_as_it_was(pipeline, monkeypatch):
    pipeline.write("a.txt", "Apples are red.")
    pipeline.run()
    pipeline.write("a.txt", "Pears are green.")
    with monkeypatch.context() as patch:
        refuse(patch, "a.txt")
        pipeline.run()
        assert pipeline.failures() == {"a.txt": "unreadable"}
        assert pipeline.found("apples") == {"a.txt"}
        pipeline.assert_clean()
    pipeline.run()
    assert pipeline.failures() == {}
    assert (pipeline.found("apples"), pipeline.found("pears")) == (set(), {"a.txt"})


def test_what_is_unreadable_is_said_to_be_whatever_became_of_its_last_version(pipeline, monkeypatch):
    pipeline.write("a.txt", UNPARSABLE)
    pipeline.write("b.txt", "Apples are red.")
    pipeline.run()
    pipeline.write("b.txt", "Pears are green.")
    update(pipeline)  # and the run ended
    pipeline.write("a.txt", "Never seen.")
    pipeline.write("b.txt", "Never seen.")
    with monkeypatch.context() as patch:
        refuse(patch, "a.txt", "b.txt")
        pipeline.run()
        assert pipeline.failures() == {"a.txt": "unreadable", "b.txt": "unreadable"}


def test_an_unreadable_file_that_is_deleted_is_forgotten(pipeline, monkeypatch):
    pipeline.write("a.txt", "one")
    with monkeypatch.context() as patch:
        refuse(patch, "a.txt")
        pipeline.run()
    pipeline.delete("a.txt")
    assert pipeline.run().published.removed == 1
    assert manifest(pipeline) == {}


def test_odd_names_go_through_the_database(pipeline):
    names = [
        "with space.txt",
        "new\nline.txt",
        "日本語.txt",
        "e\u0301.txt",
        "\u00e9.txt",
        "%s %(name)s.txt",
        "'\";--.txt",
    ]
    for name in names:
        pipeline.write(name, f"content of {name}")
    pipeline.run()
    assert set(manifest(pipeline)) == set(names) == set(pipeline.served())
    pipeline.delete(*names)
    pipeline.run()
    assert manifest(pipeline) == {}


@pytest.mark.parametrize("why", ["missing", "unreadable"])
def test_a_source_that_cannot_be_listed_changes_nothing(pipeline, monkeypatch, why):
    for number in range(3):
        pipeline.write(f"sub/{number}.txt", f"apple {number}")
    pipeline.run()
    pipeline.write("new.txt", "not to be seen")
    before = pipeline.rows("SELECT ctid, xmin, d.* FROM rag.document d ORDER BY path")
    if why == "missing":
        pipeline.folder.rename(pipeline.folder.with_name("elsewhere"))
    else:
        scandir = os.scandir

        def refusing(path: str):
            if str(path).endswith("sub"):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(raw_files.list_source.__globals__["os"], "scandir", refusing)
    with pytest.raises(SourceError):
        pipeline.run()
    assert pipeline.rows("SELECT ctid, xmin, d.* FROM rag.document d ORDER BY path") == before
    assert pipeline.found("apple") == {"sub/0.txt", "sub/1.txt", "sub/2.txt"}


def fill(pipeline: Pipeline, number: int) -> list[str]:
    paths = [f"{n:03}.txt" for n in range(number)]
    for path in paths:
        pipeline.write(path, f"apple {path}")
    update(pipeline)
    return paths


def test_a_mass_removal_is_withheld_and_the_rest_goes_on(pipeline):
    paths = fill(pipeline, 15)
    pipeline.run()
    pipeline.delete(*paths[:10])
    pipeline.write("new.txt", "apple new")
    run = pipeline.run()
    assert counts(run.files) == {"seen": 6, "added": 1, "unchanged": 5, "withheld": 10}
    assert run.published.published == 1
    assert pipeline.found("apple") == {*paths, "new.txt"}
    assert pipeline.run().files.withheld == 10  # until somebody consents
    assert counts(pipeline.run(allow_mass_removal=True).files) == {"seen": 6, "removed": 10, "unchanged": 6}
    assert pipeline.found("apple") == {*paths[10:], "new.txt"}
    pipeline.assert_clean()


def test_what_is_withheld_stays_so_whatever_is_added_and_until_it_is_back(pipeline):
    paths = fill(pipeline, 20)
    pipeline.run()
    kept = pipeline.folder.rename(pipeline.folder.with_name("kept"))
    others = [f"other {path}" for path in paths]
    for path in others:  # as many, where another disk was mounted
        pipeline.write(path, f"pear {path}")
    for _ in range(3):
        assert pipeline.run().files.withheld == 20
    assert pipeline.found("apple") == {*paths}
    for path in paths[:11]:
        (kept / path).rename(pipeline.folder / path)
    assert pipeline.run().files.withheld == 9  # few as they are
    pipeline.delete(*others[:3], paths[0])
    (kept / paths[11]).rename(pipeline.folder / "moved.txt")
    run = pipeline.run()  # what else goes is judged by itself, and what is there under another path may go
    assert (run.files.removed, run.files.withheld) == (5, 8)
    assert pipeline.found("apple") == {*paths[1:11], "moved.txt", *paths[12:]}
    pipeline.change(max_removal_fraction=1.0)
    assert pipeline.run().files.removed == 8
    assert pipeline.found("apple") == {*paths[1:11], "moved.txt"}
    pipeline.assert_clean()


def test_what_else_goes_is_judged_by_what_does_not_wait(pipeline):
    paths = fill(pipeline, 40)
    pipeline.run()
    pipeline.delete(*paths[:21])
    assert pipeline.run().files.withheld == 21
    pipeline.delete(*paths[21:31])  # of forty a quarter, and of the nineteen that were left more than half
    assert pipeline.run().files.withheld == 31
    assert pipeline.run(allow_mass_removal=True).files.removed == 31
    pipeline.assert_clean()


def test_a_run_that_is_killed_gives_no_consent(pipeline, monkeypatch):
    """The files that it added would make the removal a small one."""
    paths = fill(pipeline, 20)
    pipeline.run()
    pipeline.delete(*paths[:15])
    for path in paths:
        pipeline.write(f"other {path}", f"pear {path}")
    with monkeypatch.context() as patch:
        patch.setattr(raw_files, "_mark_withheld", aborted_after(1, raw_files._mark_withheld))
        with pytest.raises(Aborted):
            pipeline.run()
    assert len(manifest(pipeline)) == 40
    assert pipeline.run().files.withheld == 15


def aborted_after(calls: int, function):
    """The function, whose call after so many never comes back."""
    left = iter(range(calls))

    def call(*arguments: object) -> object:
        if next(left, None) is None:
            raise Aborted
        return function(*arguments)

    return call


def test_an_empty_source_of_a_filled_collection_is_a_mass_removal(pipeline):
    paths = fill(pipeline, SMALL_REMOVAL)
    pipeline.delete(*paths)
    assert counts(update(pipeline)) == {"withheld": SMALL_REMOVAL}


def test_an_empty_folder_in_place_of_the_source_is_told_and_changes_nothing(pipeline):
    """A mount point before the mount, say; few files, whose deletion by hand would need no consent."""
    pipeline.write("a.txt", "Apples are red.")
    pipeline.run()
    mounted = pipeline.folder.rename(pipeline.folder.with_name("mounted"))
    pipeline.folder.mkdir()
    before = pipeline.rows("SELECT ctid, xmin, d.* FROM rag.document d ORDER BY path")
    for mark in ([], [".not-mounted"]):
        for name in mark:
            (pipeline.folder / name).touch()
        with pytest.raises(SourceError, match=r"has no file and is not the folder it was.*docs --allow-mass-removal"):
            pipeline.run()
    assert pipeline.rows("SELECT ctid, xmin, d.* FROM rag.document d ORDER BY path") == before
    empty = pipeline.folder.rename(pipeline.folder.with_name("empty"))
    mounted.rename(pipeline.folder)
    assert counts(update(pipeline)) == {"seen": 1, "unchanged": 1}
    pipeline.folder.rename(mounted)
    empty.rename(pipeline.folder)
    assert pipeline.run(allow_mass_removal=True).published.removed == 1
    assert counts(update(pipeline)) == {"skipped": 1}  # consent was given to this folder


def test_a_folder_that_was_replaced_by_one_with_files_is_the_source_from_then_on(pipeline):
    pipeline.write("a.txt", "Apples are red.")
    pipeline.run()
    pipeline.folder.rename(pipeline.folder.with_name("old"))
    pipeline.write("b.txt", "Pears are green.")
    assert counts(update(pipeline)) == {"seen": 1, "added": 1, "removed": 1}
    pipeline.delete("b.txt")
    assert counts(update(pipeline)) == {"removed": 1}


def test_a_sample_is_read_again_and_a_month_covers_all(pipeline, read, monkeypatch):
    """`cp -p` of a file of the same size shows in no listing."""
    paths = fill(pipeline, 12)
    for path in paths:
        times = (pipeline.folder / path).stat()
        pipeline.write(path, f"berry {path}")
        os.utime(pipeline.folder / path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert counts(update(pipeline)) == {"seen": 12, "unchanged": 12}
    read.clear()
    changed = 0
    for day in range(1, 31):
        monkeypatch.setattr(raw_files, "date", SimpleNamespace(today=lambda day=day: date(2026, 11, day)))
        changed += update(pipeline, rehash_fraction=1 / 30).changed
    assert (sorted(read), changed) == (paths, 12)  # each once
    pipeline.run()
    assert (pipeline.found("apple"), pipeline.found("berry")) == (set(), {*paths})


@pytest.mark.parametrize(
    ("number", "deleted", "fraction", "withheld"),
    [
        (20, 10, 0.5, False),  # not more than half
        (20, 11, 0.5, True),
        (9, 9, 0.5, False),  # fewer than ten
        (40, 10, 0.2, True),
        (20, 20, 1.0, False),
        (20, 10, 0.0, True),
    ],
)
def test_consent_is_needed_beyond_a_share_and_a_number(pipeline, number, deleted, fraction, withheld):
    pipeline.change(max_removal_fraction=fraction)
    paths = fill(pipeline, number)
    pipeline.delete(*paths[:deleted])
    report = update(pipeline)
    assert (report.withheld, report.removed) == ((deleted, 0) if withheld else (0, deleted))


def test_moved_files_are_not_lost(pipeline):
    paths = fill(pipeline, 15)
    (pipeline.folder / "sub").mkdir()
    for path in paths:
        pipeline.rename(path, f"sub/{path}")
    assert counts(update(pipeline)) == {"seen": 15, "added": 15, "removed": 15}


def test_duplicates_of_what_stays_are_not_lost(pipeline):
    pipeline.write("original.txt", "the same")
    for number in range(12):
        pipeline.copy("original.txt", f"copy{number}.txt")
    update(pipeline)
    pipeline.delete(*(f"copy{number}.txt" for number in range(12)))
    assert counts(update(pipeline)) == {"seen": 1, "removed": 12, "unchanged": 1}


def test_removals_that_were_consented_to_are_not_counted_again(pipeline):
    """After a run that ended between its first and its last stage."""
    paths = fill(pipeline, 15)
    pipeline.run()
    pipeline.delete(*paths[:12])
    assert update(pipeline, allow_mass_removal=True).removed == 12
    pipeline.delete(paths[12])
    run = pipeline.run()
    assert counts(run.files) == {"seen": 2, "removed": 1, "unchanged": 2}
    assert pipeline.found("apple") == {*paths[13:]}


def test_a_remote_source_is_read_changed_and_removed_from(pipeline, parsing_in_process):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pipe({"/library/a.txt": b"Apples are red.", "/library/b/c.md": b"# Pears\n\nPears are green."})
    collections.add(
        pipeline.connection, "remote", "memory://library", {"embedding_model": "openai/stand-in", "dimensions": 64}
    )
    pipeline.name = "remote"
    assert counts(pipeline.run().files) == {"seen": 2, "added": 2}
    assert (pipeline.found("apples"), pipeline.found("pears")) == ({"a.txt"}, {"b/c.md"})
    memory.pipe_file("/library/a.txt", b"Quinces reign.")
    memory.pipe_file("/library/d.txt", b"Plums")
    assert counts(pipeline.run().files) == {"seen": 3, "added": 1, "changed": 1, "unchanged": 1}
    assert (pipeline.found("apples"), pipeline.found("quinces"), pipeline.found("plums")) == (
        set(),
        {"a.txt"},
        {"d.txt"},
    )
    memory.rm_file("/library/b/c.md")
    assert counts(pipeline.run().files)["removed"] == 1
    assert pipeline.found("pears") == set()
    pipeline.assert_clean()
    memory.rm("/library", recursive=True)
    with pytest.raises(SourceError, match="memory://library"):
        pipeline.run()
    assert pipeline.found("plums") == {"d.txt"}


def test_an_include_glob_that_is_changed_adds_and_removes(pipeline):
    pipeline.write("a.txt", "apple one")
    pipeline.write("b.md", "apple two")
    pipeline.change(include=("*.txt",))
    pipeline.run()
    assert pipeline.found("apple") == {"a.txt"}
    pipeline.change(include=("*.md",))
    assert counts(pipeline.run().files) == {"seen": 1, "added": 1, "removed": 1, "skipped": 1}
    assert pipeline.found("apple") == {"b.md"}
    pipeline.assert_clean()


def test_a_file_whose_name_is_no_utf8_is_recorded_with_what_to_do(pipeline):
    pipeline.write("a.txt", "one")
    os.rename(pipeline.folder / "a.txt", os.fsencode(pipeline.folder) + b"/lat\xe9.txt")  # noqa: PTH104
    assert update(pipeline).unreadable == 1
    assert pipeline.rows("SELECT path, failure_detail FROM rag.document WHERE collection = %(name)s") == [
        ("lat\\udce9.txt", "it has gone, or its name is not valid UTF-8: then rename it")
    ]
