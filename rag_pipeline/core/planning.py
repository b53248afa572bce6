"""What an ingest would do and cost, told beforehand: nothing is changed, and no provider is asked.

Exact for every text that is parsed already, also when it would be cut anew or embedded by another model: it is cut in
memory, as the stage does it. What is not parsed yet is estimated from the sizes of the files.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import islice

from psycopg import Connection

from rag_pipeline.core.cache import EmbeddingCache
from rag_pipeline.core.chunking import ChunkSettings, InputLimit, chunk_document, fingerprint
from rag_pipeline.core.collections import Collection
from rag_pipeline.core.embedding import Provider
from rag_pipeline.core.files import list_source
from rag_pipeline.core.indexing import known_vectors
from rag_pipeline.core.parsing import PARSER_VERSION
from rag_pipeline.core.stages.raw_files import (
    FilesReport,
    Known,
    barred_contents,
    gone_files,
    may_have_changed,
    read_files,
    read_manifest,
    require_source,
)
from rag_pipeline.core.stages.token_chunks import read_parsed_text

# Texts looked up and counted at a time.
WINDOW = 512

# cl100k tokens of text in a byte of file, where the collection has no file of that type to judge by: the sums over the
# files of up to 3 MB of five corpora (manuals and books). Other types, office files among them, are compressed more or
# less: as PDF.
TOKENS_PER_BYTE = {"text/html": 0.11, "text/plain": 0.23, "text/markdown": 0.23, "application/epub+zip": 0.24}
OTHER_TOKENS_PER_BYTE = 0.11
# How full of its limit a chunk is, of a document that has several.
FILL = 0.7


@dataclass(frozen=True)
class ToEmbed:
    """What a provider would be asked: texts, their tokens as it counts them, dollars (None: no known price)."""

    chunks: int
    tokens: int
    cost_usd: float | None


@dataclass(frozen=True)
class IngestPlan:
    """What an ingest would do, in the form `rag plan --json` prints it; `estimated` unless every text is parsed."""

    collection: str
    files: dict[str, int]
    to_parse: int
    to_embed: ToEmbed
    estimated: bool


@dataclass(frozen=True)
class _Content:
    """A document as the next run will have it."""

    size: int
    media_type: str | None
    wanted_parse_key: bytes | None
    parse_key: bytes | None
    published_chunk_key: bytes | None


def plan_ingest(
    connection: Connection,
    collection: Collection,
    settings: ChunkSettings,
    limit: InputLimit,
    provider: Provider,
    cache: EmbeddingCache,
) -> IngestPlan:
    """List and, where they may have changed, read the source's files; cut what is parsed; count what nobody knows.

    Raises SourceError when the source cannot be listed completely, or is an empty folder in place of the one it was.
    """
    files, contents = _look(connection, collection)
    good = _parsed(connection, collection.name, contents)
    to_parse = {each.wanted_parse_key: each for each in contents if each.wanted_parse_key not in good}
    chunker = str(fingerprint(settings, limit))
    indexes = known_vectors(connection, collection, provider.model)
    published = any(index.active for index in indexes)  # then what is published is whole in one of them
    keys = {}
    for each in contents:
        parse_key = each.wanted_parse_key if good.get(each.wanted_parse_key) else each.parse_key
        if each.wanted_parse_key in to_parse or parse_key is None:
            continue
        chunk_key = sha256(parse_key + chunker.encode()).digest()
        if not (published and chunk_key == each.published_chunk_key):
            keys[chunk_key] = parse_key
    texts = _texts(connection, collection.name, keys, settings, limit)
    chunks, tokens = _count(connection, texts, [index.id for index in indexes], provider, cache)
    if to_parse:
        more_chunks, more_tokens = _estimate(
            connection, collection.name, to_parse.values(), min(settings.chunk_tokens, limit.max_tokens)
        )
        chunks, tokens = chunks + more_chunks, tokens + more_tokens
    return IngestPlan(
        collection=collection.name,
        files={key: asdict(files)[key] for key in ("seen", "added", "changed", "removed", "unchanged", "withheld")},
        to_parse=len(to_parse),
        to_embed=ToEmbed(chunks, tokens, provider.model.cost(tokens)),
        estimated=bool(to_parse),
    )


def _look(connection: Connection, collection: Collection) -> tuple[FilesReport, list[_Content]]:
    """What `update_manifest` would report, and the documents that it would leave."""
    listing = list_source(collection)
    before = read_manifest(connection, collection.name)
    require_source(connection, collection, listing, before)
    contents = _contents(connection, collection.name)
    now = dict(before)
    suspects = [file for file in listing.files.values() if may_have_changed(file, before.get(file.path))]
    report = FilesReport(seen=len(listing.files), skipped=listing.skipped, unchanged=len(listing.files) - len(suspects))
    reads = [read for batch in read_files(collection.source, suspects) for read in batch]
    barred = barred_contents(connection, collection.name, [read.content_hash for read in reads if read.content_hash])
    for read in reads:
        file = read.file
        change = report.count_read(read, before.get(file.path), barred)
        if change == "unreadable":
            continue
        now[file.path] = Known(file.size, file.stamp, read.content_hash)
        if change == "forgotten":
            contents.pop(file.path, None)
            continue
        contents[file.path] = replace(
            contents.get(file.path, _Content(0, None, None, None, None)),
            size=file.size,
            media_type=read.media_type,
            wanted_parse_key=_parse_key(read.content_hash, read.media_type),
        )
    gone, withheld = gone_files(collection, before, now, listing)
    report.removed, report.withheld = len(gone), len(withheld)
    leaving = {*gone} | {path for path, known in before.items() if known.removed and now[path] is known}
    return report, [
        each for path, each in contents.items() if path not in leaving and each.wanted_parse_key is not None
    ]


def _contents(connection: Connection, name: str) -> dict[str, _Content]:
    """The manifest's documents by path, as this version's parser wants them."""
    rows = connection.cursor(binary=True).execute(
        """SELECT path, size, media_type, content_hash, parse_key, published_chunk_key
           FROM rag.document WHERE collection = %s""",
        [name],
    )
    return {
        path: _Content(size, media_type, _parse_key(content_hash, media_type), parse_key, published_chunk_key)
        for path, size, media_type, content_hash, parse_key, published_chunk_key in rows
    }


def _parse_key(content_hash: bytes | None, media_type: str | None) -> bytes | None:
    """As the function `rag.parse_key`."""
    if content_hash is None or media_type is None:
        return None
    return sha256(content_hash + f"{media_type} {PARSER_VERSION}".encode()).digest()


def _parsed(connection: Connection, name: str, contents: Iterable[_Content]) -> dict[bytes, bool]:
    """The contents that have been parsed, by their wanted parse key: whether there is a text."""
    rows = connection.execute(
        """SELECT parse_key, failure_reason IS NULL FROM rag.parsed_text
           WHERE collection = %s AND parse_key = ANY (%s)""",
        [name, list({each.wanted_parse_key for each in contents})],
    )
    return dict(rows.fetchall())


def _texts(
    connection: Connection, name: str, keys: dict[bytes, bytes], settings: ChunkSettings, limit: InputLimit
) -> Iterator[tuple[bytes, str]]:
    """Hash and embedded input of every chunk of these chunk keys, each with its parse key; cut in memory where no
    chunks are stored."""
    stored = connection.execute(
        "SELECT chunk_key FROM rag.chunking WHERE collection = %s AND chunk_key = ANY (%s)", [name, list(keys)]
    ).fetchall()
    stored = {chunk_key for (chunk_key,) in stored}
    for chunk_key, parse_key in keys.items():
        parsed = read_parsed_text(connection, name, parse_key)
        if parsed is None:  # forgotten meanwhile
            continue
        if chunk_key not in stored:
            for chunk in chunk_document(parsed, settings, limit):
                yield sha256(chunk.input.encode()).digest(), chunk.input
            continue
        rows = connection.execute(
            """SELECT content_hash, prefix, span_start, span_end, suffix FROM rag.token_chunk
               WHERE collection = %s AND chunk_key = %s ORDER BY ordinal""",
            [name, chunk_key],
        ).fetchall()
        for content_hash, prefix, start, end, suffix in rows:
            yield content_hash, prefix + parsed.text[start:end] + suffix


def _count(
    connection: Connection,
    texts: Iterator[tuple[bytes, str]],
    indexes: list[int],
    provider: Provider,
    cache: EmbeddingCache,
) -> tuple[int, int]:
    """How many of these texts neither an index nor the cache knows, each counted once, and their tokens."""
    chunks, tokens, seen = 0, 0, set()
    while window := dict(islice(texts, WINDOW)):
        fresh = [content_hash for content_hash in window if content_hash not in seen]
        seen.update(fresh)
        held = connection.execute(
            "SELECT content_hash FROM rag.indexed_chunk WHERE index_id = ANY (%s) AND content_hash = ANY (%s)",
            [indexes, fresh],
        ).fetchall()
        fresh = list(set(fresh).difference(content_hash for (content_hash,) in held))
        known = cache.get_many(fresh)
        counts = provider.count([window[content_hash] for content_hash in fresh if content_hash not in known])
        readable = [count for count in counts if count <= provider.model.max_input_tokens]
        chunks, tokens = chunks + len(readable), tokens + sum(readable)
    return chunks, tokens


def _estimate(connection: Connection, name: str, contents: Iterable[_Content], chunk_tokens: int) -> tuple[int, int]:
    """Chunks and tokens to expect of files that are not parsed: as many a byte as the collection's files of that type
    have, else as such files usually have."""
    rows = connection.execute(
        """SELECT media_type, sum(k.tokens)::float / sum(size)
           FROM rag.document d JOIN rag.chunking k ON k.collection = d.collection AND k.chunk_key = d.chunk_key
           WHERE d.collection = %s GROUP BY media_type HAVING sum(size) > 0""",
        [name],
    )
    per_byte = {**TOKENS_PER_BYTE, **dict(rows.fetchall())}
    estimates = [each.size * per_byte.get(each.media_type, OTHER_TOKENS_PER_BYTE) for each in contents if each.size]
    full = FILL * chunk_tokens
    return sum(max(1, round(tokens / full)) for tokens in estimates), round(sum(estimates))
