"""A reader in a tight loop while a writer does all that can be done to a collection: each answer is of one moment.

The documents are few enough for one search to show all of them, so an answer is compared with the whole collection as a
run published it: a mixture of versions, a missing document and one that was removed all show as an answer that no run
made.
"""

import itertools
import random
import re
import threading
from contextlib import closing
from dataclasses import dataclass, field

import psycopg
import pytest
from pgvector.psycopg import register_vector
from psycopg.pq import TransactionStatus

from rag_pipeline.client import Rag
from rag_pipeline.core.retrieval import Hits
from rag_pipeline_tests.pipelines import MODEL, Pipeline
from rag_pipeline_tests.waiting import eventually

SUBJECTS = ("alder", "birch", "cedar", "elder", "hazel", "larch", "maple", "rowan")
SENTENCE = re.compile(r"(\w+) is in version (\d+) and says (\d+)\.")

# What a reader sees of a document: the (subject, version, number) of each of its sentences.
Sentences = frozenset[tuple[str, int, int]]


def sentences(subject: str, version: int) -> list[str]:
    """The text of a document: every sentence, and so every chunk, tells which version of what it is from."""
    return [f"{subject} is in version {version} and says {number}." for number in range(1 + version % 7)]


@dataclass
class Published:
    """What each run published, in order: path -> sentences. The last one may still be on its way."""

    states: list[dict[str, Sentences]] = field(default_factory=list)
    done: int = 0


@dataclass
class Reader:
    """Searches until told to stop, every way there is in turn, and keeps the answers that no run published."""

    rag: Rag
    published: Published
    begun: int = 0
    ended: int = 0
    wrong: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        ways = [("vector", 1000), ("hybrid", 1000), ("text", 1000), ("vector", 3), ("hybrid", 3)]
        try:
            for subject, (mode, k) in zip(itertools.cycle(SUBJECTS), itertools.cycle(ways), strict=False):
                if self.stop.is_set():
                    return
                self.begun += 1
                self._search(subject, mode, k)
                self.ended = self.begun
        except Exception as error:
            self.wrong.append(repr(error))

    def _search(self, subject: str, mode: str, k: int) -> None:
        earliest = self.published.done
        hits = self.rag.search("docs", subject, k, mode)
        possible = self.published.states[earliest:]
        shown = by_path(hits)
        if not any(is_answer(shown, state, subject, mode, k) for state in possible):
            self.wrong.append(f"{mode} {k} for {subject}: {shown}, but published was {possible}")


def by_path(hits: Hits) -> dict[str, Sentences]:
    """The sentences of an answer under every path that it names."""
    shown: dict[str, set] = {}
    for hit in hits:
        said = {(subject, int(version), int(number)) for subject, version, number in SENTENCE.findall(hit.content)}
        assert said, hit.content
        for path in (hit.path, *hit.also_in.paths):
            shown.setdefault(path, set()).update(said)
    return {path: frozenset(said) for path, said in shown.items()}


def is_answer(shown: dict[str, Sentences], state: dict[str, Sentences], subject: str, mode: str, k: int) -> bool:
    """Whether these are the right sentences, had the collection been just so."""
    if k < 1000:
        return bool(shown) and all(path in state and said <= state[path] for path, said in shown.items())
    if mode == "text":  # every sentence of the subject says its name, and no other does
        state = {path: said for path, said in state.items() if any(about == subject for about, *_ in said)}
    return shown == state


class WatchedCursor(psycopg.Cursor):
    """A cursor of a connection that is looked at between its transactions, where alone readers can see a change."""

    def execute(self, *arguments, **keywords):
        if self.connection.info.transaction_status == TransactionStatus.IDLE:
            self.connection.look()
        return super().execute(*arguments, **keywords)


class Writer:
    """Changes the files or the settings in a few ways, then runs; now and then it waits for the reader in between."""

    def __init__(self, pipeline: Pipeline, published: Published, reader: Reader, chance: random.Random):
        self.pipeline = pipeline
        self.published = published
        self.reader = reader
        self.chance = chance
        self.connection = psycopg.connect(pipeline.runtime.database_url, autocommit=True, cursor_factory=WatchedCursor)
        self.connection.look = lambda: None
        register_vector(self.connection)
        self.connection.look = self.look
        self.files: dict[str, Sentences] = {}
        self.versions = itertools.count(1)

    def step(self) -> None:
        steps = [self.edit, self.edit, self.add, self.remove, self.rename, self.copy, self.rechunk, self.reembed]
        for step in self.chance.sample(steps, 3):
            step()
        self.run()

    def run(self) -> None:
        self.published.states.append(dict(self.files))
        self.pipeline.run(self.connection)
        self.published.done += 1

    def look(self) -> None:
        """Let the reader look at what is published now."""
        if self.chance.random() < 0.5:
            begun = self.reader.begun
            eventually(lambda: self.reader.ended > begun or self.reader.wrong)

    def write(self, path: str, subject: str) -> None:
        version = next(self.versions)
        text = sentences(subject, version)
        self.pipeline.write(path, "\n\n".join(text))
        self.files[path] = frozenset((subject, version, number) for number in range(len(text)))

    def any_file(self) -> str:
        return self.chance.choice(sorted(self.files))

    def edit(self) -> None:
        path = self.any_file()
        ((subject, *_), *_) = self.files[path]
        self.write(path, subject)

    def add(self) -> None:
        if len(self.files) < 12:
            self.write(f"{next(self.versions)}.txt", self.chance.choice(SUBJECTS))

    def remove(self) -> None:
        if len(self.files) > 3:
            path = self.any_file()
            self.pipeline.delete(path)
            del self.files[path]

    def rename(self) -> None:
        path, to = self.any_file(), f"{next(self.versions)}.txt"
        self.pipeline.rename(path, to)
        self.files[to] = self.files.pop(path)

    def copy(self) -> None:
        if len(self.files) < 12:
            path, to = self.any_file(), f"{next(self.versions)}.txt"
            self.pipeline.copy(path, to)
            self.files[to] = self.files[path]

    def rechunk(self) -> None:
        self.pipeline.change(chunk_tokens=self.chance.choice([16, 24, 40, 64]))

    def reembed(self) -> None:
        another = {MODEL: "openai/another", "openai/another": MODEL}
        self.pipeline.change(embedding_model=another[self.pipeline.collection.settings.embedding_model])


@pytest.mark.parametrize("steps", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_answer_is_what_one_run_published(pipeline, steps):
    pipeline.change(chunk_overlap=0)
    published = Published()
    with closing(Rag(pipeline.runtime)) as rag:
        reader = Reader(rag, published)
        writer = Writer(pipeline, published, reader, random.Random(steps))
        for subject in SUBJECTS:
            writer.write(f"{subject}.txt", subject)
        pipeline.run()
        published.states = [dict(writer.files)]
        thread = threading.Thread(target=reader.read)
        thread.start()
        try:
            for _ in range(steps):
                writer.step()
                assert not reader.wrong
        finally:
            reader.stop.set()
            thread.join()
            writer.connection.close()
    assert not reader.wrong
    assert reader.ended > steps
    pipeline.assert_clean()
