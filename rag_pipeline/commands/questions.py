"""`rag search` and `ask`: what readers do."""

from dataclasses import asdict

import click

from rag_pipeline.commands.common import as_json, print_json
from rag_pipeline.runtime import Runtime


@click.command()
@click.argument("name")
@click.argument("query")
@click.option("-k", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many hits.")
@click.option("--mode", type=click.Choice(["hybrid", "vector", "text"]), default="hybrid", show_default=True)
@as_json
@click.pass_obj
def search(runtime: Runtime, name: str, query: str, k: int, mode: str, as_json: bool) -> None:
    """The chunks nearest to a question. NAME may be several collections: a,b."""
    from rag_pipeline.client import Rag
    from rag_pipeline.printing import print_hits

    with Rag(runtime) as rag:
        hits = rag.search(name.split(","), query, k=k, mode=mode)
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
        answer = rag.ask(name.split(","), question, k=k)
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
            }
        )
    else:
        print_answer(answer)
