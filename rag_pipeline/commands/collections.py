"""`rag collection`: add, list, show, set and remove."""

from dataclasses import asdict
from uuid import uuid4

import click

from rag_pipeline.commands.common import OrderedGroup, as_json, print_json
from rag_pipeline.core import collections
from rag_pipeline.core.collections import Collection
from rag_pipeline.core.errors import UsageError
from rag_pipeline.core.locking import claim
from rag_pipeline.runtime import Runtime


@click.group(cls=OrderedGroup)
def collection() -> None:
    """Add, show, change and remove collections."""


@collection.command("add")
@click.argument("name")
@click.option("--source", required=True, help="A folder, or an fsspec URL such as s3://bucket/folder.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A setting; may be given again.")
@click.pass_obj
def collection_add(runtime: Runtime, name: str, source: str, assignments: tuple[str, ...]) -> None:
    """Register a collection. Nothing is read before it is ingested."""
    runtime.require_owner()
    settings = _settings(assignments)
    with runtime.connect() as connection:
        add_collection(runtime, connection, name, source, settings)
    _sync_partitions(runtime)
    click.echo(f"added {name}; next: rag ingest {name}")


@collection.command("list")
@as_json
@click.pass_obj
def collection_list(runtime: Runtime, as_json: bool) -> None:
    """The collections and their sources."""
    with runtime.connect() as connection:
        every = runtime.visible_collections(connection)
    if as_json:
        print_json({"collections": [{"name": c.name, "source": c.source} for c in every]})
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
        runtime.require_grant(connection, name)
        _print_collection(collections.get(connection, name), as_json)


@collection.command("set")
@click.argument("name")
@click.argument("assignments", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.pass_obj
def collection_set(runtime: Runtime, name: str, assignments: tuple[str, ...]) -> None:
    """Change settings; the next ingest brings the index into line with them."""
    settings = _settings(assignments)
    with runtime.connect() as connection:
        runtime.require_grant(connection, name, to_write=True)
        collections.change(connection, name, settings)
    click.echo(f"changed {', '.join(settings)}; next: rag ingest {name}")


@collection.command("remove")
@click.argument("name")
@click.option("--purge", is_flag=True, help="Delete its embeddings from the cache too, where others may share them.")
@click.pass_obj
def collection_remove(runtime: Runtime, name: str, purge: bool) -> None:
    """Drop a collection and everything derived from its files; the files stay."""
    with runtime.connect() as connection:
        runtime.require_grant(connection, name, to_write=True)
        collections.get(connection, name)
        run_id = f"removal {uuid4()}"
        with claim(connection, name, run_id, lambda run: click.echo(f"waiting for a run of {name} to end", err=True)):
            if purge:
                from rag_pipeline.core.garbage import all_texts, erase_cached

                erase_cached(runtime.caches(connection, name), all_texts(connection, name))
            collections.remove(connection, name)
    _sync_partitions(runtime)
    click.echo(f"removed {name}")


def add_collection(runtime: Runtime, connection, name: str, source: str, settings: dict[str, object]) -> Collection:
    from rag_pipeline.core.files import require_source

    require_source(collections.absolute_source(source))
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
        print_json(asdict(shown))
        return
    click.echo(f"name\t{shown.name}\nsource\t{shown.source}")
    for key, value in asdict(shown.settings).items():
        click.echo(f"{key}\t{'(by the model)' if value is None else value}")
