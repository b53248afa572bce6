"""What a person sees: bars on a terminal, plain lines elsewhere, results as text."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from rag_pipeline.core.answering import Answer
from rag_pipeline.core.retrieval import Hits
from rag_pipeline.ingesting import IngestResult

# Anything that lasts longer says how far it is; without a terminal, this often.
SECONDS_BEFORE_PROGRESS = 2.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


class BarProgress:
    """A bar for each stage that takes its time, on stderr."""

    def __init__(self, bars: Progress):
        self._bars = bars

    def stage(self, name: str, unit: str) -> Callable[[int, int], None]:
        task = None

        def report(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = self._bars.add_task(f"{name} ({unit})", total=total)
            self._bars.update(task, completed=done, total=total)

        return report

    def note(self, message: str) -> None:
        self._bars.console.print(message, highlight=False, markup=False)


class LineProgress:
    """A line on stderr every two seconds, for logs and pipes."""

    def stage(self, name: str, unit: str) -> Callable[[int, int], None]:
        started = said = monotonic()

        def report(done: int, total: int) -> None:
            nonlocal said
            now = monotonic()
            if now - said >= SECONDS_BEFORE_PROGRESS:
                said = now
                click.echo(f"{name}: {done} of {total} {unit}, {done / (now - started):.0f}/s", err=True)

        return report

    def note(self, message: str) -> None:
        click.echo(message, err=True)


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


def print_hits(hits: Hits) -> None:
    """The hits, each with its place and text."""
    if hits.degraded:
        click.echo(f"searched by words alone: {hits.degraded}", err=True)
    if not hits:
        click.echo("nothing found")
    for hit in hits:
        click.secho(f"{hit.rank}. {_place(hit.collection, hit.path, hit.page, hit.heading)}", bold=True, nl=False)
        click.echo(f"  {hit.score:.3f}  [{hit.start}:{hit.end}]")
        if hit.also_in.count:
            more = "" if hit.also_in.count == len(hit.also_in.paths) else f" and {hit.also_in.count} in all"
            click.echo(f"   also in {', '.join(hit.also_in.paths)}{more}")
        click.echo(_indented(hit.content) + "\n")


def print_answer(answer: Answer) -> None:
    """The answer, its sources, and what it cost."""
    click.echo(answer.text)
    if answer.sources:
        click.echo()
    for source in answer.sources:
        place = _place(source.collection, source.path, source.page, source.heading)
        click.echo(f"[{source.citation}] {place} [{source.start}:{source.end}]")
    made = answer.model or "quoted from the documents; set OPENAI_API_KEY for written answers"
    cost = "" if not answer.cost_usd else f", ${answer.cost_usd:.6f}"
    click.secho(f"\n{answer.kind}: {made}; {answer.tokens.total} tokens{cost}", dim=True)


def print_ingest(result: IngestResult) -> None:
    """One line for what changed, one for what it took."""
    files, index = result.files, result.index
    changes = ", ".join(f"{files[key]} {key}" for key in ("added", "changed", "removed", "withheld") if files[key])
    click.echo(f"{result.collection}: {files['seen']} files, {changes or 'nothing changed'}")
    if result.parsed["failed"]:
        click.echo(f"{result.parsed['failed']} files could not be parsed: rag status {result.collection} tells why")
    embeddings = result.embeddings
    cost = f", ${embeddings['cost_usd']:.4f}" if embeddings["cost_usd"] else ""
    click.echo(
        f"{result.chunks['total']} chunks searchable ({result.chunks['new']} new; {embeddings['requested']} embedded, "
        f"{embeddings['cached']} from the cache{cost}), {index['rows']} index rows; {result.seconds['total']:.1f} s"
    )


def print_status(status: dict) -> None:
    """A collection: its documents, its index, its last run, and what failed."""
    documents, index, run = status["documents"], status["index"], status["last_run"]
    click.secho(status["collection"], bold=True)
    click.echo("  documents  " + ", ".join(f"{number} {state}" for state, number in documents.items()))
    click.echo(f"  index      {status['chunks']} chunks, {index['rows']} rows, {index['bytes'] / 2**20:.1f} MB")
    click.echo(f"  model      {index['model']}, {index['dimensions']} dimensions")
    if run:
        click.echo(f"  last run   {run['status']}, {run['started'] or 'not started'}, {run['run_id']}")
    for failure in status["failures"]:
        click.echo(f"  {failure['path']}: {failure['reason']} ({failure['stage']}): {failure['detail']}")


def print_document(document: dict) -> None:
    """A document: what is known of it, its chunks, and its elements as an outline."""
    for key in ("collection", "path", "media_type", "size", "modified", "content_hash", "indexed"):
        click.echo(f"{key:13} {document[key]}")
    for key, value in (document["metadata"] or {}).items():
        click.echo(f"{key:13} {value}")
    if document["failure_reason"]:
        click.secho(f"{'failed':13} {document['failure_reason']}: {document['failure_detail'] or ''}", fg="red")
    click.secho(f"\n{len(document['elements'])} elements", bold=True)
    text = document["text"] or ""
    for element in document["elements"]:
        line = " ".join(text[element["start"] : element["end"]].split())
        click.echo(f"  [{element['start']}:{element['end']}] {element['kind']:10} {line[:90]}")
    click.secho(f"\n{len(document['chunks'])} chunks", bold=True)
    for chunk in document["chunks"]:
        place = " › ".join(chunk["heading"])
        click.secho(f"  #{chunk['ordinal']} [{chunk['start']}:{chunk['end']}] {chunk['tokens']} tokens  {place}", dim=True)
        click.echo(_indented(chunk["content"]))


def _place(collection: str, path: str, page: int | None, heading: tuple[str, ...]) -> str:
    return " › ".join([f"{collection}/{path}" + (f" p. {page}" if page else ""), *heading])


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())
