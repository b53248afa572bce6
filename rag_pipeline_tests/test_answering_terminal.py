"""`rag ask` on a terminal: the answer is shown while it is written, and Ctrl-C ends it."""

import os
import pty
import signal
import threading

import pytest


@pytest.fixture
def indexed(rag, handbook, parsing_in_process):
    rag.done("ingest", handbook)
    return rag


def read_until(terminal: int, text: str) -> str:
    """What comes from the terminal, up to a text that is to come or, when the command ends first, all of it."""
    seen = ""
    while text not in seen:
        try:
            part = os.read(terminal, 4096).decode()
        except OSError:  # the command has closed its end
            break
        seen += part
    return seen


def test_it_streams_and_ctrl_c_ends_it(indexed, server):
    goes_on = threading.Event()
    server.after_event = lambda: goes_on.wait(60)
    server.answer = lambda messages: "\x1b[31m\u202e\u2066Thirty days [1]."
    terminal, its_end = pty.openpty()
    asking = indexed.start("ask", "handbook", "how many holidays?", stdout=its_end)
    os.close(its_end)
    try:
        # The server holds back what follows the first word.
        assert read_until(terminal, "Thirty") == "[31mThirty"
        asking.send_signal(signal.SIGINT)
        _, err = asking.communicate(timeout=60)
    finally:
        goes_on.set()
        os.close(terminal)
    assert (asking.returncode, err) == (130, "rag: interrupted; what was done until now is kept\n")


def test_an_answer_that_was_streamed_is_followed_by_its_sources(indexed, server):
    server.answer = lambda messages: "Thirty days [1]."
    terminal, its_end = pty.openpty()
    asking = indexed.start("ask", "handbook", "how many holidays?", stdout=its_end)
    os.close(its_end)
    seen = read_until(terminal, "no such text")
    os.close(terminal)
    assert (asking.wait(60), asking.stderr.read()) == (0, "")
    assert seen.startswith("Thirty days [1].\r\n\r\n[1] handbook/holidays.md › Holidays [")
    assert server.requests[-1].body["stream"] is True
