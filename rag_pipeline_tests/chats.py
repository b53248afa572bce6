"""Hits made by hand, and a chat model that writes what it is told to."""

from collections.abc import Iterator, Sequence

from rag_pipeline.core.chatting import Part
from rag_pipeline.core.models import ChatModel
from rag_pipeline.core.retrieval import AlsoIn, Hit, Hits

PASSAGES = (
    "Reset your password on the settings page. It takes effect at once.",
    "Passwords expire after ninety days.",
    "The canteen opens at noon.",
)


def hits(*contents: str, path: str = "{}.md", heading: tuple[str, ...] = ("Guide",), **fields: object) -> Hits:
    """A hit for each content; number n stands on page n from 10 n."""
    found = tuple(
        Hit(n, 1 / n, "docs", path.format(n), n, heading, 10 * n, 10 * n + len(content), 5, content, AlsoIn(0, ()))
        for n, content in enumerate(contents, 1)
    )
    return Hits("docs", "?", "hybrid", found, **fields)


class Writes:
    """A chat model that writes `text`, in the parts given where it streams, and remembers what it was asked."""

    def __init__(
        self,
        text: str | Sequence[str],
        context_tokens: int = 100_000,
        finish: str = "stop",
        billed: tuple[int, int] | None = (1000, 100),
    ):
        self.model = ChatModel("openai/pen", context_tokens, 1.0, 10.0)
        self.parts = [text] if isinstance(text, str) else list(text)
        self.finish = finish
        self.billed = billed
        self.instructions: list[str] = []
        self.prompts: list[str] = []
        self.closed = False

    def write(self, instructions: str, prompt: str, *, stream: bool) -> Iterator[Part]:
        self.instructions.append(instructions)
        self.prompts.append(prompt)
        try:
            for part in self.parts if stream else ["".join(self.parts)]:
                yield Part(part)
            yield Part("", *(self.billed or (None, None)), self.finish)
        finally:
            self.closed = True
