"""A chat model's reply made fit for its reader, while it comes: citations of passages that are there, and no others."""

import re
from collections.abc import Iterator
from functools import cache, partial

from rag_pipeline.core.prompting import NO_ANSWER, Prompt

# What stands for the model's own words when they come in the middle of a reply.
DO_NOT_SAY = "the documents do not say"
# A reply that begins with these words is still no answer when no more than this follows them, and cites nothing.
LONGEST_REFUSAL = 200

# [1], and what some models write for it and for [1][2], in brackets of any kind: [1, 2], [1 and 2], [1-3], [passage 1],
# [^1], [**1**], \[1\], [1: guide.md], [1, page 3], [1: guide.md, 2: notes.md], 【1†source】.
_OPEN, _CLOSE, _INSIDE = r"(?:\\?[\[【［])", r"(?:\\?[\]】］])", r"[^\[\]【】［］]"
_NESTED = rf"[\[【［]{_INSIDE}{{0,40}}"
_CONTENT = rf"(?:{_INSIDE}|{_NESTED}[\]】］])"
_MARKS = r"[\s#^*_]{0,6}"
_LABEL = r"(?i:passages?|sources?|documents?|docs?|references?|refs?|citations?|cite)[\s.:#^*_-]{0,4}"
_TO, _AND = r"(?:[-‐‑–—−]|(?<=\s)to\s)", r"(?:and|or|und|oder)\b"
_RANGE = rf"\d{{1,9}}(?:\s{{0,6}}{_TO}\s{{0,6}}\d{{1,9}})?"
_ITEM = rf"{_MARKS}(?:{_LABEL})?{_RANGE}{_MARKS}"
_ITEMS = rf"{_ITEM}(?:(?:[,;&/]\s?(?:{_AND})?|(?<!\d){_AND}){_ITEM})*"
# The place in a passage, and all that a remark may begin with.
_PLACE = r"(?i:(?:pages?|sections?|lines?|chapters?|paragraphs?)\b|(?:pp?|sect?|ll?|ch|para?)\.|§)"
_DETAIL = rf"(?::(?!\d)|(?::\d+)?†|\(|,\s?{_PLACE}|,?\s?(?=[\[【［]))"
_REMARK = rf"(?:{_DETAIL}{_CONTENT}*)?"
# What is held back while it may become one has to hold the longest: up to its first digit, and from there.
_LONGEST, _TO_DIGIT = 240, 20
_CITATION = rf"(?:{_OPEN}{{1,3}}(?={_CONTENT}{{1,{_LONGEST}}}[\]】］]){_ITEMS}{_REMARK}{_CLOSE}{{1,3}})"
_REST = rf"(?![^\W_]){_CONTENT}{{0,{_LONGEST}}}(?:{_NESTED})?"
_BEGUN = rf"{_OPEN}{{1,3}}(?:(?!\d){_INSIDE}){{0,{_TO_DIGIT}}}(?:\d+(?:{_REST})?)?"
_PARTS = re.compile(rf"{_OPEN}{{1,3}}({_ITEMS})({_REMARK}){_CLOSE}{{1,3}}")
_OF_OTHERS = re.compile(rf"(?<![A-Za-z0-9_]){_CITATION}+")
_ROUND = str.maketrans("[]【】［］", "()()()")
# The further citations of a remark. No number is one that stands in round brackets, in a list behind a plural (pages 3,
# 4), or behind anything but a comma, unless what follows is a remark too.
_FURTHER = re.compile(
    rf"""\([^()]*\)
       | (?:\b(?i:\w+s|pp\.)|§§) \s? \d++ (?: \s?(?:{_TO}|,|&|{_AND})\s?\d++(?!\s?{_DETAIL}) )+
       | (?: (?:[;&]|(?<!\d),|,(?=\s))\s?(?:{_AND})? | (?<!\w){_AND}(?={_ITEM}{_DETAIL}) | [\[【［] )
         (?P<item> {_ITEM}) (?= [,;&(†\]】］] | :(?!\d) | {_AND} | \Z )""",
    re.VERBOSE,
)
# What programs write behind a name: argv[1], cells[0][2], argv[1:].
_INDEX = re.compile(r"(?:\[[\d\s,;:‐‑–—−-]+\])+")
# The word before it, with what else programs index: calls and indexed names.
_NAME = re.compile(r"(?<![\w.])(?P<name>\w[\w.]*)(?P<more>(?:\([^()\n]*\)|\[[^\[\]\s]*\])*)(?<!\.)\Z")
# Names that only programs have: a_b, aB, a.b. Letters with digits are in any prose: Q3, 30min.
_OF_CODE = re.compile(r"_|\b[a-z]{2,}[A-Z]|[^\W\d]\w*\.[^\W\d]")
_LONGEST_NAME = 60

# Where a Markdown link leads ends where another may begin, so that no text is gone through twice.
_TARGET = r"(?:[^)\s\]]|\](?!\())++"
# The same with round brackets that are closed in it, and its title.
_WHOLE_TARGET = r"(?:[^()\s\]]|\([^()\s\]]*+\)|\](?!\())++"
_TITLE = r"""(?:"[^"\n]{0,200}"|'[^'\n]{0,200}'|\([^()\n]{0,200}\))"""
_TARGET_BEGUN = r"(?:[^()\s\]]|\([^()\s\]]*+\)?|\](?!\())++"
_TITLE_BEGUN = r"""(?:"[^"\n]{0,200}|'[^'\n]{0,200}|\([^()\n]{0,200})"""
_TARGET_ENDS = r"""\s*\)|\s+["'(]|\]\("""
# With its scheme, with that of the page it is shown in, or with the name that programs take for an address.
_HOST = r"[\w.@:-]*\.\w"
_ADDRESS = rf"""(?:(?i:https?|ftp|wss?):[/\\]{{2}}|//(?={_HOST})|(?i:www)\.(?=\w))[^\s<>"'`)\]]*"""


@cache
def _pieces(begun: bool) -> re.Pattern:
    """What has to be looked at as a whole; with `begun` also what reaches the end and may be the beginning of that."""
    unfinished = (
        "|".join(f"(?i:{re.escape(NO_ANSWER[:length])})" for length in range(1, len(NO_ANSWER))),
        rf"[ ]?{_CITATION}+\(\s*(?:{_TARGET_BEGUN}\s*(?:{_TITLE}\s*|{_TITLE_BEGUN})?)?",
        rf"[ ]?{_CITATION}*(?:{_BEGUN})?\\?",
        rf"\](?:\(\s*(?:{_TARGET_BEGUN}\s*)?)?",
        # The longest name of a scheme is https.
        r"[A-Za-z]{1,5}(?::[/\\]?|\.)?",
        r"/(?:/[\w.@:-]*)?",
        "~~?",
        _ADDRESS,
    )
    or_begun = "|".join(rf"(?:{form})\Z" for form in unfinished) + "|" if begun else ""
    or_end = r"|\Z" if begun else ""
    return re.compile(
        rf"""{or_begun}
             (?P<code> (?P<fence> ```|~~~)(?s:.*?)(?:(?P=fence){or_end})
                     | ``(?!`)(?:[^`\n]|`(?!`))++(?:``{or_end}) | `[^`\n]*(?:`{or_end}) )
           | (?P<marker> (?i:{re.escape(NO_ANSWER)}) )
           # A link behind it is no part of a citation.
           | (?P<space> [ ]?) (?P<citations> {_CITATION}+)
             (?:\(\s*+ (?: {_WHOLE_TARGET}(?:\s+{_TITLE})?\s*\) | (?:{_TARGET})?(?:\s*\)|(?={_TARGET_ENDS})) ))?
           # Where a Markdown link or image leads, and an address that stands by itself.
           | \]\(\s* (?P<target> {_WHOLE_TARGET}(?=\s*\)|\s+{_TITLE}) | {_TARGET}(?={_TARGET_ENDS}))
           | (?P<address> {_ADDRESS}(?<![.,;:!?]) )""",
        re.VERBOSE,
    )


def without_citations(text: str) -> str:
    """The text of others, its citations in round brackets: they are none of ours."""
    in_round = partial(_PARTS.sub, lambda bracket: f"({(bracket[1] + bracket[2]).translate(_ROUND)})")
    return _OF_OTHERS.sub(lambda found: in_round(found[0]), text)


class ReplyCheck:
    """Takes a reply in parts of any size and gives back what a reader may see of it; the whole is then in `text`.

    A citation that names no passage is dropped and counted. So is the address of a link or image that stands neither
    in a passage nor in the question: one that was made up may carry what the model has read to wherever it leads.
    What stands in code (between backticks or ~~~) is code and left alone; so are years, intervals and what is an index:
    numbers in brackets right behind a name that is a program's.
    """

    def __init__(self, prompt: Prompt):
        self.text = ""
        self.citations_dropped = 0
        self._prompt = prompt
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
        shown = self._show(hold=True)
        self._looked_at = len(self._pending) + len(self._held)
        return shown

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
            shown += self._checked(piece, shown)
            at = piece.end()
        else:
            shown += self._pending[at:]
            at = len(self._pending)
        self._pending = self._pending[at:]
        if self._refuses and self._refusal(shown):
            self._held = shown
            return ""
        self._refuses = False
        if not self.text:
            shown = shown.lstrip()
        # White space waits for what follows it, and signs at the beginning for a word: behind what was dropped they
        # are no answer.
        visible = shown.rstrip() if self.text or re.search(r"\w", shown) or not (hold or self.citations_dropped) else ""
        self._held = shown[len(visible) :]
        self.text += visible
        return visible

    def _refusal(self, shown: str) -> bool:
        """Whether a reply that begins with the words for it says no more than that there is no answer."""
        behind = re.split(rf"(?i:{re.escape(NO_ANSWER)}|{DO_NOT_SAY})", shown, maxsplit=1)[1].rstrip()
        return len(behind) <= LONGEST_REFUSAL and not (self._named and re.search(r"[^\W\d_]", behind))

    def _checked(self, piece: re.Match, before: str) -> str:
        if piece["marker"]:
            begins = not self._said and not self.text and not re.search(r"\w", before)
            self._said = True
            self._refuses |= begins
            self._some_missing |= begins or piece["marker"] == NO_ANSWER
            instead = DO_NOT_SAY.capitalize() if begins else DO_NOT_SAY
            return instead if piece["marker"] == NO_ANSWER else piece["marker"]
        if piece["citations"]:
            near = (self.text[-_LONGEST_NAME:] + before[-_LONGEST_NAME:])[-_LONGEST_NAME:]
            name = None if piece["space"] or not _INDEX.fullmatch(piece["citations"]) else _NAME.search(near)
            if name and self._stays(name, piece["citations"]):
                return piece["citations"]
            kept = _PARTS.sub(partial(self._cited, name["name"] if name else ""), piece["citations"])
            # What is left out must not join its neighbours to what would have been left out too.
            joins = re.match(r"[^\s.,;!?)。，、；！？）]", piece.string[piece.end() :][:1])
            return piece["space"] + kept if kept else " " if joins else ""
        for address in (piece["target"], piece["address"]):
            if address and address.strip("<>") not in self._prompt.text:
                return "](…" if piece["target"] else "…"
        return piece[0]

    def _stays(self, name: re.Match, brackets: str) -> bool:
        """Whether numbers right behind a name stay as they are: where all name passages, which makes them citations,
        and where they are an index. That is what has a 0 or a colon, or names no passage behind a name that only
        programs have; behind a name that is indexed anywhere, no number cites."""
        numbers = [number for listed, _ in _PARTS.findall(brackets) for number in self._numbers(listed)]
        passages = all(map(self._is_passage, numbers))
        of_code = name["more"] or _OF_CODE.search(name["name"])
        if ":" in brackets or 0 in numbers or (of_code and not passages):
            self._indexed.add(name["name"])
        elif passages:
            self._named += ((name["name"], number) for number in numbers)
        return passages or name["name"] in self._indexed

    def _cited(self, name: str, bracket: re.Match) -> str:
        """The citations of one bracket as they are to be; as it is, a bracket of nothing but years, an interval (a list
        with a 0) or a fraction of what are not two passages."""
        listed, remark = bracket.groups()
        numbers = list(self._numbers(listed))
        if not remark and not re.search(r"[^\W\d_]", listed.replace(" to ", "-")):
            years = all(map(self._is_year, re.findall(r"\d+", listed)))
            interval = len(numbers) > 1 and 0 in numbers
            fraction = "/" in listed and not all(map(self._is_passage, numbers))
            if years or interval or fraction:
                return bracket[0]
        if re.match(r":\d", remark):
            # 【4:0†source】 names a file of another list than ours.
            numbers = [0]
        for further in _FURTHER.finditer(remark):
            if further["item"] and not self._is_year(further["item"].strip()):
                numbers += self._numbers(further["item"])
        kept = [number for number in numbers if self._is_passage(number)]
        self._named += ((name, number) for number in kept)
        self.citations_dropped += len(numbers) - len(kept)
        return "".join(f"[{number}]" for number in kept)

    def _is_passage(self, number: int) -> bool:
        return 1 <= number <= len(self._prompt.passages)

    def _is_year(self, digits: str) -> bool:
        return len(digits) == 4 and 1000 <= int(digits) < 3000 and not self._is_passage(int(digits))

    def _numbers(self, listed: str) -> Iterator[int]:
        """The numbers of a list, those of a range each; all that a range has beyond the passages are one."""
        for first, last in re.findall(rf"(\d+)(?:\s*{_TO}\s*(\d+))?", listed):
            low, high = sorted((int(first), int(last or first)))
            yield from range(low, max(low, min(high, len(self._prompt.passages) + 1)) + 1)
