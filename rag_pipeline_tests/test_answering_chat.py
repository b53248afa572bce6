"""The chat model behind the OpenAI API: what is sent, what comes back, and every way in which it fails."""

import threading

import pytest

from rag_pipeline.core.answering import answer, stream_answer
from rag_pipeline.core.chatting import OpenAIChat, connect_chat
from rag_pipeline.core.errors import ProviderError, UsageError
from rag_pipeline.core.prompting import NO_ANSWER
from rag_pipeline.core.tokens import count_tokens
from rag_pipeline_tests.chats import hits
from rag_pipeline_tests.openai_server import Reply, error, out_of_quota, rate_limited

PASSAGES = hits("Reset your password on the settings page.", "Passwords expire after ninety days.")


@pytest.fixture
def chat(server):
    return connect_chat("openai/pen", api_key="secret-key", base_url=server.url)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_: 0.0)


def streamed(question, found, chat):
    return stream_answer(question, found, chat).answer


either_way = pytest.mark.parametrize("ask", [answer, streamed])


@either_way
def test_a_chat_model_answers_through_the_api(chat, server, ask):
    server.answer = lambda messages: "On the settings page [1]."
    result = ask("How do I reset my password?", PASSAGES, chat)
    (request,) = server.requests
    assert (request.path, request.key, request.body["model"]) == ("/v1/chat/completions", "secret-key", "pen")
    system, user = request.body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert NO_ANSWER in system["content"]
    assert (result.text, [source.path for source in result.sources]) == ("On the settings page [1].", ["1.md"])
    assert (result.model, result.cost_usd) == ("openai/pen", None)
    assert result.tokens.completion == count_tokens("On the settings page [1].")
    assert result.tokens.prompt == count_tokens(system["content"]) + count_tokens(user["content"]) + 8


@either_way
def test_a_server_that_does_not_tell_its_tokens_has_them_counted(chat, server, ask):
    server.tells_usage = False
    server.answer = lambda messages: "On the settings page [1]."
    tokens = ask("How?", PASSAGES, chat).tokens
    assert tokens.completion == count_tokens("On the settings page [1].")
    assert tokens.prompt > 100


@either_way
@pytest.mark.parametrize("told", [(-5, 7), (7, -5), (1.5, 7), (7, 2.0), (True, 7), ("7", 7), (7, None)])
def test_tokens_that_cannot_be_are_counted_instead(chat, server, told, ask):
    usage = dict(zip(("prompt_tokens", "completion_tokens"), told, strict=True))
    choice = {"index": 0, "message": {"role": "assistant", "content": "Yes [1]."}, "delta": {"content": "Yes [1]."}}
    body = {"id": "x", "created": 1, "model": "pen", "choices": [{**choice, "finish_reason": "stop"}], "usage": usage}
    server.intercept = lambda request: (
        Reply(events=({**body, "object": "chat.completion.chunk"},))
        if request.body.get("stream")
        else Reply(payload={**body, "object": "chat.completion"})
    )
    tokens = ask("How?", PASSAGES, chat).tokens
    system, user = (message["content"] for message in server.requests[-1].body["messages"])
    assert (tokens.prompt, tokens.completion) == (count_tokens(system) + count_tokens(user), count_tokens("Yes [1]."))


@either_way
def test_a_reply_that_reached_the_models_limit_says_so(chat, server, ask):
    server.finish = "length"
    server.answer = lambda messages: "On the settings [1]"
    assert "the answer is cut" in ask("How?", PASSAGES, chat).degraded


@either_way
@pytest.mark.parametrize(
    ("failure", "named"),
    [
        (error(401, "Incorrect API key provided: secret-key", "invalid_api_key"), "OPENAI_API_KEY"),
        (error(404, "no such model", "model_not_found"), "RAG_CHAT_MODEL"),
        (error(400, "too long", "context_length_exceeded"), "smaller -k"),
        (error(400, "filtered", "content_filter"), "content filter"),
        (error(400, "never heard of it", "unknown_parameter"), "400, unknown_parameter"),
        (error(403, "not allowed", "secret key\nin the code"), "403: check"),
        (error(500, "The server had an error"), "500"),
        (rate_limited(), "wait a minute"),
        (out_of_quota(), "add credit"),
        (Reply(drop=True, status=0), "does not answer"),
        (Reply(payload={"object": "chat.completion", "choices": []}), "OPENAI_BASE_URL"),
        (Reply(payload={"detail": "another server"}), "OPENAI_BASE_URL"),
        (Reply(payload={}, headers={"content-type": "text/html"}), "OPENAI_BASE_URL"),
    ],
)
def test_a_failure_is_one_line_with_what_to_do(chat, server, failure, named, ask):
    server.intercept = lambda request: failure
    with pytest.raises(ProviderError) as raised:
        ask("How?", PASSAGES, chat)
    message = str(raised.value)
    assert named in message
    assert "\n" not in message
    assert "secret" not in message


@either_way
@pytest.mark.parametrize("failure", [error(500, "The server had an error"), rate_limited(), Reply(drop=True, status=0)])
def test_a_failure_that_passes_is_not_told(chat, server, failure, ask):
    server.replies.append(failure)
    assert ask("How?", PASSAGES, chat).answered
    assert len(server.requests) == 2


@either_way
def test_half_a_character_in_a_reply_can_be_printed(chat, server, ask):
    server.answer = lambda messages: "At noon \ud83e [1]."
    assert ask("When?", PASSAGES, chat).text == "At noon \ufffd [1]."


@either_way
@pytest.mark.parametrize("content", [None, ""])
def test_a_reply_without_text_is_a_failure(chat, server, content, ask):
    common = {"id": "x", "created": 1, "model": "pen"}
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "delta": message, "finish_reason": "stop"}
    server.intercept = lambda request: (
        Reply(events=({**common, "object": "chat.completion.chunk", "choices": [choice]},))
        if request.body.get("stream")
        else Reply(payload={**common, "object": "chat.completion", "choices": [choice]})
    )
    with pytest.raises(ProviderError, match="openai/pen gave no answer"):
        ask("How?", PASSAGES, chat)


@either_way
@pytest.mark.parametrize(
    "choice",
    [
        {"index": 0, "message": None, "delta": None, "finish_reason": "stop"},
        {"index": 0, "finish_reason": "stop"},
        {"index": 0, "message": "text", "delta": "text"},
        {"index": 0, "message": {"content": {"a": 1}}, "delta": {"content": {"a": 1}}},
        None,
        "text",
    ],
)
def test_a_reply_of_another_shape_is_one_line(chat, server, choice, ask):
    body = {"id": "x", "created": 1, "model": "pen", "choices": [choice]}
    server.intercept = lambda request: (
        Reply(events=({**body, "object": "chat.completion.chunk"},))
        if request.body.get("stream")
        else Reply(payload={**body, "object": "chat.completion"})
    )
    with pytest.raises(ProviderError, match=r"sent no answer of a chat model|broke off"):
        ask("How?", PASSAGES, chat)


def event(text: str | None, finish: str | None = None) -> dict:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]
    return {"id": "x", "created": 1, "model": "pen", "object": "chat.completion.chunk", "choices": choices}


def test_a_stream_is_shown_before_it_has_ended(chat, server):
    shown = threading.Event()
    server.after_event = lambda: shown.wait(10)
    server.answer = lambda messages: "On the settings page [1]."
    server.replies.append(Reply(events=(event("On the "), event("page "), event("[1]."), event("", "stop"))))
    stream = stream_answer("How?", PASSAGES, chat)
    assert next(stream) == "On the"
    assert not shown.is_set()
    shown.set()
    assert stream.answer.text == "On the page [1]."


@pytest.mark.parametrize("drop", [True, False])
def test_a_stream_that_breaks_off_is_not_taken_for_an_answer(chat, server, drop):
    server.replies.append(Reply(events=(event("On the "), event("settings page ")), drop=drop))
    stream = stream_answer("How?", PASSAGES, chat)
    with pytest.raises(ProviderError, match=r"broke off|does not answer"):
        list(stream)
    assert len(server.requests) == 1


def test_events_that_carry_nothing_are_passed_over(chat, server):
    server.replies.append(Reply(events=(event(None), event("Yes [1]."), event(None), event("", "stop"))))
    assert streamed("How?", PASSAGES, chat).text == "Yes [1]."


def test_no_chat_model_is_connected_where_none_is_named():
    assert connect_chat(None, api_key="key", base_url=None) is None
    assert isinstance(connect_chat("openai/pen", api_key="key", base_url=None), OpenAIChat)
    with pytest.raises(ProviderError, match="OPENAI_API_KEY"):
        connect_chat("openai/pen", api_key=None, base_url=None)
    with pytest.raises(UsageError, match="ghost"):
        connect_chat("ghost", api_key="key", base_url=None)
