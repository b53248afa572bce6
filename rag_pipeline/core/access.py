"""Who may read or write what: API keys, what they are granted, and the connection on which PostgreSQL enforces it.

The walls are in sql/0007_access.sql and sql/0010_rights.sql: the login that reads sees the rows granted to the key of
its transaction, whatever SQL it runs. Here keys are made and kept, and that login is connected.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

import psycopg
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import class_row

from rag_pipeline.core import database
from rag_pipeline.core.collections import NAME
from rag_pipeline.core.errors import ServiceError, UsageError

# Tells a leaked key from other random text, for people and for scanners.
PREFIX = "rag_"
SECRET_BYTES = 32

# The login that an embedded server's readers use; everybody who reaches its socket may be anybody there.
EMBEDDED_LOGIN = "rag_reader"

IS_OPEN = "NOT EXISTS (SELECT FROM rag.api_key)"

CREATE_LOGIN = "CREATE ROLE rag_reader LOGIN PASSWORD '...' IN ROLE rag_query"


@dataclass(frozen=True)
class ApiKey:
    """A key as its owner may see it. `grants` has for each collection whether it may be written to."""

    name: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    grants: dict[str, bool]

    @property
    def state(self) -> str:
        """valid, expired or revoked."""
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at and self.expires_at <= datetime.now(UTC) else "valid"


class QueryConnection(database.ScopedConnection):
    """A connection of the query role: each transaction acts for a key (`act_for`), and outside of one nothing is seen.

    The key is bound for the transaction alone, so that a connection that is handed on keeps nobody's rights.
    """

    @classmethod
    def connect(cls, *arguments: object, **options: object) -> Self:
        """Every login may change its own role's settings, for all who use it: here they do not count."""
        connection = super().connect(*arguments, **options)
        connection.execute(
            """SELECT set_config(name, CASE name
                   WHEN 'client_encoding' THEN 'UTF8'
                   WHEN 'search_path' THEN (
                       SELECT quote_ident(nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
                       WHERE extname = 'vector')
                   ELSE boot_val END, false)
               FROM pg_settings WHERE source IN ('user', 'database user')"""
        )
        connection.act_for(None)
        return connection

    def act_for(self, api_key: str | None) -> None:
        """Whose the transactions from the next one on are; None: nobody's."""
        self.settings["rag.api_key"] = api_key or ""


def connect_query(query_database_url: str, api_key: str) -> QueryConnection:
    """A connection on which the key reads what it is granted.

    Raises ServiceError when the server cannot be reached, or no policy binds this login.
    """
    connection = database.connect(query_database_url, kind=QueryConnection, variable="RAG_QUERY_DATABASE_URL")
    try:
        _require_walls(connection)
    except BaseException:
        connection.close()
        raise
    connection.act_for(api_key)
    return connection


def embedded_query_url(connection: Connection, database_url: str) -> str:
    """Where the readers of the embedded server connect; their login is made where it is missing."""
    connection.execute("SELECT rag.grant_query_role()")
    # Another process may make it at the same moment.
    with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
        if connection.execute("SELECT to_regrole(%s)", [EMBEDDED_LOGIN]).fetchone() == (None,):
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE rag_query").format(sql.Identifier(EMBEDDED_LOGIN)))
    return make_conninfo(database_url, user=EMBEDDED_LOGIN)


def lend(connection: database.ScopedConnection) -> None:
    """Let everybody read on the owner's connection: its transactions raise UsageError once access is closed."""
    connection.required.append((IS_OPEN, "searching needs an API key since there are any: set RAG_API_KEY to yours"))


def is_open(connection: Connection) -> bool:
    """Whether everybody may read: as long as no key was ever made."""
    return connection.execute(sql.SQL("SELECT {}").format(sql.SQL(IS_OPEN))).fetchone()[0]


def create_key(
    connection: Connection, name: str, grants: Mapping[str, bool], expires_at: datetime | None = None
) -> str:
    """Make a key that may read these collections, and write to those with True; its secret, which is kept nowhere.

    Raises UsageError for a name that is taken or none, a collection that is not there, or an expiry that is past.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a key: use 1 to 100 letters, digits, '-', '_' and '.'")
    if not grants:
        raise UsageError("the key would be granted nothing: --grant COLLECTION names what it may read")
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise UsageError(f"{expires_at:%Y-%m-%d} is past: a key expires later than now")
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    with connection.transaction():
        if not connection.execute("SELECT rag.grant_query_role()").fetchone()[0]:
            raise ServiceError(
                "this login may not create or grant the role rag_query that API keys need: run, as a superuser, "
                "CREATE ROLE rag_query"
            )
        inserted = connection.execute(
            """INSERT INTO rag.api_key (name, secret_hash, expires_at) VALUES (%s, %s, %s)
               ON CONFLICT (name) DO NOTHING RETURNING name""",
            [name, hashlib.sha256(secret.encode()).digest(), expires_at],
        ).fetchone()
        if not inserted:
            raise UsageError(f"there is a key {name} already, in use or revoked: choose another name")
        for collection, may_write in grants.items():
            grant(connection, name, collection, may_write=may_write)
    return secret


def list_keys(connection: Connection) -> list[ApiKey]:
    """Every key that was ever made, by name."""
    with connection.cursor(row_factory=class_row(ApiKey)) as cursor:
        return cursor.execute(
            """SELECT name, created_at, expires_at, revoked_at,
                      (SELECT coalesce(jsonb_object_agg(collection, may_write ORDER BY collection), '{}')
                       FROM rag.collection_grant WHERE key = name) AS grants
               FROM rag.api_key ORDER BY name"""
        ).fetchall()


def revoke_key(connection: Connection, name: str) -> None:
    """End a key, from the next query on and for good. Raises UsageError when there is none, or it is revoked."""
    _require_key(connection, name)
    revoked = connection.execute(
        "UPDATE rag.api_key SET revoked_at = now() WHERE name = %s AND revoked_at IS NULL RETURNING name", [name]
    ).fetchone()
    if not revoked:
        raise UsageError(f"key {name} is revoked already")


def grant(connection: Connection, name: str, collection: str, *, may_write: bool = False) -> None:
    """Let a key read a collection, and write to it or no longer.

    Raises UsageError when either is not there, or the key is revoked or expired.
    """
    _require_key(connection, name)
    (ended,) = connection.execute(
        """SELECT CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired' END
           FROM rag.api_key WHERE name = %s""",
        [name],
    ).fetchone()
    if ended:
        raise UsageError(f"key {name} is {ended}, for good: make another with rag key create")
    granted = connection.execute(
        """INSERT INTO rag.collection_grant (key, collection, may_write)
           SELECT %s, name, %s FROM rag.collection WHERE name = %s
           ON CONFLICT (key, collection) DO UPDATE SET may_write = excluded.may_write RETURNING key""",
        [name, may_write, collection],
    ).fetchone()
    if not granted:
        raise UsageError(f"there is no collection {collection}: rag collection list shows those there are")


def ungrant(connection: Connection, name: str, collection: str) -> None:
    """Take a collection from a key, from the next query on. Raises UsageError when it was not granted."""
    _require_key(connection, name)
    taken = connection.execute(
        "DELETE FROM rag.collection_grant WHERE key = %s AND collection = %s RETURNING key", [name, collection]
    ).fetchone()
    if not taken:
        raise UsageError(f"key {name} is not granted {collection}: rag key list shows what it is granted")


def allowed(connection: Connection, api_key: str, *, to_write: bool = False) -> set[str]:
    """The collections that the key may read, or write to."""
    rows = connection.execute(
        """SELECT g.collection FROM rag.api_key k JOIN rag.collection_grant g ON g.key = k.name
           WHERE k.secret_hash = %s AND k.revoked_at IS NULL AND (k.expires_at > now()) IS NOT FALSE
                 AND (g.may_write OR NOT %s)""",
        [hashlib.sha256(api_key.encode()).digest(), to_write],
    ).fetchall()
    return {collection for (collection,) in rows}


def parse_grant(text: str) -> tuple[str, bool]:
    """`COLLECTION` or `COLLECTION:write` as a name and whether it may be written to. Raises UsageError."""
    collection, colon, right = text.partition(":")
    if not collection or (colon and right != "write"):
        raise UsageError(f"{text!r} is no grant: write COLLECTION to let read, COLLECTION:write to let write too")
    return collection, bool(colon)


def parse_expiry(text: str, now: datetime) -> datetime:
    """`2027-01-01`, which begins in UTC, or `90d` from now. Raises UsageError."""
    days = re.fullmatch(r"(\d{1,5})d", text)
    try:
        return now + timedelta(days=int(days[1])) if days else datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise UsageError(f"{text!r} is no expiry: write a date as 2027-01-01, or days as 90d") from None


def _require_key(connection: Connection, name: str) -> None:
    if connection.execute("SELECT FROM rag.api_key WHERE name = %s", [name]).fetchone() is None:
        raise UsageError(f"there is no key {name}: rag key list shows those there are")


def _require_walls(connection: Connection) -> None:
    """Raises ServiceError unless this login reads, and reads through the policies alone."""
    (may_read,) = connection.execute(
        "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = 'rag'"
    ).fetchone() or (None,)
    if may_read is None:
        raise ServiceError("the database of RAG_QUERY_DATABASE_URL has no collections: it is another one")
    if not may_read:
        raise ServiceError(
            "the login of RAG_QUERY_DATABASE_URL has not the query role: run GRANT rag_query TO it, or make one with "
            f"{CREATE_LOGIN}"
        )
    (owns, bound) = connection.execute(
        "SELECT rag.owns_data(), row_security_active('rag.indexed_chunk') AND row_security_active('rag.parsed_text')"
    ).fetchone()
    if owns or not bound:
        raise ServiceError(
            "the login of RAG_QUERY_DATABASE_URL owns the data, so that no API key would bind it: make one of its own "
            f"with {CREATE_LOGIN}"
        )
