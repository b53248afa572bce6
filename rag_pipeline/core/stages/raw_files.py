"""raw_files: the manifest. What lies in the source, and what of it has changed since it was last seen."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from itertools import islice
from pathlib import Path
from zlib import crc32

from psycopg import Connection

from rag_pipeline.core.collections import Collection
from rag_pipeline.core.errors import SourceError
from rag_pipeline.core.files import Listing, SourceFile, list_source, location, open_file
from rag_pipeline.core.locking import keep_out_forget
from rag_pipeline.core.media_types import detect
from rag_pipeline.core.parsing import PARSER_VERSION

# Fewer removals than this never need consent, whatever part of the collection they are (invariant 5).
SMALL_REMOVAL = 10

HEAD_BYTES = 64 * 1024
BATCH = 500
CHANGES_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Known:
    """A file as the manifest has it; `withheld`: the source has it no more, and nobody has consented to its removal."""

    size: int
    stamp: str | None
    content_hash: bytes | None
    removed: bool = False
    withheld: bool = False


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file that was read: its sha256 and media type, or why there are none."""

    file: SourceFile
    content_hash: bytes | None
    media_type: str | None
    error: str | None = None


@dataclass
class FilesReport:
    """What this stage saw. `changes` names the first of them: (path, what happened, bytes)."""

    seen: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    withheld: int = 0
    skipped: int = 0
    unreadable: int = 0
    forgotten: int = 0
    changes: list[tuple[str, str, int]] = field(default_factory=list)

    def count(self, path: str, change: str, size: int) -> None:
        setattr(self, change, getattr(self, change) + 1)
        if len(self.changes) < CHANGES_SHOWN:
            self.changes.append((path, change, size))

    def count_read(self, read: ReadFile, known: Known | None, barred: set[bytes]) -> str:
        """Count a file that was read by what has become of it, and say what; `barred` contents were forgotten."""
        if read.content_hash is None:
            change = "unreadable"
        elif read.content_hash in barred:
            change = "forgotten"
        elif known is None or known.removed:
            change = "added"
        elif known.content_hash != read.content_hash:
            change = "changed"
        else:
            self.unchanged += 1
            return "unchanged"
        self.count(read.file.path, change, read.file.size)
        return change


def update_manifest(
    connection: Connection,
    collection: Collection,
    *,
    allow_mass_removal: bool = False,
    rehash_fraction: float = 0.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FilesReport:
    """Bring `rag.document` into line with the source; only files whose size or stamp moved are read, and those of
    today's sample (`rehash_fraction` of all, each in its turn), which a change of neither shows.

    Raises SourceError when the source cannot be listed completely, or is an empty folder in place of the one it was:
    then nothing has changed.
    """
    listing = list_source(collection)
    manifest = read_manifest(connection, collection.name)
    before = dict(manifest)
    if not allow_mass_removal:
        require_source(connection, collection, listing, manifest)
    connection.execute(
        """UPDATE rag.collection SET source_identity = %(identity)s
           WHERE name = %(name)s AND source_identity IS DISTINCT FROM %(identity)s""",
        {"name": collection.name, "identity": listing.identity},
    )
    due = _due_today(rehash_fraction)
    suspects = [
        file for file in listing.files.values() if may_have_changed(file, manifest.get(file.path)) or due(file.path)
    ]
    marked = {path for path, known in before.items() if known.withheld}
    if not allow_mass_removal:
        # First, for what is added from here on would make the same removal a small one, should this run be killed.
        _, withheld = gone_files(collection, before, manifest, listing)
        marked = _mark_withheld(connection, collection.name, marked, {*withheld})
    report = FilesReport(seen=len(listing.files), skipped=listing.skipped, unchanged=len(listing.files) - len(suspects))
    done = 0
    for batch in read_files(collection.source, suspects):
        with connection.transaction():
            _store(connection, collection.name, batch, manifest, report)
        done += len(batch)
        progress(done, len(suspects))
    gone, withheld = gone_files(collection, before, manifest, listing)
    if allow_mass_removal:
        gone, withheld = gone | withheld, {}
    report.withheld = len(withheld)
    if gone:
        _remove(connection, collection.name, gone, report)
    _mark_withheld(connection, collection.name, marked, {*withheld})
    return report


def read_manifest(connection: Connection, name: str) -> dict[str, Known]:
    """What is known of each path."""
    rows = connection.cursor(binary=True).execute(
        "SELECT path, size, stamp, content_hash, removed, withheld FROM rag.document WHERE collection = %s", [name]
    )
    return {path: Known(*columns) for path, *columns in rows}


def require_source(
    connection: Connection, collection: Collection, listing: Listing, manifest: dict[str, Known]
) -> None:
    """Raises SourceError for a folder without a file in place of that which had them all; what is hidden or excluded
    is none (a mount point may have such a mark)."""
    if listing.files or all(known.removed for known in manifest.values()):
        return
    row = connection.execute("SELECT source_identity FROM rag.collection WHERE name = %s", [collection.name]).fetchone()
    if row and row[0] not in (None, listing.identity):
        raise SourceError(
            f"{collection.source}, the source of {collection.name}, has no file and is not the folder it was; nothing "
            f"was changed: mount it, or consent with rag ingest {collection.name} --allow-mass-removal"
        )


def _due_today(fraction: float) -> Callable[[str], bool]:
    """Whether a path is in today's sample; in 1/fraction days each is once."""
    if not fraction:
        return lambda path: False
    days = round(1 / fraction)
    today = date.today().toordinal() % days
    return lambda path: crc32(path.encode()) % days == today


def may_have_changed(file: SourceFile, known: Known | None) -> bool:
    """Whether a file has to be read to know."""
    return known is None or known.removed or known.stamp is None or (known.stamp, known.size) != (file.stamp, file.size)


def read_files(source: str, files: list[SourceFile]) -> Iterator[list[ReadFile]]:
    """The files hashed, side by side, in batches."""

    def read(file: SourceFile) -> ReadFile:
        try:
            where = location(source, file.path)
            with open_file(where) as stream:
                head = stream.read(HEAD_BYTES)
                digest = hashlib.sha256(head)
                while block := stream.read(1 << 20):
                    digest.update(block)
            return ReadFile(file, digest.digest(), detect(head, file.path, None if "://" in where else Path(where)))
        except FileNotFoundError:
            return ReadFile(file, None, None, "it has gone, or its name is not valid UTF-8: then rename it")
        except OSError as error:
            return ReadFile(file, None, None, error.strerror or str(error))

    remaining = iter(files)
    with ThreadPoolExecutor(8) as pool:
        while batch := list(islice(remaining, BATCH)):
            yield list(pool.map(read, batch))


def gone_files(
    collection: Collection, before: dict[str, Known], now: dict[str, Known], listing: Listing
) -> tuple[dict[str, Known], dict[str, Known]]:
    """What the source no longer has of the manifest as it was `before`: what may go, and what waits for consent.

    What `now` is under another path may go. Of the rest waits what was withheld before, whatever has come to the source
    since, and what is too much to go at once: so much of all that does not wait already. With `max_removal_fraction` 1
    nothing is too much.
    """
    gone = {path: known for path, known in before.items() if not known.removed and path not in listing.files}
    if not gone:
        return {}, {}
    share = collection.settings.max_removal_fraction
    present = sum(not known.removed for known in before.values())
    kept = {known.content_hash for path, known in now.items() if path in listing.files}
    lost = {path: known for path, known in gone.items() if known.content_hash not in kept}
    waiting = {path: known for path, known in lost.items() if known.withheld and share < 1}
    fresh = {path: known for path, known in lost.items() if path not in waiting}
    if len(fresh) >= SMALL_REMOVAL and len(fresh) > share * (present - len(waiting)):
        waiting |= fresh
    return {path: known for path, known in gone.items() if path not in waiting}, waiting


def _store(
    connection: Connection, name: str, batch: list[ReadFile], manifest: dict[str, Known], report: FilesReport
) -> None:
    """Write what was read into the database and into `manifest`; a forgotten content is not taken in again."""
    readable, unreadable, forgotten = [], [], []
    # Nothing more is forgotten until the transaction ends.
    keep_out_forget(connection, name)
    barred = barred_contents(connection, name, [read.content_hash for read in batch if read.content_hash])
    for read in batch:
        file, known = read.file, manifest.get(read.file.path)
        change = report.count_read(read, known, barred)
        if change == "unreadable":
            unreadable.append((name, file.path, file.size, file.modified, read.error))
            continue
        manifest[file.path] = Known(file.size, file.stamp, read.content_hash)
        if change == "forgotten":
            forgotten.append(file.path)
        elif manifest[file.path] != known:
            readable.append(
                (
                    *(name, file.path, file.stamp, file.size, file.modified, read.content_hash, read.media_type),
                    *(read.content_hash, read.media_type, str(PARSER_VERSION)),
                )
            )
    with connection.cursor() as cursor:
        cursor.executemany(
            """INSERT INTO rag.document AS d
                   (collection, path, stamp, size, modified, content_hash, media_type, wanted_parse_key)
               VALUES (%s, %s, %s, %s, to_timestamp(%s), %s, %s, rag.parse_key(%s, %s, %s))
               ON CONFLICT (collection, path) DO UPDATE SET
                   stamp = excluded.stamp, size = excluded.size, modified = excluded.modified,
                   content_hash = excluded.content_hash, media_type = excluded.media_type,
                   wanted_parse_key = excluded.wanted_parse_key, removed = false,
                   (failure_stage, failure_reason, failure_detail) = (
                       SELECT d.failure_stage, d.failure_reason, d.failure_detail
                       WHERE d.content_hash = excluded.content_hash AND d.failure_stage <> 'raw_files')""",
            readable,
        )
        cursor.executemany(
            """INSERT INTO rag.document
                   (collection, path, size, modified, failure_stage, failure_reason, failure_detail)
               VALUES (%s, %s, %s, to_timestamp(%s), 'raw_files', 'unreadable', %s)
               ON CONFLICT (collection, path) DO UPDATE SET
                   stamp = NULL, removed = false, failure_stage = excluded.failure_stage,
                   failure_reason = excluded.failure_reason, failure_detail = excluded.failure_detail""",
            unreadable,
        )
    # An earlier version that is served has been replaced, by what nobody is to see.
    if forgotten:
        connection.execute(
            "UPDATE rag.document SET removed = true WHERE collection = %s AND path = ANY (%s)", [name, forgotten]
        )


def barred_contents(connection: Connection, name: str, hashes: list[bytes]) -> set[bytes]:
    """Which of the contents were forgotten."""
    rows = connection.execute(
        "SELECT content_hash FROM rag.forgotten_content WHERE collection = %s AND content_hash = ANY (%s)",
        [name, hashes],
    ).fetchall()
    return {content_hash for (content_hash,) in rows}


def _remove(connection: Connection, name: str, gone: dict[str, Known], report: FilesReport) -> None:
    """Mark what the source no longer has; it leaves the search when pgvector_index publishes."""
    for path, known in gone.items():
        report.count(path, "removed", known.size)
    connection.execute(
        "UPDATE rag.document SET removed = true WHERE collection = %s AND path = ANY (%s)", [name, list(gone)]
    )


def _mark_withheld(connection: Connection, name: str, before: set[str], now: set[str]) -> set[str]:
    """Mark what awaits consent `now`, and that alone, where something else was marked `before`; what is marked then."""
    for paths, withheld in ((now - before, True), (before - now, False)):
        if paths:
            connection.execute(
                "UPDATE rag.document SET withheld = %s WHERE collection = %s AND path = ANY (%s)",
                [withheld, name, list(paths)],
            )
    return now
