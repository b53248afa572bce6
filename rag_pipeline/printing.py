"""Results as a person reads them: hits, answers, what an ingest did, a collection's status, a document."""

import re
from contextlib import closing
from typing import TYPE_CHECKING

import click

from rag_pipeline.core.answering import Answer, AnswerStream
from rag_pipeline.core.retrieval import Hits
from rag_pipeline.ingesting import IngestResult

if TYPE_CHECKING:
    from rag_pipeline.core.evaluation import Evaluation


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


def print_answer(answer: Answer | AnswerStream) -> None:
    """The answer, as it comes where it is a stream; then its sources, and what it cost."""
    if isinstance(answer, AnswerStream):
        with closing(answer):
            try:
                for text in answer:
                    click.echo(_visible(text), nl=False)
            finally:
                click.echo()
            answer = answer.answer
    else:
        click.echo(_visible(answer.text))
    if answer.sources:
        click.echo()
    for source in answer.sources:
        place = _place(source.collection, source.path, source.page, source.heading)
        click.echo(f"[{source.citation}] {place} [{source.start}:{source.end}]")
    if answer.degraded:
        click.echo(f"less than it could be: {answer.degraded}", err=True)
    if answer.answered and not answer.sources:
        click.echo("the model cites no passage for this: nothing says that it stands in the documents", err=True)
    quoted = "quoted from the documents; set OPENAI_API_KEY for written answers"
    made = answer.model or (
        quoted if answer.kind == "extractive" else "nothing was found that a model could answer from"
    )
    cost = "" if not answer.cost_usd else f", ${answer.cost_usd:.6f}"
    click.secho(f"\n{answer.kind}: {made}; {answer.tokens.total} tokens{cost}", dim=True)


def print_evaluation(evaluation: "Evaluation") -> None:
    """The figures, and what they are figures of."""
    asked = f"{evaluation.questions} questions, {evaluation.mode} search, k = {evaluation.k}"
    click.echo(f"{evaluation.collection}: {asked}")
    for name in ("hit_rate", "mrr", "ndcg"):
        click.echo(f"  {name:9} {getattr(evaluation, name):.3f}")


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
        place = f"#{chunk['ordinal']} [{chunk['start']}:{chunk['end']}] {chunk['tokens']} tokens"
        click.secho(f"  {place}  {' › '.join(chunk['heading'])}", dim=True)
        click.echo(_indented(chunk["content"]))


def _place(collection: str, path: str, page: int | None, heading: tuple[str, ...]) -> str:
    return " › ".join([f"{collection}/{path}" + (f" p. {page}" if page else ""), *heading])


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())


def _visible(text: str) -> str:
    """The text without what steers a terminal: a document may hold it, and a model repeat it."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)
