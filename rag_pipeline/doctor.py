"""`rag doctor`: everything the pipeline needs, looked at one by one; what is wrong is said with its remedy."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import redis
from psycopg import Connection
from redis.backoff import NoBackoff
from redis.retry import Retry

from rag_pipeline.core.database import masked
from rag_pipeline.core.embedding import probe
from rag_pipeline.core.errors import ProviderError, RagError
from rag_pipeline.core.models import embedding_model
from rag_pipeline.core.watching import Cursor
from rag_pipeline.instance import dagster_instance
from rag_pipeline.runs import daemon_answers
from rag_pipeline.runtime import Runtime

# Less than this, in GB, and PostgreSQL may stop in the middle of a run.
LITTLE_DISK = 2


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what is said of it; `ok` is None for what may be as it is, but is worth knowing."""

    what: str
    ok: bool | None
    says: str


def examine(runtime: Runtime) -> Iterator[Finding]:
    """Each finding as it is made; services that are embedded are started for it."""
    yield _told("disk", lambda: _disk(runtime))
    database = _told("postgres", lambda: _postgres(runtime))
    yield database
    yield _told("redis", lambda: _redis(runtime))
    yield _told("embedding", lambda: _embedding(runtime))
    yield _told("answers", lambda: _answers(runtime))
    if database.ok:
        with runtime.connect() as connection:
            yield _told("dagster", lambda: _dagster(runtime, connection))
            yield _told("daemon", lambda: _daemon(connection))
            yield _told("sources", lambda: _sources(connection))
            yield _told("collections", lambda: _collections(connection))


def _told(what: str, look: Callable[[], tuple[bool | None, str]]) -> Finding:
    try:
        return Finding(what, *look())
    except (RagError, OSError, psycopg.Error, redis.RedisError) as error:
        return Finding(what, False, str(error).strip().partition("\n")[0])


def _disk(runtime: Runtime) -> tuple[bool | None, str]:
    home = runtime.settings.home
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    remedy = "" if free >= LITTLE_DISK else f": free at least {LITTLE_DISK} GB, or set RAG_HOME to a larger disk"
    return free >= LITTLE_DISK, f"{free:.1f} GB free at {home}{remedy}"


def _postgres(runtime: Runtime) -> tuple[bool | None, str]:
    with runtime.connect() as connection:
        server, pgvector, login, schema = connection.execute(
            """SELECT current_setting('server_version'),
                      (SELECT extversion FROM pg_extension WHERE extname = 'vector'), current_user,
                      (SELECT max(version) FROM rag.migration)"""
        ).fetchone()
    where = masked(runtime.settings.database_url) if runtime.settings.database_url else "embedded"
    return True, f"PostgreSQL {server}, pgvector {pgvector}, migration {schema}, as {login}; {where}"


def _redis(runtime: Runtime) -> tuple[bool | None, str]:
    where = "RAG_REDIS_URL" if runtime.settings.redis_url else "embedded"
    with redis.Redis.from_url(
        runtime.redis_url, retry=Retry(NoBackoff(), 0), socket_timeout=5, socket_connect_timeout=5
    ) as client:
        try:
            server, memory, persistence = (client.info(section) for section in ("server", "memory", "persistence"))
        except redis.RedisError as error:
            return False, f"no answer ({error}); runs go on without their cache: start it or correct RAG_REDIS_URL"
    version = server.get("valkey_version") or server["redis_version"]
    policy, limit = memory["maxmemory_policy"], memory["maxmemory_human"]
    said = f"{version}, {limit} at most, {policy}; {where}"
    if memory["maxmemory"] and policy == "noeviction":
        return False, f"{said}: when it is full it caches nothing more; set maxmemory-policy to volatile-lru"
    if not persistence.get("aof_enabled") and not persistence.get("rdb_last_save_time"):
        return None, f"{said}: nothing is written to disk; embeddings are paid for again after it restarts"
    return True, said


def _embedding(runtime: Runtime) -> tuple[bool | None, str]:
    """The model of new collections, asked for one vector."""
    model = embedding_model(runtime.settings.embedding_model, None)
    try:
        vector = probe(runtime.provider(model))
    except ProviderError as error:
        return False, f"{model.name}: {error}; correct OPENAI_API_KEY, OPENAI_BASE_URL or RAG_EMBEDDING_MODEL"
    return True, f"{model.name} answers with {len(vector)} dimensions"


def _answers(runtime: Runtime) -> tuple[bool | None, str]:
    if runtime.chat is None:
        return None, "no chat model is set: answers quote the documents; set OPENAI_API_KEY for written ones"
    return None, f"{runtime.settings.chat_model} is to write them; it was not asked"


def _dagster(runtime: Runtime, connection: Connection) -> tuple[bool | None, str]:
    if connection.execute("SELECT to_regclass('dagster.runs')").fetchone()[0] is None:
        # As the schema's own tables, whose owner they are to have: opening the instance makes them.
        with dagster_instance(runtime):
            pass
    runs, queued, running, failed = connection.execute(
        """SELECT count(*), count(*) FILTER (WHERE status = 'QUEUED'), count(*) FILTER (WHERE status = 'STARTED'),
                  count(*) FILTER (WHERE status = 'FAILURE' AND create_timestamp > now() - interval '1 day')
           FROM dagster.runs"""
    ).fetchone()
    return True, f"{runs} runs on record, {queued} queued, {running} under way, {failed} failed since yesterday"


def _daemon(connection: Connection) -> tuple[bool | None, str]:
    if daemon_answers(connection):
        return True, "alive: files are watched, and what is queued is executed"
    return None, "none is running: rag up starts one, which watches files and executes what is queued"


def _sources(connection: Connection) -> tuple[bool | None, str]:
    """What the sensor could not list or take in when it last looked; read from Dagster's table of its cursors."""
    cursor = None
    if connection.execute("SELECT to_regclass('dagster.instigators')").fetchone()[0] is not None:
        cursor = connection.execute(
            """SELECT instigator_body::jsonb #>> '{job_specific_data,cursor}' FROM dagster.instigators
               WHERE instigator_body::jsonb #>> '{origin,job_name}' = 'new_files'"""
        ).fetchone()
    if cursor is None:
        return None, "the sensor new_files has not looked yet: rag up starts it"
    reasons = Cursor.from_json(cursor[0]).reasons()
    if not reasons:
        return True, "the sensor new_files could list each of them"
    return None, "; ".join(reasons[:5]) + ("" if len(reasons) <= 5 else f"; and {len(reasons) - 5} more")


def _collections(connection: Connection) -> tuple[bool | None, str]:
    total, failing = connection.execute(
        """SELECT (SELECT count(*) FROM rag.collection),
                  array(SELECT DISTINCT collection FROM rag.document WHERE failure_stage IS NOT NULL ORDER BY 1)"""
    ).fetchone()
    if not failing:
        return True, f"{total}, and no document of them has failed"
    shown = ", ".join(failing[:5]) + ("" if len(failing) <= 5 else f" and {len(failing) - 5} more")
    return None, f"{total}; documents have failed in {shown}: rag status NAME tells why"
