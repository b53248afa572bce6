"""What a search costs beside its SQL: 100,000 chunks, k = 10, the embedding call left out.

Documents of five chunks, words drawn as in a language (Zipf), vectors in clusters; written through the index's own
functions, not through the pipeline, whose embeddings would take hours. Ratios are of the same run.

    python -m rag_pipeline_tests.benchmarks.latency [--chunks 100000] [--questions 1000] [--seconds 10]
"""

import argparse
import hashlib
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from psycopg import Connection
from psycopg.rows import dict_row

from rag_pipeline import Rag
from rag_pipeline.core import collections, database
from rag_pipeline.core.filters import condition
from rag_pipeline.core.indexing import VectorIndex, active_index, build_graph, choose_target, insert_chunks
from rag_pipeline.core.models import embedding_model
from rag_pipeline.core.ranking import DEPTH, Wanted, statement
from rag_pipeline.core.retrieval import MODES, SPARE
from rag_pipeline.core.stages.pgvector_index import publish_documents
from rag_pipeline.runtime import Runtime
from rag_pipeline.services import start_postgres, stop
from rag_pipeline.settings import Settings

MODEL = embedding_model("local/all-MiniLM-L6-v2")
NAME = "latency"
K = 10
CHUNKS_OF_A_DOCUMENT = 5
WORDS_OF_A_CHUNK = 120
CLUSTERS = 500


class Texts:
    """Made-up words, the n-th as frequent as 1/n, and vectors around cluster centres; always the same."""

    def __init__(self) -> None:
        chance = random.Random(11)
        self.numbers = np.random.default_rng(11)
        words = {"".join(chance.choices("aeioulnrstmkdg", k=chance.randint(3, 10))) for _ in range(60_000)}
        self.words = np.array(sorted(words))
        self.numbers.shuffle(self.words)
        frequency = 1 / np.arange(1, len(self.words) + 1)
        self.sums = np.cumsum(frequency / frequency.sum())
        self.centres = self.numbers.normal(size=(CLUSTERS, MODEL.dimensions))

    def text(self, words: int) -> str:
        places = np.searchsorted(self.sums, self.numbers.random(words))
        return " ".join(self.words[np.minimum(places, len(self.words) - 1)])

    def vector(self) -> np.ndarray:
        vector = self.centres[self.numbers.integers(CLUSTERS)] + self.numbers.normal(size=MODEL.dimensions)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def chunks(self, number: int) -> Iterator[tuple[bytes, str, np.ndarray]]:
        for _ in range(number):
            text = self.text(WORDS_OF_A_CHUNK)
            yield hashlib.sha256(text.encode()).digest(), text, self.vector()


def fill(connection: Connection, texts: Texts, number: int) -> VectorIndex:
    """A published collection of so many chunks."""
    collection = collections.add(connection, NAME, "/nowhere", {"embedding_model": MODEL.name})
    index = choose_target(connection, collection, MODEL)
    for start in range(0, number, 10_000):
        rows = list(texts.chunks(min(10_000, number - start)))
        insert_chunks(connection, index, rows)
        connection.cursor().executemany(
            """INSERT INTO rag.chunking VALUES (%(name)s, %(key)s, %(key)s, %(chunks)s, 150) ON CONFLICT DO NOTHING""",
            [
                {"name": NAME, "key": key(start + place), "chunks": CHUNKS_OF_A_DOCUMENT}
                for place in range(0, len(rows), CHUNKS_OF_A_DOCUMENT)
            ],
        )
        with connection.cursor().copy(
            """COPY rag.token_chunk (collection, chunk_key, ordinal, span_start, span_end, tokens, headings, prefix,
                                     suffix, content_hash) FROM STDIN"""
        ) as copy:
            for place, (content_hash, text, _) in enumerate(rows):
                ordinal = place % CHUNKS_OF_A_DOCUMENT
                first = ordinal * 2000
                span = (ordinal, first, first + len(text))
                copy.write_row((NAME, key(start + place), *span, 150, [], "", "", content_hash))
    connection.execute(
        """INSERT INTO rag.document
               (collection, path, size, media_type, modified, wanted_parse_key, parse_key, chunk_key)
           SELECT collection, 'folder/' || encode(chunk_key, 'hex') || '.txt', 1, 'text/plain', now(), chunk_key,
                  chunk_key, chunk_key
           FROM rag.chunking WHERE collection = %s""",
        [NAME],
    )
    # Publishing wants to know that there is a text; no search reads it.
    connection.execute(
        """INSERT INTO rag.parsed_text (collection, parse_key, text)
           SELECT collection, parse_key, '' FROM rag.chunking WHERE collection = %s""",
        [NAME],
    )
    build_graph(connection, index)
    publish_documents(connection, collection)
    return active_index(connection, NAME)


def key(place: int) -> bytes:
    """The chunk key of the document that holds the chunk of this number."""
    return hashlib.sha256(str(place // CHUNKS_OF_A_DOCUMENT).encode()).digest()


def bare(connection: Connection, index: VectorIndex, query: str, vector: np.ndarray, mode: str) -> list[dict]:
    """The same statement in the same settings, its parameters bound, and nothing made of its rows."""
    wanted = Wanted(
        query=query,
        vector=None if mode == "text" else vector,
        text=mode != "vector",
        foreign=False,
        phrases=[],
        condition=condition([]),
        limit=K + SPARE,
    )
    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            """SELECT set_config('plan_cache_mode', 'force_custom_plan', true),
                      set_config('hnsw.iterative_scan', 'strict_order', true),
                      set_config('hnsw.ef_search', %s, true)""",
            [str(DEPTH)],
        )
        return cursor.execute(statement(index, wanted), wanted.parameters(index)).fetchall()


def reader(url: str, questions: dict[str, np.ndarray]) -> Rag:
    """What users search with, its questions embedded already."""
    rag = Rag(Runtime(replace(Settings.from_environment(), database_url=url, api_key=None)))
    rag._searcher.embed = lambda query, *_: (questions[query], 0, 0.0)
    return rag


def milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def compare(url: str, index: VectorIndex, questions: dict[str, np.ndarray], mode: str) -> None:
    """p50 and p99 of both, asked in turn, each through a connection of its own."""
    with reader(url, questions) as rag, closing(database.connect(url)) as other:
        times: dict[str, list[float]] = {"search": [], "bare": []}
        for turn, (query, vector) in enumerate(questions.items()):
            calls = {
                "search": lambda query=query: rag.search(NAME, query, K, mode),
                "bare": lambda query=query, vector=vector: bare(other, index, query, vector, mode),
            }
            # The second to ask finds its pages warm: they take turns at being second.
            for name in sorted(calls, reverse=bool(turn % 2)):
                times[name].append(milliseconds(calls[name]))
    cells = []
    for percent in (50, 99):
        search, sql = (float(np.percentile(times[name][10:], percent)) for name in ("search", "bare"))
        cells.append(f"{search:.1f} | {sql:.1f} | {search / sql:.2f}")
    print(f"| {mode} | {' | '.join(cells)} |", flush=True)


def recall(url: str, index: VectorIndex, questions: dict[str, np.ndarray]) -> float:
    """The part of the exact K nearest that a vector search finds."""
    with reader(url, questions) as rag, closing(database.connect(url)) as exact:
        hashes, rows = zip(
            *exact.execute("SELECT input, embedding FROM rag.indexed_chunk WHERE index_id = %s", [index.id]).fetchall(),
            strict=True,
        )
        vectors = np.array([row.to_numpy() for row in rows])
        found = 0
        for query, vector in questions.items():
            nearest = {hashes[place] for place in np.argpartition(-(vectors @ vector), K)[:K]}
            found += len(nearest & {hit.content for hit in rag.search(NAME, query, K, "vector")})
    return found / (K * len(questions))


def throughput(url: str, questions: dict[str, np.ndarray], clients: int, seconds: float) -> float:
    """Hybrid searches a second of so many clients, a thread and a connection each."""
    until = time.perf_counter() + seconds
    counts = [0] * clients

    def ask(number: int) -> None:
        chance = random.Random(number)
        with reader(url, questions) as rag:
            while time.perf_counter() < until:
                rag.search(NAME, chance.choice(list(questions)), K)
                counts[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--chunks", type=int, default=100_000)
    arguments.add_argument("--questions", type=int, default=1000)
    arguments.add_argument("--seconds", type=float, default=10.0, help="how long each number of clients asks")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="rag-latency-", dir="/tmp") as folder:
        home = Path(folder) / "home"
        try:
            url = start_postgres(home)
            database.migrate(url)
            texts = Texts()
            with closing(database.connect(url)) as connection:
                index = fill(connection, texts, chosen.chunks)
            questions = {texts.text(8): texts.vector() for _ in range(chosen.questions)}
            print(f"{index.rows} chunks, k = {K}")
            print("| mode | p50 search, ms | p50 bare, ms | ratio | p99 search, ms | p99 bare, ms | ratio |")
            print("|---|---|---|---|---|---|---|")
            for mode in MODES:
                compare(url, index, questions, mode)
            some = dict(list(questions.items())[:100])
            print(f"\nrecall@{K} of mode vector: {recall(url, index, some):.3f}")
            for clients in (1, 4, 16):
                print(
                    f"{clients} clients: {throughput(url, questions, clients, chosen.seconds):.0f} searches/s",
                    flush=True,
                )
        finally:
            stop(home)


if __name__ == "__main__":
    main()
