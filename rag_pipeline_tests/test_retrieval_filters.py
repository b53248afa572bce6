"""Filters of a search: what they let through, in every mode and together, and how a wrong one is refused."""

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_pipeline.core.errors import UsageError
from rag_pipeline.core.files import _filter as as_in_settings
from rag_pipeline.core.filters import _path_pattern, parse_filters

DOCUMENTS = {
    "guides/start.md": "---\ntitle: Getting started\nauthor: Donald E. Knuth\ndate: 2024-05-01\n---\n\nMarmots start.",
    "guides/deep/more.md": (
        "---\nauthors: [Ada Lovelace, Grace Hopper]\ndate: 2023-12-31\ntags:\n  - alpine\n  - furry\nstage: draft\n---"
        "\n\nMarmots go on."
    ),
    "guides/page.html": "<html lang=de><title>Murmeltiere</title><p>Marmots auf Deutsch.</p></html>",
    "notes.txt": "Marmots in plain text.",
}


@pytest.fixture
def library(pipeline):
    """Four documents that all speak of marmots, changed on the first four days of 2024."""
    for day, (path, text) in enumerate(DOCUMENTS.items()):
        file = pipeline.write(path, text)
        os.utime(file, (1704067200 + 86400 * day, 1704067200 + 86400 * day))
    pipeline.run()
    return pipeline


def passing(library, *filters: str, mode: str = "hybrid") -> set[str]:
    return {hit.path for hit in library.rag.search("docs", "marmots", 10, mode, filters)}


@pytest.mark.parametrize(
    ("filters", "paths"),
    [
        (["path=guides/**"], {"guides/start.md", "guides/deep/more.md", "guides/page.html"}),
        (["path=guides/*"], {"guides/start.md", "guides/page.html"}),
        (["path=*.md"], {"guides/start.md", "guides/deep/more.md"}),
        (["path=/notes.txt"], {"notes.txt"}),
        (["path=**/more.md"], {"guides/deep/more.md"}),
        (["path=nowhere/**"], set()),
        (["media_type=text/html"], {"guides/page.html"}),
        (["media_type=text/*"], set(DOCUMENTS)),
        (["modified>=2024-01-03"], {"guides/page.html", "notes.txt"}),
        (["modified<=2024-01-02"], {"guides/start.md", "guides/deep/more.md"}),
        (["modified=2024-01-02"], {"guides/deep/more.md"}),
        (["Modified >= 2024-01-04"], {"notes.txt"}),
        (["modified<=9999-12-31"], set(DOCUMENTS)),
        (["modified<=9999-12-31T23:59:59.999999"], set(DOCUMENTS)),
        (["modified=9999-12-31"], set()),
        (["modified>=0001-01-01"], set(DOCUMENTS)),
        (["modified>=2024-01-02T00:00:00", "modified<=2024-01-02T23:59:59+00:00"], {"guides/deep/more.md"}),
        (["author=*knuth*"], {"guides/start.md"}),
        (["author=Grace Hopper"], {"guides/deep/more.md"}),
        (["authors=Grace"], set()),
        (["title = Getting*"], {"guides/start.md"}),
        (["tags=furry"], {"guides/deep/more.md"}),
        (["stage=final"], set()),
        (["language=de"], {"guides/page.html"}),
        (["created>=2024"], {"guides/start.md"}),
        (["created<=2023-12"], {"guides/deep/more.md"}),
        (["date<=2023-12"], {"guides/deep/more.md"}),
        (["lang=de"], {"guides/page.html"}),
        (["Stage=Draft"], {"guides/deep/more.md"}),
        (["path=guides/**", "media_type=text/markdown", "author=*", "created<=2023-12-31"], {"guides/deep/more.md"}),
    ],
)
def test_a_filter_lets_through_what_it_says_in_every_mode(library, filters, paths):
    for mode in ("hybrid", "vector", "text"):
        assert passing(library, *filters, mode=mode) == paths


def test_a_field_has_any_name_and_a_value_any_form(pipeline):
    decomposed = "Cafe\u0301"
    for path, front in {
        "one.md": f"Reading  Time (min): 5\nauthor: {decomposed} Müller\nÉtat: bon",
        "two.md": "reading time (min): 12\nauthor: Cafeteria\nÉtat: bas",
        f"{decomposed}.md": "seo:\n  Date: 2020-01-01",
        "Café\u202f3.md": "date: 2024-01-01",
    }.items():
        pipeline.write(path, f"---\n{front}\n---\n\nMarmots.")
    pipeline.run()
    for wanted, paths in {
        "reading time (min)>=5": {"one.md", "two.md"},
        "Reading   TIME (min) <= 5": {"one.md"},
        f"author={decomposed}*": {"one.md"},
        "author=Café*": {"one.md"},
        "e\u0301tat=bon": {"one.md"},
        f"path={decomposed}.md": {f"{decomposed}.md"},
        "path=Café.md": {f"{decomposed}.md"},
        "path=Café\u202f3.md": {"Café\u202f3.md"},
        "seo.date>=2020": {f"{decomposed}.md"},
        "date>=2020": {"Café\u202f3.md"},
    }.items():
        assert passing(pipeline, wanted) == paths, wanted


def test_a_value_is_bound_and_never_read_as_sql_or_as_an_expression(library):
    for value in ("' OR true --", "%s", "%(query)s", ".*", "(", "[", "\\", "{0}", "a\nb"):
        assert passing(library, f"author={value}") == set()
        assert passing(library, f"path={value}/x") == set()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("marmot", "marmot"),
        ("=x", "=x"),
        ("path=", "FIELD=GLOB"),
        ("path>=a", "path=GLOB"),
        ("modified>=yesterday", "yesterday"),
        ("modified=2024-13-01", "2024-13-01"),
        ("modified=2026-W47", "2026-W47"),
        ("colour=red", "colour"),
        ("author=a\0b", "no filter"),
    ],
)
def test_a_wrong_filter_is_refused_by_name(library, wrong, named):
    with pytest.raises(UsageError) as error:
        passing(library, wrong)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_field_is_refused_with_those_there_are(library):
    with pytest.raises(
        UsageError, match=r"'colour'.*path, media_type, modified, authors, created, language, stage, tags, title"
    ):
        passing(library, "colour=red")
    with pytest.raises(UsageError, match="a list"):
        library.rag.search("docs", "marmots", filters="path=a")


def test_a_hits_path_is_the_first_that_passes(pipeline):
    for path in ("a/same.txt", "b/same.txt", "c/same.txt"):
        pipeline.write(path, "Everywhere alike.")
    pipeline.run()
    (hit,) = pipeline.rag.search("docs", "alike", filters=["path=b/**"])
    assert (hit.path, hit.also_in.paths) == ("b/same.txt", ("a/same.txt", "c/same.txt"))


def test_as_many_come_back_as_pass_however_few_those_are(pipeline):
    """The filter lets through what is farthest from the question, behind more rows than the graph looks at."""
    for number in range(300):
        pipeline.write(f"near/{number}.txt", f"marmots and marmots, number {number}")
    for number in range(7):
        pipeline.write(f"far/{number}.txt", f"something entirely different {number * 37} with few words {number}")
    pipeline.run()
    pipeline.rag._connection.execute("SET hnsw.max_scan_tuples = 20")
    for mode in ("vector", "hybrid"):
        hits = pipeline.rag.search("docs", "marmots and marmots", 5, mode, ["path=far/*"])
        assert len(hits) == 5
        assert all(hit.path.startswith("far/") for hit in hits)
        assert len(pipeline.rag.search("docs", "marmots and marmots", 10, mode, ["path=far/*"])) == 7


@given(
    glob=st.text("ab/*?[]!-.", min_size=1, max_size=8),
    path=st.text("ab/.-", min_size=1, max_size=8).filter(lambda path: path[0] != "/"),
)
def test_a_path_filter_means_what_the_settings_mean(glob, path):
    try:
        (wanted,) = parse_filters([f"path={glob}"])
        expected = bool(as_in_settings([wanted.value], [])(path))
    except (UsageError, ValueError, re.error):
        return
    pattern = _path_pattern(wanted.value.lstrip("/") if "/" in wanted.value else f"**/{wanted.value}")
    assert bool(re.fullmatch(pattern, path, re.DOTALL)) == expected
