"""The `rag` command: a thin skin over the pipeline."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import click
import psycopg

from rag_pipeline.core import collections
from rag_pipeline.core.collections import Collection
from rag_pipeline.core.errors import RagError, UsageError
from rag_pipeline.core.locking import writer
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import PROJECT, Settings

DEMO = "demo"
DEMO_QUESTIONS = (
    "What happens when a file cannot be read?",
    "How do I use my own OpenAI-compatible server?",
    "How long are embeddings kept in the cache?",
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")


class _Group(click.Group):
    """Commands in the order they are written, and one line for whatever a person can put right."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except RagError as error:
            click.echo(f"rag: {error}", err=True)
            context.exit(1)
        except psycopg.OperationalError as error:
            reason = str(error).strip().partition("\n")[0]
            click.echo(f"rag: PostgreSQL failed: {reason}; run the command again", err=True)
            context.exit(1)
        except KeyboardInterrupt:
            click.echo("rag: interrupted; what was done until now is kept", err=True)
            context.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rag_pipeline")
@click.pass_context
def main(context: click.Context) -> None:
    """Documents in, a pgvector index that is always true, answers with exact citations out."""
    context.obj = Runtime(Settings.from_environment())


@main.command()
@click.pass_obj
def demo(runtime: Runtime) -> None:
    """Ingest this project's own documentation and ask it three questions."""
    from rag_pipeline.client import Rag
    from rag_pipeline.printing import print_answer

    with runtime.connect() as connection:
        if collections.find(connection, DEMO) is None:
            settings = {"embedding_model": runtime.settings.embedding_model, "include": ("README.md", "docs/**")}
            collections.add(connection, DEMO, str(PROJECT), settings)
    _ingest(runtime, DEMO)
    with Rag(runtime) as rag:
        for question in DEMO_QUESTIONS:
            click.secho(f"\n{question}", bold=True)
            print_answer(rag.ask(DEMO, question))
    click.echo(f'\nAsk your own: rag ask {DEMO} "..."   Your documents: rag ingest FOLDER')


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@click.pass_obj
def up(runtime: Runtime, port: int) -> None:
    """Run the services, Dagster's UI and its daemon until Ctrl-C."""
    from rag_pipeline.serving import serve

    serve(runtime, port)


@main.command()
@click.pass_obj
def down(runtime: Runtime) -> None:
    """Stop everything that runs under RAG_HOME."""
    from rag_pipeline.services import stop
    from rag_pipeline.serving import stop_serving

    stopped = stop_serving(runtime) + stop(runtime.settings.home)
    click.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


@main.command()
@click.pass_obj
def env(runtime: Runtime) -> None:
    """Print export lines with which plain dagster commands reach the same instance."""
    from rag_pipeline.instance import dagster_environment, dagster_instance

    # Dagster's own commands cannot add a partition: leave none missing.
    with dagster_instance(runtime):
        pass
    for name, value in dagster_environment(runtime).items():
        click.echo(f"export {name}={shlex.quote(value)}")


@main.group(cls=_Group)
def collection() -> None:
    """Add, show, change and remove collections."""


@collection.command("add")
@click.argument("name")
@click.option("--source", required=True, help="A folder, or an fsspec URL such as s3://bucket/folder.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A setting; may be given again.")
@click.pass_obj
def collection_add(runtime: Runtime, name: str, source: str, assignments: tuple[str, ...]) -> None:
    """Register a collection. Nothing is read before it is ingested."""
    settings = _settings(assignments)
    with runtime.connect() as connection:
        _add(runtime, connection, name, source, settings)
    _sync_partitions(runtime)
    click.echo(f"added {name}; next: rag ingest {name}")


@collection.command("list")
@as_json
@click.pass_obj
def collection_list(runtime: Runtime, as_json: bool) -> None:
    """The collections and their sources."""
    with runtime.connect() as connection:
        every = collections.list_all(connection)
    if as_json:
        _print_json({"collections": [{"name": c.name, "source": c.source} for c in every]})
        return
    for c in every:
        click.echo(f"{c.name}\t{c.source}")
    if not every:
        click.echo("no collections yet: rag ingest FOLDER makes one", err=True)


@collection.command("show")
@click.argument("name")
@as_json
@click.pass_obj
def collection_show(runtime: Runtime, name: str, as_json: bool) -> None:
    """A collection's source and settings."""
    with runtime.connect() as connection:
        _print_collection(collections.get(connection, name), as_json)


@collection.command("set")
@click.argument("name")
@click.argument("assignments", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.pass_obj
def collection_set(runtime: Runtime, name: str, assignments: tuple[str, ...]) -> None:
    """Change settings; the next ingest brings the index into line with them."""
    settings = _settings(assignments)
    with runtime.connect() as connection:
        collections.change(connection, name, settings)
    click.echo(f"changed {', '.join(settings)}; next: rag ingest {name}")


@collection.command("remove")
@click.argument("name")
@click.pass_obj
def collection_remove(runtime: Runtime, name: str) -> None:
    """Drop a collection and everything derived from its files; the files stay."""
    with runtime.connect() as connection:
        collections.get(connection, name)
        with writer(connection, name, lambda: click.echo(f"waiting for a run of {name} to end", err=True)):
            collections.remove(connection, name)
    _sync_partitions(runtime)
    click.echo(f"removed {name}")


@main.command()
@click.argument("name_or_dir")
@click.option("--allow-mass-removal", is_flag=True, help="Consent to removing a large part of the collection.")
@click.option("--retry-failed", is_flag=True, help="Parse again what failed before.")
@as_json
@click.pass_obj
def ingest(runtime: Runtime, name_or_dir: str, allow_mass_removal: bool, retry_failed: bool, as_json: bool) -> None:
    """Run the pipeline for a collection, or for a folder, which becomes the collection of its name."""
    with runtime.connect() as connection:
        name = _collection_for(runtime, connection, name_or_dir)
        if retry_failed:
            collections.forgive_failures(connection, name)
    _ingest(runtime, name, allow_mass_removal=allow_mass_removal, as_json=as_json)


@main.command()
@click.argument("name", required=False)
@as_json
@click.pass_obj
def status(runtime: Runtime, name: str | None, as_json: bool) -> None:
    """What is indexed, what is not and why."""
    from rag_pipeline.core.status import collection_status
    from rag_pipeline.instance import last_run
    from rag_pipeline.printing import print_status

    with runtime.connect() as connection:
        names = [name] if name else [c.name for c in collections.list_all(connection)]
        reports = [
            {**asdict(collection_status(connection, each)), "last_run": last_run(runtime, connection, each)}
            for each in names
        ]
    if as_json:
        _print_json(reports[0] if name else {"collections": reports})
        return
    for report in reports:
        print_status(report)
    if not reports:
        click.echo("no collections yet: rag ingest FOLDER makes one", err=True)


@main.command()
@click.argument("name")
@click.argument("path")
@as_json
@click.pass_obj
def show(runtime: Runtime, name: str, path: str, as_json: bool) -> None:
    """One document as the pipeline sees it: its text, elements and chunks."""
    from rag_pipeline.core.status import show_document
    from rag_pipeline.printing import print_document

    with runtime.connect() as connection:
        document = show_document(connection, name, path)
    if as_json:
        _print_json(document)
    else:
        print_document(document)


@main.command()
@click.argument("name")
@click.argument("query")
@click.option("-k", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many hits.")
@click.option("--mode", type=click.Choice(["hybrid", "vector", "text"]), default="hybrid", show_default=True)
@as_json
@click.pass_obj
def search(runtime: Runtime, name: str, query: str, k: int, mode: str, as_json: bool) -> None:
    """The chunks nearest to a question. NAME may be several collections: a,b."""
    from rag_pipeline.client import Rag
    from rag_pipeline.printing import print_hits

    with Rag(runtime) as rag:
        hits = rag.search(name.split(","), query, k=k, mode=mode)
    if as_json:
        _print_json(
            {
                "collection": hits.collection,
                "query": hits.query,
                "mode": hits.mode,
                "degraded": hits.degraded,
                "hits": [asdict(hit) for hit in hits],
            }
        )
    else:
        print_hits(hits)


@main.command()
@click.argument("name")
@click.argument("question")
@click.option("-k", type=click.IntRange(1, 1000), default=5, show_default=True, help="From how many hits.")
@as_json
@click.pass_obj
def ask(runtime: Runtime, name: str, question: str, k: int, as_json: bool) -> None:
    """An answer from the documents alone, with citations. NAME may be several collections: a,b."""
    from rag_pipeline.client import Rag
    from rag_pipeline.printing import print_answer

    with Rag(runtime) as rag:
        answer = rag.ask(name.split(","), question, k=k)
    if as_json:
        _print_json(
            {
                "question": answer.question,
                "answer": answer.text,
                "answered": answer.answered,
                "kind": answer.kind,
                "model": answer.model,
                "cost_usd": answer.cost_usd,
                "sources": [asdict(source) for source in answer.sources],
                "tokens": {**asdict(answer.tokens), "total": answer.tokens.total},
            }
        )
    else:
        print_answer(answer)


def _ingest(runtime: Runtime, name: str, *, allow_mass_removal: bool = False, as_json: bool = False) -> None:
    from rag_pipeline.ingesting import ingest
    from rag_pipeline.printing import print_ingest
    from rag_pipeline.terminal import progress

    with progress() as shown:
        result = ingest(runtime, name, shown, allow_mass_removal=allow_mass_removal)
    if as_json:
        _print_json(asdict(result))
    else:
        print_ingest(result)


def _collection_for(runtime: Runtime, connection, name_or_dir: str) -> str:
    """The name of the collection that is meant, registered if it is a folder that is not yet one."""
    if collections.NAME.fullmatch(name_or_dir) and collections.find(connection, name_or_dir):
        return name_or_dir
    folder = Path(name_or_dir).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{name_or_dir} is neither a collection nor a folder: rag collection list shows what there is")
    source = collections.absolute_source(name_or_dir)
    name = Path(source).name
    if not collections.is_name(name):
        raise UsageError(
            f"{name!r} cannot name a collection: give it another with rag collection add NAME --source "
            f"{shlex.quote(source)}, then rag ingest NAME"
        )
    known = collections.find(connection, name)
    if known is None:
        _add(runtime, connection, name, source, {})
    elif known.source != source:
        raise UsageError(
            f"collection {name} has another source, {known.source}: "
            f"name this folder something else with rag collection add NAME --source {shlex.quote(source)}"
        )
    return name


def _add(runtime: Runtime, connection, name: str, source: str, settings: dict[str, object]) -> Collection:
    return collections.add(connection, name, source, {"embedding_model": runtime.settings.embedding_model, **settings})


def _settings(assignments: tuple[str, ...]) -> dict[str, object]:
    pairs = [assignment.partition("=") for assignment in assignments]
    for key, equals, _ in pairs:
        if not equals:
            raise UsageError(f"{key!r} is not of the form KEY=VALUE")
    return collections.parse_settings({key.strip(): value for key, _, value in pairs})


def _sync_partitions(runtime: Runtime) -> None:
    from rag_pipeline.instance import dagster_instance

    with dagster_instance(runtime):
        pass


def _print_collection(shown: Collection, as_json: bool) -> None:
    if as_json:
        _print_json(asdict(shown))
        return
    click.echo(f"name\t{shown.name}\nsource\t{shown.source}")
    for key, value in asdict(shown.settings).items():
        click.echo(f"{key}\t{'(by the model)' if value is None else value}")


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, default=str))
