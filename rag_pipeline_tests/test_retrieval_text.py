"""Searching by words: phrases, identifiers as they are typed, languages, and an index in an older form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_pipeline.core import ranking
from rag_pipeline.core.errors import ProviderError
from rag_pipeline.core.indexing import TERMS_FORM, active_index
from rag_pipeline.core.models import embedding_model
from rag_pipeline.core.retrieval import MODES, phrases

# Each beside a text that has the same pieces in another way.
IDENTIFIERS = {
    "wal_level": "the level of the wal",
    "ORA-01555": "01555 of ORA",
    "v1.2.3": "v1 of 3 and 2",
    "E_NOTFOUND": "notfound or e",
    "--allow-mass-removal": "the removal of mass that they allow",
    "libpq.so.5": "5 so libpq",
    "pg_catalog.pg_class": "a class of pg in a catalog of pg",
    "std::vector": "a vector in std",
    "C++": "the letter c",
    "node.js": "a js node",
    "40P01": "p01 of 40",
}


@pytest.fixture
def identifiers(pipeline):
    """Every identifier in a document of its own, and its pieces in another."""
    for number, (identifier, pieces) in enumerate(IDENTIFIERS.items()):
        pipeline.write(f"{number}-typed.txt", f"This page tells of {identifier}, and of nothing else at all.")
        pipeline.write(f"{number}-pieces.txt", f"This page tells of {pieces}, and of nothing else at all.")
    pipeline.run()
    return pipeline


def test_identifiers_are_found_as_they_are_typed(identifiers):
    for number, identifier in enumerate(IDENTIFIERS):
        for question in (identifier, f"what is ({identifier.upper()})?"):
            assert identifiers.search(question, mode="text")[0].path == f"{number}-typed.txt", question


def test_pieces_of_identifiers_paths_and_tags_are_words_too(pipeline):
    pipeline.write(
        "a.txt", "Set it in /etc/postgresql/pg_hba.conf, or as std::vector<Marmot> at https://example.org/zebra"
    )
    pipeline.run()
    for question in ("hba", "conf", "pg_hba.conf", "marmot", "zebra", "etc", "example.org"):
        assert pipeline.found(question) == {"a.txt"}, question


def test_a_phrase_in_quotes_must_stand_so_in_every_mode(pipeline):
    pipeline.write("so.txt", "Nobody knew that the exact words matter, said the marmot.")
    pipeline.write(
        "other.txt", "Words that are exact matter: exact, exact words. The words exact and matter, marmot marmot."
    )
    pipeline.write("none.txt", "A marmot.")
    pipeline.run()
    for mode in ("text", "vector", "hybrid"):
        assert [hit.path for hit in pipeline.search('marmot "exact words matter"', mode=mode)] == ["so.txt"], mode
        assert [hit.path for hit in pipeline.search('"exact words" “words exact”', mode=mode)] == ["other.txt"], mode
        assert not pipeline.search('"words nobody exact"', mode=mode), mode
    # A phrase of stop words says nothing, a single quotation mark is none.
    assert pipeline.found('marmot "the of"') == pipeline.found('marmot 5"') == {"so.txt", "other.txt", "none.txt"}


QUOTES = [*map(tuple, ('""', "“”", "„“", "„”", "«»", "»«", "‘’", "「」", "『』"))]
LATIN = st.lists(st.sampled_from(("a", "b5", "5", "é", "don’t")), min_size=1).map(" ".join)


@given(st.lists(st.tuples(st.sampled_from(QUOTES), LATIN, LATIN), max_size=4))
def test_every_pair_of_quotes_makes_a_phrase(parts):
    question = " ".join(f"{plain} {first}{quoted}{last}" for (first, last), quoted, plain in parts)
    assert phrases(question) == [quoted for _, quoted, _ in parts]


@given(st.sampled_from(QUOTES[:7]), LATIN, LATIN)
def test_a_quotation_mark_right_after_a_letter_or_digit_opens_none(pair, one, other):
    assert not phrases(f"{one}{pair[0]} {other}{pair[1]}")


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ('replace a 3" bolt on a 5" hinge', []),
        ('a 3" bolt "made of steel"', ["made of steel"]),
        ("the dogs’ bowl isn’t theirs", []),
        ("what is ‘the dogs’ in the dogs’ bowl", ["the dogs"]),
        ("‘don’t panic’, isn’t it", ["don’t panic"]),
        ("„eins“ und »zwei«, dann «trois»", ["eins", "zwei", "trois"]),
        ("什么是“重置密码”的「密码」", ["重置密码", "密码"]),
        ("‘重置’的‘密码’的", ["重置", "密码"]),
        # Of what was pasted the quotes are its own.
        ('{"level":"error","code":["ACME-2001"], "path": "/opt", name="x"}', []),
        ('Traceback:\n  File "/opt/acme/importer.py", line 211', []),
        ('what is "disk full"\n', ["disk full"]),
    ],
)
def test_what_is_a_phrase(question, found):
    assert phrases(question) == found


def test_a_phrase_is_found_though_all_its_words_are_common(pipeline):
    """More rows have its words than are ranked, and the rarest word of the question stands elsewhere."""
    for number in range(12):
        pipeline.write(f"{number}.txt", f"common words here, number{number}")
    pipeline.write("phrase.txt", "words that are common, and common words too, mind you")
    pipeline.write("rare.txt", "a rarity")
    pipeline.run()
    assert pipeline.found('rarity "and common words too, mind"') == {"phrase.txt"}


def test_an_identifier_in_quotes_is_that_identifier(identifiers):
    assert identifiers.found('"wal_level"') == {"0-typed.txt"}


def test_a_phrase_may_begin_and_end_inside_of_an_identifier(pipeline):
    for path, text in {
        "spring": "Set spring.server.port=8080 here.",
        "apart": "The server port is 8080, so 5 when that is taken; it is, wal level: example com.",
        "longer": "An observer.port and a server.ports, a foo_so.55 when example.community.",
        "reset": "Go to https://reset.example.com/now, or ask.",
        "library": "It loads libfoo.so.5 when asked, C++ and all.",
        "level": "Set wal_level to logical.",
        "it": "There it.is.",
    }.items():
        pipeline.write(f"{path}.txt", text)
    pipeline.run()
    for phrase, paths in {
        "server.port": {"spring"},
        "Server.Port=8080": {"spring"},
        "spring.server": {"spring"},
        "set spring.server.port": {"spring"},
        "server port": {"spring", "apart", "longer"},
        "example.com": {"reset"},
        "https://reset.example": {"reset"},
        "example.com/now": {"reset"},
        "so.5 when": {"library"},
        "so.5 when asked, C++": {"library"},
        "loads libfoo.so": {"library"},
        "so.5 asked": set(),
        "set wal_level to": {"level"},
        "it.is": {"it"},
    }.items():
        for mode in MODES:
            assert pipeline.found(f'"{phrase}"', mode) == {f"{path}.txt" for path in paths}, (phrase, mode)


def test_chinese_and_identifiers_in_one_text(pipeline):
    pipeline.change(text_search="simple")
    pipeline.write("a.txt", "黑豹队的防守只丢了308分，见ORA-01555错误。")
    pipeline.write("b.txt", "防守反击。")
    pipeline.run()
    assert pipeline.found("防守只丢") == {"a.txt", "b.txt"}
    assert pipeline.found('"防守只丢"') == {"a.txt"}
    assert pipeline.found("ORA-01555") == {"a.txt"}


@pytest.mark.parametrize("text_search", ["simple", "english"])
def test_one_chinese_japanese_or_korean_character_is_found_wherever_it_stands(pipeline, text_search):
    pipeline.change(text_search=text_search)
    for path, text in {
        "first": "犬が好き。",
        "last": "私の愛犬",
        "between": "小犬座",
        "alone": "A 犬!",
        "none": "猫です",
    }.items():
        pipeline.write(f"{path}.txt", text)
    pipeline.run()
    for question in ("犬", "犬？", " 犬 🦔"):
        assert pipeline.found(question) == {"first.txt", "last.txt", "between.txt", "alone.txt"}
        assert pipeline.found(question, "hybrid") >= {"first.txt", "last.txt", "between.txt", "alone.txt"}
    assert pipeline.found("愛犬") == {"last.txt"}
    assert pipeline.found("鳥") == set()


def test_a_question_without_words_is_searched_by_meaning(pipeline):
    pipeline.write("a.txt", "A hedgehog 🦔.")
    pipeline.run()
    assert pipeline.found("🦔") == set()
    assert pipeline.found("🦔", "hybrid") == pipeline.found("🦔", "vector") == {"a.txt"}


def test_a_question_is_read_as_documents_are(pipeline, server):
    pipeline.write("a.txt", "The Café is o\ufb03cial.")
    pipeline.write("b.txt", "Cafe or cafeteria.")
    pipeline.run()
    for question in ("Cafe\u0301", "Café", "o\ufb03cial", "offi\u00adcial", "“Cafe\u0301”"):
        assert pipeline.found(question) == {"a.txt"}, question
        assert pipeline.search(question).query == question
    assert "Cafe\u0301" not in server.embedded_texts()


def test_a_word_of_any_length_is_indexed(pipeline):
    pipeline.write("a.txt", "marmot " + "x_" * 3000 + " " + "y" * 3000 + " zebra")
    pipeline.run()
    assert pipeline.found("zebra") == pipeline.found("marmot") == {"a.txt"}


@pytest.mark.parametrize(
    ("question", "text_search", "known"),
    [
        ("how to", "english", True),
        ("wie", "german", False),
        ("how", "simple", True),
        ("黑豹队", "simple", False),
        ("黑豹队", "english", False),
        ("how", "my_own", True),
    ],
)
def test_a_model_knows_its_languages(question, text_search, known):
    assert embedding_model("local/all-MiniLM-L6-v2").understands(question, text_search) is known
    assert embedding_model("openai/text-embedding-3-small").understands(question, text_search)


def test_an_index_in_an_older_form_is_built_anew_with_the_vectors_it_has(identifiers, server):
    old = active_index(identifiers.connection, "docs")
    identifiers.connection.execute("UPDATE rag.vector_index SET terms_form = 1")
    identifiers.connection.execute("UPDATE rag.indexed_chunk SET terms = to_tsvector('english', 'old')")
    asked = len(server.requests)
    assert identifiers.run().published.switched
    new = active_index(identifiers.connection, "docs")
    assert (new.id > old.id, new.terms_form, len(server.requests)) == (True, TERMS_FORM, asked)
    assert identifiers.search("wal_level", mode="text")[0].path == "0-typed.txt"
    assert not identifiers.run().published.switched


def test_as_many_hits_as_there_are_come_back_though_the_rarest_word_stands_in_few(pipeline, monkeypatch):
    monkeypatch.setattr(ranking, "CANDIDATES", 3)
    for number in range(8):
        pipeline.write(f"{number}.txt", f"Every package has a number, this one has number{number}")
    pipeline.write("music.txt", "a xylophone")
    pipeline.run()
    packages = {f"{number}.txt" for number in range(8)}
    assert pipeline.found("xylophone package") == {"music.txt", *packages}
    filtered = pipeline.rag.search("docs", "xylophone package", 5, "text", ["path=[0-9].txt"])
    assert {hit.path for hit in filtered} < packages
    assert len(filtered) == 5


def test_a_version_is_found_with_and_without_its_v(pipeline):
    pipeline.write("with.txt", "It was mended in v4.15.26 at last, after a long time.")
    pipeline.write("without.txt", "It was mended in 7.18.29 at last, after a long time.")
    for number in range(20):
        pipeline.write(f"{number}.txt", f"Numbers are 4, 15, 26 and v4, or 7, 18, 29 and v7; and {number}.")
    pipeline.run()
    assert pipeline.search("4.15.26", mode="text")[0].path == "with.txt"
    assert pipeline.search("v7.18.29", mode="text")[0].path == "without.txt"
    assert pipeline.found('"v7.18.29"') == set()


@pytest.mark.parametrize("question", ["2.3.1", "v2.3.1"])
def test_a_version_outranks_the_pieces_of_its_other_spelling(pipeline, question):
    for number in range(6):
        pipeline.write(f"{number}.txt", f"Release 2.3.{number} mends what the one before it has broken.")
    pipeline.write("board.txt", "The board v2 takes 3.1 pF.")
    pipeline.run()
    assert pipeline.search(question, mode="text")[0].path == "1.txt"


def test_an_identifier_outranks_its_repeated_pieces(pipeline):
    pipeline.write("typed.txt", "Among many other things that this rather long page tells of there is v1.2.3 as well.")
    for number in range(4):
        pipeline.write(f"pieces{number}.txt", f"v1 2 3 v1 2 3 number{number}")
    for number in range(30):
        pipeline.write(f"other{number}.txt", f"Something else, of number{number}")
    pipeline.run()
    hits = pipeline.search("v1.2.3", mode="text")
    assert hits[0].path == "typed.txt"
    assert len(hits) == 5
    # Pieces that are asked for alone are words like any other.
    assert pipeline.search("v1 2 3", mode="text")[0].path != "typed.txt"


def test_a_question_longer_than_the_model_reads_is_searched_by_its_words(pipeline):
    pipeline.write("a.txt", "a marmot")
    pipeline.run()
    question = "marmot " * 7_000
    hits = pipeline.search(question)
    assert "shorten it" in hits.degraded
    assert [hit.path for hit in hits] == ["a.txt"]
    with pytest.raises(ProviderError, match="shorten it"):
        pipeline.search(question, mode="vector")
