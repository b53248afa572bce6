"""`rag up`: Dagster's UI and daemon over the services, in the foreground."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import click
import psutil

from rag_pipeline.core.errors import ServiceError, UsageError
from rag_pipeline.instance import dagster_environment, dagster_instance
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import PROJECT

HOST = "127.0.0.1"  # Dagster's UI has no login.

# Seconds that the UI, the daemon and the runs they started have to end by themselves.
PATIENCE = 10


def serve(runtime: Runtime, port: int | None) -> None:
    """Run the UI, unless `port` is None, and the daemon until Ctrl-C or `rag down`; the services stay for others.

    Raises UsageError when the port is taken or another `rag up` serves this RAG_HOME, ServiceError when either ends.
    """
    served = "the daemon" if port is None else "the UI and the daemon"
    home = runtime.settings.home
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with _only_one(home) as lock:
        if port is not None:
            _require_free(port)
        click.echo(f"starting {served} of Dagster ...", err=True)
        with dagster_instance(runtime):
            environment = {**os.environ, **dagster_environment(runtime)}
        with _launched(port, environment, home / "up.log", lock) as processes:
            if port is not None:
                _wait_until(lambda: _answers(port), processes)
                click.echo(f"Dagster UI   http://{HOST}:{port}")
            click.echo(
                f"documents    {runtime.settings.documents}: each folder in it becomes a collection\n"
                f"log          {home / 'up.log'}\n"
                f"Ctrl-C stops {served}, rag down also PostgreSQL and Redis."
            )
            with suppress(KeyboardInterrupt):
                _wait_until(lambda: False, processes)
    click.echo(f"stopped {served}", err=True)


def stop_serving(runtime: Runtime) -> list[str]:
    """End the `rag up` that serves this RAG_HOME, or what a killed one left behind; what was ended."""
    path = _lock_path(runtime.settings.home)
    if not path.exists():
        return []
    with path.open("r+") as file:
        if _taken(file):
            return []
        command, *launched = _recorded(file)
        if command:
            command.terminate()
            command.wait()
        else:
            _end([process for process in launched if process])
        return ["rag up"]


@contextmanager
def _launched(port: int | None, environment: dict[str, str], log: Path, lock: TextIO) -> Iterator[list[psutil.Process]]:
    """The UI and the daemon, each with its code server and runs in a process group of its own."""
    workspace = ("-w", str(PROJECT / "workspace.yaml"))
    quiet = ("--code-server-log-level", "warning")
    commands = [("dagster._daemon", "run", "--log-level", "warning", *workspace, *quiet)]
    if port is not None:
        at = ("-h", HOST, "-p", str(port))
        commands.insert(0, ("dagster_webserver", *at, "--dagster-log-level", "warning", *workspace, *quiet))
    processes: list[psutil.Process] = []
    try:
        with log.open("w") as output:
            for command in commands:
                process = psutil.Popen(
                    [sys.executable, "-m", *command],
                    env=environment,
                    cwd=PROJECT,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    # They hold the lock as well, so that what a killed `rag up` leaves behind is not forgotten.
                    pass_fds=[lock.fileno()],
                )
                processes.append(process)
                _record(lock, [psutil.Process(), *processes])
        yield processes
    finally:
        _end(processes)


def _end(processes: list[psutil.Process]) -> None:
    """End process groups, by force what is left after PATIENCE seconds."""
    groups = [process.pid for process in processes if process.is_running()]
    members = [*processes, *(child for process in processes for child in _descendants(process))]
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
    try:
        psutil.wait_procs(members, timeout=PATIENCE)
    finally:
        for group in groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


@contextmanager
def _only_one(home: Path) -> Iterator[TextIO]:
    """The lock file of this home, held. The lock is the truth about who serves: a file that was left behind is none."""
    path = _lock_path(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+") as file:
        if not _taken(file):
            command, *_ = _recorded(file)
            if command is None:
                raise UsageError("a rag up that was killed left Dagster's UI and daemon behind: rag down ends them")
            raise UsageError("rag up runs already for this RAG_HOME: rag down stops it")
        _record(file, [psutil.Process()])
        yield file


def _taken(file: TextIO) -> bool:
    """Whether the lock could be taken, which it then is."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _record(file: TextIO, processes: list[psutil.Process]) -> None:
    """Write down who serves: `rag up` itself first, then what it launched."""
    file.seek(0)
    file.write(json.dumps([(process.pid, process.create_time()) for process in processes]) + "\n")
    file.flush()


def _recorded(file: TextIO) -> list[psutil.Process | None]:
    """Who was written down; None for one that is gone, whoever has its id by now."""

    def alive(pid: int, created: float) -> psutil.Process | None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            return process if process.create_time() == created else None

    return [alive(pid, created) for pid, created in json.loads(file.readline())]


def _wait_until(condition: Callable[[], bool], processes: list[psutil.Process]) -> None:
    """Raises ServiceError when one of the processes has ended before that."""
    while not condition():
        if any(process.poll() is not None for process in processes):
            raise ServiceError("Dagster's UI or daemon has ended: up.log in RAG_HOME says why")
        time.sleep(0.2)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


def _lock_path(home: Path) -> Path:
    return home / "up.lock"


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise UsageError(f"port {port} is in use: rag up --port {port + 1}") from None
