"""The seam to what embeds text: a provider answers a few texts with their vectors, or says why it does not."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rag_pipeline.core.errors import ProviderError, UsageError
from rag_pipeline.core.models import EmbeddingModel


@dataclass(frozen=True)
class Answer:
    """The vectors of the texts asked, in their order: float32, shape (texts, dimensions); and what asking took."""

    vectors: np.ndarray
    tokens: int
    requests: int = 1
    retries: int = 0


class AskingFailed(ProviderError):
    """No vectors for these texts; `requests` and `retries` were spent on them."""

    def __init__(self, reason: str, requests: int = 1, retries: int = 0):
        super().__init__(reason)
        self.requests = requests
        self.retries = retries


class InputRefused(AskingFailed):
    """At least one of the texts is to blame: the others can still be asked."""


class ProviderStopped(AskingFailed):
    """Asking for anything else is useless until someone acts, or until the provider is back."""


class Provider(Protocol):
    """One model at one place. `embed` may be called by `in_flight` threads at once."""

    model: EmbeddingModel
    base_url: str
    in_flight: int
    batch_inputs: int  # texts to ask at once
    first_inputs: int  # texts to ask alone at first, to learn whether asking works; 0 where there is nothing to learn

    @property
    def batch_tokens(self) -> int:
        """The tokens to ask at once."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text as the model counts them, special ones included."""

    def embed(self, texts: Sequence[str], *, tokens: int, hurry: bool, stop: threading.Event) -> Answer:
        """The vectors of `texts`, which have about so many `tokens` in all.

        Retries what may pass; in a `hurry` (someone waits) only briefly. Raises InputRefused or ProviderStopped, the
        latter also when `stop` is set while it waits.
        """


def connect_provider(
    model: EmbeddingModel,
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    redis_url: str | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
) -> Provider:
    """The provider of `model`; nothing is sent or loaded before the first text is asked.

    `redis_url` is where rate limits are shared. A key that is missing is told when the first text is asked.
    """
    if model.provider == "local":
        from rag_pipeline.core.providers.local import LocalProvider

        return LocalProvider(model)
    if model.provider == "openai":
        from rag_pipeline.core.providers.openai import OpenAIProvider

        return OpenAIProvider(model, api_key, base_url, redis_url, requests_per_minute, tokens_per_minute)
    raise UsageError(f"{model.name!r} names no provider: use openai/MODEL or local/MODEL")
