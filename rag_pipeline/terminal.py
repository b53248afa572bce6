"""How far an ingest is, for whoever watches stderr: bars on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

# Anything that lasts longer says how far it is; without a terminal, this often.
SECONDS_BEFORE_PROGRESS = 2.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


class BarProgress:
    """A bar for each stage, on stderr: it pulses until the stage says how far it is, and is gone if it never did."""

    def __init__(self, bars: Progress):
        self._bars = bars

    def stage(self, name: str, unit: str) -> Callable[[int, int], None]:
        for task in self._bars.tasks:
            self._bars.update(task.id, visible=task.total is not None)
        bar = self._bars.add_task(f"{name} ({unit})", total=None)
        return lambda done, total: self._bars.update(bar, completed=done, total=total)

    def note(self, message: str) -> None:
        self._bars.console.print(message, highlight=False, markup=False)


class LineProgress:
    """Lines on stderr, for logs and pipes: which stage it is and how far, once two seconds have gone without one."""

    _said: float | None = None

    def stage(self, name: str, unit: str) -> Callable[[int, int], None]:
        started = monotonic()
        self._said = self._said or started
        self._say_if_due(f"{name}: started")
        return lambda done, total: self._say_if_due(
            f"{name}: {done} of {total} {unit}, {done / max(monotonic() - started, 0.001):.0f}/s"
        )

    def note(self, message: str) -> None:
        click.echo(message, err=True)

    def _say_if_due(self, line: str) -> None:
        if monotonic() - self._said >= SECONDS_BEFORE_PROGRESS:
            self._said = monotonic()
            click.echo(line, err=True)


@contextmanager
def progress() -> Iterator[BarProgress | LineProgress]:
    """Progress for whoever is watching stderr."""
    if not sys.stderr.isatty():
        yield LineProgress()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield BarProgress(bars)
