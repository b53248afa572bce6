"""Answers without a chat model: the sentences of the hits that share the most telling words with the question."""

import re
from collections import Counter
from collections.abc import Iterator
from math import log

from rag_pipeline.core.boundaries import sentences
from rag_pipeline.core.retrieval import Hit, Hits

MOST_SENTENCES = 3
# A further sentence is worth at least this part of the best.
SHARE_OF_BEST = 0.7
# What a question's word counts that stands only in the headings over a sentence, and each further hit against the one
# before it.
HEADING_SHARE, RANK_SHARE = 0.5, 0.2

WORD = re.compile(r"[^\W_]+")

# A line break ends a sentence unless it is where a long line was wrapped.
WRAPPED = 45
LIST_ITEM = re.compile(r"\s*(?:[-*+•–]|\(?\w{1,3}[.)])\s")

STOP_WORDS = frozenset(
    WORD.findall(
        """a about an and any are as at be been but by can could did do does for from had has have how i if in into is
        it its may me mean means must my no not of on or our should so than that the their them then there these they
        this to was we were what when where which who why will with without would you your"""
    )
)


def best_sentences(question: str, hits: Hits) -> list[tuple[int, str]]:
    """(number of the hit from 1, the sentence as it stands in the hit's content), the best first; none where the hits
    have too little to do with the question."""
    wanted = _stems(question)
    said = {stem for hit in hits for stem in _stems(" ".join((*hit.heading, hit.content)))}
    if 2 * len(wanted & said) <= len(wanted):
        # A word or two in common is what any text has with a question.
        return []
    found = {
        (number, sentence): _stems(sentence) & wanted
        for number, hit in enumerate(hits, 1)
        for sentence in _sentences(hit)
    }
    frequency = Counter(stem for stems in found.values() for stem in stems)

    rarity = {stem: log(1 + len(found) / (1 + frequency[stem])) for stem in wanted}

    def worth(number: int, sentence: str) -> float:
        """Rare words count more than common ones, better hits more than others; readable lengths come first."""
        stems = found[number, sentence]
        about = (_stems(" ".join(hits[number - 1].heading)) & wanted) - stems
        if not stems or 3 * len(stems | about) <= len(wanted):
            return 0.0
        telling = sum(rarity[stem] for stem in stems) + HEADING_SHARE * sum(rarity[stem] for stem in about)
        return telling / (1 + RANK_SHARE * (number - 1)) / (1 + 0.002 * len(sentence))

    ranked = sorted(((worth(*entry), *entry) for entry in found), key=lambda entry: -entry[0])
    least = ranked[0][0] * SHARE_OF_BEST if ranked else 0.0
    return [(number, sentence) for score, number, sentence in ranked[:MOST_SENTENCES] if score >= least and score > 0]


def _sentences(hit: Hit) -> Iterator[str]:
    """The sentences, list items and table rows of a hit, without its headings."""
    headings = {_words(heading) for heading in hit.heading}
    for start, end in _units(hit.content):
        ends = [*sentences(hit.content, start, end), end]
        for begin, until in zip([start, *ends], ends, strict=False):
            sentence = hit.content[begin:until].strip()
            if sentence and _words(sentence) not in headings:
                yield sentence


def _units(text: str) -> Iterator[tuple[int, int]]:
    """The spans of paragraphs, list items and rows: lines that were wrapped are one."""
    start = 0
    for match in re.finditer(r"\n", text):
        line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        following = text[match.end() :].partition("\n")[0]
        wrapped = len(line) >= WRAPPED and following.strip() and not LIST_ITEM.match(following)
        if not wrapped or " | " in line + following:
            yield start, match.start()
            start = match.end()
    yield start, len(text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(WORD.findall(text.lower()))


def _stems(text: str) -> set[str]:
    """Words that carry meaning, without the endings that vary most."""
    words = set(_words(text)) - STOP_WORDS
    return {re.sub(r"(?<=...)(?:ings?|ies|ied|ions?|es|ed|e|s|y)$", "", word) for word in words}
