"""What a stage tells Dagster: figures that plot, and a small table of what changed. Paths and figures, never text."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from time import time
from typing import TypeVar

import psycopg
from dagster import MetadataValue, TableColumn, TableRecord, TableSchema

Stage = TypeVar("Stage", bound=Callable)


def quoting_no_row(stage: Stage) -> Stage:
    """The stage, its database errors reduced to their first line: the others quote the row, and with it a document."""

    @wraps(stage)
    def run(*arguments: object, **resources: object) -> object:
        try:
            return stage(*arguments, **resources)
        except psycopg.Error as error:
            message = error.diag.message_primary or str(error).partition("\n")[0]
            raise type(error)(message).with_traceback(error.__traceback__) from None

    return run


class Stopwatch:
    """Runs from when it is made, or from when another one was `started`, be it on another machine."""

    def __init__(self, started: float | None = None) -> None:
        self.started = started or time()

    def seconds(self) -> dict[str, float]:
        """The time until now, as metadata."""
        return {"seconds": round(max(0.0, time() - self.started), 3)}


def rates(seconds: dict[str, float], **numbers: int) -> dict[str, float]:
    """So many of each a second, as metadata; none where there was nothing to do."""
    elapsed = max(seconds["seconds"], 0.001)
    return {f"{name}_per_second": round(number / elapsed, 1) for name, number in numbers.items() if number}


def counts(report: object) -> dict[str, int | float]:
    """The numeric fields of a report."""
    values = {f.name: getattr(report, f.name) for f in fields(report)}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def table(rows: Sequence[tuple], *columns: str, key: str = "changes") -> dict[str, MetadataValue]:
    """Rows under that key; nothing when there are none."""
    if not rows:
        return {}
    kinds = {str: "string", int: "int", float: "float"}
    return {
        key: MetadataValue.table(
            records=[TableRecord(dict(zip(columns, row, strict=True))) for row in rows],
            schema=TableSchema(
                [TableColumn(column, kinds[type(value)]) for column, value in zip(columns, rows[0], strict=True)]
            ),
        )
    }
