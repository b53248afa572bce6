"""Results as a person reads them: hits, answers, what an ingest did, a collection's status, a document."""

import re
from contextlib import closing
from typing import TYPE_CHECKING

import click

from rag_pipeline.core.answering import Answer, AnswerStream
from rag_pipeline.core.forgetting import Forgotten
from rag_pipeline.core.retrieval import Hits
from rag_pipeline.ingesting import IngestResult
from rag_pipeline.runs import Run

if TYPE_CHECKING:
    from rag_pipeline.core.evaluation import Evaluation
    from rag_pipeline.core.planning import IngestPlan

# Of documents that failed for one reason; --json names them all.
PATHS_SHOWN = 10


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
            click.echo(f"   also in {_visible(', '.join(hit.also_in.paths))}{more}")
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
    changes = ", ".join(
        f"{files[key]} {key}" for key in ("added", "changed", "removed", "withheld", "forgotten") if files[key]
    )
    click.echo(f"{result.collection}: {files['seen']} files, {changes or 'nothing changed'}")
    if result.parsed["failed"]:
        click.echo(f"{result.parsed['failed']} files could not be parsed: rag status {result.collection} tells why")
    embeddings = result.embeddings
    cost = f", ${embeddings['cost_usd']:.4f}" if embeddings["cost_usd"] else ""
    click.echo(
        f"{result.chunks['total']} chunks searchable ({result.chunks['new']} new; {embeddings['requested']} embedded, "
        f"{embeddings['cached']} from the cache{cost}), {index['rows']} index rows; {result.seconds['total']:.1f} s"
    )


def print_plan(plan: "IngestPlan", most_tokens: int | None) -> None:
    """What would change, and what it would cost; `most_tokens` is the collection's own limit for a run."""
    files, embed = plan.files, plan.to_embed
    changes = ", ".join(f"{files[key]} {key}" for key in ("added", "changed", "removed", "withheld") if files[key])
    click.echo(f"{plan.collection}: {files['seen']} files, {changes or 'nothing changed'}; {plan.to_parse} to parse")
    about = "about " if plan.estimated else ""
    cost = "price not known" if embed.cost_usd is None else f"${embed.cost_usd:.4f}"
    click.echo(f"to embed: {about}{embed.chunks} chunks, {about}{embed.tokens} tokens, {about}{cost}")
    if plan.estimated:
        click.echo("what is not parsed yet is estimated from the sizes of the files", err=True)
    if most_tokens is not None and embed.tokens > most_tokens:
        click.echo(f"more than max_embedding_tokens_per_run={most_tokens}: the ingest would not ask", err=True)


def print_status(status: dict) -> None:
    """A collection: its documents, its index, its last run, and what failed."""
    documents, index, run = status["documents"], status["index"], status["last_run"]
    click.secho(status["collection"], bold=True)
    click.echo("  documents  " + ", ".join(f"{number} {state}" for state, number in documents.items()))
    click.echo(f"  index      {status['chunks']} chunks, {index['rows']} rows, {index['bytes'] / 2**20:.1f} MB")
    click.echo(f"  model      {index['model']}, {index['dimensions']} dimensions")
    spent = status["embeddings"]
    if spent["requests"]:
        unpriced = f" and {spent['unpriced']} tokens of no known price" if spent["unpriced"] else ""
        click.echo(
            f"  embedded   {spent['tokens']} tokens in {spent['requests']} requests, ${spent['cost_usd']:.4f}{unpriced}"
        )
    if run:
        click.echo(f"  last run   {run['status']}, {run['started'] or 'not started'}, {run['run_id']}")
    for use in status["usage"]:
        used = f"{use['queries']} queries, {use['tokens']} tokens, last {use['last']}"
        click.echo(f"  used by    {use['key'] or 'the owner'}: {used}")
    # Where a provider is down, many documents fail for one reason.
    alike: dict[str, list[str]] = {}
    for failure in status["failures"]:
        why = f"{failure['reason']} ({failure['stage']}): {failure['detail']}"
        alike.setdefault(why, []).append(failure["path"])
    for why, paths in alike.items():
        more = "" if len(paths) <= PATHS_SHOWN else f" and {len(paths) - PATHS_SHOWN} more"
        click.echo(_visible(f"  {', '.join(paths[:PATHS_SHOWN])}{more}: {why}"))


def print_run(run: Run) -> None:
    """A run: its state, and how far it is, what it did, or why it failed."""
    click.echo(
        f"{run.state}: {run.collection or 'no collection'}" + (f", asked by {run.asked_by}" if run.asked_by else "")
    )
    if run.stage:
        click.echo(f"  {run.stage}" + ("" if run.done is None else f": {run.done} of {run.total} {run.unit}"))
    if run.reason:
        click.echo(f"  {run.reason}")
    if run.result:
        print_ingest(run.result)


def print_document(document: dict) -> None:
    """A document: what is known of it, its chunks, and its elements as an outline."""
    for key in ("collection", "path", "media_type", "size", "modified", "content_hash", "indexed"):
        click.echo(_visible(f"{key:13} {document[key]}"))
    for key, value in (document["metadata"] or {}).items():
        click.echo(_visible(f"{key:13} {value}"))
    if document["failure_reason"]:
        why = f"{document['failure_reason']}: {document['failure_detail'] or ''}"
        click.secho(f"{'failed':13} {_visible(why)}", fg="red")
    click.secho(f"\n{len(document['elements'])} elements", bold=True)
    text = document["text"] or ""
    for element in document["elements"]:
        line = " ".join(text[element["start"] : element["end"]].split())
        click.echo(f"  [{element['start']}:{element['end']}] {element['kind']:10} {_visible(line[:90])}")
    click.secho(f"\n{len(document['chunks'])} chunks", bold=True)
    for chunk in document["chunks"]:
        place = f"#{chunk['ordinal']} [{chunk['start']}:{chunk['end']}] {chunk['tokens']} tokens"
        click.secho(f"  {place}  {_visible(' › '.join(chunk['heading']))}", dim=True)
        click.echo(_indented(chunk["content"]))


def print_forgotten(forgotten: Forgotten) -> None:
    """What went, and where else the document or most of its text still is."""
    for path in forgotten.paths:
        click.echo(f"forgot {forgotten.collection}/{path}")
    click.echo(f"{forgotten.rows} rows left the index; a file with these bytes is not taken in again")
    for copy in forgotten.copies:
        click.secho(f"the same bytes are in {copy['collection']}/{copy['path']}", fg="yellow")
    for similar in forgotten.similar:
        click.secho(
            f"{similar['shared']} of its {similar['of']} chunks are also in {forgotten.collection}/{similar['path']}",
            fg="yellow",
        )


def _place(collection: str, path: str, page: int | None, heading: tuple[str, ...]) -> str:
    return _visible(" › ".join([f"{collection}/{path}" + (f" p. {page}" if page else ""), *heading]))


def _indented(text: str) -> str:
    return "\n".join(f"   {_visible(line)}" for line in text.splitlines())


def _visible(text: str) -> str:
    """The text without what steers a terminal or turns the order of letters: a document may hold it, and a model repeat
    it."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", text)
