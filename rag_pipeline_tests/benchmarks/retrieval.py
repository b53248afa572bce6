"""What a search finds, end to end: files, the pipeline with the local model, `Rag.search`.

SciFact, XQuAD in three languages, the chunking set, and forty questions to PostgreSQL's manual. The servers, the files
and all vectors are kept in a folder: the first run embeds for about twenty minutes, a repeated one takes two.

    python -m rag_pipeline_tests.benchmarks.retrieval FOLDER [--sets scifact,xquad-en,xquad-de,xquad-zh,chunking,manual]
"""

import argparse
import csv
import html
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rag_pipeline.client import Rag
from rag_pipeline.core import collections
from rag_pipeline.core.retrieval import MODES, Hits
from rag_pipeline.ingesting import ingest
from rag_pipeline.runtime import Runtime
from rag_pipeline.services import stop
from rag_pipeline.settings import Settings
from rag_pipeline.terminal import LineProgress
from rag_pipeline_tests.benchmarks.chunking_quality import Span, length, read_questions, shared_length, union
from rag_pipeline_tests.shared import shared

# nDCG@10 of others on the same sets, from FACTS.md.
PUBLISHED = {
    "scifact": "bm25s .687, all-MiniLM-L6-v2 .645, text-embedding-3-small .734",
    "xquad-en": "bm25s .965, all-MiniLM-L6-v2 .944, text-embedding-3-small .966",
    "xquad-de": "bm25s .925, all-MiniLM-L6-v2 .703, text-embedding-3-small .942",
    "xquad-zh": "bm25s .121, all-MiniLM-L6-v2 .242, text-embedding-3-small .916",
    "chunking": "text-embedding-3-large about 87 recall",
}

MANUAL_QUESTIONS = Path(__file__).parent.parent / "manual_questions.jsonl"


@dataclass(frozen=True)
class Set:
    """A collection, its questions, and what the hits of one are worth, in one number or several."""

    name: str
    source: Path
    settings: dict[str, object]
    k: int
    questions: list[str]
    worth: Callable[[int, Hits], tuple[float, ...]]
    show: str


def documents(hits: Hits) -> list[str]:
    """The documents of the hits, best first."""
    return list(dict.fromkeys(path for hit in hits for path in (hit.path, *hit.also_in.paths)))


def ndcg(found: Sequence[str], wanted: set[str], k: int = 10) -> float:
    """Järvelin and Kekäläinen's nDCG at k, a document being wanted or not."""
    gain = sum(1 / np.log2(rank + 2) for rank, path in enumerate(found[:k]) if path in wanted)
    return gain / sum(1 / np.log2(rank + 2) for rank in range(min(k, len(wanted))))


def json_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def ranked_set(folder: Path, name: str, data: Path, **settings: object) -> Set:
    """A set in BEIR's form: every document a file of its own, its title a heading."""
    source = folder / name
    source.mkdir(parents=True, exist_ok=True)
    for document in json_lines(data / "corpus.jsonl"):
        title = f"<h1>{html.escape(document['title'])}</h1>\n" if document["title"] else ""
        page = f'<meta charset="utf-8">\n{title}<p>{html.escape(document["text"])}</p>\n'
        write(source / f"{document['_id']}.html", page)
    wanted: dict[str, set[str]] = {}
    with (data / "qrels" / "test.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if int(row["score"]) > 0:
                wanted.setdefault(row["query-id"], set()).add(f"{row['corpus-id']}.html")
    texts = {query["_id"]: query["text"] for query in json_lines(data / "queries.jsonl")}
    relevant = list(wanted.values())
    return Set(
        name,
        source,
        settings,
        30,
        [texts[key] for key in wanted],
        lambda number, hits: (ndcg(documents(hits), relevant[number]),),
        "nDCG@10",
    )


def manual_set() -> Set:
    """The manual as it is, and pages that were known to answer before anything was searched."""
    rows = json_lines(MANUAL_QUESTIONS)
    return Set(
        "postgresql-manual",
        shared("corpora", "postgresql-manual"),
        {},
        5,
        [row["question"] for row in rows],
        lambda number, hits: (float(bool({*rows[number]["sources"]} & {*documents(hits)})),),
        "hit rate at 5",
    )


def chunking_set(folder: Path, runtime: Runtime) -> Set:
    """The chunking set at 160 tokens, five hits; its spans are of the files, a hit's of the parsed text."""
    source = folder / "chunking"
    source.mkdir(parents=True, exist_ok=True)
    raw = {}
    for file in sorted(shared("benchmarks", "chunking", "corpora").glob("*.md")):
        raw[f"{file.stem}.txt"] = file.read_bytes().decode()
        write(source / f"{file.stem}.txt", raw[f"{file.stem}.txt"])
    questions = read_questions()
    places: dict[str, list[int]] = {}

    def in_file(hit) -> Span:
        if hit.path not in places:
            places[hit.path] = positions(runtime, hit.path, raw[hit.path])
        return places[hit.path][hit.start], places[hit.path][hit.end - 1] + 1

    def worth(number: int, hits: Hits) -> tuple[float, ...]:
        question = questions[number]
        references = union(question.references)
        spans = [(hit.path.removesuffix(".txt"), in_file(hit)) for hit in hits]
        found = shared_length([span for corpus, span in spans if corpus == question.corpus], references)
        wanted = length(references)
        return 100 * found / wanted, 100 * found / (length(span for _, span in spans) + wanted - found)

    return Set(
        "chunking",
        source,
        {"chunk_tokens": 160, "chunk_overlap": 0},
        5,
        [question.text for question in questions],
        worth,
        "recall, IoU in percent",
    )


def positions(runtime: Runtime, path: str, raw: str) -> list[int]:
    """Where each character of the parsed text stands in the file; the two differ in white space alone."""
    with runtime.connect() as connection:
        (text,) = connection.execute(
            """SELECT text FROM rag.document JOIN rag.parsed_text USING (collection, parse_key)
               WHERE collection = 'chunking' AND path = %s""",
            [path],
        ).fetchone()
    there = (place for place, character in enumerate(raw) if not character.isspace())
    last, found = 0, []
    for character in text:
        last = last if character.isspace() else next(there)
        found.append(last)
    return found


def write(file: Path, text: str) -> None:
    """The file, left alone where it is there already: the pipeline looks at its time."""
    if not file.exists():
        file.write_bytes(text.encode())


def bring_up_to_date(runtime: Runtime, wanted: Set) -> None:
    """Ingest the set's files."""
    with runtime.connect() as connection:
        if collections.find(connection, wanted.name) is None:
            collections.add(
                connection,
                wanted.name,
                str(wanted.source),
                {"embedding_model": "local/all-MiniLM-L6-v2", **wanted.settings},
            )
    ingest(runtime, wanted.name, LineProgress())


def measure(rag: Rag, wanted: Set) -> None:
    """Print what each mode finds."""
    cells = []
    for mode in MODES:
        values = [
            wanted.worth(number, rag.search(wanted.name, question, wanted.k, mode))
            for number, question in enumerate(wanted.questions)
        ]
        cells.append(", ".join(f"{value:.4f}" if value < 1 else f"{value:.2f}" for value in np.mean(values, axis=0)))
    published = PUBLISHED.get(wanted.name, "")
    print(f"| {wanted.name} ({wanted.show}) | {' | '.join(cells)} | {published} |", flush=True)


def sets(names: Iterable[str], folder: Path, runtime: Runtime) -> Iterable[Set]:
    languages = {"en": "english", "de": "german", "zh": "simple"}
    for name in names:
        if name == "scifact":
            yield ranked_set(folder, name, shared("benchmarks", "scifact"))
        elif name == "chunking":
            yield chunking_set(folder, runtime)
        elif name == "manual":
            yield manual_set()
        else:
            language = name.removeprefix("xquad-")
            yield ranked_set(folder, name, shared("benchmarks", "xquad", language), text_search=languages[language])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path, help="where the servers, files and vectors are kept")
    arguments.add_argument("--sets", default="scifact,xquad-en,xquad-de,xquad-zh,chunking,manual")
    chosen = arguments.parse_args()
    os.environ["RAG_HOME"] = str((chosen.folder / "home").absolute())
    runtime = Runtime(Settings.from_environment())
    try:
        print(f"| set | {' | '.join(MODES)} | published |\n|---|---|---|---|---|")
        with Rag(runtime) as rag:
            for wanted in sets(chosen.sets.split(","), chosen.folder.absolute() / "files", runtime):
                bring_up_to_date(runtime, wanted)
                measure(rag, wanted)
    finally:
        stop(runtime.settings.home)


if __name__ == "__main__":
    main()
