"""Answers without a chat model: the sentences of the hits that share the most telling words with the question."""

import re
from collections import Counter
from math import log

from rag_pipeline.core.retrieval import Hits

MOST_SENTENCES = 3
# A further sentence is worth at least this part of the best.
SHARE_OF_BEST = 0.6

SENTENCE = re.compile(r"[^\n]+?(?:[.!?](?=\s|$)|(?=\n|$)|[。！？])")
WORD = re.compile(r"\w+")

STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about an and any are as at be been but by can could did do does for from had has have how i if in into is
        it its me my no not of on or our should so that the their them then there these they this to was we were what
        when where which who why will with without would you your""",
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
    sentences = dict.fromkeys(
        (number, match[0].strip()) for number, hit in enumerate(hits, 1) for match in SENTENCE.finditer(hit.content)
    )
    frequency = Counter(stem for _, sentence in sentences for stem in _stems(sentence))

    def weight(number: int, sentence: str) -> float:
        """The question's words found, rare ones more than common ones; better hits and readable lengths first."""
        found = sum(1 / (1 + 0.3 * log(frequency[stem])) for stem in wanted & _stems(sentence))
        return found / (1 + 0.1 * (number - 1)) / (1 + 0.002 * len(sentence))

    ranked = sorted(((weight(*entry), *entry) for entry in sentences), key=lambda entry: -entry[0])
    least = ranked[0][0] * SHARE_OF_BEST if ranked else 0.0
    return [(number, sentence) for score, number, sentence in ranked[:MOST_SENTENCES] if score >= least and score > 0]


def _stems(text: str) -> set[str]:
    """Words that carry meaning, without the endings that vary most; whole words where that leaves little."""
    words = {word.lower() for word in WORD.findall(text)} - STOP_WORDS
    return {re.sub(r"(?:ing|ies|ed|es|s)$", "", word) if len(word) > 5 else word.removesuffix("s") for word in words}
