"""HTML, and what becomes HTML: structure kept, boilerplate left out, nothing lost in silence."""

from itertools import pairwise

from rag_pipeline.core.parsing import Element, ParsedText, parse
from rag_pipeline.core.parsing.html import UNREAD
from rag_pipeline.core.parsing.markup import RAW
from rag_pipeline_tests.shared import shared


def html(body: str) -> ParsedText:
    return parse(f"<html><body>{body}</body></html>".encode(), "text/html", "page.html")


def shapes(parsed: ParsedText) -> list[tuple[str, str]]:
    return [(element.kind, parsed.text[element.start : element.end]) for element in parsed.elements]


def test_headings_paragraphs_lists_and_code_are_told_apart() -> None:
    parsed = html(
        "<h1>Guide</h1><p>One  <b>two</b>\nthree<br>four</p><h3>Steps</h3><ol start=3><li>first<li><p>second</p></ol>"
        "<ul><li>loose</ul><pre>  a\n    b</pre><dl><dt>term<dd>meaning</dl>"
    )
    assert shapes(parsed) == [
        ("title", "Guide"),
        ("paragraph", "One two three\nfour"),
        ("title", "Steps"),
        ("list_item", "3. first"),
        ("list_item", "4. second"),
        ("list_item", "loose"),
        ("code", "  a\n    b"),
        ("list_item", "term"),
        ("list_item", "meaning"),
    ]
    assert [element.level for element in parsed.elements if element.kind == "title"] == [1, 3]


def test_tables_keep_rows_columns_and_header() -> None:
    parsed = html(
        "<table><tr><th>Name</th><th colspan=2>Size</th></tr><tr><td rowspan=2>a</td><td>1</td><td>2</td></tr>"
        "<tr><td>3</td><td><p>4</p><p>5</p></td></tr></table>"
    )
    assert parsed.text == "Name | Size |\na | 1 | 2\n| 3 | 4 5"
    assert parsed.elements == (Element("table", 0, len(parsed.text), header_end=len("Name | Size |")),)


def test_a_table_that_lays_out_the_page_is_no_table() -> None:
    parsed = html("<table><tr><td><h2>News</h2><p>Words.</p></td></tr></table><table><tr><td>only</td></tr></table>")
    assert shapes(parsed) == [("title", "News"), ("paragraph", "Words."), ("paragraph", "only")]


def test_what_is_not_the_pages_text_is_left_out() -> None:
    parsed = html(
        "<nav>Home</nav><div class='navheader'>Prev</div><div id='cookie-banner'>We use cookies</div>"
        "<script>x()</script><style>p{}</style><div style='display: none'>unseen</div><p hidden>unseen</p>"
        "<p>Words <a class=headerlink>¶</a></p><div class='cookies-recipe'>Cookies need butter.</div>"
        "<footer>imprint</footer><article><footer>source</footer></article>"
    )
    assert parsed.text == "Words\n\nCookies need butter.\n\nsource"


def test_a_page_of_navigation_only_is_kept() -> None:
    assert html("<nav><a>Chapter one</a></nav>").text == "Chapter one"


def test_the_metadata_of_a_page() -> None:
    page = (
        "<html lang=de><head><title> A  title </title><meta name=author content=Ada>"
        "<meta property='article:published_time' content=2024-05-01></head><body>x</body></html>"
    )
    assert parse(page.encode(), "text/html", "a").metadata == {
        "title": "A title",
        "authors": ["Ada"],
        "created": "2024-05-01",
        "language": "de",
    }


def test_deep_nesting_loses_no_text() -> None:
    parsed = html("<div>" * 1500 + "bottom" + "</div>" * 1500 + "<p>after</p>")
    assert parsed.text.split() == ["bottom", "after"]


def test_every_page_of_a_manual_has_its_title_and_no_navigation() -> None:
    for path in sorted(shared("corpora", "postgresql-manual").glob("sql-c*.html")):
        parsed = parse(path.read_bytes(), "text/html", path.name)
        assert parsed.elements[0].kind == "title"
        assert "Home" not in parsed.text[:40]
        assert not parsed.text.rstrip().endswith("Next")


def test_markdown() -> None:
    parsed = parse(
        b"---\ntitle: Notes\nauthor: [Ada, Bo]\n---\n# One\n\ntext *it*\n\n```py\nx = 1\n```\n\n"
        b"| a | b |\n|---|---|\n| 1 | 2 |\n",
        "text/markdown",
        "a.md",
    )
    assert shapes(parsed) == [
        ("code", "title: Notes\nauthor: [Ada, Bo]"),
        ("title", "One"),
        ("paragraph", "text it"),
        ("code", "x = 1"),
        ("table", "a | b\n1 | 2"),
    ]
    assert parsed.metadata == {"title": "Notes", "authors": ["Ada", "Bo"]}


def test_a_section_about_navigation_is_no_navigation() -> None:
    parsed = html(
        "<div id=nav>Home</div><h2 id=navigation>Navigation</h2><p>Use it.</p>"
        "<section id=breadcrumbs><h2>Breadcrumbs</h2><p>Trail.</p></section>"
        "<div class=section id=cookie-notice><h2>Cookie notice</h2><p>Explained.</p></div>"
    )
    assert parsed.text.split("\n\n") == [
        "Navigation",
        "Use it.",
        "Breadcrumbs",
        "Trail.",
        "Cookie notice",
        "Explained.",
    ]


def test_what_was_no_web_page_has_no_navigation() -> None:
    text = "Site\n====\n\nNavigation\n----------\n\nHow to move.\n\n.. container:: navigation\n\n   Inside.\n"
    assert parse(text.encode(), "text/x-rst", "a.rst").text.split("\n\n")[1:] == [
        "Navigation",
        "How to move.",
        "Inside.",
    ]


def test_consent_notices_of_common_tools_are_left_out() -> None:
    parsed = html(
        "<div class=cookie-consent-root>a</div><div id=cookie-law-info-bar>b</div><div class=cmplz-cookiebanner>c</div>"
        "<div class=js-cookie-notice-2>d</div><div role=dialog aria-label='Cookies'>e</div>"
        "<div class='page cookie-notice-closed'><main>Words.</main></div><div class=cookie-bars-recipe>Butter.</div>"
    )
    assert parsed.text == "Words.\n\nButter."


def test_questions_on_buttons_and_their_closed_answers_are_read() -> None:
    parsed = html(
        "<h3><button aria-expanded=false>How?</button></h3><div hidden=until-found>So.</div>"
        "<button class=accordion>Why?</button><div role=region hidden>Thus.</div><h2>Plain <button>Copy</button></h2>"
    )
    assert parsed.text.split("\n\n") == ["How?", "So.", "Why?", "Thus.", "Plain"]


def test_markdown_that_names_a_tag_loses_nothing_after_it() -> None:
    for tag in sorted(UNREAD | RAW):
        text = f"Use <{tag}> here.\n\n<{tag}>\nthere\n\n## More\n\nLast.\n"
        parsed = parse(text.encode(), "text/markdown", "a.md")
        assert parsed.text.split("\n\n")[0] == f"Use <{tag}> here."
        assert parsed.text.endswith("More\n\nLast.") or tag in RAW
        assert parsed.text.endswith("Last.")
    page = b"<script>\nx()\n</script>\n\n<nav>\n\nHome\n\n</nav>\n\nWords.\n"
    assert parse(page, "text/markdown", "a.md").text == "Words."


def test_front_matter_names_its_authors_in_a_list_or_a_line() -> None:
    def metadata(front: str) -> dict[str, object]:
        return parse(f"---\n{front}\n---\nText\n".encode(), "text/markdown", "a.md").metadata

    assert metadata('title: "A: B"\nauthor:\n  - Ann\n  - Bo\ndate: 2020-01-02') == {
        "title": "A: B",
        "authors": ["Ann", "Bo"],
        "created": "2020-01-02",
    }
    assert metadata("author: Ann Lee\nlang: de") == {"authors": ["Ann Lee"], "language": "de"}
    assert metadata('author: "Knuth, Donald"') == {"authors": ["Knuth, Donald"]}


def test_front_matter_is_yaml() -> None:
    def metadata(front: str) -> dict[str, object]:
        parsed = parse(f"---\n{front}\n---\nText\n".encode(), "text/markdown", "a.md")
        assert parsed.text.endswith("Text")
        return parsed.metadata

    assert metadata(
        "Title: >-\n  Over two\n  lines # no comment\ntags: [a, 'b, c']\nversion: 1.10 # a comment\n"
        "draft: no\nempty: ~\ndate: 2024-01-31 12:30:00\nseo:\n  robots: noindex\n  Of:\n    day: 2024-01-31"
    ) == {
        "title": "Over two lines # no comment",
        "tags": ["a", "b, c"],
        "version": "1.10",
        "draft": "no",
        "created": "2024-01-31T12:30:00",
        "seo.robots": "noindex",
        "seo.of.day": "2024-01-31",
    }
    assert metadata("authors:\n- Ann\n- name: Bo") == {"authors": ["Ann"], "front_matter_left_out": 1}
    assert metadata("encoding_guessed: x\npath: elsewhere") == {"encoding_guessed": "x", "path": "elsewhere"}
    assert metadata('"a\\0b\\ud800": "\\0\\ud800x"') == {"ab\ufffd": "\ufffdx"}
    bomb = "a: &a [x, x]\n" + "\n".join(f"{new}: &{new} [*{old}, *{old}]" for old, new in pairwise("abcdefghijklmnopq"))
    for unread in (bomb, "a: [", "- a\n- b", "date: 2024-13-45", "a: !!python/name:os.system x", "a: " + "[" * 20_000,
                   "a: " + "x" * 70_000):  # fmt: skip
        assert metadata(unread) == {}
