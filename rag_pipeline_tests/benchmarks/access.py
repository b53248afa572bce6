"""What row-level security costs: each leg of a search as an API key's reader, against the same search as the owner.

    python -m rag_pipeline_tests.benchmarks.access [--chunks 100000] [--collections 200] [--plans]

One collection has half of the chunks, the others share the rest; the key is granted ten of them. Owner and reader take
turns within one run, so that what else the machine does meets both. The vectors are random around centres, the words
follow Zipf's law.
"""

import argparse
import statistics
import tempfile
from contextlib import closing
from pathlib import Path
from time import perf_counter

import numpy as np
from psycopg import Connection, Cursor, sql

from rag_pipeline.core import access, collections
from rag_pipeline.core.database import connect, migrate
from rag_pipeline.core.hits import Hit
from rag_pipeline.core.retrieval import Searcher
from rag_pipeline.services import start_postgres, stop

DIMENSIONS = 384
WORDS = 30_000
WORDS_A_CHUNK = 60
CHUNKS_A_DOCUMENT = 20
GRANTED = 10

# Each search is repeated, and its best time counts: what else the machine does is in the others.
REPEATED = 6
LARGEST = "collection-0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--collections", type=int, default=200)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--plans", action="store_true", help="Print how PostgreSQL executes each leg as the reader.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rag-access-", dir="/tmp") as directory:
        home = Path(directory)
        try:
            url = start_postgres(home)
            migrate(url)
            with closing(connect(url)) as owner:
                started = perf_counter()
                fill(owner, arguments.chunks, arguments.collections)
                seconds = perf_counter() - started
                print(f"{arguments.chunks} chunks in {arguments.collections} collections: {seconds:.0f} s")
                granted = [f"collection-{n}" for n in range(min(GRANTED, arguments.collections))]
                secret = access.create_key(owner, "reader", dict.fromkeys(granted, False))
                reader = access.connect_query(access.embedded_query_url(owner, url), secret)
            with closing(reader), closing(connect(url)) as owner:
                compare(owner, reader, arguments.searches)
                if arguments.plans:
                    for mode in ("vector", "text"):
                        print_plan(reader, mode)
        finally:
            stop(home)


def fill(connection: Connection, chunks: int, number: int) -> None:
    """Published collections of random words and vectors, the first with half of all the chunks."""
    random = np.random.default_rng(7)
    words = np.array(["".join(random.choice(list("abcdefghiklmnoprstuvw"), 7)) for _ in range(WORDS)])
    frequency = 1 / np.arange(1, WORDS + 1)
    frequency /= frequency.sum()
    centres = random.standard_normal((200, DIMENSIONS)).astype(np.float32)
    sizes = [chunks // 2, *[chunks // 2 // max(1, number - 1)] * (number - 1)]
    for position, size in enumerate(sizes):
        name = f"collection-{position}"
        collections.add(connection, name, f"/{name}", {"embedding_model": "openai/bench", "dimensions": DIMENSIONS})
        texts = [" ".join(row) for row in words[random.choice(WORDS, (size, WORDS_A_CHUNK), p=frequency)]]
        vectors = centres[random.integers(len(centres), size=size)] + random.standard_normal(
            (size, DIMENSIONS), dtype=np.float32
        )
        load(connection, name, texts, vectors)
    connection.execute("VACUUM (ANALYZE)")


def load(connection: Connection, name: str, texts: list[str], vectors: np.ndarray) -> None:
    """One collection with these chunks, as the pipeline leaves them."""
    from hashlib import sha256

    from rag_pipeline.core.indexing import build_graph, choose_target, insert_chunks
    from rag_pipeline.core.models import embedding_model

    collection = collections.get(connection, name)
    hashes = [sha256(f"{name} {number} {text}".encode()).digest() for number, text in enumerate(texts)]
    keys = [sha256(f"{name} {first}".encode()).digest() for first in range(0, len(texts), CHUNKS_A_DOCUMENT)]
    with connection.transaction(), connection.cursor() as cursor:
        with cursor.copy(
            "COPY rag.chunking (collection, chunk_key, parse_key, chunks, tokens) FROM STDIN WITH (FORMAT BINARY)"
        ) as copy:
            copy.set_types(["text", "bytea", "bytea", "int4", "int8"])
            for key in keys:
                copy.write_row((name, key, key, CHUNKS_A_DOCUMENT, 80 * CHUNKS_A_DOCUMENT))
        with cursor.copy(
            """COPY rag.token_chunk (collection, chunk_key, ordinal, span_start, span_end, tokens, headings, prefix,
                                     suffix, content_hash) FROM STDIN WITH (FORMAT BINARY)"""
        ) as copy:
            copy.set_types(["text", "bytea", "int4", "int4", "int4", "int4", "text[]", "text", "text", "bytea"])
            for number, text in enumerate(texts):
                document, ordinal = divmod(number, CHUNKS_A_DOCUMENT)
                copy.write_row((name, keys[document], ordinal, 0, len(text), 80, [], "", "", hashes[number]))
        cursor.executemany(
            """INSERT INTO rag.document (collection, path, size, content_hash, media_type, wanted_parse_key, parse_key,
                                             chunk_key, published_chunk_key)
                   VALUES (%(name)s, %(path)s, 1, %(key)s, 'text/plain', %(key)s, %(key)s, %(key)s, %(key)s)""",
            [{"name": name, "path": f"document-{number}.txt", "key": key} for number, key in enumerate(keys)],
        )
    index = choose_target(connection, collection, embedding_model("openai/bench", DIMENSIONS))
    for first in range(0, len(texts), 5000):
        batch = slice(first, first + 5000)
        insert_chunks(connection, index, list(zip(hashes[batch], texts[batch], vectors[batch], strict=True)))
    build_graph(connection, index)
    connection.execute("UPDATE rag.collection SET active_index = %s WHERE name = %s", [index.id, name])


def compare(owner: Connection, reader: Connection, number: int) -> None:
    """Each leg, searched in turn by both: the medians over the questions in ms, and the ratio of the sums."""
    random = np.random.default_rng(11)
    with owner.transaction():
        sample = owner.execute(
            """SELECT i.input, i.embedding FROM rag.indexed_chunk i
               JOIN rag.collection c ON c.active_index = i.index_id WHERE c.name = %s ORDER BY content_hash LIMIT %s""",
            [LARGEST, number],
        ).fetchall()
    questions = {" ".join(random.choice(text.split(), 4, replace=False)): vector.to_numpy() for text, vector in sample}

    def embed(question: str, model: str, dimensions: int) -> tuple[np.ndarray, int, float]:
        return questions[question], 0, 0.0

    both = {"owner": TimedSearcher(owner, embed), "reader": TimedSearcher(reader, embed)}
    for mode in ("vector", "text", "hybrid"):
        legs = {who: dict.fromkeys(questions, float("inf")) for who in both}
        searches = {who: dict.fromkeys(questions, float("inf")) for who in both}
        for turn in range(REPEATED):
            for question in questions:
                found = {}
                for who in sorted(both, reverse=bool(turn % 2)):
                    started = perf_counter()
                    found[who] = both[who].search([LARGEST], question, 10, mode)
                    searches[who][question] = min(searches[who][question], perf_counter() - started)
                    legs[who][question] = min(legs[who][question], both[who].leg)
                assert {hit.path for hit in found["owner"]} == {hit.path for hit in found["reader"]}
        for what, best in (("leg", legs), ("search", searches)):
            medians = {who: statistics.median(best[who].values()) * 1000 for who in both}
            print(
                f"{mode:7} {what:7} owner {medians['owner']:6.2f} ms   reader {medians['reader']:6.2f} ms   "
                f"ratio {sum(best['reader'].values()) / sum(best['owner'].values()):.2f}"
            )


class TimedSearcher(Searcher):
    """Knows how long its last statement took, in `leg`; a whole search also binds the key, and makes hits of rows."""

    leg = 0.0

    def _rank(self, *arguments: object) -> list[Hit]:
        started = perf_counter()
        hits = super()._rank(*arguments)
        self.leg = perf_counter() - started
        return hits


def print_plan(connection: Connection, mode: str) -> None:
    """How PostgreSQL executes the statement of one leg on this connection, its vectors cut short."""

    class Explaining(Cursor):
        def execute(self, query, parameters=None, **options):
            if isinstance(query, sql.Composed):
                plan = super().execute(sql.SQL("EXPLAIN (ANALYZE, COSTS OFF) ") + query, parameters).fetchall()
                print(f"--- {mode}", *(str(next(iter(line.values())))[:140] for line in plan), sep="\n")
            return super().execute(query, parameters, **options)

    (words,) = connection_words(connection)
    connection.cursor_factory = Explaining
    Searcher(connection, lambda *_: (np.ones(DIMENSIONS, np.float32), 0, 0.0)).search([LARGEST], words, 10, mode)


def connection_words(connection: Connection) -> tuple[str]:
    """A few words of some chunk that the connection may read."""
    with connection.transaction():
        return connection.execute(
            """SELECT split_part(input, ' ', 1) || ' ' || split_part(input, ' ', 2) FROM rag.indexed_chunk i
               JOIN rag.collection c ON c.active_index = i.index_id WHERE c.name = %s LIMIT 1""",
            [LARGEST],
        ).fetchone()


if __name__ == "__main__":
    main()
