"""Killed at any moment, a run pays again for no more than what was in flight."""

import signal
import subprocess
import sys
import time

import pytest

from rag_pipeline.core.cache import EmbeddingCache
from rag_pipeline.core.embedding import connect_provider, embed_stream
from rag_pipeline.core.models import embedding_model
from rag_pipeline_tests.openai_server import OpenAIServer, Request
from rag_pipeline_tests.test_embedding import make_inputs
from rag_pipeline_tests.waiting import eventually

MODEL = embedding_model("openai/stand-in", 64)
RUN = """
import sys
from rag_pipeline_tests.test_embedding_crash import run
run(*sys.argv[1:])
"""


def run(url: str, redis_url: str) -> int:
    """Embed 20,000 texts with a store that keeps nothing; the number stored."""
    provider = connect_provider(MODEL, api_key="k", base_url=url, redis_url=redis_url)
    stored = []
    embed_stream(
        make_inputs(20_000), provider, EmbeddingCache(redis_url, provider.base_url, MODEL.name, 64), stored.extend
    )
    return len(stored)


def answered_before(server: OpenAIServer, moment: float) -> list[Request]:
    return [request for request in list(server.requests) if request.status == 200 and request.answered_at < moment]


@pytest.mark.parametrize("answers", [1, 12])
def test_kill_and_run_again_asks_nothing_that_was_answered_a_second_before(redis_url, answers):
    with OpenAIServer(latency=0.5) as server:
        process = subprocess.Popen([sys.executable, "-c", RUN, server.url, redis_url])
        try:
            eventually(lambda: len(answered_before(server, time.monotonic() - 1)) >= answers, seconds=60)
        finally:
            process.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            process.wait()
        old = answered_before(server, killed - 1)
        late = [request for request in server.requests if request not in old]
        assert len(server.embedded_texts()) < 20_000, "it was done before it was killed"
        server.requests, before = [], server.requests
        server.latency = 0.0
        assert run(server.url, redis_url) == 20_000
        asked = set(server.embedded_texts())
    assert not asked & {text for request in old for text in request.inputs}
    never = {input.text for input in make_inputs(20_000)} - {text for request in before for text in request.inputs}
    assert asked <= never | {text for request in late for text in request.inputs}
