"""How fast one core parses: HTML against unstructured as it comes, PDF in pages, all in one run and in CPU seconds.

unstructured wants spaCy's model en_core_web_sm at hand (else it downloads it): install the model, or a copy of it under
another name, and say which. Without it that part is left out.

    python -m rag_pipeline_tests.benchmarks.parsing [--documents 150] [--model en_core_web_sm]
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from rag_pipeline.core.parsing import join_parts, page_count, parse, parse_pages
from rag_pipeline_tests.shared import SHARED

PAGES_PER_SHARD = 100


def cpu_seconds(work: Callable[[], object]) -> float:
    """The CPU time that this process spends on `work`: other processes on the machine do not count."""
    started = time.process_time()
    work()
    return time.process_time() - started


def html(pages: list[Path]) -> float:
    """Documents a second."""
    parse(pages[0].read_bytes(), "text/html", pages[0].name)
    return len(pages) / cpu_seconds(lambda: [parse(page.read_bytes(), "text/html", page.name) for page in pages])


def unstructured_html(pages: list[Path], model: str) -> float:
    """Documents a second by unstructured, nothing changed but the name of the model that it loads."""
    import spacy
    import unstructured.nlp.tokenize
    from unstructured.partition.html import partition_html

    pipeline = spacy.load(model)
    unstructured.nlp.tokenize._load_spacy_model = lambda *arguments, **options: pipeline
    partition_html(filename=str(pages[0]))
    return len(pages) / cpu_seconds(lambda: [partition_html(filename=str(page)) for page in pages])


def pdf(path: Path) -> tuple[int, float]:
    """The number of pages, and pages a second, from the bytes to the joined document."""
    content = path.read_bytes()
    pages = page_count(content)

    def work() -> None:
        join_parts([parse_pages(content, n, n + PAGES_PER_SHARD - 1) for n in range(1, pages + 1, PAGES_PER_SHARD)])

    return pages, pages / cpu_seconds(work)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--documents", type=int, default=150, help="pages of the PostgreSQL manual")
    options.add_argument("--model", default="en_core_web_sm", help="the package that holds spaCy's model")
    chosen = options.parse_args()
    found = sorted((SHARED / "corpora" / "postgresql-manual").glob("*.html"))
    pages = found[:: max(len(found) // chosen.documents, 1)][: chosen.documents]
    ours = html(pages)
    print(f"HTML, {len(pages)} pages of the PostgreSQL manual: {ours:.0f} documents/s")
    if find_spec(chosen.model):
        theirs = unstructured_html(pages, chosen.model)
        print(f"  unstructured as it comes: {theirs:.1f} documents/s, {ours / theirs:.0f} times less")
    else:
        print(f"  unstructured as it comes: not measured, {chosen.model} is not installed")
    for name in ("debian-policy/policy.pdf", "r-manuals/R-exts.pdf", "r-manuals/refman.pdf"):
        count, speed = pdf(SHARED / "corpora" / name)
        print(f"PDF, {Path(name).name}, {count} pages: {speed:.0f} pages/s")


if __name__ == "__main__":
    main()
