"""A chat model's reply made fit for its reader, while it comes: citations of passages that are there, and no others."""

import re
from collections.abc import Iterator
from functools import cache

from rag_pipeline.core.prompting import NO_ANSWER, Prompt

# What stands for the model's own words when they come in the middle of a reply.
DO_NOT_SAY = "the documents do not say"

# [1], and what some models write for it and for [1][2]: [1, 2], [1-2], [passage 1], 【1】; a link behind it is no part
# of a citation.
_RANGE = r"[0-9]{1,4}(?:\s*[-–—]\s*[0-9]{1,4})?"
_NUMBERS = rf"\s*(?:[Pp]assages?\s+)?{_RANGE}(?:\s*[,;]\s*{_RANGE})*\s*"
_CITATIONS = rf"(?:[\[【]{{1,3}}{_NUMBERS}[\]】]{{1,3}}(?:\([^)\s]*\))?)"
# With its scheme, with that of the page it is shown in, or with the name that programs take for an address.
_HOST = r"[\w.@:-]*\.\w"
_ADDRESS = rf"""(?:(?i:https?|ftp|wss?):[/\\]{{2}}|//(?={_HOST})|(?i:www)\.(?=\w))[^\s<>"'`)\]]*"""


@cache
def _pieces(begun: bool) -> re.Pattern:
    """What has to be looked at as a whole; with `begun` also what reaches the end and may be the beginning of that."""
    unfinished = (
        "|".join(f"(?i:{re.escape(NO_ANSWER[:length])})" for length in range(1, len(NO_ANSWER))),
        rf"[ ]?{_CITATIONS}*[\[【]{{1,3}}[\w\s,;–—-]{{0,40}}(?:[\]】]{{1,3}}(?:\([^)\s]*)?)?",
        r"\](?:\(\s*[^)\s]*\s*)?",
        r"[A-Za-z]+(?::[/\\]?|\.)?",
        r"//[\w.@:-]*",
        _ADDRESS,
        r"[\W_]+",
    )
    or_begun = "|".join(rf"(?:{form})\Z" for form in unfinished) + "|" if begun else ""
    or_end = r"|\Z" if begun else ""
    return re.compile(
        rf"""{or_begun}
             (?P<code> ```(?s:.*?)(?:```{or_end}) | `[^`\n]*(?:`{or_end}) )
           | (?P<marker> (?i:{re.escape(NO_ANSWER)}) )
           | (?P<space> [ ]?) (?P<citations> {_CITATIONS}+)
           # Where a Markdown link or image leads, and an address that stands by itself.
           | \]\(\s* (?P<target> [^)\s]+) (?=\s*\)|\s+["'(])
           | (?P<address> {_ADDRESS}(?<![.,;:!?]) )""",
        re.VERBOSE,
    )


class ReplyCheck:
    """Takes a reply in parts of any size and gives back what a reader may see of it; the whole is then in `text`.

    A citation that names no passage is dropped and counted. So is the address of a link or image that stands neither
    in a passage nor in the question: one that was made up may carry what the model has read to wherever it leads.
    What stands in code (between backticks) is code and left alone.
    """

    def __init__(self, prompt: Prompt):
        self.text = ""
        self.cited: list[int] = []
        self.citations_dropped = 0
        self._prompt = prompt
        self._pending = self._held = ""
        self._none_found = self._some_missing = False

    @property
    def answered(self) -> bool:
        """False when the model says that the passages hold no answer: at once, or later without citing any."""
        return bool(self.text) and not (self._some_missing and not self.cited)

    def feed(self, part: str) -> str:
        """What may be shown now; the rest waits for what comes after it."""
        self._pending += part
        return self._show(hold=True)

    def finish(self) -> str:
        """What is still to be shown when the reply has ended."""
        return self._show(hold=False)

    def _show(self, *, hold: bool) -> str:
        shown, at = self._held, 0
        for piece in _pieces(begun=hold).finditer(self._pending):
            shown += self._pending[at : piece.start()]
            at = piece.start()
            if hold and piece.end() == len(self._pending):
                break
            self._none_found |= piece["marker"] is not None and not re.search(r"\w", self.text + shown)
            shown += self._checked(piece)
            at = piece.end()
        else:
            shown += self._pending[at:]
            at = len(self._pending)
        self._pending = self._pending[at:]
        if self._none_found:
            return ""
        if not self.text:
            shown = shown.lstrip()
        # White space waits for what follows it, and signs at the beginning for a word.
        visible = shown.rstrip() if not hold or re.search(r"\w", self.text + shown) else ""
        self._held = shown[len(visible) :]
        self.text += visible
        return visible

    def _checked(self, piece: re.Match) -> str:
        if piece["marker"] == NO_ANSWER or self._none_found:
            self._some_missing = True
            return DO_NOT_SAY
        if piece["citations"]:
            lists = re.findall(rf"[\[【]({_NUMBERS})[\]】]", piece["citations"])
            numbers = [number for listed in lists for number in self._numbers(listed)]
            kept = [number for number in numbers if 1 <= number <= len(self._prompt.passages)]
            self.cited += (number for number in dict.fromkeys(kept) if number not in self.cited)
            self.citations_dropped += len(numbers) - len(kept)
            # What is left out must not join its neighbours to what would have been left out too.
            joins = re.match(r"[^\s.,;!?)]", piece.string[piece.end() :])
            return piece["space"] + "".join(f"[{number}]" for number in kept) if kept else " " if joins else ""
        for address in (piece["target"], piece["address"]):
            if address and address.strip("<>") not in self._prompt.text:
                return "](…" if piece["target"] else "…"
        return piece[0]

    def _numbers(self, listed: str) -> Iterator[int]:
        """The numbers of a list, those of a range each; all that a range has beyond the passages are one."""
        for first, last in re.findall(r"([0-9]+)(?:\s*[-–—]\s*([0-9]+))?", listed):
            low, high = sorted((int(first), int(last or first)))
            yield from range(low, max(low, min(high, len(self._prompt.passages) + 1)) + 1)
