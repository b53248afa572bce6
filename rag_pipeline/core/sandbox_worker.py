"""The process in which files are parsed, and the requests and replies it understands. Its main is called by
`sandbox`."""

import ctypes
import hashlib
import os
import pickle
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from .parsing import ParsedText, ParseFailure, join_parts, page_count, parse_pages

# All of a worker's environment. One thread for the number libraries: each of theirs reserves memory that counts against
# the limit.
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "DO_NOT_TRACK": "1",
    "UNSTRUCTURED_DISABLE_NOTICE": "1",
}
# A worker that has done this much makes way for a fresh one: what its libraries leaked goes with it.
WORN_AFTER = 1000
# Seconds beyond the time limit after which a worker whose parent is gone ends by itself.
GRACE = 5
# Linux, sched.h.
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


@dataclass(frozen=True)
class Parse:
    """Parse a file; one of more pages than `pages_per_shard` is only counted."""

    path: str
    media_type: str
    name: str
    expected_hash: bytes | None
    pages_per_shard: int


@dataclass(frozen=True)
class Pages:
    """Read pages first..last of a PDF."""

    path: str
    expected_hash: bytes | None
    first: int
    last: int


@dataclass(frozen=True)
class Join:
    """Make one document of parts, each as it came in a reply."""

    parts: list[bytes]


Request = Parse | Pages | Join


@dataclass
class Reply:
    """What a request came to: `parsed`, `part`, `pages` (too many for one piece of work), `failure`, `changed` or
    `missing`, or `unreadable` at the moment and why."""

    content_hash: bytes | None = None
    parsed: ParsedText | None = None
    part: bytes | None = None
    pages: int = 0
    failure: ParseFailure | None = None
    changed: bool = False
    missing: bool = False
    unreadable: str | None = None
    seconds: float = 0.0
    worn: bool = False


def main(socket: int, parser: str, seconds: float, limit_mb: int, file_mb: int) -> None:
    """Answer requests until the parent closes the socket."""
    module, _, function = parser.partition(":")
    parse = getattr(import_module(module), function)
    connection = Connection(socket)
    # What libraries print may be text of the document.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    limit_memory(limit_mb)
    cut_network()
    connection.send(True)
    done = 0
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        started = time.monotonic()
        limit_time(seconds)
        try:
            reply = answer(request, parse, file_mb)
        except ParseFailure as failure:
            reply = Reply(failure=failure)
        except MemoryError:
            reply = Reply(failure=ParseFailure("out of memory", f"more than {limit_mb} MB"), worn=True)
        except Exception as error:
            reply = Reply(failure=ParseFailure("corrupt", f"{type(error).__name__}: {error}"))
        done += 1
        reply.seconds = time.monotonic() - started
        reply.worn = reply.worn or done >= WORN_AFTER or memory_mb(os.getpid()) > limit_mb / 2
        connection.send(reply)
        signal.setitimer(signal.ITIMER_REAL, 0)


def answer(request: Request, parse: Callable[[bytes, str, str], ParsedText], file_mb: int) -> Reply:
    """Do what is asked. The bytes that are hashed are the bytes that are parsed."""
    if isinstance(request, Join):
        return Reply(parsed=join_parts([pickle.loads(part) for part in request.parts]))
    try:
        content = read(request.path, file_mb)
    except FileNotFoundError:
        return Reply(missing=True)
    except OSError as error:
        return Reply(unreadable=error.strerror or type(error).__name__)
    content_hash = hashlib.sha256(content).digest()
    if request.expected_hash is not None and content_hash != request.expected_hash:
        return Reply(content_hash=content_hash, changed=True)
    try:
        if isinstance(request, Pages):
            part = parse_pages(content, request.first, request.last)
            return Reply(content_hash=content_hash, part=pickle.dumps(part, protocol=pickle.HIGHEST_PROTOCOL))
        if request.media_type == "application/pdf" and (pages := page_count(content)) > request.pages_per_shard:
            return Reply(content_hash=content_hash, pages=pages)
        return Reply(content_hash=content_hash, parsed=parse(content, request.media_type, request.name))
    except ParseFailure as failure:
        return Reply(content_hash=content_hash, failure=failure)


def read(path: str, file_mb: int) -> bytes:
    """The bytes of a regular file. Raises ParseFailure 'too large' and 'unsupported type', OSError."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ParseFailure("unsupported type", "not a regular file")
    with Path(path).open("rb") as file:
        content = file.read(file_mb * 1024 * 1024 + 1)
    if len(content) > file_mb * 1024 * 1024:
        raise ParseFailure("too large", f"more than {file_mb} MB")
    return content


def limit_memory(megabytes: int) -> None:
    """Refuse this process more memory than that: allocations fail, in Python as a MemoryError. No core files."""
    lower_limit(resource.RLIMIT_DATA, megabytes * 1024 * 1024)
    lower_limit(resource.RLIMIT_CORE, 0)


def limit_time(seconds: float) -> None:
    """End this process a little after its limit, should the parent be gone and not do it; the CPU limit is for what it
    starts."""
    signal.setitimer(signal.ITIMER_REAL, seconds + GRACE)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(used.ru_utime + used.ru_stime + seconds + 2 * GRACE) + 1
    lower_limit(resource.RLIMIT_CPU, cpu)


def lower_limit(limit: int, value: int) -> None:
    """Set a soft limit, no higher than the system's hard one."""
    hard = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def cut_network() -> None:
    """No network from here on: in a network namespace of its own where the system allows one, by Python's audit events
    everywhere."""

    def refuse(event: str, arguments: tuple) -> None:
        if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
            raise PermissionError("no network while parsing")

    sys.addaudithook(refuse)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if libc.unshare(CLONE_NEWNET) != 0:
            libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)


def memory_mb(process: int) -> float:
    """The memory of a process that counts against its limit; 0 where the system does not tell."""
    try:
        # proc(5): the sixth field of statm is data and stack, in pages.
        return int(Path(f"/proc/{process}/statm").read_text().split()[5]) * resource.getpagesize() / 2**20
    except (OSError, IndexError):
        return 0.0
