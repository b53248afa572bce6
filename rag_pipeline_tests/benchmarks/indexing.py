"""How near loading, building, listing and changing come to what PostgreSQL and the file system take by themselves.

PostgreSQL runs in a temporary home. Each figure is the least of several rounds, taken by turns with its floor.

    python -m rag_pipeline_tests.benchmarks.indexing load|build|manifest|change [--size N] [--rounds 3]
"""

import argparse
import gc
import hashlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
from pgvector import Vector
from psycopg import Connection, sql

from rag_pipeline.core import collections, indexing
from rag_pipeline.core.cache import EmbeddingCache
from rag_pipeline.core.chunking import ChunkSettings, InputLimit
from rag_pipeline.core.collections import Collection
from rag_pipeline.core.embedding import Answer
from rag_pipeline.core.models import embedding_model
from rag_pipeline.core.stages import parsed_text
from rag_pipeline.core.stages.cached_embeddings import embed_chunks
from rag_pipeline.core.stages.parsed_text import parse_documents
from rag_pipeline.core.stages.pgvector_index import publish_documents
from rag_pipeline.core.stages.raw_files import update_manifest
from rag_pipeline.core.stages.token_chunks import chunk_documents
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import Settings
from rag_pipeline_tests.benchmarks.embedding import services
from rag_pipeline_tests.pipelines import InProcessParser

DIMENSIONS = 384
MODEL = embedding_model("openai/stand-in", DIMENSIONS)
WORDS = 100  # in a chunk
BATCH = 512  # rows handed over at a time, as `embed_stream` does it

Row = tuple[bytes, str, np.ndarray]


def chunks(count: int) -> list[Row]:
    """Made-up texts with words as unevenly common as a language's, and vectors of length 1: always the same."""
    chance = random.Random(5)
    words = ["".join(chance.choices("aeioulnrst", k=chance.randint(2, 9))) for _ in range(20_000)]
    weights = np.cumsum([1 / rank for rank in range(1, len(words) + 1)]).tolist()
    vectors = np.random.default_rng(5).standard_normal((count, DIMENSIONS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = []
    for number, vector in enumerate(vectors):
        text = f"{number} " + " ".join(chance.choices(words, cum_weights=weights, k=WORDS))
        rows.append((hashlib.sha256(text.encode()).digest(), text, vector))
    return rows


def seconds(work: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def fresh_index(connection: Connection) -> indexing.VectorIndex:
    """An empty index under construction, of a collection that is made anew."""
    if collections.find(connection, "bench"):
        collections.remove(connection, "bench")
    settings = {"embedding_model": MODEL.name, "dimensions": DIMENSIONS}
    return indexing.choose_target(connection, collections.add(connection, "bench", "/tmp", settings), MODEL)


def bare_table(connection: Connection) -> None:
    """The columns of `rag.indexed_chunk`, its terms made by the server, and its unique index."""
    connection.execute("DROP TABLE IF EXISTS bare")
    connection.execute(
        """CREATE TABLE bare (
               index_id bigint NOT NULL DEFAULT 1, content_hash bytea NOT NULL, input text NOT NULL,
               embedding vector NOT NULL,
               terms tsvector NOT NULL GENERATED ALWAYS AS (rag.terms('english'::regconfig, input)) STORED,
               PRIMARY KEY (index_id, content_hash))"""
    )


def bare_copy(connection: Connection, rows: list[Row]) -> None:
    with connection.cursor().copy("COPY bare (content_hash, input, embedding) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["bytea", "text", "vector"])
        for content_hash, text, vector in rows:
            copy.write_row((content_hash, text, Vector(vector)))


def insert(connection: Connection, index: indexing.VectorIndex, rows: list[Row]) -> None:
    for start in range(0, len(rows), BATCH):
        indexing.insert_chunks(connection, index, rows[start : start + BATCH])


def load(connection: Connection, count: int, rounds: int) -> None:
    """`insert_chunks`, in the batches of a run, against one COPY of all rows."""
    rows = chunks(count)
    floor, ours = [], []
    for _ in range(rounds):
        bare_table(connection)
        floor.append(seconds(lambda: bare_copy(connection, rows)))
        index = fresh_index(connection)
        ours.append(seconds(lambda index=index: insert(connection, index, rows)))
    print(f"bare COPY      {min(floor):7.2f} s  {len(rows) / min(floor):8,.0f} rows/s")
    print(
        f"insert_chunks  {min(ours):7.2f} s  {len(rows) / min(ours):8,.0f} rows/s, {min(floor) / min(ours):.2f} of it"
    )


def build(connection: Connection, count: int, rounds: int) -> None:
    """`build_graph` against bare CREATE INDEX with the same memory: of the graph alone, and of the text index too."""
    rows = chunks(count)
    notices: list[str] = []
    connection.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    bare_table(connection)
    bare_copy(connection, rows)
    graphs, terms, ours = [], [], []
    for _ in range(rounds):
        index = fresh_index(connection)
        insert(connection, index, rows)
        memory = indexing._build_memory_mb(connection, index)
        connection.execute("DROP INDEX IF EXISTS bare_graph, bare_terms")
        connection.execute(sql.SQL("SET maintenance_work_mem = {}").format(f"{memory}MB"))
        graphs.append(
            seconds(
                lambda: connection.execute(
                    f"""CREATE INDEX bare_graph ON bare USING hnsw ((embedding::vector({DIMENSIONS})) vector_cosine_ops)
                        WITH (m = 16, ef_construction = 64)"""
                )
            )
        )
        terms.append(seconds(lambda: connection.execute("CREATE INDEX bare_terms ON bare USING gin (terms)")))
        connection.execute("RESET maintenance_work_mem")
        ours.append(seconds(lambda index=index: indexing.build_graph(connection, index)))
    floor = min(map(sum, zip(graphs, terms, strict=True)))
    print(f"bare CREATE INDEX  {min(graphs):7.2f} s graph, {min(terms):.2f} s terms, {memory} MB")
    alone = min(ours) / min(graphs)
    print(f"build_graph        {min(ours):7.2f} s, {min(ours) / floor:.2f} of both, {alone:.2f} of the graph alone")
    print(f"notices            {[notice for notice in notices if 'skipping' not in notice] or 'none'}")


class StubProvider:
    """Vectors made on the spot, so that what is timed is the pipeline and not a provider."""

    model = MODEL
    base_url = "stub"
    batch_inputs, batch_tokens, first_inputs, in_flight = 512, 300_000, 0, 1

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def embed(self, texts: Sequence[str], *, tokens: int, hurry: bool, stop: Event) -> Answer:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
        return Answer(np.stack([np.random.default_rng(seed).standard_normal(DIMENSIONS) for seed in seeds]), tokens)


def write_files(folder: Path, count: int) -> None:
    """Short documents in folders of a hundred, old enough for their times to be trusted."""
    for number, (_, text, _) in enumerate(chunks(count)):
        file = folder / f"{number // 100:03}" / f"{number:05}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        os.utime(file, (1_700_000_000, 1_700_000_000))


def add_collection(connection: Connection, name: str, folder: Path) -> Collection:
    settings = {"embedding_model": MODEL.name, "dimensions": DIMENSIONS}
    return collections.add(connection, name, str(folder), settings)


def bare_listing(connection: Connection, folder: Path) -> None:
    """Every file's status, and the manifest's rows as tuples."""
    for place, _, names in os.walk(folder):
        for name in names:
            os.stat(f"{place}/{name}")  # noqa: PTH116
    connection.cursor(binary=True).execute(
        "SELECT path, size, stamp, content_hash, removed FROM rag.document WHERE collection = 'files'"
    ).fetchall()


def manifest(connection: Connection, count: int, rounds: int) -> None:
    """`update_manifest` where nothing has changed, against a walk with `stat` and one read of the same rows."""
    with tempfile.TemporaryDirectory() as directory:
        write_files(Path(directory), count)
        collection = add_collection(connection, "files", Path(directory))
        update_manifest(connection, collection)
        connection.execute("ANALYZE rag.document")
        floor, ours = [], []
        for _ in range(rounds):
            floor.append(seconds(lambda: bare_listing(connection, Path(directory))))
            ours.append(seconds(lambda: update_manifest(connection, collection)))
    print(f"bare walk and read  {min(floor) * 1000:6.1f} ms for {count:,} files")
    print(f"update_manifest     {min(ours) * 1000:6.1f} ms, {min(ours) / min(floor):.2f} times that")


def run(connection: Connection, name: str) -> dict[str, float]:
    """The seconds of each stage."""
    provider, cache = StubProvider(), EmbeddingCache(None, "stub", MODEL.name, DIMENSIONS)
    limit = InputLimit(MODEL.max_input_tokens, provider.count, "words")
    stages = {
        "raw_files": update_manifest,
        "parsed_text": lambda connection, collection: parse_documents(connection, collection, workers=1),
        "token_chunks": lambda connection, collection: chunk_documents(
            connection, collection, ChunkSettings(512, 64, True), limit
        ),
        "cached_embeddings": lambda connection, collection: embed_chunks(
            connection, collection, MODEL, lambda model: (provider, cache)
        ),
        "pgvector_index": publish_documents,
    }
    return {
        stage: seconds(lambda work=work: work(connection, collections.get(connection, name)))
        for stage, work in stages.items()
    }


def change(connection: Connection, count: int, rounds: int) -> None:
    """One changed file among `count`, against one among a hundredth of them, stage by stage."""
    parsed_text.ParserPool = InProcessParser  # a worker process takes longer than all else
    least: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        folders = {"few": (Path(directory) / "few", count // 100), "many": (Path(directory) / "many", count)}
        for name, (folder, files) in folders.items():
            write_files(folder, files)
            add_collection(connection, name, folder)
            run(connection, name)
        connection.execute("VACUUM ANALYZE")
        for number in range(rounds):
            for name, (folder, _) in folders.items():
                file = folder / "000" / "00007.txt"
                file.write_text(f"{name} in round {number}: " + " ".join(map(str, range(100))))
                os.utime(file, (1_700_000_100 + number, 1_700_000_100 + number))
                taken = run(connection, name)
                least[name] = {stage: min(taken[stage], least.get(name, taken)[stage]) for stage in taken}
    print(f"one changed file    among {count // 100:,}   among {count:,}")
    for stage, few in least["few"].items():
        many = least["many"][stage]
        print(f"{stage:18} {few * 1000:8.1f} ms   {many * 1000:8.1f} ms   {many / few:.2f}")


SCENARIOS = {
    "load": (load, 100_000),
    "build": (build, 100_000),
    "manifest": (manifest, 10_000),
    "change": (change, 10_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--size", type=int, help="rows or files")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    scenario, size = SCENARIOS[arguments.scenario]
    with services() as running:
        runtime = Runtime(replace(Settings.from_environment(), database_url=running.database_url))
        with runtime.connect() as connection:
            scenario(connection, arguments.size or size, arguments.rounds)


if __name__ == "__main__":
    main()
