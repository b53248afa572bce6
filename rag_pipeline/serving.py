"""`rag up`: Dagster's UI and daemon over the services, in the foreground."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from rag_pipeline.core.errors import ServiceError, UsageError
from rag_pipeline.instance import dagster_environment, dagster_instance
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import PROJECT

HOST = "127.0.0.1"  # Dagster's UI has no login.


def serve(runtime: Runtime, port: int) -> None:
    """Run the UI and the daemon until Ctrl-C or `rag down`; the services stay for other commands.

    Raises UsageError when the port is taken or another `rag up` serves this RAG_HOME.
    """
    with _only_one(runtime.settings.home):
        _require_free(port)
        with dagster_instance(runtime):
            environment = {**os.environ, **dagster_environment(runtime)}
        click.echo(
            f"Dagster UI   http://{HOST}:{port}\nPostgreSQL and Redis are running; Ctrl-C stops the UI and daemon"
        )
        workspace = str(PROJECT / "workspace.yaml")
        command = ["dagster", "dev", "-w", workspace, "-h", HOST, "-p", str(port), "--log-level", "warning"]
        process = subprocess.Popen([sys.executable, "-m", *command], env=environment, cwd=PROJECT)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: process.send_signal(signal.SIGINT))
        status = process.wait()
        if status not in (0, 1, -signal.SIGINT):
            raise ServiceError(f"dagster dev ended with status {status}: its last lines above say why")


def stop_serving(runtime: Runtime) -> list[str]:
    """End the `rag up` that serves this RAG_HOME and wait until it has; what was ended."""
    path = _lock_path(runtime.settings.home)
    if not path.exists():
        return []
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Whoever holds the lock is alive and wrote its id: it is not another program's.
            os.kill(int(file.read()), signal.SIGTERM)
            fcntl.flock(file, fcntl.LOCK_EX)
            return ["rag up"]
    return []


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    path = _lock_path(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError("rag up runs already for this RAG_HOME: rag down stops it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock_path(home: Path) -> Path:
    return home / "up.lock"


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise UsageError(f"port {port} is in use: rag up --port {port + 1}") from None
