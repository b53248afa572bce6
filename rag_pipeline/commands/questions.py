"""`rag search`, `ask` and `evaluate`: what readers do, and how well it works."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from rag_pipeline.commands.common import as_json, print_json
from rag_pipeline.core.collections import split_names
from rag_pipeline.runtime import Runtime

# Questions that are named one by one.
SHOWN = 10


@click.command()
@click.argument("name")
@click.argument("query")
@click.option("-k", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many hits.")
@click.option("--mode", type=click.Choice(["hybrid", "vector", "text"]), default="hybrid", show_default=True)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="FIELD=GLOB",
    help="Only documents that pass: path='guides/**', 'modified>=2024-01-31', author='*Knuth*'. May be repeated.",
)
@as_json
@click.pass_obj
def search(runtime: Runtime, name: str, query: str, k: int, mode: str, filters: tuple[str, ...], as_json: bool) -> None:
    """The chunks nearest to a question; what it says in quotes must stand so. NAME may be several collections: a,b."""
    from rag_pipeline.client import Rag
    from rag_pipeline.printing import print_hits

    with Rag(runtime) as rag:
        hits = rag.search(split_names(name), query, k=k, mode=mode, filters=filters)
    if as_json:
        print_json(
            {
                "collection": hits.collection,
                "query": hits.query,
                "mode": hits.mode,
                "degraded": hits.degraded,
                "hits": [asdict(hit) for hit in hits],
            }
        )
    else:
        print_hits(hits)


@click.command()
@click.argument("name")
@click.argument("question")
@click.option("-k", type=click.IntRange(1, 1000), default=5, show_default=True, help="From how many hits.")
@as_json
@click.pass_obj
def ask(runtime: Runtime, name: str, question: str, k: int, as_json: bool) -> None:
    """An answer from the documents alone, with citations. NAME may be several collections: a,b."""
    from rag_pipeline.client import Rag
    from rag_pipeline.printing import print_answer

    with Rag(runtime) as rag:
        answer = rag.ask(split_names(name), question, k=k, stream=sys.stdout.isatty() and not as_json)
    if as_json:
        print_json(
            {
                "question": answer.question,
                "answer": answer.text,
                "answered": answer.answered,
                "kind": answer.kind,
                "model": answer.model,
                "cost_usd": answer.cost_usd,
                "sources": [asdict(source) for source in answer.sources],
                "tokens": {**asdict(answer.tokens), "total": answer.tokens.total},
                "degraded": answer.degraded,
                "citations_dropped": answer.citations_dropped,
            }
        )
    else:
        print_answer(answer)


@click.command()
@click.argument("name")
@click.argument("questions", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-k", type=click.IntRange(1, 1000), default=5, show_default=True, help="Among how many hits.")
@click.option("--mode", type=click.Choice(["hybrid", "vector", "text"]), default="hybrid", show_default=True)
@as_json
@click.pass_obj
def evaluate(runtime: Runtime, name: str, questions: Path, k: int, mode: str, as_json: bool) -> None:
    """How well a collection finds the sources of QUESTIONS, a file of JSON lines.

    Each line is {"question": "...", "sources": ["path", ...]} and may have an "id" and a "page".
    """
    from rag_pipeline.client import Rag
    from rag_pipeline.core.evaluation import read_questions
    from rag_pipeline.printing import print_evaluation
    from rag_pipeline.terminal import progress

    with questions.open("rb") as lines:
        known = read_questions(lines, questions.name)
    with Rag(runtime) as rag, progress() as bars:
        evaluation = rag.evaluate(name, known, k=k, mode=mode, progress=bars.stage("evaluate", "questions"))
    for question in evaluation.without_source[:SHOWN]:
        click.echo(f"{name} has none of the sources of question {question}: it counts as not found", err=True)
    if len(evaluation.without_source) > SHOWN:
        click.echo(f"... nor of {len(evaluation.without_source) - SHOWN} further questions", err=True)
    if as_json:
        figures = asdict(evaluation)
        del figures["without_source"]
        print_json(figures)
    else:
        print_evaluation(evaluation)
