"""The files of a collection's source: listing them completely, and opening one."""

import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.utils import get_protocol, glob_translate

from rag_pipeline.core.collections import Collection
from rag_pipeline.core.errors import SourceError, UsageError

# A file this young may be written to again within the same tick of its file system's clock: its time tells nothing.
YOUNG_NS = 2_000_000_000

# At the root of a source: questions about its documents, for evaluation. It is none of them.
QUESTIONS = "questions.jsonl"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as a listing shows it.

    `stamp` tells two versions apart before anything is read (None: it cannot), `modified` is in seconds since 1970.
    """

    path: str
    size: int
    stamp: str | None
    modified: float


@dataclass(frozen=True)
class Listing:
    """A complete listing of a source, by path; `skipped` counts what is hidden, excluded or leads outside.

    `identity` tells a local folder from another in its place (None: the source is remote).
    """

    files: dict[str, SourceFile]
    skipped: int
    identity: str | None = None


def list_source(collection: Collection) -> Listing:
    """Every file of the source that the collection's globs let in. Raises SourceError when the listing is not whole."""
    wanted = _filter(collection.settings.include, collection.settings.exclude)
    files, skipped = {}, 0
    remote = "://" in collection.source
    try:
        # Taken first: what is mounted from here on would show its files under an empty folder's identity.
        identity = None if remote else _identity(collection.source)
        for file in (_walk_remote if remote else _walk_local)(collection.source):
            if file is not None and file.path != QUESTIONS and wanted(file.path):
                files[file.path] = file
            else:
                skipped += 1
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SourceError(
            f"cannot list {collection.source}, the source of {collection.name}: {reason}; "
            "nothing was changed: make it readable, and ingest again"
        ) from error
    return Listing(files, skipped, identity)


def location(source: str, path: str) -> str:
    """Where a file of a source lies: a local path or an fsspec URL."""
    return f"{source.rstrip('/')}/{path}"


def open_file(where: str) -> BinaryIO:
    """A file opened for reading bytes. Raises OSError."""
    return fsspec.open(where, "rb").open() if "://" in where else Path(where).open("rb")


def require_source(source: str) -> None:
    """Raises UsageError for a folder that is not there, and for a URL of a kind that nothing here reads."""
    if "://" not in source:
        if not Path(source).is_dir():
            raise UsageError(f"there is no folder {source}: make it, or correct --source")
        return
    kind = get_protocol(source)
    try:
        fsspec.get_filesystem_class(kind)
    except ValueError:
        raise UsageError(f"{source} is of no known kind: use a folder, or an fsspec URL such as s3://…") from None
    except ImportError as error:
        raise UsageError(f"{source} cannot be read yet: {error}") from None


def _identity(folder: str) -> str:
    """Device and inode: an empty mount point has others than what was mounted there."""
    status = Path(folder).stat()
    return f"{status.st_dev}:{status.st_ino}"


def _walk_local(source: str) -> Iterator[SourceFile | None]:
    """The files below a folder; None for each entry that is skipped: hidden, leading outside, or no regular file."""
    root = os.path.realpath(source)
    folders = [(source, "", (root,))]
    while folders:
        folder, prefix, ancestors = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                target = os.path.realpath(entry.path) if entry.is_symlink() else None
                if entry.name.startswith(".") or not _stays_inside(target, root, ancestors):
                    yield None
                    continue
                path = prefix + _storable(entry.name)
                if entry.is_dir():
                    folders.append((entry.path, path + "/", (*ancestors, target or f"{ancestors[-1]}/{entry.name}")))
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:  # it has gone since its folder was read
                    continue
                if not stat.S_ISREG(status.st_mode):
                    yield None
                    continue
                yield SourceFile(path, status.st_size, _stamp(status.st_mtime_ns), status.st_mtime)


def _stays_inside(target: str | None, root: str, ancestors: tuple[str, ...]) -> bool:
    """Whether a symbolic link may be followed: to what exists below the source, but no folder that holds the link."""
    return target is None or (
        target.startswith(root + os.sep) and target not in ancestors and os.path.exists(target)  # noqa: PTH110
    )


def _stamp(modified_ns: int) -> str | None:
    """The time of a file as its stamp, once it is old enough to tell a further change."""
    return None if abs(time.time_ns() - modified_ns) < YOUNG_NS else str(modified_ns)


def _walk_remote(source: str) -> Iterator[SourceFile | None]:
    """The files below an fsspec URL, folder by folder: its own `find` and `walk` leave out a folder that fails."""
    filesystem, root = fsspec.core.url_to_fs(source)
    root = root.rstrip("/")
    filesystem.invalidate_cache()
    if not filesystem.isdir(root):
        raise FileNotFoundError("there is no such folder")
    folders = [root]
    while folders:
        folder = folders.pop()
        for entry in filesystem.ls(folder, detail=True):
            full_path = entry["name"].rstrip("/")
            if full_path == folder:  # an object store's marker of the folder itself
                continue
            path = _storable(full_path.removeprefix(root).lstrip("/"))
            if path.rpartition("/")[2].startswith("."):
                yield None
            elif entry["type"] == "directory":
                folders.append(full_path)
            else:
                yield SourceFile(path, entry["size"] or 0, *_remote_version(entry))


def _remote_version(entry: dict) -> tuple[str | None, float]:
    """A remote file's stamp and time, under the names that file systems give them; no stamp where there is neither."""
    etag = entry.get("ETag") or entry.get("etag")
    times = (entry.get(key) for key in ("LastModified", "last_modified", "mtime", "updated", "created"))
    modified = next((time for time in times if isinstance(time, datetime | int | float)), None)
    seconds = modified.timestamp() if isinstance(modified, datetime) else float(modified or 0.0)
    stamp = str(etag).strip('"') if etag else None if modified is None else _stamp(int(seconds * 1e9))
    return stamp, seconds


def _storable(name: str) -> str:
    """The name; with escapes in it where it is not valid UTF-8, so that it can be shown, though nothing opens by it."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def _filter(include: Iterable[str], exclude: Iterable[str]) -> Callable[[str], bool]:
    """A glob with a slash speaks of the path, one without of the file's name at any depth."""

    def matcher(globs: Iterable[str]) -> Callable[[str], object] | None:
        patterns = [glob_translate(glob.lstrip("/") if "/" in glob else f"**/{glob}") for glob in globs]
        return re.compile("|".join(patterns)).match if patterns else None

    included, excluded = matcher(include), matcher(exclude)
    return lambda path: (included is None or bool(included(path))) and not (excluded is not None and excluded(path))
