"""The one table of models: their dimensions, limits, languages and prices.

Prices are in US dollars per million tokens, as listed at https://developers.openai.com/api/docs/pricing in 2026.
"""

import re
from dataclasses import dataclass, replace

from rag_pipeline.core.errors import UsageError

# The languages of PostgreSQL's own text-search configurations, as ISO 639-1 codes.
TEXT_SEARCH_LANGUAGES = {
    "arabic": "ar",
    "armenian": "hy",
    "basque": "eu",
    "catalan": "ca",
    "danish": "da",
    "dutch": "nl",
    "english": "en",
    "estonian": "et",
    "finnish": "fi",
    "french": "fr",
    "german": "de",
    "greek": "el",
    "hindi": "hi",
    "hungarian": "hu",
    "indonesian": "id",
    "irish": "ga",
    "italian": "it",
    "lithuanian": "lt",
    "nepali": "ne",
    "norwegian": "no",
    "portuguese": "pt",
    "romanian": "ro",
    "russian": "ru",
    "serbian": "sr",
    "spanish": "es",
    "swedish": "sv",
    "tamil": "ta",
    "turkish": "tr",
    "yiddish": "yi",
}

# Chinese, Japanese and Korean characters.
CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")

UNKNOWN_INPUT_TOKENS = 8192
UNKNOWN_CONTEXT_TOKENS = 8192


@dataclass(frozen=True)
class EmbeddingModel:
    """What turns a text into a vector.

    `max_input_tokens` counts as the provider's `count` does: cl100k tokens for OpenAI, word pieces (the two special
    ones included) for the local model. `languages` are the ISO 639-1 codes of those the model knows, None where it
    knows many or nothing is known. `price_per_million_tokens` is None where the price is not known.
    """

    name: str
    dimensions: int
    max_input_tokens: int
    price_per_million_tokens: float | None
    languages: frozenset[str] | None = None
    fewer_dimensions: bool = False

    @property
    def provider(self) -> str:
        return self.name.partition("/")[0]

    @property
    def provider_name(self) -> str:
        """The name as the provider knows it."""
        return self.name.partition("/")[2]

    def understands(self, question: str, text_search: str) -> bool:
        """Whether the model knows the language of a question to a collection with this text-search configuration; True
        where that cannot be told."""
        if self.languages is None:
            return True
        if CJK.search(question):
            return bool(self.languages & {"zh", "ja", "ko"})
        language = TEXT_SEARCH_LANGUAGES.get(text_search)
        return language is None or language in self.languages

    def cost(self, tokens: int) -> float | None:
        """The price of embedding so many tokens in US dollars; None where the price is not known."""
        if self.price_per_million_tokens is None:
            return None
        return tokens * self.price_per_million_tokens / 1_000_000


@dataclass(frozen=True)
class ChatModel:
    """What turns passages and a question into an answer; prices are None where they are not known."""

    name: str
    context_tokens: int
    price_in: float | None
    price_out: float | None

    @property
    def provider_name(self) -> str:
        """The name as the provider knows it."""
        return self.name.partition("/")[2]

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """The price of one answer in US dollars; None where the prices are not known."""
        if self.price_in is None or self.price_out is None:
            return None
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1_000_000


# The local model was trained on 256 word pieces and reads 512. On 1,500 SciFact abstracts, seven in ten of them longer
# than 256, the best of windows of 256 scores nDCG@10 .772, whole texts up to 512 .771, texts cut at 256 .758.
EMBEDDING_MODELS = {
    model.name: model
    for model in (
        EmbeddingModel("openai/text-embedding-3-small", 1536, 8192, 0.02, fewer_dimensions=True),
        EmbeddingModel("openai/text-embedding-3-large", 3072, 8192, 0.13, fewer_dimensions=True),
        EmbeddingModel("openai/text-embedding-ada-002", 1536, 8192, 0.10),
        EmbeddingModel("local/all-MiniLM-L6-v2", 384, 256, 0.0, languages=frozenset({"en"})),
    )
}

CHAT_MODELS = {
    model.name: model
    for model in (
        ChatModel("openai/gpt-5.5", 1_000_000, 5.00, 30.00),
        ChatModel("openai/gpt-5.4", 1_050_000, 2.50, 15.00),
        ChatModel("openai/gpt-5.4-mini", 400_000, 0.75, 4.50),
        ChatModel("openai/gpt-5.4-nano", 400_000, 0.20, 1.25),
        ChatModel("openai/gpt-5-mini", 400_000, 0.25, 2.00),
        ChatModel("openai/gpt-5-nano", 400_000, 0.05, 0.40),
        ChatModel("openai/gpt-4.1", 1_047_576, 2.00, 8.00),
        ChatModel("openai/gpt-4.1-mini", 1_047_576, 0.40, 1.60),
        ChatModel("openai/gpt-4.1-nano", 1_047_576, 0.10, 0.40),
        ChatModel("openai/gpt-4o", 128_000, 2.50, 10.00),
        ChatModel("openai/gpt-4o-mini", 128_000, 0.15, 0.60),
    )
}


def embedding_model(name: str, dimensions: int | None = None) -> EmbeddingModel:
    """The model of that name, with `dimensions` where it allows them.

    An OpenAI-compatible model that is not in the table works when its dimensions are given, without a price.
    Raises UsageError for a name or dimensions that cannot work.
    """
    if dimensions is not None and dimensions < 1:
        raise UsageError(f"dimensions {dimensions} is not a positive number")
    model = EMBEDDING_MODELS.get(name)
    if model is None:
        if _is_openai(name) and dimensions is not None:
            return EmbeddingModel(name, dimensions, UNKNOWN_INPUT_TOKENS, None)
        known = ", ".join(EMBEDDING_MODELS)
        remedy = "give its dimensions" if _is_openai(name) else "name it openai/MODEL and give its dimensions"
        raise UsageError(f"embedding model {name!r} is not known: {remedy}, or use one of {known}")
    if dimensions is None or dimensions == model.dimensions:
        return model
    if not model.fewer_dimensions:
        raise UsageError(f"{name} has {model.dimensions} dimensions, not {dimensions}: leave dimensions out")
    if dimensions > model.dimensions:
        raise UsageError(f"{name} has at most {model.dimensions} dimensions, not {dimensions}: ask for fewer")
    return replace(model, dimensions=dimensions)


def chat_model(name: str) -> ChatModel:
    """The chat model of that name; one that is not in the table works without a price and with a careful context limit.

    Raises UsageError for a name without a provider.
    """
    if model := CHAT_MODELS.get(name):
        return model
    if not _is_openai(name):
        raise UsageError(f"chat model {name!r} is not known: name it openai/MODEL")
    return ChatModel(name, UNKNOWN_CONTEXT_TOKENS, None, None)


def _is_openai(name: str) -> bool:
    provider, _, provider_name = name.partition("/")
    return provider == "openai" and bool(provider_name)
