"""One text written in many formats is read as the same text from each of them."""

from pathlib import Path

import pypandoc
import pytest

from rag_pipeline.core.media_types import detect
from rag_pipeline.core.parsing import ParsedText, parse

SOURCE = """
# The river

The bridge[^1] was *built* in stone, “safely”, by 1,200 people.

## Its banks

- willows
- alders

1. measure
2. build

| Bank  | Trees |
|-------|-------|
| left  | 12    |
| right | 7     |

```
if flood:
    close()
```

### Upstream

Nothing is known of what lies upstream.

[^1]: There were two.
"""
EXPECTED = [
    ("title", 1, "The river"),
    ("paragraph", None, "The bridge was built in stone, “safely”, by 1,200 people."),
    ("title", 2, "Its banks"),
    ("list_item", None, "willows"),
    ("list_item", None, "alders"),
    ("list_item", None, "1. measure"),
    ("list_item", None, "2. build"),
    ("table", None, "Bank | Trees\nleft | 12\nright | 7"),
    ("code", None, "if flood:\n    close()"),
    ("title", 3, "Upstream"),
    ("paragraph", None, "Nothing is known of what lies upstream."),
    ("footnote", None, "There were two."),
]


def written(suffix: str, folder: Path) -> ParsedText:
    """The source in the format of that suffix, parsed."""
    path = folder / f"river.{suffix}"
    target = {"htm": "html", "md": "gfm"}.get(suffix, suffix)
    pypandoc.convert_text(SOURCE, target, "markdown", outputfile=str(path), extra_args=["--standalone", "--wrap=none"])
    content = path.read_bytes()
    return parse(content, detect(content[:65536], path.name, path), path.name)


@pytest.mark.parametrize("suffix", ["docx", "odt", "htm", "epub", "rst", "org"])
def test_structure_survives_in_every_format_that_has_it(suffix: str, tmp_path: Path) -> None:
    parsed = written(suffix, tmp_path)
    found = [(e.kind, e.level, parsed.text[e.start : e.end]) for e in parsed.elements]
    titles = [element for element in EXPECTED if element[0] == "title"]
    assert [element for element in found if element[0] == "title" and element[2] != "river"] == titles
    for kind in ("list_item", "table", "code")[: 2 if suffix == "odt" else 3]:  # its styles say nothing of code
        wanted = [text for k, _, text in EXPECTED if k == kind]
        assert [text for k, _, text in found if k == kind][: len(wanted)] == wanted, kind
    assert any(kind == "footnote" and "There were two." in text for kind, _, text in found)


@pytest.mark.parametrize("suffix", ["docx", "odt", "htm", "epub", "rst", "org", "rtf", "md"])
def test_no_word_is_lost_in_any_format(suffix: str, tmp_path: Path) -> None:
    parsed = written(suffix, tmp_path)
    for _, _, text in EXPECTED:
        for word in text.replace("bridge was", "bridge").replace("|", " ").split():
            assert word.strip("“”,") in parsed.text, word


def test_rich_text_loses_no_letter_after_a_quotation_mark_and_no_emoji() -> None:
    rich = rb"{\rtf1\ansi {\pard \u8220?quoted\u8221? and \u8220\'93quoted\u8221\'94, "
    rich += rb"\u8364 ?5 \u-10179?\u-8704?, {\*\footnote a note}\par}}"
    assert parse(rich, "application/rtf", "a.rtf").text.startswith("“quoted” and “quoted”, €5 😀,")


@pytest.mark.parametrize(
    ("rich", "text"),
    [
        (
            rb"{\rtf1\ansi\ansicpg1251 {\pard \'cf\'f0\'e8\'e2\'e5\'f2, \u1084\'ec\u1080\'e8\u1088\'f0 2\par}}",
            "Привет, мир 2",
        ),
        (rb"{\rtf1\ansi\ansicpg932 {\pard \'93\'fa\'96\'7b\'8c\'ea \'83A\par}}", "日本語 ア"),
        (
            rb"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0\fcharset0 A;}{\f1\fcharset204 B;}}"
            rb"{\pard\f1 \'cf\'f0\'e8{\f0 caf\'e9} \'e2\f0  caf\'e9\par}}",
            "Приcafé в café",
        ),
        (
            rb"{\rtf1\ansi {\pard Sub \u8212- \u26085 ?\u26412 ? \u55357 ?\u56832 ? \u55357 ?.\par}}",
            "Sub — 日本 😀 \ufffd.",
        ),
        (rb"{\rtf1\ansi{\pard {\uc2 \u26085\'93\'fa\u26412 ab}c\u8217'd {\uc0\u960 r}\par}}", "日本c’d πr"),
        (rb"{\rtf1\ansi\ansicpg1252 {\pard caf\'e9 \'93x\'94\par}}", "café “x”"),
    ],
)
def test_rich_text_is_read_in_the_character_set_of_its_fonts(rich: bytes, text: str) -> None:
    assert parse(rich, "application/rtf", "a.rtf").text == text
