"""Two published collections, `handbook` and `payroll`, and API keys that may read one, both or none of them."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import Connection

from rag_pipeline.client import Rag
from rag_pipeline.core import access, collections
from rag_pipeline.core.stages import parsed_text
from rag_pipeline.runtime import Runtime
from rag_pipeline.services import Services
from rag_pipeline_tests.openai_server import OpenAIServer
from rag_pipeline_tests.pipelines import DIMENSIONS, MODEL, InProcessParser, Pipeline, stand_in_runtime

COLLECTIONS = ("handbook", "payroll")

# What each key may read.
GRANTS = {
    "reader": {"handbook"},
    "accountant": {"payroll"},
    "auditor": {"handbook", "payroll"},
    "expired": set(),
    "revoked": set(),
}


@dataclass(frozen=True)
class Library:
    """The collections' runtime as the owner has it, the secrets of the keys, and where readers connect."""

    owner: Runtime
    secrets: dict[str, str] = field(repr=False)

    def runtime(self, key: str) -> Runtime:
        """What an application has that holds this key: no way to the owner's login."""
        return Runtime(replace(self.owner.settings, api_key=self.secrets[key], database_url=None))

    def rag(self, key: str) -> Rag:
        return Rag(self.runtime(key))

    def raw(self, **options: object) -> Connection:
        """A plain connection of the query role's login, which has no key yet."""
        return psycopg.connect(self.owner.settings.query_database_url, **options)


@pytest.fixture(scope="module")
def library(
    tmp_path_factory: pytest.TempPathFactory,
    module_database_url: str,
    services: Services,
    running_server: OpenAIServer,
) -> Iterator[Library]:
    folder: Path = tmp_path_factory.mktemp("library")
    runtime = stand_in_runtime(folder / "home", module_database_url, services.redis_url, running_server)
    with closing(runtime.connect()) as connection, pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsed_text, "ParserPool", InProcessParser)
        url = access.embedded_query_url(connection, module_database_url)
        runtime = Runtime(replace(runtime.settings, query_database_url=url))
        for name in COLLECTIONS:
            with closing(Pipeline(runtime, folder / name, name)) as pipeline:
                for topic in ("salary", "travel", "canteen"):
                    pipeline.write(f"{topic}.md", f"# {topic}\n\nThe {topic} rules of {name}, and how to apply them.")
                pipeline.run()
        collections.add(connection, "empty", str(folder), {"embedding_model": MODEL, "dimensions": DIMENSIONS})
        soon = datetime.now(UTC) + timedelta(hours=1)
        secrets = {
            name: access.create_key(
                connection,
                name,
                dict.fromkeys(sorted(granted) or COLLECTIONS, False),
                soon if name == "expired" else None,
            )
            for name, granted in GRANTS.items()
        }
        access.revoke_key(connection, "revoked")
        connection.execute("UPDATE rag.api_key SET expires_at = now() - interval '1 second' WHERE name = 'expired'")
        yield Library(runtime, {**secrets, "unknown": "rag_" + "x" * 43})
