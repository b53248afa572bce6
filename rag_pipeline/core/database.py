"""The connection to PostgreSQL, and the schema in `sql/` that it must have."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString, TypeVar

import psycopg
from pgvector.psycopg import register_vector
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from rag_pipeline.core.errors import ServiceError, UsageError

MIGRATIONS = Path(__file__).parents[2] / "sql"

# Earlier pgvector can corrupt an HNSW graph when an insert meets a vacuum (fixed in 0.8.3 and 0.8.4).
OLDEST_PGVECTOR = (0, 8, 4)

# Any number, as long as every process that migrates uses the same one.
MIGRATION_LOCK = 7_240_611


class ScopedConnection(Connection):
    """Each of its transactions begins with `settings` (name and value), which end with it, and only where what is
    `required` holds (condition, and what the UsageError says where it does not): both in one round trip."""

    def __init__(self, *arguments: object, **options: object):
        super().__init__(*arguments, **options)
        self.settings: dict[str, str] = {}
        self.required: list[tuple[LiteralString, str]] = []

    @contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator:
        outermost = self.info.transaction_status == TransactionStatus.IDLE
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if outermost and (self.settings or self.required):
                self._begin()
            yield transaction

    def _begin(self) -> None:
        conditions: list[LiteralString] = [condition for condition, _ in self.required]
        settings: list[LiteralString] = ["set_config(%s, %s, true)"] * len(self.settings)
        bound = [part for setting in self.settings.items() for part in setting]
        row = self.execute("SELECT " + ", ".join(conditions + settings), bound).fetchone()
        for holds, (_, reason) in zip(row, self.required, strict=False):
            if not holds:
                raise UsageError(reason)


Kind = TypeVar("Kind", bound=Connection)


def connect(
    database_url: str,
    *,
    autocommit: bool = True,
    kind: type[Kind] = ScopedConnection,
    variable: str = "RAG_DATABASE_URL",
) -> Kind:
    """A connection that understands `vector` values; `with connection.transaction():` groups statements.

    Raises ServiceError when the server cannot be reached, naming the environment variable that says where it is, or
    when this login does not see pgvector's types.
    """
    connection = _open(database_url, autocommit, kind, variable)
    try:
        register_vector(connection)
    except psycopg.ProgrammingError:
        connection.close()
        raise ServiceError(
            f"the login of {variable} does not see pgvector's types: its search_path lacks their schema, or the "
            "database is another one"
        ) from None
    return connection


def migrate(database_url: str) -> None:
    """Bring the schema to the version this code was written for. Safe to call from several processes at once.

    Raises ServiceError when the server cannot be reached, its encoding is not UTF8, its pgvector is too old, its schema
    is newer than this code, or it is older and this login may not change it, or not even read it.
    """
    migrations = _migrations()
    with _open(database_url, autocommit=True) as connection:
        try:
            applied = _version(connection)
        except psycopg.errors.InsufficientPrivilege:
            (member,) = connection.execute(
                "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'rag_pipeline' AND pg_has_role(oid, 'USAGE'))"
            ).fetchone()
            remedy = (
                "run rag doctor and SELECT rag.grant_pipeline_role(), both"
                if member
                else "run GRANT rag_pipeline TO it,"
            )
            raise ServiceError(
                f"the login of RAG_DATABASE_URL may not read the schema: {remedy} as its owner"
            ) from None
        _require_no_newer(applied, migrations)
        try:
            if applied != max(migrations):
                _apply(connection, migrations)
        except psycopg.errors.InsufficientPrivilege as error:
            raise ServiceError(
                f"the schema has version {applied}, this code needs {max(migrations)}, and the login of "
                f"RAG_DATABASE_URL may not change it ({error.diag.message_primary}): run rag doctor once with that of "
                "its owner"
            ) from None


def masked(database_url: str) -> str:
    """What a valid URL says, as it may be shown to a person: without its passwords.

    Of a URL in which a part of its password may stand for something else, nothing but its scheme is shown.
    """
    parts = conninfo_to_dict(database_url)
    if _is_ambiguous(database_url):
        return f"{database_url.partition('://')[0]}://... (percent-encode the special characters of its password)"
    return make_conninfo(**{key: "***" if "password" in key else value for key, value in parts.items()})


def _apply(connection: Connection, migrations: dict[int, Path]) -> None:
    """Apply what is missing of the migrations, each in a transaction of its own."""
    connection.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
    _require_utf8(connection)
    _require_pgvector(connection)
    connection.execute("CREATE SCHEMA IF NOT EXISTS rag")
    connection.execute(
        """CREATE TABLE IF NOT EXISTS rag.migration
           (version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"""
    )
    applied = _version(connection)
    _require_no_newer(applied, migrations)
    for version in sorted(v for v in migrations if v > applied):
        with connection.transaction():
            connection.execute(migrations[version].read_bytes())
            connection.execute(
                "INSERT INTO rag.migration (version, name) VALUES (%s, %s)", [version, migrations[version].stem]
            )


def _open(
    database_url: str, autocommit: bool, kind: type[Kind] = Connection, variable: str = "RAG_DATABASE_URL"
) -> Kind:
    try:
        return kind.connect(
            database_url,
            autocommit=autocommit,
            connect_timeout=10,
            # Firewalls drop what is idle for minutes; the system's own default is two hours.
            keepalives_idle=60,
            application_name="rag_pipeline",
        )
    except psycopg.ProgrammingError:
        # Its message may quote what it could not read, a password among it.
        raise ServiceError(f"{variable} is no valid PostgreSQL URL: correct it") from None
    except psycopg.OperationalError as error:
        if _is_ambiguous(database_url):
            # The server's name, or what else the reason quotes, may be a part of the password.
            raise ServiceError(f"cannot reach PostgreSQL at {masked(database_url)}: correct {variable}") from None
        # An indented line is libpq's hint to whoever runs the server.
        reason = [line for line in str(error).splitlines() if line and not line.startswith("\t")][-1]
        raise ServiceError(
            f"cannot reach PostgreSQL at {masked(database_url)}: {reason}; start it or correct {variable}"
        ) from None


def _is_ambiguous(database_url: str) -> bool:
    """Whether a password that was not percent-encoded may have been read as a host, a port or a database: libpq ends a
    user's name and password at the first @, and takes what has a / before that for a host and a database."""
    _, is_url, rest = database_url.partition("://")
    if not is_url:
        return False
    before, at, after = rest.partition("@")
    ports = str(conninfo_to_dict(database_url).get("port", ""))
    return "@" in after or bool(at and "/" in before) or not re.fullmatch(r"[\d,]*", ports)


def _migrations() -> dict[int, Path]:
    return {int(path.name.split("_")[0]): path for path in MIGRATIONS.glob("[0-9]*.sql")}


def _version(connection: Connection) -> int:
    """The newest migration that was applied; 0 in a database that has none."""
    if connection.execute("SELECT to_regclass('rag.migration')").fetchone()[0] is None:
        return 0
    return connection.execute("SELECT coalesce(max(version), 0) FROM rag.migration").fetchone()[0]


def _require_no_newer(applied: int, migrations: dict[int, Path]) -> None:
    if applied > max(migrations):
        raise ServiceError(
            f"the database has schema version {applied}, this code knows {max(migrations)}: update rag_pipeline"
        )


def _require_utf8(connection: Connection) -> None:
    """Spans count code points, which a server of another encoding cannot."""
    (encoding,) = connection.execute("SHOW server_encoding").fetchone()
    if encoding != "UTF8":
        raise ServiceError(f"the database is encoded in {encoding}: create it with ENCODING 'UTF8'")


def _require_pgvector(connection: Connection) -> None:
    oldest = ".".join(map(str, OLDEST_PGVECTOR))
    row = connection.execute(
        """SELECT coalesce(installed_version, default_version), default_version, installed_version IS NOT NULL
           FROM pg_available_extensions WHERE name = 'vector'"""
    ).fetchone()
    if row is None:
        raise ServiceError(f"this PostgreSQL has no pgvector: install pgvector {oldest} or newer on the server")
    version, available, installed = row
    if _numbers(version) < OLDEST_PGVECTOR:
        remedy = (
            "run ALTER EXTENSION vector UPDATE"
            if _numbers(available) >= OLDEST_PGVECTOR
            else f"install pgvector {oldest} or newer on the server"
        )
        raise ServiceError(f"pgvector {version} is too old, {oldest} is needed: {remedy}")
    if not installed:
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.errors.InsufficientPrivilege:
            raise ServiceError(
                "this login may not create extensions: run CREATE EXTENSION vector as a superuser once"
            ) from None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
