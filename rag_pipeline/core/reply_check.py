"""A chat model's reply made fit for its reader, while it comes: citations of passages that are there, and no others."""

import re
from collections.abc import Iterator

from rag_pipeline.core.citations import Citation, is_year
from rag_pipeline.core.prompting import NO_ANSWER, Prompt
from rag_pipeline.core.reply_pieces import ADDRESS_IN_CODE, Piece, find_pieces

# What stands for the model's own words when they come in the middle of a reply.
DO_NOT_SAY = "the documents do not say"
# A reply that begins with these words is still no answer when no more than this follows them, and cites nothing.
LONGEST_REFUSAL = 200

# What programs write behind a name: argv[1], cells[0][2], argv[1:].
_INDEX = re.compile(r"(?:\[[\d\s,;:‐‑–—−-]+\])+")
# The word before it, with what else programs index: calls and indexed names.
_NAME = re.compile(r"(?<![\w.])(?P<name>\w[\w.]*)(?P<more>(?:\([^()\n]*\)|\[[^\[\]\s]*\])*)(?<!\.)\Z")
# Names that only programs have: a_b, aB, a.b. Letters with digits are in any prose: Q3, 30min.
_OF_CODE = re.compile(r"_|\b[a-z]{2,}[A-Z]|[^\W\d]\w*\.[^\W\d]")
_LONGEST_NAME = 60

# Words that are joined where a citation is left out may be an address or a citation themselves.
_JOINS = re.compile(r"[^\s.,;!?)。，、；！？）]|\.\w")
# These are the sentence's, not the address's before them.
_SIGNS = ".,;:!?"


class ReplyCheck:
    """Takes a reply in parts of any size and gives back what a reader may see of it; the whole is then in `text`.

    A citation that names no passage is dropped and counted. So is the address of a link or image that stands neither
    in a passage nor in the question: one that was made up may carry what the model has read to wherever it leads.
    What else stands in code (between backticks or ~~~) is left alone; so are years, intervals and what is an index:
    numbers in brackets right behind a name that is a program's.
    """

    def __init__(self, prompt: Prompt):
        self.text = ""
        self.citations_dropped = 0
        self._prompt = prompt
        # What still waits to be checked, and what is checked but still waits to be shown.
        self._pending = self._held = ""
        self._looked_at = 0
        self._said = self._refuses = self._some_missing = False
        # Each number with the name it stands right behind, and the names that are indexed.
        self._named: list[tuple[str, int]] = []
        self._indexed: set[str] = set()

    @property
    def cited(self) -> list[int]:
        """The passages, in the order they are cited. The numbers behind a name that is also indexed cite none."""
        return list(dict.fromkeys(number for name, number in self._named if name not in self._indexed))

    @property
    def answered(self) -> bool:
        """False when the model says that the passages hold no answer: at once, or later without citing any."""
        return bool(self.text) and not (self._some_missing and not self.cited)

    def feed(self, part: str) -> str:
        """What may be shown now; the rest waits for what comes after it."""
        self._pending += part
        # What waits is looked at again when it has grown by a quarter, so that long waits are not dearer by the part.
        if 4 * (len(self._pending) + len(self._held)) < 5 * self._looked_at:
            return ""
        shown = self._show(ended=False)
        self._looked_at = len(self._pending) + len(self._held)
        return shown

    def finish(self) -> str:
        """What is still to be shown when the reply has ended."""
        return self._show(ended=True)

    def _show(self, *, ended: bool) -> str:
        shown = self._check_pending(ended=ended)
        if self._refuses and self._refusal(shown):
            self._held = shown
            return ""
        self._refuses = False
        if not self.text:
            shown = shown.lstrip()
        # White space waits for what follows it, and signs at the beginning for a word: behind what was dropped they
        # are no answer.
        begun = self.text or re.search(r"\w", shown) or (ended and not self.citations_dropped)
        visible = shown.rstrip() if begun else ""
        self._held = shown[len(visible) :]
        self.text += visible
        return visible

    def _refusal(self, shown: str) -> bool:
        """Whether a reply that begins with the words for it says no more than that there is no answer."""
        behind = re.split(rf"(?i:{re.escape(NO_ANSWER)}|{DO_NOT_SAY})", shown, maxsplit=1)[1].rstrip()
        return len(behind) <= LONGEST_REFUSAL and not (self._named and re.search(r"[^\W\d_]", behind))

    def _check_pending(self, *, ended: bool) -> str:
        """What is held, and behind it what is pending, checked; what may still become something else stays pending."""
        shown, at = self._held, 0
        pieces, end = find_pieces(self._pending, ended=ended)
        for piece in pieces:
            shown += self._pending[at : piece.start]
            shown += self._checked(piece, shown, self._pending[piece.end : piece.end + 2])
            at = piece.end
        shown += self._pending[at:end]
        self._pending = self._pending[end:]
        return shown

    def _checked(self, piece: Piece, before: str, following: str) -> str:
        """A piece as it is to be shown between its neighbours."""
        found = piece.found
        if piece.citations:
            cited = self._cited(piece, (self.text[-_LONGEST_NAME:] + before[-_LONGEST_NAME:])[-_LONGEST_NAME:])
            if cited:
                return found["space"] + cited
            # What is left out must not join its neighbours to what would have been left out too.
            return " " if _JOINS.match(following) else ""
        if found["marker"]:
            return self._in_our_words(found["marker"], begins=not (self._said or self.text or re.search(r"\w", before)))
        if (target := found["target"]) and not self._is_given(target.strip("<>")):
            return "](…"
        if found["code"]:
            return ADDRESS_IN_CODE.sub(lambda address: self._if_given(address[0]), found["code"])
        return self._if_given(found["address"]) if found["address"] else found[0]

    def _in_our_words(self, marker: str, *, begins: bool) -> str:
        """NO_ANSWER as a reader may see it. In small letters these are words like any, unless the reply begins so."""
        self._said = True
        self._refuses |= begins
        self._some_missing |= begins or marker == NO_ANSWER
        if marker != NO_ANSWER:
            return marker
        return DO_NOT_SAY.capitalize() if begins else DO_NOT_SAY

    def _if_given(self, address: str) -> str:
        """An address that stands by itself, or what is shown for one that was made up."""
        bare = address.rstrip(_SIGNS)
        return address if self._is_given(bare) else "…" + address[len(bare) :]

    def _is_given(self, address: str) -> bool:
        """Whether it stands in the prompt, and is not the beginning of another host's name or another file's."""
        return bool(address) and bool(re.search(re.escape(address) + r"(?![\w-]|\.\w)", self._prompt.text))

    def _cited(self, piece: Piece, before: str) -> str:
        """Citations that stand one behind another as they are to be."""
        name = None if piece.found["space"] or not _INDEX.fullmatch(piece.brackets) else _NAME.search(before)
        if name and self._stays(name, piece):
            return piece.brackets
        return "".join(self._kept(name["name"] if name else "", text, citation) for text, citation in piece.citations)

    def _stays(self, name: re.Match, piece: Piece) -> bool:
        """Whether numbers right behind a name stay as they are: where all name passages, which makes them citations,
        and where they are an index. That is what has a 0 or a colon, or names no passage behind a name that only
        programs have; behind a name that is indexed anywhere, no number cites."""
        numbers = [number for _, citation in piece.citations for number in self._numbers(citation)]
        passages = all(map(self._is_passage, numbers))
        of_code = name["more"] or _OF_CODE.search(name["name"])
        if ":" in piece.brackets or 0 in numbers or (of_code and not passages):
            self._indexed.add(name["name"])
        elif passages:
            self._named += ((name["name"], number) for number in numbers)
        return passages or name["name"] in self._indexed

    def _kept(self, name: str, text: str, citation: Citation) -> str:
        """The passages that one bracket cites, each in a bracket of its own; the bracket as it is, where it holds but
        years, an interval (a list with a 0) or a fraction of what are not two passages."""
        numbers = list(self._numbers(citation))
        kept = [number for number in numbers if self._is_passage(number)]
        if citation.plain:
            years = all(is_year(number) for ends in citation.ranges for number in ends)
            interval = len(numbers) > 1 and 0 in numbers
            fraction = "/" in text and kept != numbers
            if years or interval or fraction:
                return text
        self._named += ((name, number) for number in kept)
        self.citations_dropped += len(numbers) - len(kept)
        return "".join(f"[{number}]" for number in kept)

    def _is_passage(self, number: int) -> bool:
        return 1 <= number <= len(self._prompt.passages)

    def _numbers(self, citation: Citation) -> Iterator[int]:
        """The numbers, those of a range each; all that a range has beyond the passages are one."""
        for low, high in map(sorted, citation.ranges):
            yield from range(low, max(low, min(high, len(self._prompt.passages) + 1)) + 1)
