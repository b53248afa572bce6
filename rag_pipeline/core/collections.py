"""Collections: a name, a source of files, and the settings that shape what is made of them."""

import os
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import psycopg
from psycopg import Connection
from psycopg.rows import kwargs_row
from psycopg.types.json import Jsonb

from rag_pipeline.core.errors import ServiceError, UsageError
from rag_pipeline.core.models import EmbeddingModel, embedding_model

# Each of them holds up readers for a fifth of a second at most, and for what it takes to drop a table.
REMOVALS_TRIED = 10

NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True)
class CollectionSettings:
    """Everything a person may set for a collection. None: decided by the embedding model."""

    embedding_model: str
    dimensions: int | None = None
    chunk_tokens: int | None = None
    chunk_overlap: int | None = None
    embed_headings: bool = True
    text_search: str = "english"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_file_mb: int = 200
    parse_timeout_s: int = 120
    parse_memory_mb: int = 2048
    hnsw_m: int = 16
    hnsw_ef_construction: int = 64
    precision: str = "full"
    max_removal_fraction: float = 0.5
    max_embedding_tokens_per_run: int | None = None
    log_questions: bool = False


@dataclass(frozen=True)
class Collection:
    """A registered collection. `source` is an absolute path or an fsspec URL."""

    name: str
    source: str
    settings: CollectionSettings
    active_index: int | None


def add(connection: Connection, name: str, source: str, settings: Mapping[str, object]) -> Collection:
    """Register a collection; `settings` must name an embedding model. Raises UsageError when anything is not valid."""
    require_name(name)
    checked = _checked(connection, CollectionSettings(**settings))
    inserted = connection.execute(
        "INSERT INTO rag.collection (name, source, settings) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING RETURNING name",
        [name, absolute_source(source), Jsonb(_explicit(checked))],
    ).fetchone()
    if not inserted:
        raise UsageError(f"collection {name} exists already: rag collection show {name}")
    return get(connection, name)


def get(connection: Connection, name: str) -> Collection:
    """Raises UsageError when there is no such collection."""
    found = find(connection, name)
    if found is None:
        raise missing(name)
    return found


def missing(name: str) -> UsageError:
    """What is raised for a collection that is not there, and for one that the caller may not know of."""
    return UsageError(f"there is no collection {name}: rag collection list shows those there are")


def find(connection: Connection, name: str) -> Collection | None:
    """The collection of that name, if there is one."""
    if not NAME.fullmatch(name):
        return None
    with connection.cursor(row_factory=kwargs_row(_from_row)) as cursor:
        return cursor.execute(
            "SELECT name, source, settings, active_index FROM rag.collection WHERE name = %s", [name]
        ).fetchone()


def list_all(connection: Connection) -> list[Collection]:
    """Every collection, by name."""
    with connection.cursor(row_factory=kwargs_row(_from_row)) as cursor:
        return cursor.execute(
            "SELECT name, source, settings, active_index FROM rag.collection ORDER BY name"
        ).fetchall()


def change(connection: Connection, name: str, settings: Mapping[str, object]) -> Collection:
    """Change some settings; the next run brings the index into line with them. Raises UsageError, changing nothing."""
    with connection.transaction():
        # Of two changes at once the second begins where the first has ended.
        connection.execute("SELECT FROM rag.collection WHERE name = %s FOR UPDATE", [name])
        before = get(connection, name)
        after = _checked(connection, CollectionSettings(**{**asdict(before.settings), **settings}))
        connection.execute("UPDATE rag.collection SET settings = %s WHERE name = %s", [Jsonb(_explicit(after)), name])
        _forgive(connection, name, before.settings, after)
    return get(connection, name)


def remove(connection: Connection, name: str) -> None:
    """Drop a collection and everything derived from it. Embeddings stay in the cache until they expire.

    Dropping locks the index of every collection for a moment; raises ServiceError when that is not to be had, since
    somebody reads for longer than searches do.
    """
    get(connection, name)
    pause = threading.Event()
    for _ in range(REMOVALS_TRIED):
        with suppress(psycopg.errors.LockNotAvailable), connection.transaction():
            # As everybody locks who locks both: the collection, then its index.
            connection.execute("UPDATE rag.collection SET active_index = NULL WHERE name = %s", [name])
            indexes = connection.execute("SELECT id FROM rag.vector_index WHERE collection = %s", [name]).fetchall()
            connection.execute("DELETE FROM rag.collection WHERE name = %s", [name])
            connection.execute("SET LOCAL lock_timeout = '200ms'")
            for (index_id,) in indexes:
                connection.execute("SELECT rag.drop_partition(%s)", [index_id])
            return
        pause.wait(0.5)
    raise ServiceError(f"{name} is not removed: a long query or a backup reads the database: try again after it")


def embedding_sources(connection: Connection, name: str) -> list[tuple[str, str, int]]:
    """Where vectors of the collection were asked: base URL, model and dimensions."""
    get(connection, name)
    return connection.execute(
        "SELECT base_url, model, dimensions FROM rag.embedding_source WHERE collection = %s", [name]
    ).fetchall()


def is_name(name: str) -> bool:
    """Whether `name` can name a collection, a folder and a Dagster partition."""
    return bool(NAME.fullmatch(name)) and name not in (".", "..") and "..." not in name


def require_name(name: str) -> None:
    """Raises UsageError unless `name` can name a collection."""
    if not is_name(name):
        raise UsageError(
            f"{name!r} cannot name a collection: use 1 to 100 letters, digits, '-', '_' and '.' (and no '...')"
        )


def split_names(names: str) -> list[str]:
    """Of several collections in one text, with commas between them, spaces or none."""
    return [name.strip() for name in names.split(",")]


def absolute_source(source: str) -> str:
    """A local path made absolute; a URL as it is. A symbolic link stays one: it may lead elsewhere tomorrow."""
    local = source.removeprefix("file://")
    if "://" in local:
        return source
    path, *parts = (Path.cwd() / Path(local).expanduser()).parts
    for part in parts:
        # What lies above a link is above what it leads to.
        path = os.path.realpath(f"{path}/..") if part == ".." else os.path.join(path, part)  # noqa: PTH118
    return path


def same_source(one: str, other: str) -> bool:
    """Whether two sources are one, by whatever links they are named."""
    return one == other or ("://" not in one + other and os.path.realpath(one) == os.path.realpath(other))


def parse_settings(assignments: Mapping[str, str]) -> dict[str, object]:
    """Settings as typed on a command line, as values. Raises UsageError naming the key that is wrong."""
    unknown = sorted(assignments.keys() - _PARSERS.keys())
    if unknown:
        raise UsageError(f"there is no setting {unknown[0]!r}: the settings are {', '.join(_PARSERS)}")
    parsed = {}
    for key, text in assignments.items():
        try:
            parsed[key] = _PARSERS[key](text.strip())
        except ValueError as error:
            raise UsageError(f"{key}={text} is not valid: {error}") from None
    return parsed


def _from_row(name: str, source: str, settings: dict, active_index: int | None) -> Collection:
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return Collection(name, source, CollectionSettings(**settings), active_index)


def _explicit(settings: CollectionSettings) -> dict[str, object]:
    """What differs from the defaults, and the model: a better default reaches the collections that left it alone."""
    return {
        f.name: value
        for f in fields(settings)
        if (value := getattr(settings, f.name)) != f.default or f.name == "embedding_model"
    }


def chunk_size(settings: CollectionSettings, model: EmbeddingModel) -> tuple[int, int]:
    """The tokens of a chunk and of its overlap with the next: as they are set, else as suits the model."""
    tokens, overlap = (512, 64) if model.max_input_tokens >= 512 else (192, 0)
    if settings.chunk_tokens is not None:
        tokens = settings.chunk_tokens
    if settings.chunk_overlap is not None:
        return tokens, settings.chunk_overlap
    return tokens, min(overlap, tokens // 4)


def _checked(connection: Connection, settings: CollectionSettings) -> CollectionSettings:
    """The settings, once they fit together and the database knows their words. Raises UsageError."""
    model = embedding_model(settings.embedding_model, settings.dimensions)
    if model.dimensions > 4000:
        raise UsageError(f"dimensions={model.dimensions} cannot be indexed: pgvector's HNSW takes 4000 at most")
    tokens, overlap = chunk_size(settings, model)
    if overlap * 2 > tokens:
        raise UsageError(f"chunk_overlap={overlap} is more than half of chunk_tokens={tokens}")
    if settings.hnsw_ef_construction < 2 * settings.hnsw_m:
        raise UsageError(
            f"hnsw_ef_construction={settings.hnsw_ef_construction} is less than twice hnsw_m={settings.hnsw_m}"
        )
    try:
        # As the server writes it, for it is compared with what an index was built with.
        (text_search,) = connection.execute("SELECT %s::regconfig::text", [settings.text_search]).fetchone()
    except psycopg.Error:
        raise UsageError(
            f"text_search={settings.text_search} is no text-search configuration of this PostgreSQL: \\dF lists them"
        ) from None
    return replace(settings, text_search=text_search)


# A failure that a limit caused deserves another try once that limit has changed.
_LIMITS = {"parse_timeout_s": "timed out", "parse_memory_mb": "out of memory", "max_file_mb": "too large"}


def _forgive(connection: Connection, name: str, before: CollectionSettings, after: CollectionSettings) -> None:
    reasons = [reason for key, reason in _LIMITS.items() if getattr(before, key) != getattr(after, key)]
    if reasons:
        forgive_failures(connection, name, reasons)


def forgive_failures(connection: Connection, name: str, reasons: list[str] | None = None) -> None:
    """Forget the parse failures with these reasons (None: with any), so that the next run parses those files again."""
    with connection.transaction():
        connection.execute(
            """DELETE FROM rag.parsed_text
               WHERE collection = %(name)s AND failure_reason IS NOT NULL
                     AND (%(reasons)s::text[] IS NULL OR failure_reason = ANY (%(reasons)s))""",
            {"name": name, "reasons": reasons},
        )
        connection.execute(
            """UPDATE rag.document SET failure_stage = NULL, failure_reason = NULL, failure_detail = NULL
               WHERE collection = %(name)s AND failure_stage = 'parsed_text'
                     AND (%(reasons)s::text[] IS NULL OR failure_reason = ANY (%(reasons)s))""",
            {"name": name, "reasons": reasons},
        )


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdigit() or not least <= int(text) <= most:
            raise ValueError(f"a whole number from {least} to {most} is expected")
        return int(text)

    return parse


def _or_none(parse: Callable[[str], object]) -> Callable[[str], object]:
    return lambda text: None if text in ("", "none") else parse(text)


def _truth(text: str) -> bool:
    values = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
    if text.lower() not in values:
        raise ValueError("on or off is expected")
    return values[text.lower()]


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError("a number from 0 to 1 is expected")
    return value


def _globs(text: str) -> tuple[str, ...]:
    from fsspec.utils import glob_translate

    globs = tuple(part.strip() for part in text.split(",") if part.strip())
    for glob in globs:
        glob_translate(glob)
    return globs


def _precision(text: str) -> str:
    if text not in ("full", "half"):
        raise ValueError("full or half is expected")
    return text


def _word(text: str) -> str:
    if not text:
        raise ValueError("a name is expected")
    return text


_PARSERS: dict[str, Callable[[str], object]] = {
    "embedding_model": _word,
    "dimensions": _or_none(_whole(1, 4000)),
    "chunk_tokens": _or_none(_whole(16, 8192)),
    "chunk_overlap": _or_none(_whole(0, 4096)),
    "embed_headings": _truth,
    "text_search": _word,
    "include": _globs,
    "exclude": _globs,
    "max_file_mb": _whole(1, 100_000),
    "parse_timeout_s": _whole(1, 86_400),
    "parse_memory_mb": _whole(128, 1_000_000),
    "hnsw_m": _whole(2, 100),
    "hnsw_ef_construction": _whole(4, 1000),
    "precision": _precision,
    "max_removal_fraction": _fraction,
    "max_embedding_tokens_per_run": _or_none(_whole(0, 10**12)),
    "log_questions": _truth,
}
