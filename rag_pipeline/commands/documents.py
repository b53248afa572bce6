"""`rag demo`, `ingest`, `status` and `show`: documents on their way into the index."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click

from rag_pipeline.commands.collections import add_collection
from rag_pipeline.commands.common import as_json, print_json
from rag_pipeline.core import collections
from rag_pipeline.core.errors import RagError, UsageError
from rag_pipeline.runtime import Runtime
from rag_pipeline.settings import PROJECT

DEMO = "demo"
DEMO_QUESTIONS = (
    "What happens when a file cannot be read?",
    "How do I use my own OpenAI-compatible server?",
    "How long are embeddings kept in the cache?",
)


@click.command()
@click.pass_obj
def demo(runtime: Runtime) -> None:
    """Ingest this project's own documentation and ask it three questions."""
    from rag_pipeline.client import Rag
    from rag_pipeline.printing import print_answer

    runtime.require_owner()
    with runtime.connect() as connection:
        if collections.find(connection, DEMO) is None:
            settings = {"embedding_model": runtime.settings.embedding_model, "include": ("README.md", "docs/*.md")}
            collections.add(connection, DEMO, str(PROJECT), settings)
    _ingest(runtime, DEMO)
    with Rag(runtime) as rag:
        for question in DEMO_QUESTIONS:
            click.secho(f"\n{question}", bold=True)
            print_answer(rag.ask(DEMO, question))
    click.echo(f'\nAsk your own: rag ask {DEMO} "..."   Your documents: rag ingest FOLDER')


@click.command()
@click.argument("name_or_dir", required=False)
@click.option("--all", "every", is_flag=True, help="Every collection, one after the other.")
@click.option("--queue", is_flag=True, help="Hand it to the daemon and print the run's id at once.")
@click.option("--allow-mass-removal", is_flag=True, help="Consent to removing a large part of the collection.")
@click.option("--retry-failed", is_flag=True, help="Parse again what failed before.")
@click.option("--no-wait", is_flag=True, help="Leave when another run has the collection.")
@as_json
@click.pass_obj
def ingest(
    runtime: Runtime,
    name_or_dir: str | None,
    every: bool,
    queue: bool,
    allow_mass_removal: bool,
    retry_failed: bool,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Run the pipeline for a collection, or for a folder, which becomes the collection of its name."""
    if every == bool(name_or_dir):
        raise click.UsageError("name a collection or a folder, or say --all")
    with runtime.connect() as connection:
        known = [each.name for each in runtime.visible_collections(connection, to_write=True)] if every else []
        if not every:
            runtime.require_grant(connection, name_or_dir, to_write=True)
        names = known if every else [_collection_for(runtime, connection, name_or_dir)]
    asked = {"allow_mass_removal": allow_mass_removal, "retry_failed": retry_failed}
    if queue:
        _queue(runtime, names, asked, every, as_json)
    elif every:
        _ingest_all(runtime, names, {**asked, "wait": not no_wait}, as_json)
    else:
        _ingest(runtime, names[0], {**asked, "wait": not no_wait}, as_json)


@click.command()
@click.argument("run_id")
@click.pass_obj
def cancel(runtime: Runtime, run_id: str) -> None:
    """Cancel a run that is queued, or end one that the daemon launched; what it did is kept."""
    from rag_pipeline.queueing import cancel_run

    cancel_run(runtime, run_id)
    click.echo(f"canceled {run_id}")


@click.command()
@click.argument("name")
@as_json
@click.pass_obj
def plan(runtime: Runtime, name: str, as_json: bool) -> None:
    """What an ingest would do and cost; spends nothing, changes nothing."""
    from rag_pipeline.core.planning import plan_ingest
    from rag_pipeline.printing import print_plan

    with runtime.connect() as connection:
        runtime.require_grant(connection, name)
        collection = collections.get(connection, name)
        model = runtime.model(collection.settings)
        provider = runtime.provider(model)
        planned = plan_ingest(
            connection,
            collection,
            runtime.chunk_settings(collection.settings),
            runtime.input_limit(model),
            provider,
            runtime.cache(provider),
        )
    if as_json:
        print_json(asdict(planned))
    else:
        print_plan(planned, collection.settings.max_embedding_tokens_per_run)


@click.command()
@click.argument("name", required=False)
@click.option("--run", "run_id", metavar="ID", help="How far this run is, what it did, or why it failed.")
@as_json
@click.pass_obj
def status(runtime: Runtime, name: str | None, run_id: str | None, as_json: bool) -> None:
    """What is indexed, what is not and why."""
    if run_id:
        _print_run(runtime, run_id, as_json)
        return
    from rag_pipeline.core.access import is_open
    from rag_pipeline.core.audit import usage
    from rag_pipeline.core.status import collection_status
    from rag_pipeline.instance import last_run
    from rag_pipeline.printing import print_status

    with runtime.connect() as connection:
        if name:
            runtime.require_grant(connection, name)
        access = "open" if is_open(connection) else "by API key"
        names = [name] if name else [c.name for c in runtime.visible_collections(connection)]
        reports = [
            {
                **asdict(collection_status(connection, each)),
                "last_run": last_run(runtime, connection, each),
                "access": access,
                # Who else uses a collection is for its owner to know.
                "usage": [] if runtime.settings.api_key is not None else usage(connection, each),
            }
            for each in names
        ]
    if as_json:
        print_json(reports[0] if name else {"access": access, "collections": reports})
        return
    for report in reports:
        print_status(report)
    if access == "open":
        click.echo("access: open, everybody here may read every collection: rag key create closes it")
    if not reports:
        click.echo("no collections yet: rag ingest FOLDER makes one", err=True)


@click.command()
@click.argument("name")
@click.argument("path")
@as_json
@click.pass_obj
def show(runtime: Runtime, name: str, path: str, as_json: bool) -> None:
    """One document as the pipeline sees it: its text, elements and chunks."""
    from rag_pipeline.core.status import show_document
    from rag_pipeline.printing import print_document

    with runtime.connect() as connection:
        runtime.require_grant(connection, name)
        document = show_document(connection, name, path)
    if as_json:
        print_json(document)
    else:
        print_document(document)


@click.command()
@click.argument("name")
@click.argument("path")
@as_json
@click.pass_obj
def forget(runtime: Runtime, name: str, path: str, as_json: bool) -> None:
    """Erase a document at once, and never take its bytes in again. The file itself stays where it is."""
    from rag_pipeline.core.forgetting import forget
    from rag_pipeline.printing import print_forgotten

    with runtime.connect() as connection:
        runtime.require_grant(connection, name, to_write=True)
        forgotten = forget(connection, name, path, runtime.caches(connection, name))
    if as_json:
        print_json(asdict(forgotten))
    else:
        print_forgotten(forgotten)


def _queue(runtime: Runtime, names: list[str], asked: dict[str, bool], every: bool, as_json: bool) -> None:
    from rag_pipeline.queueing import queue_runs
    from rag_pipeline.runs import daemon_answers

    ids = queue_runs(runtime, names, "rag ingest --queue", **asked)
    runs = [{"collection": name, "run_id": run_id} for name, run_id in zip(names, ids, strict=True)]
    if as_json:
        print_json({"runs": runs} if every else runs[0])
    else:
        for run_id in ids:
            click.echo(run_id)
    with runtime.connect() as connection:
        if runs and not daemon_answers(connection):
            click.echo("no daemon is running: rag up starts one, which executes what is queued", err=True)


def _ingest_all(runtime: Runtime, names: list[str], asked: dict[str, bool], as_json: bool) -> None:
    """One after the other; one that fails holds up no other."""
    from rag_pipeline.ingesting import ingest
    from rag_pipeline.printing import print_ingest
    from rag_pipeline.terminal import progress

    results, failed = [], {}
    for name in names:
        try:
            with progress() as shown:
                results.append(ingest(runtime, name, shown, **asked))
        except RagError as error:
            failed[name] = str(error)
            click.echo(f"{name}: {error}", err=True)
        else:
            if not as_json:
                print_ingest(results[-1])
    if as_json:
        print_json({"collections": [asdict(result) for result in results], "failed": failed})
    if failed:
        raise RagError(f"{len(failed)} of {len(names)} collections failed: {', '.join(failed)}")


def _print_run(runtime: Runtime, run_id: str, as_json: bool) -> None:
    from rag_pipeline.printing import print_run
    from rag_pipeline.runs import visible_run

    with runtime.connect() as connection:
        run = visible_run(runtime, connection, run_id)
    if as_json:
        print_json(asdict(run))
    else:
        print_run(run)


def _ingest(runtime: Runtime, name: str, asked: Mapping[str, bool] = {}, as_json: bool = False) -> None:
    from rag_pipeline.ingesting import ingest
    from rag_pipeline.printing import print_ingest
    from rag_pipeline.terminal import progress

    with progress() as shown:
        result = ingest(runtime, name, shown, **asked)
    if as_json:
        print_json(asdict(result))
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
        try:
            known = add_collection(runtime, connection, name, source, {})
        except UsageError:
            # Another command may have been quicker.
            known = collections.find(connection, name)
            if known is None:
                raise
    if not collections.same_source(known.source, source):
        raise UsageError(
            f"collection {name} has another source, {known.source}: "
            f"name this folder something else with rag collection add NAME --source {shlex.quote(source)}"
        )
    return name
