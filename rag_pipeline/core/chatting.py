"""The seam to what writes answers: a chat model behind the OpenAI API."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rag_pipeline.core.errors import ProviderError
from rag_pipeline.core.models import ChatModel, chat_model
from rag_pipeline.core.providers.openai import OPENAI_URL, connect_client, shown_url

if TYPE_CHECKING:
    import openai

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Reply:
    """What the model wrote, and the tokens that were billed."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class ChatProvider(Protocol):
    """One chat model at one place."""

    model: ChatModel

    def complete(self, instructions: str, prompt: str) -> Reply:
        """The model's reply. Raises ProviderError when there is none."""


class OpenAIChat:
    """A chat model behind the OpenAI API; see `ChatProvider`."""

    def __init__(self, model: ChatModel, api_key: str, base_url: str | None):
        self.model = model
        self._api_key = api_key
        self._full_url = base_url or OPENAI_URL
        self._base_url = shown_url(self._full_url)

    def complete(self, instructions: str, prompt: str) -> Reply:
        """See `ChatProvider.complete`; rate limits and failures that may pass are retried by the client."""
        import openai

        client = connect_client(self._api_key, self._full_url, timeout=TIMEOUT_S)
        try:
            response = client.chat.completions.create(
                model=self.model.provider_name,
                messages=[{"role": "system", "content": instructions}, {"role": "user", "content": prompt}],
            )
        except openai.APIStatusError as error:
            raise self._failure(error) from None
        except openai.APIError as error:
            raise ProviderError(f"{self._base_url} does not answer ({type(error).__name__}): try again later") from None
        # What is not JSON comes through the client as a string: another kind of server, or another path of it.
        if not getattr(response, "choices", None):
            raise ProviderError(f"{self._base_url} sent no answer of a chat model: check OPENAI_BASE_URL")
        usage = response.usage
        return Reply(
            response.choices[0].message.content or "",
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
        )

    def _failure(self, error: "openai.APIStatusError") -> ProviderError:
        if error.status_code == 401:
            return ProviderError(f"{self._base_url} refused the API key: set OPENAI_API_KEY to a valid one")
        if error.status_code == 404:
            return ProviderError(f"{self._base_url} does not have {self.model.name}: set RAG_CHAT_MODEL to one it has")
        return ProviderError(f"{self._base_url} refused to answer with status {error.status_code}: try again later")


def connect_chat(name: str | None, *, api_key: str | None, base_url: str | None) -> ChatProvider | None:
    """The chat model of that name; None where none is named. Raises ProviderError for a key that is missing."""
    if name is None:
        return None
    model = chat_model(name)
    if not api_key:
        raise ProviderError(f"{name} needs an API key: set OPENAI_API_KEY")
    return OpenAIChat(model, api_key, base_url)
