"""Parsing in worker processes that may hang, swell or die: the file that did it fails by name, its neighbours never
notice.

A worker is a fresh interpreter with an environment of its own: no credentials, no network, none of this process's
sockets or locks.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from . import sandbox_worker as protocol
from .errors import RagError, SourceError
from .parsing.document import ParsedText, ParseFailure

# A PDF of more pages than this is read in shards of as many pages, side by side.
PAGES_PER_SHARD = 100
# How long a worker may take to start; it only has to import this package.
START_SECONDS = 60
# How often a working worker's memory is looked at.
WATCH_SECONDS = 0.05


@dataclass(frozen=True)
class Limits:
    """What one file may cost: seconds for one piece of work, megabytes of one worker's memory, megabytes of the file
    itself."""

    seconds: float
    memory_mb: int
    file_mb: int


@dataclass(frozen=True)
class Job:
    """A file to parse: a path, or the URL of one on any fsspec file system. expected_hash: the sha256 the manifest
    knows it by."""

    key: Hashable
    path: Path | str
    media_type: str
    name: str
    expected_hash: bytes | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job: `parsed`, or `failure`, or `missing` (no such file), or `changed` (other bytes than
    expected), or why it is `unreadable` at the moment.

    content_hash: sha256 of the bytes that were parsed or found changed; None when they were not read.
    """

    key: Hashable
    content_hash: bytes | None
    parsed: ParsedText | None
    failure: ParseFailure | None
    seconds: float
    changed: bool = False
    missing: bool = False
    unreadable: str | None = None


@dataclass
class _Document:
    """A job under way: its local copy when it came from afar, and the shards of a large PDF as they arrive."""

    job: Job
    path: Path
    copied: bool = False
    content_hash: bytes | None = None
    seconds: float = 0.0
    waiting: int = 0
    parts: list[bytes] = field(default_factory=list)
    failed: protocol.Reply | None = None


class ParserPool:
    """Worker processes that start when there is something to parse. Use as a context manager: leaving it ends them.

    `parser` names the function that does the work, 'module:function' with the signature of `parsing.parse`.
    """

    def __init__(self, workers: int, limits: Limits, parser: str = "rag_pipeline.core.parsing:parse"):
        self.workers = max(workers, 1)
        self.limits = limits
        self.parser = parser
        self._idle: deque[_Worker] = deque()
        self._busy: set[_Worker] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    def __enter__(self) -> "ParserPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        self._closed = True
        self._interrupt()
        if self._threads:
            self._threads.shutdown(wait=True, cancel_futures=True)
        while self._idle:
            self._idle.pop().stop()

    def parse_many(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """The outcome of each job, as they finish; one call at a time. Takes from `jobs`, in this thread, only a little
        ahead of what is being parsed.

        Raises SourceError when a remote file cannot be read for a reason that is not its own, RagError when workers do
        not start.
        """
        self._threads = self._threads or ThreadPoolExecutor(self.workers, thread_name_prefix="parser")
        jobs = iter(jobs)
        pending: dict[Future[protocol.Reply], _Document] = {}
        try:
            while True:
                while len(pending) <= self.workers and (job := next(jobs, None)) is not None:
                    document = _Document(job, Path(job.path) if not _is_remote(job.path) else Path())
                    pending[self._threads.submit(self._begin, document)] = document
                if not pending:
                    return
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    document = pending.pop(future)
                    outcome = self._advance(document, future.result(), pending)
                    if outcome:
                        _remove_copy(document)
                        yield outcome
        finally:
            for future in pending:
                future.cancel()
            while wait(pending, timeout=WATCH_SECONDS).not_done:
                self._interrupt()
            for document in pending.values():
                _remove_copy(document)

    def _begin(self, document: _Document) -> protocol.Reply:
        job = document.job
        if _is_remote(job.path):
            try:
                document.path = _fetch(str(job.path), self.limits.file_mb)
            except FileNotFoundError:
                return protocol.Reply(missing=True)
            except OSError as error:
                return protocol.Reply(unreadable=error.strerror or type(error).__name__)
            except ParseFailure as failure:
                return protocol.Reply(failure=failure)
            document.copied = True
        return self._ask(
            protocol.Parse(str(document.path), job.media_type, job.name, job.expected_hash, PAGES_PER_SHARD)
        )

    def _advance(self, document: _Document, reply: protocol.Reply, pending: dict[Future, _Document]) -> Outcome | None:
        """Take in a reply for a document: its outcome when that was the last one, else None with more work pending."""
        document.seconds += reply.seconds
        if reply.content_hash is not None:
            document.content_hash = reply.content_hash
        if reply.pages:
            for first in range(1, reply.pages + 1, PAGES_PER_SHARD):
                request = protocol.Pages(str(document.path), document.content_hash, first, first + PAGES_PER_SHARD - 1)
                pending[self._threads.submit(self._ask_unless_failed, document, request)] = document
                document.waiting += 1
            return None
        if document.waiting:
            document.waiting -= 1
            if reply.part is not None:
                document.parts.append(reply.part)
            elif document.failed is None:
                document.failed = reply
            if document.waiting:
                return None
            if document.failed is None:
                pending[self._threads.submit(self._ask, protocol.Join(document.parts))] = document
                return None
            reply = document.failed
        return Outcome(
            document.job.key,
            document.content_hash,
            reply.parsed,
            reply.failure,
            document.seconds,
            changed=reply.changed,
            missing=reply.missing,
            unreadable=reply.unreadable,
        )

    def _ask_unless_failed(self, document: _Document, request: protocol.Request) -> protocol.Reply:
        return document.failed or self._ask(request)

    def _interrupt(self) -> None:
        """End the workers that are at work; what they were doing is nobody's business any more."""
        for worker in list(self._busy):
            worker.interrupt()

    def _ask(self, request: protocol.Request) -> protocol.Reply:
        """One piece of work, done by an idle worker or a new one."""
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self.limits, self.parser)
        self._busy.add(worker)
        if self._closed:
            worker.interrupt()
        reply = worker.ask(request)
        self._busy.discard(worker)
        if worker.alive and not reply.worn and not self._closed:
            self._idle.append(worker)
        else:
            worker.stop()
        return reply


class _Worker:
    """One worker process, and this end of the socket to it."""

    def __init__(self, limits: Limits, parser: str):
        self.limits = limits
        here, there = socket.socketpair()
        with there:
            arguments = (there.fileno(), parser, limits.seconds, limits.memory_mb, limits.file_mb)
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from {protocol.__name__} import main; main{arguments}"],
                pass_fds=[there.fileno()],
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **protocol.ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.connection = Connection(here.detach())
        self.alive = True
        try:
            started = self.connection.poll(START_SECONDS) and self.connection.recv()
        except (EOFError, OSError):
            started = False
        if not started:
            self._kill()
            raise RagError(
                "The parser's worker processes do not start: see the error above, and check the installation."
            )

    def ask(self, request: protocol.Request) -> protocol.Reply:
        """The worker's reply, or the failure that its end amounts to."""
        started = time.monotonic()
        failure = None
        peak_mb = 0.0
        try:
            self.connection.send(request)
            while not self.connection.poll(WATCH_SECONDS):
                peak_mb = max(peak_mb, protocol.memory_mb(self.process.pid))
                if time.monotonic() - started > self.limits.seconds:
                    failure = ParseFailure("timed out", f"longer than {self.limits.seconds:g} s")
                    break
            else:
                return self.connection.recv()
        except (EOFError, OSError):
            pass
        code = self._kill()
        if failure is None:
            failure = self._cause_of_death(code, peak_mb)
        return protocol.Reply(failure=failure, seconds=time.monotonic() - started)

    def stop(self) -> None:
        """End the worker; an idle one leaves by itself when its socket closes."""
        if self.alive:
            self._kill()

    def interrupt(self) -> None:
        """End the process, and all it started, from another thread: who waits for its reply learns that it died."""
        # Its process group still holds what it started, also when it died by itself.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _kill(self) -> int:
        """End the worker and all it started. Returns its exit code, negative for a signal."""
        self.alive = False
        self.interrupt()
        self.connection.close()
        return self.process.wait()

    def _cause_of_death(self, code: int, peak_mb: float) -> ParseFailure:
        # A library that is refused memory aborts; it asked for a large piece when it had no more than half of it.
        if code < 0 and peak_mb > 0.5 * self.limits.memory_mb:
            return ParseFailure("out of memory", f"more than {self.limits.memory_mb} MB")
        if code < 0:
            return ParseFailure("crashed", f"the parser was ended by {signal.Signals(-code).name}")
        return ParseFailure("crashed", f"the parser exited with status {code}")


def _is_remote(path: Path | str) -> bool:
    return isinstance(path, str) and "://" in path


def _fetch(url: str, file_mb: int) -> Path:
    """A local copy of a remote file. Raises OSError, ParseFailure 'too large', SourceError."""
    import fsspec

    limit = file_mb * 1024 * 1024
    handle, copy = tempfile.mkstemp(prefix="rag-parse-")
    try:
        with os.fdopen(handle, "wb") as local, fsspec.open(url, "rb") as remote:
            while (piece := remote.read(1024 * 1024)) and local.tell() <= limit:
                local.write(piece)
            if local.tell() > limit:
                raise ParseFailure("too large", f"more than {file_mb} MB")
        return Path(copy)
    except (OSError, ParseFailure):
        Path(copy).unlink()
        raise
    except Exception as error:
        Path(copy).unlink()
        raise SourceError(f"{url} cannot be read: {type(error).__name__}: {error}") from error


def _remove_copy(document: _Document) -> None:
    if document.copied:
        document.path.unlink(missing_ok=True)
