"""How long chunking takes, beside one pass of the tokenizer over the same text, and beside other splitters.

Processor time, so that other work on the machine does not count. Needs `pip install -e .[benchmarks]` for the peers.

    python -m rag_pipeline_tests.benchmarks.chunking_speed [--no-peers]
"""

import argparse
import time
from collections.abc import Callable, Iterator

from rag_pipeline.core.chunking import ChunkSettings, InputLimit, chunk_document
from rag_pipeline.core.parsing import ParsedText, parse
from rag_pipeline.core.tokens import TokenCounter, count_tokens, encoding
from rag_pipeline_tests.shared import shared

OPENAI = InputLimit(8192, lambda texts: [count_tokens(text) for text in texts], "cl100k_base")
SETTINGS = ChunkSettings()


def corpora() -> Iterator[tuple[str, list[ParsedText]]]:
    """The documents, parsed: parsing is not measured."""
    pages = sorted(shared("corpora", "postgresql-manual").glob("*.html"))
    yield "postgresql-manual", [parse(page.read_bytes(), "text/html", page.name) for page in pages]
    book = shared("corpora", "r-manuals", "refman.pdf")
    yield "refman.pdf", [parse(book.read_bytes(), "application/pdf", book.name)]


def best_of(rounds: int, run: Callable[[], int]) -> tuple[float, int]:
    """The least processor time of some rounds, in seconds, and what the last returned."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = run()
        times.append(time.process_time() - start)
    return min(times), result


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--no-peers", action="store_true")
    chosen = arguments.parse_args()
    TokenCounter("loads its tables")
    for name, documents in corpora():
        texts = [document.text for document in documents]
        print(f"\n{name}: {len(documents)} documents, {sum(map(len, texts)) / 1e6:.1f} million characters")
        floor, _ = best_of(3, lambda texts=texts: sum(len(encoding().encode_ordinary(text)) for text in texts))
        print(f"{'one pass of encode_ordinary':45} {floor:7.2f} s")
        ours, count = best_of(
            3,
            lambda documents=documents: sum(len(chunk_document(document, SETTINGS, OPENAI)) for document in documents),
        )
        print(f"{'rag_pipeline':45} {ours:7.2f} s  {ours / floor:6.1f} x  {count:7} chunks")
        if chosen.no_peers:
            continue
        from rag_pipeline_tests.benchmarks.chunking_peers import peers

        for peer, split in peers(SETTINGS.chunk_tokens, SETTINGS.chunk_overlap).items():
            taken, count = best_of(1, lambda split=split, texts=texts: sum(len(split(text)) for text in texts))
            print(f"{peer:45} {taken:7.2f} s  {taken / floor:6.1f} x  {count:7} chunks", flush=True)


if __name__ == "__main__":
    main()
