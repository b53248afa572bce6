"""Whatever happened to a collection, aborted runs among it: a run makes it what a clean build would have made.

And all the while readers see whole versions only, and every document that was there and still is.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from rag_pipeline.core import collections
from rag_pipeline.core.errors import UsageError
from rag_pipeline.core.forgetting import forget
from rag_pipeline.runtime import Runtime
from rag_pipeline_tests.openai_server import OpenAIServer, error
from rag_pipeline_tests.pipelines import MODEL, UNPARSABLE, Aborted, Pipeline, aborting, interrupted

_names = itertools.count(1)

# Two kinds of text, for one content parsed as another type is another text.
paths = st.sampled_from(["a.md", "b.txt", "c.md", "sub/d.txt", "sub/e.md"])
SHARED = "This paragraph stands in many documents and is worth a chunk of its own, word for word the same. " * 2


def content(number: int, length: int, shared: bool) -> str:
    """One of a few documents, some of whose chunks are the same."""
    sentences = " ".join(f"Sentence {i} of fruit{number} says something about it." for i in range(length))
    return f"# Fruit {number}\n\n{sentences}\n\n" + (f"## Shared\n\n{SHARED}\n" if shared else "")


contents = st.builds(content, st.integers(1, 4), st.sampled_from([1, 6, 20]), st.booleans())
models = st.sampled_from([MODEL, "openai/another"])
changes = st.one_of(
    st.fixed_dictionaries({"chunk_tokens": st.sampled_from([16, 32, 64])}),
    st.fixed_dictionaries({"embed_headings": st.booleans()}),
    st.fixed_dictionaries({"text_search": st.sampled_from(["english", "simple"])}),
    st.fixed_dictionaries({"hnsw_m": st.sampled_from([8, 16])}),
    st.fixed_dictionaries({"precision": st.sampled_from(["full", "half"])}),
    st.fixed_dictionaries({"embedding_model": models}),
)


class History(RuleBasedStateMachine):
    """Files that change, settings that change, documents that are forgotten, and runs that end well or do not."""

    def __init__(self, runtime: Runtime, server: OpenAIServer, folder: Path):
        super().__init__()
        self.server = server
        self.name = f"history-{next(_names)}"
        self.pipeline = Pipeline(runtime, folder / self.name, self.name)
        self.versions: dict[str, set[str]] = defaultdict(set)  # every text that stood under a path
        self.served: set[str] = set()

    @initialize()
    def start(self) -> None:
        with redis.Redis.from_url(self.pipeline.runtime.settings.redis_url) as client:
            client.flushall()
        self.server.refuses = lambda text: "poison" in text

    def files(self) -> list[str]:
        return sorted(str(file.relative_to(self.pipeline.folder)) for file in self.pipeline.folder.rglob("*.*"))

    def wanted(self) -> set[str]:
        """The files whose content was not forgotten."""
        barred = self.barred()
        return {
            path for path in self.files() if sha256((self.pipeline.folder / path).read_bytes()).digest() not in barred
        }

    @rule(path=paths, text=contents)
    def write(self, path: str, text: str) -> None:
        self.pipeline.write(path, text)
        self.versions[path].add(text)

    @rule(path=paths, text=contents)
    def write_what_the_provider_refuses(self, path: str, text: str) -> None:
        self.write(path, text + "\nThis sentence is poison.\n")

    @rule(path=paths)
    def write_what_does_not_parse(self, path: str) -> None:
        self.pipeline.write(path, UNPARSABLE)

    @precondition(lambda self: self.files())
    @rule(data=st.data(), to=paths)
    def rename(self, data: st.DataObject, to: str) -> None:
        path = data.draw(st.sampled_from(self.files()))
        (self.pipeline.folder / to).parent.mkdir(exist_ok=True)
        self.pipeline.rename(path, to)
        self.versions[to] |= self.versions[path]

    @precondition(lambda self: self.files())
    @rule(data=st.data(), to=paths)
    def copy(self, data: st.DataObject, to: str) -> None:
        path = data.draw(st.sampled_from(self.files()))
        (self.pipeline.folder / to).parent.mkdir(exist_ok=True)
        if path != to:
            self.pipeline.copy(path, to)
        self.versions[to] |= self.versions[path]

    @precondition(lambda self: self.files())
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.pipeline.delete(data.draw(st.sampled_from(self.files())))

    @precondition(lambda self: self.served)
    @rule(data=st.data(), statements=st.one_of(st.none(), st.integers(0, 60)))
    def forget(self, data: st.DataObject, statements: int | None) -> None:
        """Between two runs, or between any two statements of one."""
        path = data.draw(st.sampled_from(sorted(self.served)))
        if statements is None:
            self.erase(path)
        else:
            url = self.pipeline.runtime.database_url
            with closing(interrupted(url, statements, lambda: self.erase(path))) as connection:
                self.pipeline.run(connection)
        self.served &= self.pipeline.served().keys()
        self.check_readers()

    def erase(self, path: str) -> None:
        caches = self.pipeline.runtime.caches(self.pipeline.connection, self.name)
        with suppress(UsageError):  # the run has removed it already
            forget(self.pipeline.connection, self.name, path, caches)

    def barred(self) -> set[bytes]:
        return {
            content
            for (content,) in self.pipeline.rows(
                "SELECT content_hash FROM rag.forgotten_content WHERE collection = %(name)s"
            )
        }

    @rule(change=changes)
    def change(self, change: dict[str, object]) -> None:
        self.pipeline.change(**change)

    @rule()
    def lose_the_cache(self) -> None:
        self.start()

    @rule()
    def wait_until_retired_indexes_are_dropped(self) -> None:
        self.pipeline.connection.execute("UPDATE rag.vector_index SET retired_at = retired_at - interval '1 hour'")

    @rule()
    def run(self) -> None:
        self.pipeline.run()
        self.check_readers()
        self.pipeline.assert_no_orphans()

    @rule()
    def run_while_the_provider_is_gone(self) -> None:
        self.server.intercept = lambda request: error(401, "no", "invalid_api_key")
        self.run()
        self.server.intercept = lambda request: None

    @rule(statements=st.integers(0, 90))
    def run_and_abort(self, statements: int) -> None:
        with closing(aborting(self.pipeline.runtime.database_url, statements)) as connection, suppress(Aborted):
            self.pipeline.run(connection)
        self.check_readers()

    def check_readers(self) -> None:
        """What is served is whole, of one version, and no document that is still there has gone."""
        served, barred = self.pipeline.served(), self.barred()
        assert not barred & {
            content
            for (content,) in self.pipeline.rows(
                "SELECT published_content FROM rag.document WHERE collection = %(name)s AND published_chunk_key <> ''"
            )
        }
        whole = self.pipeline.served_texts()
        assert whole.keys() == served.keys()
        for path, chunks in served.items():
            assert all(text is not None and vector is not None for *_, text, vector, _ in chunks), path
            texts = [text[len(text) - (end - start) :] for start, end, _, _, text, *_ in chunks]
            assert texts == [whole[path][start:end] for start, end, *_ in chunks]
            assert any(
                all(_squeezed(text) in version for text in texts) for version in map(_squeezed, self.versions[path])
            )
        assert self.served & self.wanted() <= served.keys()
        self.served = set(served)

    def teardown(self) -> None:
        """The last run, and a clean build of the same files with the same settings."""
        try:
            self.server.refuses = lambda text: False
            self.pipeline.run()
            self.check_readers()
            self.pipeline.assert_clean()
            self.pipeline.assert_as_built_anew()
            failed = set(self.pipeline.failures())
            assert set(self.pipeline.served()) - failed == self.wanted() - failed
        finally:
            collections.remove(self.pipeline.connection, self.name)
            self.pipeline.close()


def _squeezed(text: str) -> str:
    """Without what parsing may change: marks of headings, and white space."""
    return "".join(text.replace("#", "").split())


@pytest.fixture
def history(
    tmp_path: Path, module_database_url: str, redis_url: str, server: OpenAIServer, parsing_in_process: None
) -> Callable[[int, int], None]:
    """Tries so many histories of at most so many steps."""
    from rag_pipeline_tests.pipelines import stand_in_runtime

    runtime = stand_in_runtime(tmp_path / "home", module_database_url, redis_url, server)

    def attempt(histories: int, steps: int) -> None:
        run_state_machine_as_test(
            lambda: History(runtime, server, tmp_path),
            settings=settings(
                max_examples=histories,
                stateful_step_count=steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )

    return attempt


def test_any_history_ends_as_a_clean_build(history):
    history(16, 16)


@pytest.mark.slow
def test_many_long_histories_end_as_clean_builds(history):
    history(300, 30)
