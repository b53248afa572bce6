"""parsed_text: every content of the manifest parsed once, or the reason why it has no text.

`plan_parsing` finds what is missing and cuts it into shards, `parse_shard` does one of them, anywhere.
`parse_documents` is all of it in one process.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from psycopg import Connection, sql
from psycopg.types.json import Jsonb

from rag_pipeline.core.collections import Collection
from rag_pipeline.core.files import location
from rag_pipeline.core.parsing import PARSER_VERSION
from rag_pipeline.core.sandbox import Job, Limits, Outcome, ParserPool
from rag_pipeline.core.sharding import Shard, cut

# Committed together; what a kill in between costs is this much parsing again.
BATCH = 32
CHANGES_SHOWN = 50


@dataclass
class ParseReport:
    """What this stage did. `changes` names the first documents: (path, characters, elements, what went wrong)."""

    documents: int = 0
    failed: int = 0
    postponed: int = 0
    characters: int = 0
    changes: list[tuple[str, int, int, str]] = field(default_factory=list)

    def add(self, other: "ParseReport") -> None:
        """Add up."""
        self.documents += other.documents
        self.failed += other.failed
        self.postponed += other.postponed
        self.characters += other.characters
        self.changes = [*self.changes, *other.changes][:CHANGES_SHOWN]


def parse_documents(
    connection: Connection,
    collection: Collection,
    *,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ParseReport:
    """Parse what the manifest wants and no row holds yet. A file that does not parse is recorded and holds up nothing.

    A file whose bytes are no longer the manifest's is left for the next run.
    """
    report = ParseReport()
    for shard in plan_parsing(connection, collection):
        report.add(parse_shard(connection, collection, shard, workers=workers, progress=progress))
    return report


def plan_parsing(connection: Connection, collection: Collection, *, shard_bytes: int | None = None) -> list[Shard]:
    """Adopt the parses that exist, and cut the rest into shards of files of so many bytes."""
    _rekey(connection, collection.name)
    _adopt(connection, collection.name)
    missing = _missing(connection, collection.name)
    return cut([(parse_key, size) for parse_key, size, *_ in missing], shard_bytes)


def parse_shard(
    connection: Connection,
    collection: Collection,
    shard: Shard,
    *,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ParseReport:
    """Parse what is still missing of a shard: all of it at first, less when it is done again after a crash."""
    jobs = _jobs(connection, collection, shard)
    report = ParseReport()
    if not jobs:
        return report
    limits = Limits(
        seconds=collection.settings.parse_timeout_s,
        memory_mb=collection.settings.parse_memory_mb,
        file_mb=collection.settings.max_file_mb,
    )
    done = 0
    with ParserPool(min(workers, len(jobs)), limits) as pool:
        for batch in _batches(pool.parse_many(jobs)):
            with connection.transaction():
                _store(connection, collection.name, batch)
                _adopt(connection, collection.name)
            for outcome in batch:
                _count(report, outcome)
            done += len(batch)
            progress(done, len(jobs))
    return report


def _rekey(connection: Connection, name: str) -> None:
    """After a change of the parser, want every document parsed by the new one."""
    with connection.transaction():
        moved = connection.execute(
            """UPDATE rag.collection SET parser_fingerprint = %(parser)s
               WHERE name = %(name)s AND parser_fingerprint IS DISTINCT FROM %(parser)s RETURNING name""",
            {"name": name, "parser": str(PARSER_VERSION)},
        ).fetchone()
        if moved:
            connection.execute(
                """UPDATE rag.document SET wanted_parse_key = rag.parse_key(content_hash, media_type, %(parser)s)
                   WHERE collection = %(name)s AND content_hash IS NOT NULL
                         AND wanted_parse_key IS DISTINCT FROM rag.parse_key(content_hash, media_type, %(parser)s)""",
                {"name": name, "parser": str(PARSER_VERSION)},
            )


def _adopt(connection: Connection, name: str) -> None:
    """Point the documents at the parses that exist, whoever made them: a parse that failed moves no pointer.

    What cannot be read any more stays so, whatever becomes of the version that could.
    """
    connection.execute(
        """UPDATE rag.document d
           SET parse_key = d.wanted_parse_key, chunk_key = rag.chunk_key(d.wanted_parse_key, c.chunker_fingerprint),
               (failure_stage, failure_reason, failure_detail) = (
                   SELECT d.failure_stage, d.failure_reason, d.failure_detail WHERE d.failure_stage = 'raw_files')
           FROM rag.parsed_text p, rag.collection c
           WHERE d.collection = %(name)s AND d.pending AND NOT d.removed
                 AND d.wanted_parse_key IS DISTINCT FROM d.parse_key
                 AND p.collection = d.collection AND p.parse_key = d.wanted_parse_key AND p.failure_reason IS NULL
                 AND c.name = d.collection""",
        {"name": name},
    )
    connection.execute(
        """UPDATE rag.document d
           SET failure_stage = 'parsed_text', failure_reason = p.failure_reason, failure_detail = p.failure_detail
           FROM rag.parsed_text p
           WHERE d.collection = %(name)s AND d.pending AND NOT d.removed
                 AND d.failure_stage IS DISTINCT FROM 'raw_files'
                 AND p.collection = d.collection AND p.parse_key = d.wanted_parse_key AND p.failure_reason IS NOT NULL
                 AND (d.failure_stage, d.failure_reason, d.failure_detail)
                     IS DISTINCT FROM ('parsed_text', p.failure_reason, p.failure_detail)""",
        {"name": name},
    )


def _missing(connection: Connection, name: str, shard: Shard | None = None) -> list[tuple[bytes, int, str, str, bytes]]:
    """Parse key, size, path, media type and content hash of each content that is wanted and has no row; of a shard
    those that lie in it."""
    return connection.execute(
        sql.SQL(
            """SELECT DISTINCT ON (wanted_parse_key) wanted_parse_key, size, path, media_type, content_hash
               FROM rag.document d
               WHERE collection = %(name)s AND pending AND NOT removed AND wanted_parse_key IS DISTINCT FROM parse_key
                     AND NOT EXISTS (SELECT FROM rag.parsed_text p
                                     WHERE p.collection = d.collection AND p.parse_key = d.wanted_parse_key)
                     {within}
               ORDER BY wanted_parse_key, path"""
        ).format(within=sql.SQL("AND wanted_parse_key BETWEEN %(first)s AND %(last)s" if shard else "")),
        {"name": name, **(shard.bounds() if shard else {})},
    ).fetchall()


def _jobs(connection: Connection, collection: Collection, shard: Shard) -> list[Job]:
    return [
        Job(
            key=(parse_key, path),
            path=location(collection.source, path),
            media_type=media_type,
            name=path,
            expected_hash=content_hash,
        )
        for parse_key, _, path, media_type, content_hash in _missing(connection, collection.name, shard)
    ]


def _batches(outcomes: Iterator[Outcome]) -> Iterator[list[Outcome]]:
    batch = []
    for outcome in outcomes:
        batch.append(outcome)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _store(connection: Connection, name: str, outcomes: list[Outcome]) -> None:
    rows = []
    for outcome in outcomes:
        parse_key, _ = outcome.key
        if outcome.parsed:
            parsed = outcome.parsed
            rows.append((name, parse_key, parsed.text, parsed.to_json(), Jsonb(parsed.metadata), None, None))
        elif outcome.failure:
            rows.append((name, parse_key, None, None, None, outcome.failure.reason, outcome.failure.detail))
    with connection.cursor() as cursor:
        cursor.executemany(
            """INSERT INTO rag.parsed_text
                   (collection, parse_key, text, elements, metadata, failure_reason, failure_detail)
               VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING""",
            rows,
        )
    # Other bytes than the manifest's, though nothing else may tell: the next run reads the file again.
    connection.execute(
        "UPDATE rag.document SET stamp = NULL WHERE collection = %s AND path = ANY (%s)",
        [name, [outcome.key[1] for outcome in outcomes if outcome.changed]],
    )
    # Of the file and not of its content, so it is kept with no parse key: the next run tries again.
    with connection.cursor() as cursor:
        cursor.executemany(
            """UPDATE rag.document
               SET failure_stage = 'parsed_text', failure_reason = 'unreadable', failure_detail = %s
               WHERE collection = %s AND wanted_parse_key = %s AND NOT removed""",
            [(outcome.unreadable, name, outcome.key[0]) for outcome in outcomes if outcome.unreadable],
        )


def _count(report: ParseReport, outcome: Outcome) -> None:
    _, path = outcome.key
    if outcome.parsed:
        report.documents += 1
        report.characters += len(outcome.parsed.text)
        change = (path, len(outcome.parsed.text), len(outcome.parsed.elements), "")
    elif outcome.failure:
        report.failed += 1
        # Not the detail, which may quote the document: the report goes where `rag forget` does not reach.
        change = (path, 0, 0, outcome.failure.reason)
    elif outcome.unreadable:
        report.failed += 1
        change = (path, 0, 0, "unreadable")
    else:
        report.postponed += 1
        change = (path, 0, 0, "changed while it was read")
    if len(report.changes) < CHANGES_SHOWN:
        report.changes.append(change)
