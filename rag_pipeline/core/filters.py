"""Filters of a search: path, media type, date and what documents say of themselves, such as `author=*Knuth*`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from unicodedata import normalize

from psycopg import Connection, sql

from rag_pipeline.core.errors import UsageError

# What every document has; any other field is looked up in its metadata.
FIELDS = ("path", "media_type", "modified")

# What documents write, and the name under which the parsers keep it.
ALIASES = {"author": "authors", "date": "created", "lang": "language"}

FILTER = re.compile(r"\s*([^\s<=>][^<=>]*?)\s*(>=|<=|=)\s*(.*?)\s*", re.DOTALL)

# What PostgreSQL cannot store, and what bytes that are no UTF-8 become on a command line.
NOT_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Filter:
    """One condition on a document, as `parse_filters` reads it."""

    name: str
    operator: str
    value: str

    @property
    def keys(self) -> list[str]:
        """The field's names in a document's metadata; the first that is there counts."""
        return [self.name, ALIASES.get(self.name, self.name)]


@dataclass(frozen=True)
class Condition:
    """A test of a row `d` of rag.document, and what it binds."""

    test: sql.Composable
    parameters: dict[str, object]


def parse_filters(filters: Sequence[str]) -> list[Filter]:
    """Filters as they are typed: FIELD=GLOB, FIELD>=VALUE or FIELD<=VALUE; in NFC and with the field's name in small
    letters, as the parsers have them.

    Raises UsageError for one that is none, or a date that is none.
    """
    if isinstance(filters, str):
        raise UsageError(f"filters are a list, not one text: [{filters!r}]")
    parsed = []
    for text in filters:
        match = FILTER.fullmatch(normalize("NFC", text))
        if not match or not match[3] or NOT_TEXT.search(text):
            raise UsageError(f"{text!r} is no filter: write FIELD=GLOB, FIELD>=VALUE or FIELD<=VALUE")
        name, operator, value = " ".join(match[1].lower().split()), match[2], match[3]
        if operator != "=" and name in ("path", "media_type"):
            raise UsageError(f"{text!r} is no filter: {name} is compared with a glob, {name}=GLOB")
        if name == "modified":
            _day(value)
        parsed.append(Filter(name, operator, value))
    return parsed


def require_fields(connection: Connection, collections: Sequence[str], filters: Sequence[Filter]) -> None:
    """Raises UsageError for a field that no document of the collections has, with those that there are."""
    for wanted in filters:
        if wanted.name in FIELDS:
            continue
        (known,) = connection.execute(
            "SELECT EXISTS (SELECT FROM rag.parsed_text WHERE collection = ANY (%s) AND metadata ?| %s)",
            [list(collections), wanted.keys],
        ).fetchone()
        if not known:
            names = connection.execute(
                """SELECT DISTINCT key FROM rag.parsed_text, jsonb_object_keys(metadata) AS key
                   WHERE collection = ANY (%s) ORDER BY key LIMIT 100""",
                [list(collections)],
            ).fetchall()
            there = ", ".join((*FIELDS, *(name for (name,) in names)))
            raise UsageError(
                f"no document of {','.join(collections)} has {wanted.name!r} to filter by: there are {there}"
            )


def condition(filters: Sequence[Filter]) -> Condition:
    """The test that a document passes all the filters; without any, all do."""
    if not filters:
        return Condition(sql.SQL("true"), {})
    tests, parameters = [], {}
    for number, wanted in enumerate(filters):
        bound = sql.Placeholder(f"filter_{number}")
        if wanted.name == "path":
            # As in the settings include and exclude: a glob without a slash speaks of the file's name.
            glob = wanted.value.lstrip("/") if "/" in wanted.value else f"**/{wanted.value}"
            test, value = sql.SQL("normalize(d.path) ~ {}").format(bound), _path_pattern(glob)
        elif wanted.name == "media_type":
            test, value = sql.SQL("d.media_type ~* {}").format(bound), _pattern(wanted.value)
        elif wanted.name == "modified":
            test, value = sql.SQL("d.modified <@ {}::tstzrange").format(bound), _range(wanted)
        else:
            names = sql.SQL(", p.metadata -> ").join(sql.Placeholder(f"field_{number}_{n}") for n in (0, 1))
            parameters |= {f"field_{number}_{n}": key for n, key in enumerate(wanted.keys)}
            value = _pattern(wanted.value) if wanted.operator == "=" else wanted.value
            test = sql.SQL(
                """EXISTS (SELECT FROM rag.chunking k
                           JOIN rag.parsed_text p ON p.collection = k.collection AND p.parse_key = k.parse_key
                           WHERE k.collection = d.collection AND k.chunk_key = d.published_chunk_key
                                 AND rag.says(coalesce(p.metadata -> {names}), {operator}, {value}))"""
            ).format(names=names, operator=sql.Literal(wanted.operator), value=bound)
        tests.append(test)
        parameters[f"filter_{number}"] = value
    return Condition(sql.SQL("({})").format(sql.SQL(" AND ").join(tests)), parameters)


def _path_pattern(glob: str) -> str:
    """fsspec's glob as PostgreSQL's regular expression: ** is any folders, * stays within one."""
    from fsspec.utils import glob_translate

    try:
        return "^(?:" + glob_translate(glob).removeprefix("(?s:").removesuffix(r")\Z") + ")$"
    except ValueError as error:
        raise UsageError(f"path={glob} is no glob: {error}") from None


def _pattern(glob: str) -> str:
    """A glob in which * is any text and ? any character, as PostgreSQL's regular expression."""
    return "^" + re.escape(glob).replace(r"\*", ".*").replace(r"\?", ".") + "$"


def _range(wanted: Filter) -> str:
    """The times that pass, as PostgreSQL writes a range; a day is all of it."""
    first, after = _day(wanted.value)
    start = "" if wanted.operator == "<=" else first.isoformat()
    end = "" if wanted.operator == ">=" or after is None else after.isoformat()
    return f"[{start},{end})"


def _day(text: str) -> tuple[datetime, datetime | None]:
    """Where a date or time begins and ends, in UTC where it names no zone; the calendar's last one has no end.

    Raises UsageError.
    """
    try:
        if not re.match(r"\d{4}-\d\d-\d\d", text):
            raise ValueError(text)  # a week, or a date without hyphens, which are days to Python
        first = datetime.fromisoformat(text)
        first = first if first.tzinfo else first.replace(tzinfo=UTC)
    except ValueError:
        raise UsageError(f"modified: {text!r} is no date: write it as 2024-01-31 or 2024-01-31T12:00") from None
    try:
        return first, first + (timedelta(days=1) if len(text) <= len("2024-01-31") else timedelta(microseconds=1))
    except OverflowError:
        return first, None
