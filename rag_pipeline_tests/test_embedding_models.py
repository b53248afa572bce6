"""The table of models: what is known, what is allowed, what is refused."""

import pytest

from rag_pipeline.core.errors import UsageError
from rag_pipeline.core.models import chat_model, embedding_model


def test_known_models_carry_their_limits_and_price():
    model = embedding_model("openai/text-embedding-3-small")
    assert (model.dimensions, model.max_input_tokens) == (1536, 8192)
    assert model.cost(1_000_000) == 0.02
    assert embedding_model("local/all-MiniLM-L6-v2").cost(10**9) == 0.0


def test_fewer_dimensions_where_the_model_allows_them():
    assert embedding_model("openai/text-embedding-3-large", 256).dimensions == 256
    assert embedding_model("openai/text-embedding-3-large", 3072).dimensions == 3072
    for name, dimensions in [
        ("openai/text-embedding-3-small", 1537),
        ("openai/text-embedding-ada-002", 512),
        ("local/all-MiniLM-L6-v2", 256),
        ("openai/text-embedding-3-small", 0),
    ]:
        with pytest.raises(UsageError, match=str(dimensions)):
            embedding_model(name, dimensions)


def test_an_unknown_model_works_when_its_dimensions_are_given_without_a_price():
    model = embedding_model("openai/nomic-embed-text", 768)
    assert model.dimensions == 768
    assert model.provider_name == "nomic-embed-text"
    assert model.cost(1000) is None


@pytest.mark.parametrize("name", ["openai/nomic-embed-text", "nomic-embed-text", "openai/", "elsewhere/model", ""])
def test_an_unknown_model_without_dimensions_is_refused_with_the_remedy(name):
    with pytest.raises(UsageError, match="give its dimensions"):
        embedding_model(name)


def test_chat_models():
    assert chat_model("openai/gpt-4o-mini").cost(1_000_000, 1_000_000) == pytest.approx(0.75)
    unknown = chat_model("openai/llama3")
    assert unknown.cost(1, 1) is None
    assert unknown.context_tokens > 0
    with pytest.raises(UsageError, match="openai/MODEL"):
        chat_model("llama3")
