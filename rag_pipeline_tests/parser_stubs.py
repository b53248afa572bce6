"""Parsers for a worker to run that do what no parser should, when the file tells them to."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import urllib.request

from rag_pipeline.core.parsing import ParsedText, parse


def misbehave(content: bytes, media_type: str, name: str) -> ParsedText:
    """Do what the first word of the file says; parse the file when it says nothing of interest."""
    word = content.split()[0].decode() if content.strip() else ""
    if word == "hang":
        while True:
            pass
    if word == "hang-in-child":
        endless = "import threading; threading.Event().wait()"
        subprocess.run([sys.executable, "-c", endless, "a child of a parser"], check=True)
    if word == "segfault":
        ctypes.string_at(0)
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "exit":
        os._exit(3)
    if word == "swell":
        return misbehave(b"x" * 2**33, media_type, name)
    if word == "swell-slowly":
        heap = []
        while True:
            heap.append(bytearray(2**20))
    if word == "swell-natively":
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        while block := libc.malloc(ctypes.c_size_t(2**20)):
            ctypes.memset(block, 1, 2**20)
        libc.abort()
    if word == "connect":
        socket.create_connection(("127.0.0.1", int(content.split()[1])))
    if word == "download":
        urllib.request.urlopen(content.split()[1].decode()).read()
    if word == "environment":
        return parse(" ".join(sorted(os.environ)).encode(), media_type, name)
    return parse(content, media_type, name)
