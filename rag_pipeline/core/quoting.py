"""Answers without a chat model: the sentences of the hits that share the most telling words with the question."""

import re
from collections import Counter
from collections.abc import Iterator
from math import log

import regex

from rag_pipeline.core.boundaries import sentences
from rag_pipeline.core.citations import without_citations
from rag_pipeline.core.retrieval import Hit, Hits

MOST_SENTENCES = 3
# A further sentence is worth at least this part of the best.
SHARE_OF_BEST = 0.7
# What a question's word counts that stands only in the headings over a sentence, and each further hit against the one
# before it.
HEADING_SHARE, RANK_SHARE = 0.5, 0.2
# A row of more figures than words, and more than these, tells little of what it is about.
FEW_FIGURES = 3

# The part of a question's words that all hits together must say, and one sentence with its headings. Outside Latin
# script less of either, for there stop words and endings are not known.
ENOUGH, ENOUGH_OF_SENTENCE = 1 / 2, 1 / 3
FOREIGN_SHARE = 2 / 3

INNER_MARKS = str.maketrans("“”„", "‘’‚")

WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
# As in rag.identifiers, and options. Words that only hyphens join are words.
IDENTIFIER = regex.compile(
    r"(?<!\w)--?\w+(?:-\w+)*|\w+(?:(?:[._-]|::)\w+)+|\w+(?:\+\+|#)",
)
HYPHENATED = regex.compile(r"\p{L}+(?:-\p{L}+)+")
# As in rag.has_cjk.
CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]+")
LATIN = regex.compile(r"\p{Latin}")

# A paragraph of one line up to this length that ends like no sentence is a heading of what follows it.
LONGEST_HEADING = 60
SENTENCE_END = regex.compile(r"[\p{STerm}.!?…:;；：][\p{Pe}\p{Pf}\p{Pi}\"'*_`]*$")

QUESTION_END = regex.compile(r"[?？؟][\p{Pe}\p{Pf}\p{Pi}\"'*_`]*$")

# A line break ends a sentence unless it is where a long line was wrapped.
WRAPPED = 45
CELLS = " | "
LIST_ITEM = re.compile(r"\s*(?:[-*+•–]|\(?\w{1,3}[.)])\s")

# What ends no sentence: an abbreviation before what it numbers, one in several parts (z. B., i. d. R.), and a letter or
# what is short for a word before a small letter. A day before its month or a small letter, and a month before its day.
UNENDED = regex.compile(
    r"""(?i:\b(?:abb|abs|app|art|cap|kap|no|para?|sect?|tab|tbl|thm|ver)\.)\s+(?=\d|\p{Lu}(?!\w)|[IVX]+(?!\w))
      | \b\p{L}\.\s+(?=\p{L}\.) | (?<=\b\p{L}\.\s+)\p{L}\.\s+
      | \b(?i:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.\s+(?=\d)
      | \b\d{1,2}\.\s+(?=\p{Ll}|(?i:jan|feb|mär|apr|mai|jun|jul|aug|sep|okt|nov|dez)\p{L}*\b)
      | \b(?:\p{Ll}|(?i:eigtl|engl|evtl|excl|exkl|incl|max|min|mind|mio|mrd|nr|sog|std|tel|zzgl))\.\s+(?=[\p{Ll}\d])""",
    regex.VERBOSE,
)

STOP_WORDS = frozenset(
    WORD.findall(
        """a about an and any are as at be been but by can could did do does far for from get gets got had has have how
        i if in into is it its know like long many may me mean means much must my need no not of often old on or our
        please really should so tell than that the their them then there these they this to want was we were what when
        where which who whom whose why will with without would you your"""
    )
)


def best_sentences(question: str, hits: Hits) -> list[tuple[int, str]]:
    """(number of the hit from 1, the sentence as it stands in the hit's content), the best first; none where the hits
    have too little to do with the question."""
    wanted = _stems(question, pieces=False)
    share = 1 if LATIN.search(question) and not CJK.search(question) else FOREIGN_SHARE
    said = {stem for hit in hits for stem in _stems(" ".join((*hit.heading, hit.content)))}
    if len(wanted & said) <= ENOUGH * share * len(wanted):
        # A word or two in common is what any text has with a question.
        return []
    found = {
        (number, sentence): (_stems(sentence) & wanted, _stems(name) & wanted)
        for number, hit in enumerate(hits, 1)
        for sentence, name in _sentences(hit, wanted)
    }
    frequency = Counter(stem for stems, _ in found.values() for stem in stems)

    rarity = {stem: log(1 + len(found) / (1 + frequency[stem])) for stem in wanted}

    def worth(number: int, sentence: str) -> float:
        """Rare words count more than common ones, better hits more than others, readable lengths more than long ones,
        and rows of figures less."""
        stems, named = found[number, sentence]
        about = (named | _stems(" ".join(hits[number - 1].heading)) & wanted) - stems
        if not stems | named or len(stems | about) <= ENOUGH_OF_SENTENCE * share * len(wanted):
            return 0.0
        telling = sum(rarity[stem] for stem in stems) + HEADING_SHARE * sum(rarity[stem] for stem in about)
        return telling / (1 + RANK_SHARE * (number - 1)) / (1 + 0.002 * len(sentence)) / _figures_a_word(sentence)

    ranked = sorted(((worth(*entry), *entry) for entry in found), key=lambda entry: -entry[0])
    least = ranked[0][0] * SHARE_OF_BEST if ranked else 0.0
    best: dict[tuple[str, ...], tuple[int, str]] = {}
    for score, number, sentence in ranked:
        if score >= least and score > 0:
            # What several passages say in the same words is quoted once.
            best.setdefault(_words(sentence), (number, sentence))
    return list(best.values())[:MOST_SENTENCES]


def quotation(sentence: str) -> str:
    """A sentence between quotation marks; its own are single ones, for the first closing mark ends it, and its own
    citations stand in round brackets, for they are none of ours."""
    return f"“{without_citations(sentence).translate(INNER_MARKS)}”"


def _sentences(hit: Hit, wanted: set[str]) -> Iterator[tuple[str, str]]:
    """The sentences, list items and table rows of a hit, each with the bare name or heading right before it, or over
    its columns. Those are none themselves: a question; a line that ends like no sentence, and says no more than the
    question does or is a short paragraph of its own; the first row of a table, where it has no figures and the second
    has."""
    text, name, columns = hit.content, "", ""
    headings = {_words(heading) for heading in hit.heading}
    units = list(_units(text))
    for (start, end), following in zip(units, [*units[1:], (0, 0)], strict=True):
        row = text[start:end]
        if CELLS not in row:
            columns, name = "", "" if columns else name
        elif columns and _words(row):
            yield row.strip(), f"{columns} {name}"
            continue
        elif not columns and CELLS in (below := text[slice(*following)]) and not re.search(r"\d", row):
            columns = row
            if re.search(r"\d", below):
                continue
        unended = {match.end() for match in UNENDED.finditer(text, start, end)}
        ends = [*(at for at in sentences(text, start, end) if at not in unended), end]
        for begin, until in zip([start, *ends], ends, strict=False):
            sentence = text[begin:until].strip()
            if not _words(sentence) or _words(sentence) in headings:
                continue
            alone = (start, end) == (begin, until) and _is_paragraph(text, start, end)
            is_name = not SENTENCE_END.search(sentence) and (alone or _stems(sentence, pieces=False) <= wanted)
            # A question is none of its answers.
            if is_name or QUESTION_END.search(sentence):
                name = sentence
            else:
                yield sentence, name
                name = ""


def _is_paragraph(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is one short line between blank ones, with something after it, and no item or row."""
    line = text[start:end].strip()
    return (
        len(line) <= LONGEST_HEADING
        and not re.search(r"\n|: |=| \| ", line)
        and not LIST_ITEM.match(line + " ")
        and bool(re.search(r"(?:^|\n)\s*\Z", text[:start]))
        and bool(re.match(r"[^\S\n]*\n\s*\n\s*\S", text[end:]))
    )


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


def _figures_a_word(text: str) -> float:
    """How many figures stand in the text for each word, a date being one; 1 where words are more, or figures few."""
    words, figures = re.findall(r"[^\W\d_]+", text), re.findall(r"\d+(?:[.,:/–-]\d+)*", text)
    return max(1.0, len(figures) / max(1, len(words))) if len(figures) > FEW_FIGURES else 1.0


def _words(text: str) -> tuple[str, ...]:
    return tuple(WORD.findall(text.lower()))


def _stems(text: str, *, pieces: bool = True) -> set[str]:
    """Words that carry meaning, those in Latin script without the endings that vary most; of Chinese, Japanese and
    Korean each two neighbouring characters, as search has them. Identifiers are whole, with `pieces` also in pieces."""
    runs, text = CJK.findall(text), CJK.sub(" ", text.lower())
    identifiers = {found for found in IDENTIFIER.findall(text) if not HYPHENATED.fullmatch(found)}
    if not pieces:
        text = IDENTIFIER.sub(lambda found: " " if found[0] in identifiers else found[0], text)
    words = set(_words(text)) - STOP_WORDS
    stems = {re.sub(r"(?<=[a-z]{3})(?:ings?|ies|ied|ions?|es|ed|e|s|y)$", "", word) for word in words}
    return stems | identifiers | {run[i : i + 2] for run in runs for i in range(max(1, len(run) - 1))}
