"""What the commands share: groups that keep their order, and results as JSON."""

import json

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")


class OrderedGroup(click.Group):
    """Commands in the order they are added."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, default=str))
