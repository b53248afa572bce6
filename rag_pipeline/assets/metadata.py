"""Reports as asset metadata: figures that plot, and a small table of what changed. Paths and figures, never text."""

from collections.abc import Sequence
from dataclasses import fields
from time import perf_counter

from dagster import MetadataValue, TableColumn, TableRecord, TableSchema


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._started = perf_counter()

    def seconds(self) -> dict[str, float]:
        """The time until now, as metadata."""
        return {"seconds": round(perf_counter() - self._started, 3)}


def counts(report: object) -> dict[str, int | float]:
    """The numeric fields of a report."""
    values = {f.name: getattr(report, f.name) for f in fields(report)}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def table(rows: Sequence[tuple], *columns: str) -> dict[str, MetadataValue]:
    """Rows under the key `changes`; nothing when there are none."""
    if not rows:
        return {}
    kinds = {str: "string", int: "int", float: "float"}
    return {
        "changes": MetadataValue.table(
            records=[TableRecord(dict(zip(columns, row, strict=True))) for row in rows],
            schema=TableSchema(
                [TableColumn(column, kinds[type(value)]) for column, value in zip(columns, rows[0], strict=True)]
            ),
        )
    }
