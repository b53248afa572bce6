"""`Rag`: search and ask from Python, in the environment's settings."""

import pytest

from rag_pipeline import Rag
from rag_pipeline.core.errors import ProviderError, ServiceError, UsageError
from rag_pipeline.core.prompting import NO_ANSWER
from rag_pipeline_tests.openai_server import error
from rag_pipeline_tests.pipelines import MODEL


@pytest.fixture
def handbook(pipeline, monkeypatch):
    """A published handbook, and an environment that leads to it."""
    pipeline.write(
        "passwords.md", "# Passwords\n\nReset your password on the settings page.\n\nPasswords expire yearly."
    )
    pipeline.write("canteen.txt", "The canteen opens at noon.")
    pipeline.run()
    found = pipeline.runtime.settings
    for name, value in {
        "RAG_DATABASE_URL": found.database_url,
        "RAG_REDIS_URL": found.redis_url,
        "OPENAI_API_KEY": found.openai_api_key,
        "OPENAI_BASE_URL": found.openai_base_url,
        "RAG_EMBEDDING_MODEL": MODEL,
        "RAG_CHAT_MODEL": "openai/pen",
    }.items():
        monkeypatch.setenv(name, value)
    return pipeline


def test_it_connects_as_the_environment_says_and_searches(handbook):
    with Rag.connect() as rag:
        hits = rag.search("docs", "how do I reset a password?", k=1, mode="hybrid")
    assert [hit.path for hit in hits] == ["passwords.md"]
    assert (hits.collection, hits.mode, hits.degraded) == ("docs", "hybrid", None)
    assert hits[0].heading == ("Passwords",)
    assert "settings page" in hits.to_frame()["content"][0]


def test_it_asks_the_chat_model_and_cites(handbook, server):
    server.answer = lambda messages: "On the settings page [1]."
    with Rag.connect() as rag:
        answer = rag.ask("docs", "how do I reset a password?")
        assert (answer.text, answer.answered, answer.kind) == ("On the settings page [1].", True, "generated")
        assert [source.path for source in answer.sources] == ["passwords.md"]
        assert answer.tokens.embedding > 0
        assert rag.ask("docs", "how do I reset a password?").tokens.embedding == 0
        server.answer = lambda messages: NO_ANSWER
        assert not rag.ask("docs", "who wrote Hamlet?").answered


def test_without_a_chat_model_it_quotes(handbook, monkeypatch):
    monkeypatch.delenv("RAG_CHAT_MODEL")
    monkeypatch.delenv("OPENAI_API_KEY")  # nor a provider for the question's embedding
    with Rag.connect() as rag:
        answer = rag.ask("docs", "how do I reset a password?")
    assert answer.kind == "extractive"
    assert answer.text.startswith("“Reset your password on the settings page.”")
    assert [source.path for source in answer.sources] == ["passwords.md"]


def test_what_cannot_be_asked_is_refused_before_a_model_is(handbook, server):
    with Rag.connect() as rag:
        asked = len(server.requests)
        for collection, question in (("nowhere", "what?"), ("docs", " "), ([], "what?")):
            with pytest.raises(UsageError):
                rag.ask(collection, question)
        assert len(server.requests) == asked


def test_a_key_that_is_refused_is_one_line(handbook, server):
    server.intercept = lambda request: error(401, "no", "invalid_api_key")
    with Rag.connect() as rag:
        assert rag.search("docs", "password").degraded
        for ask in (lambda: rag.ask("docs", "password"), lambda: rag.search("docs", "password", mode="vector")):
            with pytest.raises(ProviderError, match="OPENAI_API_KEY"):
                ask()


def test_a_database_that_is_down_is_one_line(handbook, monkeypatch):
    monkeypatch.setenv("RAG_DATABASE_URL", "postgresql://me:s3cret@127.0.0.1:1/rag")
    with pytest.raises(ServiceError) as raised:
        Rag.connect()
    assert "RAG_DATABASE_URL" in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_it_sees_what_was_published_since_it_was_connected(handbook):
    with Rag.connect() as rag:
        assert [hit.path for hit in rag.search("docs", "canteen", mode="text")] == ["canteen.txt"]
        handbook.write("canteen.txt", "The canteen is closed for ever.")
        handbook.run()
        assert "closed" in rag.search("docs", "canteen", mode="text")[0].content
        handbook.change(embedding_model="openai/another")
        handbook.run()
        assert rag.search("docs", "canteen", mode="vector")[0].path == "canteen.txt"


def test_closing_ends_its_connection_and_what_is_asked_later_is_one_line(handbook):
    with Rag.connect() as rag:
        hits = rag.search("docs", "password", mode="text")
    for ask in (
        lambda: rag.search("docs", "password", mode="text"),
        lambda: rag.ask("docs", "password"),
        lambda: rag.generate(hits),
        lambda: rag.evaluate("docs", []),
        lambda: rag.questions("docs"),
        lambda: rag.ingest("docs"),
        lambda: rag.run("x"),
        lambda: rag.cancel("x"),
    ):
        with pytest.raises(UsageError, match="this Rag is closed"):
            ask()
    rag.close()
