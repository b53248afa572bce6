"""`rag key`: who else may read or write which collections."""

from dataclasses import asdict
from datetime import UTC, datetime

import click

from rag_pipeline.commands.common import OrderedGroup, as_json, print_json
from rag_pipeline.core import access
from rag_pipeline.runtime import Runtime


@click.group(cls=OrderedGroup)
def key() -> None:
    """Make, list, change and revoke API keys. The first one closes the collections to whoever has none."""


@key.command("create")
@click.argument("name")
@click.option("--grant", "grants", multiple=True, required=True, metavar="COLLECTION[:write]", help="May be repeated.")
@click.option("--expires", metavar="DATE|DAYS", help="As 2027-01-01 (UTC) or 90d.")
@click.pass_obj
def key_create(runtime: Runtime, name: str, grants: tuple[str, ...], expires: str | None) -> None:
    """Make a key and print its secret, this once."""
    granted: dict[str, bool] = {}
    for collection, may_write in map(access.parse_grant, grants):
        granted[collection] = may_write or granted.get(collection, False)
    expires_at = access.parse_expiry(expires, datetime.now(UTC)) if expires is not None else None
    with runtime.connect() as connection:
        secret = access.create_key(connection, name, granted, expires_at)
    click.echo(secret)
    click.echo(f"key {name}: keep its secret, it is shown only now; RAG_API_KEY takes it", err=True)


@key.command("list")
@as_json
@click.pass_obj
def key_list(runtime: Runtime, as_json: bool) -> None:
    """Every key, what it is granted, and whether it still holds."""
    with runtime.connect() as connection:
        keys = access.list_keys(connection)
    if as_json:
        print_json({"keys": [{**asdict(each), "state": each.state} for each in keys]})
        return
    for each in keys:
        grants = " ".join(name + ":write" * may_write for name, may_write in each.grants.items())
        expiry = f"expires {each.expires_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if each.expires_at else "never expires"
        click.echo(f"{each.name}\t{each.state}\t{expiry}\t{grants or '(nothing)'}")
    if not keys:
        click.echo("no keys yet, access is open: rag key create NAME --grant COLLECTION makes one", err=True)


@key.command("revoke")
@click.argument("name")
@click.pass_obj
def key_revoke(runtime: Runtime, name: str) -> None:
    """End a key, from the next query on and for good."""
    with runtime.connect() as connection:
        access.revoke_key(connection, name)
    click.echo(f"revoked {name}")


@key.command("grant")
@click.argument("name")
@click.argument("collection", metavar="COLLECTION[:write]")
@click.pass_obj
def key_grant(runtime: Runtime, name: str, collection: str) -> None:
    """Let a key read a collection, or write to it too."""
    granted, may_write = access.parse_grant(collection)
    with runtime.connect() as connection:
        access.grant(connection, name, granted, may_write=may_write)
    click.echo(f"{name} may {'read and write' if may_write else 'read'} {granted}")


@key.command("ungrant")
@click.argument("name")
@click.argument("collection")
@click.pass_obj
def key_ungrant(runtime: Runtime, name: str, collection: str) -> None:
    """Take a collection from a key, from the next query on."""
    with runtime.connect() as connection:
        access.ungrant(connection, name, collection)
    click.echo(f"{name} may no longer read {collection}")
