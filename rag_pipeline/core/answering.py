"""ask: an answer from retrieved passages alone, with a citation for everything it says."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from rag_pipeline.core.chatting import ChatProvider
from rag_pipeline.core.errors import ProviderError
from rag_pipeline.core.prompting import make_prompt
from rag_pipeline.core.quoting import best_sentences, quotation
from rag_pipeline.core.reply_check import ReplyCheck
from rag_pipeline.core.retrieval import Hit, Hits
from rag_pipeline.core.tokens import count_tokens


@dataclass(frozen=True)
class Source:
    """A passage that the answer cites: where it stands, and its text."""

    citation: int
    collection: str
    path: str
    page: int | None
    heading: tuple[str, ...]
    start: int
    end: int
    content: str


@dataclass(frozen=True)
class Tokens:
    """What the question's embedding, the prompt and the completion were billed for."""

    embedding: int = 0
    prompt: int = 0
    completion: int = 0

    @property
    def total(self) -> int:
        return self.embedding + self.prompt + self.completion


@dataclass(frozen=True)
class Answer:
    """`kind` is generated (by `model`) or extractive (quoted sentences, no model).

    `sources` are in the order they are cited. `cost_usd` is None where a price is not known. `degraded` says why the
    answer is less than it could be, if it is: the search had to do without the question's embedding, or the model was
    cut short. `citations_dropped` counts citations in the model's reply that named no passage.
    """

    question: str
    text: str
    answered: bool
    kind: str
    model: str | None
    cost_usd: float | None
    sources: tuple[Source, ...]
    tokens: Tokens
    degraded: str | None = None
    citations_dropped: int = 0


class AnswerStream(Iterator[str]):
    """The text of an answer as it is written, and the whole answer once it is.

        for text in stream: print(text, end="")
        stream.answer.sources

    Iterating raises what `answer` raises; the text until then stays true, but is not whole.
    """

    def __init__(self, writing: Generator[str, None, Answer], done: Callable[[Answer], object] = lambda whole: None):
        self._writing = writing
        self._done = done
        self._answer: Answer | None = None

    def __next__(self) -> str:
        try:
            return next(self._writing)
        except StopIteration as end:
            if self._answer is None and end.value is not None:
                self._answer = end.value
                self._done(end.value)
            raise

    @property
    def answer(self) -> Answer:
        """The whole answer, its `text` being all that was yielded; waits for what is still to come."""
        for _ in self:
            pass
        if self._answer is None:
            raise ProviderError("the answer was not read to its end: ask again")
        return self._answer

    def close(self) -> None:
        """Stop the model, when nobody waits for the rest."""
        self._writing.close()


def answer(question: str, hits: Hits, chat: ChatProvider | None) -> Answer:
    """Answer from the hits: by the chat model where there is one, else by quoting their best sentences.

    Without hits no model is asked. Raises ProviderError when the model does not answer, UsageError for a question that
    is too long for it.
    """
    return AnswerStream(_write(question, hits, chat, stream=False)).answer


def stream_answer(
    question: str, hits: Hits, chat: ChatProvider | None, done: Callable[[Answer], object] = lambda whole: None
) -> AnswerStream:
    """The same answer, its text as it comes; `done` is told the whole."""
    return AnswerStream(_write(question, hits, chat, stream=True), done)


def _write(question: str, hits: Hits, chat: ChatProvider | None, *, stream: bool) -> Generator[str, None, Answer]:
    if chat and hits:
        return (yield from _generate(question, hits, chat, stream=stream))
    quotes = best_sentences(question, hits)
    cited = list(dict.fromkeys(number for number, _ in quotes))
    text = "\n".join(f"{quotation(sentence)} [{cited.index(number) + 1}]" for number, sentence in quotes) or _no_answer(
        hits
    )
    yield text
    return Answer(
        question=question,
        text=text,
        answered=bool(quotes),
        kind="generated" if chat else "extractive",
        model=None,
        cost_usd=hits.cost_usd,
        sources=tuple(_source(citation, hits[number - 1]) for citation, number in enumerate(cited, 1)),
        tokens=Tokens(embedding=hits.question_tokens),
        degraded=hits.degraded,
    )


def _generate(question: str, hits: Hits, chat: ChatProvider, *, stream: bool) -> Generator[str, None, Answer]:
    prompt = make_prompt(question, hits, chat.model)
    check = ReplyCheck(prompt)
    written, billed, finish = [], None, None
    with closing(chat.write(prompt.instructions, prompt.text, stream=stream)) as parts:
        for part in parts:
            written.append(part.text)
            finish = part.finish or finish
            if part.prompt_tokens is not None:
                billed = part.prompt_tokens, part.completion_tokens or 0
            if shown := check.feed(part.text):
                yield shown
    if shown := check.finish():
        yield shown
    if not "".join(written).strip():
        reason = {"content_filter": "its content filter withheld it", "length": "it had written all it may before"}
        raise ProviderError(f"{chat.model.name} gave no answer: {reason.get(finish, 'its reply was empty')}; ask again")
    text = check.text
    if not text:
        text = _no_answer(hits)
        yield text
    # A server that does not tell its tokens is taken to count as we do.
    prompt_tokens, completion_tokens = billed or (
        count_tokens(prompt.instructions) + count_tokens(prompt.text),
        count_tokens("".join(written)),
    )
    price = chat.model.cost(prompt_tokens, completion_tokens)
    return Answer(
        question=question,
        text=text,
        answered=check.answered,
        kind="generated",
        model=chat.model.name,
        cost_usd=None if price is None or hits.cost_usd is None else price + hits.cost_usd,
        sources=tuple(_source(number, prompt.passages[number - 1]) for number in check.cited if check.answered),
        tokens=Tokens(hits.question_tokens, prompt_tokens, completion_tokens),
        degraded="; ".join(filter(None, (hits.degraded, _cut_short(finish, chat.model.name)))) or None,
        citations_dropped=check.citations_dropped,
    )


def _cut_short(finish: str | None, model: str) -> str | None:
    return {
        "length": f"the answer is cut: {model} had written as much as it may",
        "content_filter": f"the answer is cut: the content filter of {model} stopped it",
    }.get(finish)


def _no_answer(hits: Hits) -> str:
    return f"The documents of {hits.collection} do not answer this question."


def _source(citation: int, hit: Hit) -> Source:
    return Source(citation, hit.collection, hit.path, hit.page, hit.heading, hit.start, hit.end, hit.content)
