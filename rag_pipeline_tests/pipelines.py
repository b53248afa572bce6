"""A collection over a temporary folder, taken through the five stages without Dagster.

The fixtures `server` (the stand-in for OpenAI) and `pipeline` (an empty collection that embeds there) are every test's.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from pgvector.psycopg import register_vector
from psycopg import Connection
from psycopg.pq import TransactionStatus

from rag_pipeline.client import Rag
from rag_pipeline.core import collections, sandbox_worker
from rag_pipeline.core.parsing import ParseFailure, parse
from rag_pipeline.core.retrieval import Hits
from rag_pipeline.core.sandbox import ParserPool
from rag_pipeline.core.stages import parsed_text
from rag_pipeline.core.stages.cached_embeddings import IndexedReport, embed_chunks, embed_for_active
from rag_pipeline.core.stages.parsed_text import ParseReport, parse_documents
from rag_pipeline.core.stages.pgvector_index import IndexReport, publish_documents
from rag_pipeline.core.stages.raw_files import FilesReport, update_manifest
from rag_pipeline.core.stages.token_chunks import ChunkReport, chunk_documents
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import Settings
from rag_pipeline_tests.openai_server import OpenAIServer

MODEL = "openai/stand-in"
DIMENSIONS = 64

# A file that no parser takes, whatever its name.
UNPARSABLE = b"\x00\x01\x02\x03 no text \xff\xfe\x00" * 20

# Files are written with times of their own, long past: no two versions of a file look alike before they are read.
_seconds = itertools.count(1_700_000_000)


@dataclass(frozen=True)
class Run:
    """What the stages of one run reported."""

    files: FilesReport
    parsed: ParseReport
    chunks: ChunkReport
    embedded: IndexedReport
    published: IndexReport


class Pipeline:
    """A collection, the folder it is made from, and what readers see of it."""

    def __init__(self, runtime: Runtime, folder: Path, name: str, source: str | None = None, **settings: object):
        self.runtime = runtime
        self.folder = folder
        self.name = name
        self.connection = runtime.connect()
        self.rag = Rag(runtime)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"embedding_model": MODEL, "dimensions": DIMENSIONS, "chunk_tokens": 64, **settings}
        collections.add(self.connection, name, source or str(folder), settings)

    def close(self) -> None:
        self.rag.close()
        self.connection.close()

    def write(self, path: str, content: str | bytes) -> Path:
        """A file with this content and a time of its own."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        seconds = next(_seconds)
        os.utime(file, (seconds, seconds))
        return file

    def rename(self, path: str, to: str) -> None:
        (self.folder / path).rename(self.folder / to)

    def copy(self, path: str, to: str) -> None:
        shutil.copy2(self.folder / path, self.folder / to)

    def delete(self, *paths: str) -> None:
        for path in paths:
            (self.folder / path).unlink()

    def change(self, **settings: object) -> None:
        collections.change(self.connection, self.name, settings)

    @property
    def collection(self) -> collections.Collection:
        return collections.get(self.connection, self.name)

    def run(
        self,
        connection: Connection | None = None,
        *,
        allow_mass_removal: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Run:
        """All five stages, through `connection` where one is given."""
        connection = connection or self.connection
        model = self.runtime.model(self.collection.settings)
        return Run(
            update_manifest(connection, self.collection, allow_mass_removal=allow_mass_removal, progress=progress),
            parse_documents(connection, self.collection, workers=1, progress=progress),
            chunk_documents(
                connection,
                self.collection,
                self.runtime.chunk_settings(self.collection.settings),
                self.runtime.input_limit(model),
                progress=progress,
            ),
            self._embed(connection, progress),
            publish_documents(connection, self.collection, self.runtime.caches(self.connection, self.name)),
        )

    def _embed(self, connection: Connection, progress: Callable[[int, int], None]) -> IndexedReport:
        model = self.runtime.model(self.collection.settings)
        report = embed_chunks(connection, self.collection, model, self.runtime.embedder, progress=progress)
        report.embedding.add(embed_for_active(connection, self.collection, self.runtime.embedder))
        return report

    def search(self, query: str, k: int = 100, mode: str = "hybrid") -> Hits:
        return self.rag.search(self.name, query, k, mode)

    def found(self, query: str, mode: str = "text") -> set[str]:
        """Every path that a search finds, those of identical content included."""
        return {path for hit in self.search(query, mode=mode) for path in (hit.path, *hit.also_in.paths)}

    def rows(self, query: str, **parameters: object) -> list[tuple]:
        """The rows of a query over the database; `name` is the collection's."""
        return self.connection.execute(query, {"name": self.name, **parameters}).fetchall()

    def failures(self) -> dict[str, str]:
        """Why the newest version of a document is not served, by path."""
        return dict(
            self.rows(
                "SELECT path, failure_reason FROM rag.document WHERE collection = %(name)s AND failure_stage <> ''"
            )
        )

    def served(self) -> dict[str, list[tuple]]:
        """What readers see of each document: its chunks' spans, headings, tokens, embedded inputs and vectors."""
        rows = self.rows(
            """SELECT d.path, c.span_start, c.span_end, c.tokens, c.headings, i.input, i.embedding::text, i.terms::text
               FROM rag.document d
               JOIN rag.collection l ON l.name = d.collection
               LEFT JOIN rag.token_chunk c ON c.collection = d.collection AND c.chunk_key = d.published_chunk_key
               LEFT JOIN rag.indexed_chunk i ON i.index_id = l.active_index AND i.content_hash = c.content_hash
               WHERE d.collection = %(name)s AND d.published_chunk_key IS NOT NULL ORDER BY d.path, c.ordinal"""
        )
        return {
            path: [tuple(map(_hashable, row[1:])) for row in group]
            for path, group in itertools.groupby(rows, lambda row: row[0])
        }

    def served_texts(self) -> dict[str, str | None]:
        """The text that readers cut each document's passages from; None where it is gone."""
        return dict(
            self.rows(
                """SELECT d.path, p.text FROM rag.document d
                   JOIN rag.chunking k ON k.collection = d.collection AND k.chunk_key = d.published_chunk_key
                   LEFT JOIN rag.parsed_text p ON p.collection = k.collection AND p.parse_key = k.parse_key
                   WHERE d.collection = %(name)s"""
            )
        )

    def text(self, path: str) -> str:
        """The parsed text of a document's last good version."""
        return self.rows(
            """SELECT text FROM rag.document JOIN rag.parsed_text USING (collection, parse_key)
               WHERE collection = %(name)s AND path = %(path)s""",
            path=path,
        )[0][0]

    def index_rows(self) -> set[tuple]:
        """Every row of every index, as where and by which transaction it was written."""
        return set(self.connection.execute("SELECT tableoid, ctid::text, xmin::text FROM rag.indexed_chunk").fetchall())

    def assert_as_built_anew(self) -> None:
        """Readers see what a clean build of the files shows; what does not parse stays in its last good version."""
        settings = {key: value for key, value in vars(self.collection.settings).items() if value is not None}
        with closing(Pipeline(self.runtime, self.folder, f"{self.name}-anew", **settings)) as anew:
            try:
                anew.connection.execute(
                    """INSERT INTO rag.forgotten_content (collection, content_hash)
                       SELECT %s, content_hash FROM rag.forgotten_content WHERE collection = %s""",
                    [anew.name, self.name],
                )
                anew.run()
                failed = anew.failures()
                assert self.failures() == failed
                served = {path: chunks for path, chunks in self.served().items() if path not in failed}
                assert served == anew.served()
            finally:
                collections.remove(anew.connection, anew.name)

    def assert_clean(self) -> None:
        """Nothing is left over in the database, and nothing is missing, once a run has published all there is."""
        assert not self.rows("SELECT path FROM rag.document WHERE collection = %(name)s AND removed")
        published = self.rows(
            """SELECT DISTINCT c.content_hash FROM rag.document d
               JOIN rag.token_chunk c ON c.collection = d.collection AND c.chunk_key = d.published_chunk_key
               WHERE d.collection = %(name)s"""
        )
        for index, rows in self.rows(
            "SELECT id, rows FROM rag.vector_index WHERE collection = %(name)s AND retired_at IS NULL"
        ):
            held = self.rows("SELECT content_hash FROM rag.indexed_chunk WHERE index_id = %(index)s", index=index)
            assert rows == len(held)
            assert set(held) == set(published)
        self.assert_no_orphans()
        self.assert_words_counted()

    def assert_words_counted(self) -> None:
        """The statistics that rank a text search are those of the rows there are."""
        index, words = self.rows(
            """SELECT id, words FROM rag.vector_index v JOIN rag.collection c ON c.active_index = v.id
               WHERE c.name = %(name)s"""
        )[0]
        counted = self.rows("SELECT term, chunks FROM rag.index_term WHERE index_id = %(index)s", index=index)
        found = self.rows(
            """SELECT lexeme, count(*) FROM rag.indexed_chunk, unnest(terms) WHERE index_id = %(index)s
               GROUP BY lexeme""",
            index=index,
        )
        assert dict(counted) == dict(found)
        assert words == sum(chunks for _, chunks in found)

    def assert_no_orphans(self) -> None:
        """Everything derived is derived from what a document holds, and each partition belongs to an index."""
        assert not self.rows("SELECT * FROM rag.garbage")
        assert not self.rows(
            """SELECT parse_key FROM rag.parsed_text WHERE collection = %(name)s EXCEPT
               SELECT unnest(ARRAY[parse_key, wanted_parse_key]) FROM rag.document WHERE collection = %(name)s EXCEPT
               SELECT parse_key FROM rag.chunking WHERE collection = %(name)s"""
        )
        assert not self.rows(
            """SELECT chunk_key FROM rag.chunking WHERE collection = %(name)s EXCEPT
               SELECT unnest(ARRAY[chunk_key, published_chunk_key]) FROM rag.document WHERE collection = %(name)s"""
        )
        assert not self.rows(
            """SELECT content_hash FROM rag.indexed_chunk i JOIN rag.vector_index v ON v.id = i.index_id
               WHERE v.collection = %(name)s AND v.retired_at IS NULL
               EXCEPT SELECT content_hash FROM rag.token_chunk WHERE collection = %(name)s"""
        )
        assert not self.rows(
            """SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'indexed\\_chunk\\_%%'
               EXCEPT SELECT 'indexed_chunk_' || id FROM rag.vector_index"""
        )


def _hashable(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class InProcessParser(ParserPool):
    """Parses in this process: a worker process a run would take most of the time of these tests."""

    def _ask(self, request: sandbox_worker.Request) -> sandbox_worker.Reply:
        try:
            return sandbox_worker.answer(request, parse, self.limits.file_mb)
        except ParseFailure as failure:
            return sandbox_worker.Reply(failure=failure)


class Aborted(Exception):
    """Raised in the middle of a run, in place of a kill."""


class AbortingCursor(psycopg.Cursor):
    """A cursor of a connection whose `statements_left` run out: all that was not committed by then is lost."""

    def execute(self, *arguments, **keywords):
        self._count()
        return super().execute(*arguments, **keywords)

    def executemany(self, *arguments, **keywords):
        self._count()
        return super().executemany(*arguments, **keywords)

    def copy(self, *arguments, **keywords):
        self._count()
        return super().copy(*arguments, **keywords)

    def _count(self) -> None:
        self.connection.statements_left -= 1
        if self.connection.statements_left < 0:
            raise Aborted


def aborting(database_url: str, statements: int) -> Connection:
    """A connection that raises Aborted in place of its next statement but `statements`."""
    connection = psycopg.connect(database_url, autocommit=True, cursor_factory=AbortingCursor)
    connection.statements_left = 1000
    register_vector(connection)
    connection.statements_left = statements
    return connection


def interrupted(database_url: str, statements: int, meanwhile: Callable[[], None]) -> Connection:
    """A connection that calls `meanwhile` once: outside of its transactions, after so many statements."""
    left = [statements]

    class InterruptedCursor(AbortingCursor):
        def _count(self) -> None:
            if left and left[0] <= 0 and self.connection.info.transaction_status == TransactionStatus.IDLE:
                left.clear()
                meanwhile()
            elif left:
                left[0] -= 1

    connection = psycopg.connect(database_url, autocommit=True)
    register_vector(connection)
    connection.cursor_factory = InterruptedCursor
    return connection


def stand_in_runtime(
    home: Path, database_url: str, redis_url: str | None, server: OpenAIServer, **settings: object
) -> Runtime:
    """The runtime of an environment that names these services and the stand-in server."""
    values = {
        "home": home,
        "documents": home / "documents",
        "database_url": database_url,
        "query_database_url": None,
        "redis_url": redis_url,
        "executor": "in_process",
        "openai_api_key": "stand-in",
        "openai_base_url": server.url,
        "embedding_model": MODEL,
        "chat_model": None,
        "api_key": None,
    }
    return Runtime(Settings(**{**values, **settings}))


@pytest.fixture(scope="module")
def running_server() -> Iterator[OpenAIServer]:
    """One server for all tests of a module."""
    with OpenAIServer(dimensions=DIMENSIONS) as server:
        yield server


@pytest.fixture
def server(running_server: OpenAIServer) -> OpenAIServer:
    """The server as if it had just been started."""
    fresh = vars(OpenAIServer(dimensions=DIMENSIONS))
    for name in (
        "latency",
        "key",
        "failure_rate",
        "refuses",
        "intercept",
        "replies",
        "answer",
        "requests",
        "probes",
        "buckets",
    ):
        setattr(running_server, name, fresh[name])
    for name in ("after_event", "finish", "tells_usage"):
        setattr(running_server, name, fresh[name])
    return running_server


@pytest.fixture
def parsing_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker processes, but in the tests of the sandbox."""
    monkeypatch.setattr(parsed_text, "ParserPool", InProcessParser)


@pytest.fixture
def pipeline(
    tmp_path: Path, module_database_url: str, redis_url: str, server: OpenAIServer, parsing_in_process: None
) -> Iterator[Pipeline]:
    """An empty collection `docs` over an empty folder, the only one in its database."""
    runtime = stand_in_runtime(tmp_path / "home", module_database_url, redis_url, server)
    with closing(Pipeline(runtime, tmp_path / "docs", "docs")) as pipeline:
        yield pipeline
        for collection in collections.list_all(pipeline.connection):
            collections.remove(pipeline.connection, collection.name)


@pytest.fixture
def fruit(pipeline: Pipeline) -> Pipeline:
    """The collection `docs` with three documents, published."""
    pipeline.write("apples.txt", "Apples are red and grow on trees.")
    pipeline.write("pears.md", "# Pears\n\nPears are green.\n\n## Storing\n\nKeep them in the cellar.")
    pipeline.write("sub/plums.html", "<h1>Plums</h1><p>Plums are blue.</p>")
    pipeline.run()
    return pipeline
