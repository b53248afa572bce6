"""One book in three formats: the same headings, and section by section nearly the same words."""

import re
from difflib import SequenceMatcher
from functools import cache
from itertools import combinations

import pytest

from rag_pipeline.core.parsing import parse
from rag_pipeline_tests.shared import shared

BOOKS = {"policy.pdf": "application/pdf", "policy.txt": "text/plain", "policy.epub": "application/epub+zip"}
PAIRS = list(combinations(BOOKS, 2))
# What only one of the formats prints: the book's own title, a heading over the appendices, the index and its letters.
NOT_IN_ALL = {"debianpolicymanual", "appendices", "index", "r", "s"}


@cache
def sections(book: str) -> tuple[tuple[str, str], ...]:
    """Heading (without its number) and text of each section. Footnotes, which each format puts elsewhere, are left
    out."""
    parsed = parse(shared("corpora", "debian-policy", book).read_bytes(), BOOKS[book], book)
    found: list[tuple[str, list[str]]] = []
    in_notes = False
    for element in parsed.elements:
        text = parsed.text[element.start : element.end]
        if element.kind == "title":
            found.append((bare(text), []))
            in_notes = False
        elif element.kind == "footnote":
            in_notes = not book.endswith(".pdf")  # there they end the page, elsewhere the chapter
        elif found and not in_notes:
            found[-1][1].append(text)
    return tuple((title, " ".join(texts)) for title, texts in found if title not in NOT_IN_ALL)


def bare(heading: str) -> str:
    return "".join(filter(str.isalnum, re.sub(r"^(?:\d+|[A-Z])(?:\.\d+)*\.?\s+", "", heading))).lower()


def similarity(one: str, other: str) -> float:
    """How much of the words of two texts is the same, in the same order: 1 when they are equal."""
    return SequenceMatcher(None, words(one), words(other), autojunk=False).ratio()


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_the_three_formats_have_the_same_headings(one: str, other: str) -> None:
    assert [title for title, _ in sections(one)] == [title for title, _ in sections(other)]
    assert len(sections(one)) == 338


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_the_first_sections_have_nearly_the_same_words(one: str, other: str) -> None:
    pairs = list(zip(sections(one)[:40], sections(other)[:40], strict=True))
    assert sum(similarity(first[1], second[1]) for first, second in pairs) / len(pairs) > 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_all_sections_have_nearly_the_same_words(one: str, other: str) -> None:
    pairs = [(first[1], second[1]) for first, second in zip(sections(one), sections(other), strict=True)]
    lengths = [len(words(first)) + len(words(second)) for first, second in pairs]
    ratios = [similarity(first, second) for first, second in pairs]
    weighted = sum(ratio * length for ratio, length in zip(ratios, lengths, strict=True)) / sum(lengths)
    print(f"{one} and {other}: mean {sum(ratios) / len(ratios):.4f}, by length {weighted:.4f}")
    assert weighted > 0.99
