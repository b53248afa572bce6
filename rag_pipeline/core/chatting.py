"""The seam to what writes answers: a chat model behind the OpenAI API."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rag_pipeline.core.errors import ProviderError
from rag_pipeline.core.models import ChatModel, chat_model
from rag_pipeline.core.providers.openai import OPENAI_URL, connect_client, shown_url

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

# Between two parts of a reply, and before the first.
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Part:
    """A part of a reply, or the whole.

    The tokens billed and `finish` (why the model stopped: stop, length, content_filter) come with one of the last
    parts; a server that does not tell the tokens, or not in whole numbers from 0, sends none.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish: str | None = None


class ChatProvider(Protocol):
    """One chat model at one place."""

    model: ChatModel

    def write(self, instructions: str, prompt: str, *, stream: bool) -> Iterator[Part]:
        """The model's reply: as it comes, or in one part. Closing the iterator ends it.

        Raises ProviderError when the model does not answer, or breaks off.
        """


class OpenAIChat:
    """A chat model behind the OpenAI API; see `ChatProvider`."""

    def __init__(self, model: ChatModel, api_key: str, base_url: str | None):
        self.model = model
        self._api_key = api_key
        self._full_url = base_url or OPENAI_URL
        self._base_url = shown_url(self._full_url)

    def write(self, instructions: str, prompt: str, *, stream: bool) -> Iterator[Part]:
        """See `ChatProvider.write`. Until it has begun, the client tries again twice: on 408, 409, 429 (when the server
        says after how long, then), 5xx, and without a connection."""
        client = connect_client(self._api_key, self._full_url, timeout=TIMEOUT_S)
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        with self._one_line():
            response = client.chat.completions.create(
                model=self.model.provider_name,
                messages=[{"role": "system", "content": instructions}, {"role": "user", "content": prompt}],
                **options,
            )
            if not stream:
                # What is not JSON comes through the client as a string: another kind of server, or another path of it.
                if not getattr(response, "choices", None):
                    raise self._no_chat_model()
                yield _part(response, response.choices[0].message.content, response.choices[0].finish_reason)
                return
            begun, finish = False, None
            with response:
                for event in response:
                    choice = event.choices[0] if event.choices else None
                    finish = finish or (choice and choice.finish_reason)
                    yield _part(event, choice and choice.delta.content, finish)
                    begun = True
            if not begun:
                raise self._no_chat_model()
            if finish is None:
                raise ProviderError(f"{self._base_url} broke off in the middle of its answer: ask again")

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Failures as one line. The provider's message is not repeated: it may hold the key or the text."""
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise ProviderError(self._refusal(error)) from None
        except openai.APITimeoutError:
            raise ProviderError(
                f"{self._base_url} did not answer within {TIMEOUT_S:.0f} seconds: try again later"
            ) from None
        except openai.APIError as error:
            raise ProviderError(f"{self._base_url} does not answer ({type(error).__name__}): try again later") from None
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            # The client takes a body as it comes: null, or another shape, where the API has an object.
            raise self._no_chat_model() from None

    def _refusal(self, error: "openai.APIStatusError") -> str:
        status, code = error.status_code, str(error.code or error.type or "")
        if status == 401:
            return f"{self._base_url} refused the API key: set OPENAI_API_KEY to a valid one"
        if status == 404:
            return f"{self._base_url} does not have {self.model.name}: set RAG_CHAT_MODEL to one it has"
        if "insufficient_quota" in (error.code, error.type):
            return f"the quota at {self._base_url} is used up: add credit there, then ask again"
        if status == 429:
            return f"{self._base_url} limits the rate: wait a minute, then ask again"
        if "context_length" in code:
            return f"{self.model.name} cannot read so much at once: ask from fewer passages, with a smaller -k"
        if "content_filter" in code or "content_policy" in code:
            return f"the content filter of {self._base_url} refused the question or its passages: ask in other words"
        named = f", {code}" if re.fullmatch(r"[\w.-]{1,50}", code) else ""
        if status in (408, 409) or status >= 500:
            return f"{self._base_url} failed with status {status}{named}: try again later"
        return f"{self._base_url} refused to answer with status {status}{named}: check the key and RAG_CHAT_MODEL there"

    def _no_chat_model(self) -> ProviderError:
        return ProviderError(f"{self._base_url} sent no answer of a chat model: check OPENAI_BASE_URL")


def _part(sent: "ChatCompletion | ChatCompletionChunk", text: str | None, finish: str | None) -> Part:
    if not isinstance(text, str | None):
        raise TypeError("the text of a reply is no text")
    told = (sent.usage.prompt_tokens, sent.usage.completion_tokens) if sent.usage else ()
    # The client takes them as they come: less than none, or half of one, is not believed.
    believed = told and all(type(tokens) is int and tokens >= 0 for tokens in told)
    # JSON may escape half of a character, which no terminal and no file takes.
    text = (text or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return Part(text, *(told if believed else (None, None)), finish)


def connect_chat(name: str | None, *, api_key: str | None, base_url: str | None) -> ChatProvider | None:
    """The chat model of that name; None where none is named. Raises ProviderError for a key that is missing."""
    if name is None:
        return None
    model = chat_model(name)
    if not api_key:
        raise ProviderError(f"{name} needs an API key: set OPENAI_API_KEY")
    return OpenAIChat(model, api_key, base_url)
