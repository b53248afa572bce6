"""The `rag` command as tests run it: in this process, which takes milliseconds, or in one of its own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from rag_pipeline.cli import main
from rag_pipeline.core import collections
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import Settings
from rag_pipeline_tests.openai_server import OpenAIServer


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit status, and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The one JSON object on stdout."""
        return json.loads(self.out)

    @property
    def said(self) -> str:
        """What it wrote to stderr, save how far a stage was: on a busy machine everything lasts over two seconds."""
        return re.sub(r"^\w+: (started|\d+ of \d+ \w+, \d+/s)\n", "", self.err, flags=re.MULTILINE)

    @property
    def reason(self) -> str:
        """Why it failed: one line on stderr, and nothing but that."""
        assert self.status == 1, self
        assert self.out == ""
        line = re.fullmatch(r"rag: (\S.*)\n", self.said)
        assert line, self.err
        return line[1]

    @classmethod
    def of(cls, process: subprocess.Popen) -> "Done":
        """What a process did that is about to end."""
        out, err = process.communicate(timeout=60)
        return cls(process.returncode, out, err)


@dataclass(frozen=True)
class Command:
    """`rag` in an environment that names the session's servers and the stand-in for OpenAI."""

    environment: dict[str, str]

    def __call__(self, *arguments: str | Path, **environment: str) -> Done:
        """Run it here and wait for it. An exception that escapes it is raised."""
        result = CliRunner(env=self.environment | environment).invoke(main, [str(each) for each in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    def done(self, *arguments: str | Path, **environment: str) -> Done:
        """Run it here; it is to succeed."""
        done = self(*arguments, **environment)
        assert done.status == 0, done
        return done

    def start(self, *arguments: str | Path, program: str = "rag", **streams: int) -> subprocess.Popen:
        """Start it, or another program of its environment, in a process and process group of its own.

        Its streams are piped unless told otherwise.
        """
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        command = [Path(sys.executable).parent / program, *arguments]
        return subprocess.Popen(
            command, env=os.environ | self.environment, start_new_session=True, text=True, **streams
        )

    def runtime(self) -> Runtime:
        """What the command works with."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            return Runtime(Settings.from_environment())


@pytest.fixture
def rag(
    module_database_url: str, redis_url: str, server: OpenAIServer, session_home: Path, tmp_path: Path
) -> Iterator[Command]:
    """The command; collections are removed after the test."""
    command = Command(
        {
            "RAG_HOME": str(session_home),
            "RAG_DATABASE_URL": module_database_url,
            "RAG_REDIS_URL": redis_url,
            "RAG_DOCUMENTS": str(tmp_path),
            # Set to nothing, so that a developer's `.env` does not set them.
            "RAG_EMBEDDING_MODEL": "",
            "RAG_CHAT_MODEL": "",
            "OPENAI_API_KEY": "stand-in",
            "OPENAI_BASE_URL": server.url,
        }
    )
    yield command
    with closing(command.runtime().connect()) as connection:
        for collection in collections.list_all(connection):
            collections.remove(connection, collection.name)


@pytest.fixture
def handbook(tmp_path: Path) -> Path:
    """A folder of three short documents."""
    folder = tmp_path / "handbook"
    folder.mkdir()
    (folder / "passwords.md").write_text("# Passwords\n\nTo reset a password, open the account page and press Reset.\n")
    (folder / "holidays.md").write_text("# Holidays\n\nEverybody has thirty days of holidays in a year.\n")
    (folder / "travel.txt").write_text("Trains are preferred. Flights need the consent of the head of department.\n")
    return folder
