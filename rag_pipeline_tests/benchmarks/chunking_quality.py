"""What chunks are worth to a search: the share of the wanted text among five chunks retrieved, and the share of those
that was wanted.

472 questions with exact reference spans over five texts in one index; all-MiniLM-L6-v2, exact cosine; BM25 and rank
fusion beside it. Needs `pip install -e .[benchmarks]`. Vectors are kept in a file by the hash of their text: a first
run takes about an hour on two cores, a repeated one minutes.

    python -m rag_pipeline_tests.benchmarks.chunking_quality [--sizes 100,150,200] [--peers 200] [--vectors FILE]
"""

import argparse
import csv
import itertools
import json
import re
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from rag_pipeline.core.chunking import ChunkSettings, InputLimit, chunk_document
from rag_pipeline.core.models import embedding_model
from rag_pipeline.core.parsing import Element, ParsedText
from rag_pipeline.core.providers.local import LocalProvider
from rag_pipeline_tests.shared import shared

K = 5
DEPTH = 100  # of each ranking, what takes part in fusion
SIZES = (100, 125, 137, 150, 160, 175, 190, 200, 225, 256, 300, 350, 400, 512)

# Recall, precision-omega and IoU in percent with the same model, questions and texts: Smith and Troynikov,
# "Evaluating Chunking Strategies for Retrieval", Chroma technical report, July 2024.
PUBLISHED = {
    "recursive 250/125": (78.7, 21.9, 4.9),
    "fixed token 250/125": (82.4, 11.4, 3.5),
    "recursive 200/0": (75.7, 31.2, 6.5),
    "fixed token 200/0": (76.6, 19.1, 4.1),
    "cluster 250": (77.3, 28.6, 6.0),
    "cluster 200": (75.2, 33.6, 7.2),
}

Span = tuple[int, int]


@dataclass(frozen=True)
class Question:
    text: str
    corpus: str
    references: list[Span]


@dataclass(frozen=True)
class Piece:
    """A chunk in the index of this benchmark: its span of a corpus and what is embedded for it."""

    corpus: str
    start: int
    end: int
    input: str


def read_corpora() -> dict[str, str]:
    files = sorted(shared("benchmarks", "chunking", "corpora").glob("*.md"))
    return {file.stem: file.read_bytes().decode() for file in files}


def read_questions() -> list[Question]:
    with shared("benchmarks", "chunking", "questions_df.csv").open(encoding="utf-8", newline="") as file:
        return [
            Question(
                row["question"],
                row["corpus_id"],
                union((span["start_index"], span["end_index"]) for span in json.loads(row["references"])),
            )
            for row in csv.DictReader(file)
        ]


def by_lines(text: str) -> ParsedText:
    """A plain text as the chunker takes it, each line a paragraph; no headings are made out of anything."""
    lines = re.finditer(r"\S[^\n]*", text)
    return ParsedText(text, tuple(Element("paragraph", line.start(), line.end()) for line in lines), {})


def union(spans: Iterable[Span]) -> list[Span]:
    """The same characters as spans that do not overlap, in order."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def length(spans: Iterable[Span]) -> int:
    return sum(end - start for start, end in spans)


def shared_length(spans: Iterable[Span], others: list[Span]) -> int:
    """The characters that lie in both."""
    return sum(max(0, min(end, last) - max(start, first)) for start, end in union(spans) for first, last in others)


def measure(questions: list[Question], pieces: list[Piece], scores: np.ndarray) -> tuple[float, float]:
    """Recall and IoU in percent, each averaged over the questions, of the K best; `scores` has a row a question."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    recalls, ious = [], []
    for question, row in zip(questions, best, strict=True):
        found = [pieces[i] for i in row]
        hit = shared_length([(p.start, p.end) for p in found if p.corpus == question.corpus], question.references)
        wanted = length(question.references)
        recalls.append(hit / wanted)
        ious.append(hit / (length((p.start, p.end) for p in found) + wanted - hit))
    return 100 * float(np.mean(recalls)), 100 * float(np.mean(ious))


def precision_omega(questions: list[Question], pieces: list[Piece]) -> float:
    """Precision in percent when every chunk that touches a reference is retrieved: a bound that no retrieval can
    pass."""
    values = []
    for question in questions:
        touching = [
            (p.start, p.end)
            for p in pieces
            if p.corpus == question.corpus
            and any(p.start < end and start < p.end for start, end in question.references)
        ]
        values.append(shared_length(touching, question.references) / length(touching))
    return 100 * float(np.mean(values))


class Vectors:
    """The local model's vectors, each text embedded once for ever."""

    def __init__(self, file: Path):
        # The pipeline splits what has more than 256 word pieces, as the model was trained; here the larger chunks go
        # in whole.
        self.provider = LocalProvider(replace(embedding_model("local/all-MiniLM-L6-v2"), max_input_tokens=512))
        self.kept = sqlite3.connect(file)
        self.kept.execute("CREATE TABLE IF NOT EXISTS vector (hash BLOB PRIMARY KEY, vector BLOB)")

    @cached_property
    def limit(self) -> InputLimit:
        return InputLimit(512, self.provider.count, "word pieces")

    def embed(self, texts: list[str]) -> np.ndarray:
        """float32, shape (texts, 384), of length 1. A text beyond 512 word pieces is cut there, as the model's own
        library does."""
        keys = [sha256(text.encode()).digest() for text in texts]
        rows = self.kept.execute("SELECT hash, vector FROM vector").fetchall()
        known = {key: np.frombuffer(vector, np.float32) for key, vector in rows}
        missing = [(key, text) for key, text in dict(zip(keys, texts, strict=True)).items() if key not in known]
        with ThreadPoolExecutor(self.provider.in_flight) as pool:
            for start in range(0, len(missing), 256):
                some = missing[start : start + 256]
                made = list(pool.map(self._embed, [text for _, text in some]))
                known.update(zip([key for key, _ in some], made, strict=True))
                with self.kept:
                    self.kept.executemany(
                        "INSERT OR REPLACE INTO vector VALUES (?, ?)",
                        [(key, vector.tobytes()) for (key, _), vector in zip(some, made, strict=True)],
                    )
        return np.array([known[key] for key in keys])

    def _embed(self, text: str) -> np.ndarray:
        while (count := self.provider.count([text])[0]) > 512:
            text = text[: len(text) * 500 // count]
        return self.provider.embed([text], tokens=0, hurry=False, stop=threading.Event()).vectors[0]


def bm25(texts: list[str], questions: list[str]) -> np.ndarray:
    """The scores of Robertson's BM25 (k1 1.2, b 0.75) over stemmed words, shape (questions, texts)."""
    import bm25s
    import Stemmer

    def words(of: list[str]) -> list[list[str]]:
        return bm25s.tokenize(
            of, stopwords="en", stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False
        )

    index = bm25s.BM25(k1=1.2, b=0.75)
    index.index(words(texts), show_progress=False)
    return np.array([index.get_scores(question) for question in words(questions)])


def fuse(rankings: list[np.ndarray], constant: int) -> np.ndarray:
    """Reciprocal rank fusion of the DEPTH best of each."""
    fused = np.zeros(rankings[0].shape)
    for scores in rankings:
        best = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        for row, order in zip(fused, best, strict=True):
            row[order] += 1 / (constant + 1 + np.arange(len(order)))
    return fused


def with_neighbours(scores: np.ndarray, pieces: list[Piece], weight: float) -> np.ndarray:
    """Each chunk's score and a part of those of the chunks before and after it in its text."""
    adjacent = np.array([one.corpus == other.corpus for one, other in itertools.pairwise(pieces)])
    raised = scores.copy()
    raised[:, :-1] += weight * scores[:, 1:] * adjacent
    raised[:, 1:] += weight * scores[:, :-1] * adjacent
    return raised


class Benchmark:
    """The questions, asked of one way of chunking after another."""

    columns = ("vector", "BM25", "RRF 60", "RRF 5", "RRF 5 + neighbours")

    def __init__(self, vectors: Vectors):
        self.texts = read_corpora()
        self.questions = read_questions()
        self.vectors = vectors
        self.asked = vectors.embed([question.text for question in self.questions])

    def pieces(self, tokens: int, overlap: int = 0) -> list[Piece]:
        """The chunks of this project."""
        settings = ChunkSettings(tokens, overlap)
        return [
            Piece(corpus, chunk.start, chunk.end, chunk.input)
            for corpus, text in self.texts.items()
            for chunk in chunk_document(by_lines(text), settings, self.vectors.limit)
        ]

    def peer_pieces(self, split: Callable[[str], list[Span]]) -> list[Piece]:
        """The chunks of another splitter."""
        spans = ((corpus, text, span) for corpus, text in self.texts.items() for span in split(text))
        return [Piece(corpus, *span, text[slice(*span)]) for corpus, text, span in spans]

    def row(self, name: str, pieces: list[Piece]) -> None:
        """Print what one way of chunking is worth under each way of searching."""
        texts = [piece.input for piece in pieces]
        near = self.asked @ self.vectors.embed(texts).T
        words = bm25(texts, [question.text for question in self.questions])
        rankings = (
            near,
            words,
            fuse([near, words], 60),
            fuse([near, words], 5),
            with_neighbours(fuse([near, words], 5), pieces, 0.3),
        )
        values = [measure(self.questions, pieces, scores) for scores in rankings]
        cells = " | ".join(f"{recall:.1f}, {iou:.2f}" for recall, iou in values)
        print(f"| {name} | {len(pieces)} | {precision_omega(self.questions, pieces):.1f} | {cells} |", flush=True)

    def header(self) -> None:
        print(
            "\n| chunks | number | precision-omega | "
            + " | ".join(f"{name}: recall, IoU" for name in self.columns)
            + " |"
        )
        print("|---|---|---|" + "---|" * len(self.columns))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sizes", default=",".join(map(str, SIZES)))
    arguments.add_argument("--peers", type=int, nargs="*", default=[], help="compare other splitters at these sizes")
    arguments.add_argument("--vectors", type=Path, default=Path(tempfile.gettempdir()) / "chunking_quality.vectors")
    chosen = arguments.parse_args()
    benchmark = Benchmark(Vectors(chosen.vectors))
    print("| published | precision-omega | recall, IoU |\n|---|---|---|")
    for name, (recall, omega, iou) in PUBLISHED.items():
        print(f"| {name} | {omega} | {recall}, {iou} |")
    benchmark.header()
    for size in map(int, filter(None, chosen.sizes.split(","))):
        benchmark.row(f"rag_pipeline {size}/0", benchmark.pieces(size))
    for size in chosen.peers:
        from rag_pipeline_tests.benchmarks.chunking_peers import peers

        benchmark.header()
        for name, split in peers(size, 0).items():
            benchmark.row(f"{name} {size}/0", benchmark.peer_pieces(split))


if __name__ == "__main__":
    main()
