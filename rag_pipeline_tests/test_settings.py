"""Settings: what the environment and `.env` say, and how Dagster is pointed at the same database."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from sqlalchemy import make_url

from rag_pipeline import settings
from rag_pipeline.core.errors import UsageError
from rag_pipeline.instance import DAGSTER_OPTIONS, dagster_database_url
from rag_pipeline.settings import PROJECT, Settings


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the clone, whose own `.env` is its developer's."""
    monkeypatch.setattr(settings, "PROJECT", tmp_path)
    monkeypatch.delenv("RAG_HOME")
    return tmp_path


def test_nothing_has_to_be_set(clone):
    read = Settings.from_environment()
    assert (read.home, read.documents) == (clone / ".rag", clone / "documents")
    assert (read.database_url, read.redis_url, read.openai_api_key, read.chat_model) == (None, None, None, None)
    assert (read.embedding_model, read.executor) == ("local/all-MiniLM-L6-v2", "in_process")


def test_a_key_makes_openai_the_provider_and_names_still_win(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    read = Settings.from_environment()
    assert (read.embedding_model, read.chat_model) == ("openai/text-embedding-3-small", "openai/gpt-4.1-mini")
    monkeypatch.setenv("RAG_EMBEDDING_MODEL", "openai/other")
    monkeypatch.setenv("RAG_CHAT_MODEL", "openai/another")
    read = Settings.from_environment()
    assert (read.embedding_model, read.chat_model) == ("openai/other", "openai/another")


def test_the_file_fills_in_what_the_environment_leaves_open(clone, monkeypatch):
    (clone / ".env").write_text("OPENAI_API_KEY=from the file\nRAG_REDIS_URL='redis://file'\nRAG_CHAT_MODEL=openai/x\n")
    monkeypatch.setenv("RAG_REDIS_URL", "redis://environment")
    monkeypatch.setenv("RAG_CHAT_MODEL", "")
    read = Settings.from_environment()
    assert read.openai_api_key == "from the file"
    assert read.redis_url == "redis://environment"
    # Set to nothing is set: the file does not bring it back.
    assert read.chat_model == "openai/gpt-4.1-mini"


@pytest.mark.parametrize("value", ["", "   "])
def test_an_empty_value_is_none(monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    assert Settings.from_environment().openai_api_key is None


def test_a_home_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAG_HOME", "here")
    assert Settings.from_environment().home == tmp_path / "here"
    monkeypatch.setenv("RAG_HOME", "~/there")
    assert Settings.from_environment().home == Path.home() / "there"


def test_rates_are_whole_numbers(monkeypatch):
    assert (Settings.from_environment().requests_per_minute, Settings.from_environment().tokens_per_minute) == (
        None,
    ) * 2
    monkeypatch.setenv("RAG_REQUESTS_PER_MINUTE", "3000")
    monkeypatch.setenv("RAG_TOKENS_PER_MINUTE", "1000000")
    read = Settings.from_environment()
    assert (read.requests_per_minute, read.tokens_per_minute) == (3000, 1_000_000)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "１０"])
@pytest.mark.parametrize("name", ["RAG_REQUESTS_PER_MINUTE", "RAG_TOKENS_PER_MINUTE"])
def test_a_wrong_rate_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"{name}={value} is not valid"):
        Settings.from_environment()


def test_secrets_are_not_in_the_repr(monkeypatch):
    for name in ("OPENAI_API_KEY", "RAG_API_KEY", "RAG_DATABASE_URL", "RAG_QUERY_DATABASE_URL", "RAG_REDIS_URL"):
        monkeypatch.setenv(name, "hush")
    assert "hush" not in repr(Settings.from_environment())


def test_nothing_else_reads_the_environment():
    readers = {
        path.relative_to(PROJECT).as_posix()
        for path in (PROJECT / "rag_pipeline").rglob("*.py")
        if "os.environ" in path.read_text()
    }
    # These two hand it on to Dagster.
    assert readers - {"rag_pipeline/instance.py", "rag_pipeline/serving.py"} == {"rag_pipeline/settings.py"}


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@given(user=words, password=words, name=words, host=st.sampled_from(["db.example.org", "/a folder/with?=&%"]))
def test_dagster_reaches_the_same_database(user, password, name, host):
    url = make_url(dagster_database_url(make_conninfo(user=user, password=password, dbname=name, host=host, port=5433)))
    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.database) == (user, password, name)
    assert url.query == {"host": host, "port": "5433", "options": DAGSTER_OPTIONS}


def test_a_database_without_user_or_password_and_with_options_of_its_own():
    url = make_url(
        dagster_database_url("postgresql://localhost/rag?sslmode=require&options=-cstatement_timeout%3D9000")
    )
    assert (url.username or None, url.password or None, url.database) == (None, None, "rag")
    assert url.query == {
        "host": "localhost",
        "sslmode": "require",
        "options": f"-cstatement_timeout=9000 {DAGSTER_OPTIONS}",
    }
