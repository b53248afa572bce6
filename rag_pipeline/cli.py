"""The `rag` command: its commands in order, and one line for whatever a person can put right."""

import click
import psycopg

from rag_pipeline.commands.collections import collection
from rag_pipeline.commands.common import OrderedGroup
from rag_pipeline.commands.documents import cancel, demo, forget, ingest, plan, show, status
from rag_pipeline.commands.keys import key
from rag_pipeline.commands.questions import ask, evaluate, search
from rag_pipeline.commands.serving import doctor, down, env, up
from rag_pipeline.core.errors import RagError
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import Settings


class _Rag(OrderedGroup):
    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except RagError as error:
            click.echo(f"rag: {error}", err=True)
            context.exit(1)
        except psycopg.errors.InsufficientPrivilege as error:
            reason = error.diag.message_primary
            click.echo(f"rag: the login of RAG_DATABASE_URL may not do this: {reason}; see docs/access.md", err=True)
            context.exit(1)
        except psycopg.OperationalError as error:
            reason = str(error).strip().partition("\n")[0]
            click.echo(f"rag: PostgreSQL failed: {reason}; run the command again", err=True)
            context.exit(1)
        except KeyboardInterrupt:
            click.echo("rag: interrupted; what was done until now is kept", err=True)
            context.exit(130)


@click.group(cls=_Rag, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rag_pipeline")
@click.pass_context
def main(context: click.Context) -> None:
    """Documents in, a pgvector index that is always true, answers with exact citations out."""
    context.obj = Runtime(Settings.from_environment())


for commands in (
    (demo, up, down, doctor, env, collection),
    (plan, ingest, status, cancel, show, forget),
    (search, ask, evaluate, key),
):
    for command in commands:
        main.add_command(command)
