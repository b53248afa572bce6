"""Characters and encodings: what a person reads in a file is what is parsed, or it is said that it was guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_pipeline.core.media_types import UNKNOWN, detect
from rag_pipeline.core.parsing import ParsedText, ParseFailure, parse
from rag_pipeline.core.parsing.document import Block, Draft, assemble, table_block
from rag_pipeline.core.parsing.encodings import Decoded, decode
from rag_pipeline.core.parsing.normalising import normalise
from rag_pipeline_tests.shared import shared

ENCODED = {
    "fake-text-utf-16.txt": "Important points:",
    "fake-text-utf-16-le.txt": "Important points:",
    "fake-text-utf-16-be.txt": "Important points:",
    "fake-text-utf-32.txt": "Important points:",
    "fake-html-cp1252.html": "L'été était très chaud cette année",
    "umlauts-utf8.md": "äöüß",
    "umlauts-non-utf8.md": "äöüß",
    "factbook-utf-16.xml": "Trinidad & Tobado",
    "stanley-cups-utf-16.csv": "Maple Leafs | TOR | 13",
    "example-steelJIS-datasheet-utf-16.html": "日本語",
    "eml/fake-email-utf-16.eml": "Roses are red",
    "eml/fake-email-utf-16-le.eml": "Roses are red",
    "eml/fake-email-utf-16-be.eml": "Roses are red",
    "eml/mime-word-encoded-subject.eml": "From: sender@example.com",
    "language-docs/UDHR_first_article_all.txt": "人人生而自由",
}
LANGUAGES = {
    "cp1252": "Die Straße ist schön – “très” cher: 5 €, mañana.",
    "latin-1": "Blåbærgrød på øen",
    "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "cp1254": "İstanbul güzel bir şehir, çok kalabalık",
    "cp1251": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
    "koi8_r": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
    "shift_jis": "すべての人間は、生まれながらにして自由であり、テストです。",
    "euc_jp": "すべての人間は、生まれながらにして自由であり、テストです。",
    "gb18030": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。",
    "utf-16-le": "日本語の テキスト\n",
    "utf-16-be": "Все люди рождаются свободными, 1948.",
    "utf-32-le": "plain words",
    "utf-32-be": "日本語の テキスト\n",
}


def read(name: str) -> ParsedText:
    path = shared("formats", *name.split("/"))
    content = path.read_bytes()
    return parse(content, detect(content[:65536], path.name, path), path.name)


@pytest.mark.parametrize(("name", "words"), ENCODED.items())
def test_files_in_every_encoding_hold_the_words_a_person_reads(name: str, words: str) -> None:
    assert words in read(name).text


@pytest.mark.parametrize(("encoding", "text"), LANGUAGES.items())
def test_undeclared_encodings_are_told_from_the_language(encoding: str, text: str) -> None:
    assert decode(text.encode(encoding)).text == text


@pytest.mark.parametrize(
    "text",
    [
        "Report ─────── total\nNumbers and words here.\n",
        "東京都は日本の首都です。人口は約千四百万人です。",
        "人人生而自由，在尊严和权利上一律平等。",
        "Plain words.",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_told_from_its_characters(text: str, encoding: str) -> None:
    content = text.encode(encoding)
    assert detect(content, "a.txt") == "text/plain"
    assert decode(content) == Decoded(text, encoding)


def test_numbers_in_binary_are_no_text() -> None:
    for content in (bytes(range(256)) * 20, b"".join(n.to_bytes(2, "little") for n in range(3000))):
        assert detect(content, "a.txt") == UNKNOWN


def test_xml_keeps_its_attributes_and_its_blocks() -> None:
    def pieces(xml: str) -> list[str]:
        parsed = parse(xml.encode(), "application/xml", "a.xml")
        return [parsed.text[element.start : element.end] for element in parsed.elements]

    assert pieces("<books><book id='1' title='Dune' author='Herbert'/><book title='Emma'/></books>") == [
        "title: Dune\nauthor: Herbert",
        "title: Emma",
    ]
    assert pieces("<body><outline text='Food'><outline text='Milk'/></outline></body>") == ["text: Food", "text: Milk"]
    assert pieces("<doc>Intro<sec><p>alpha</p><p>be<b>ta</b></p></sec><p>gamma</p></doc>") == [
        "Intro",
        "alpha",
        "beta",
        "gamma",
    ]
    assert pieces("<a><t>See <x>one</x><y>two</y> H<sub>2</sub>O <note><para>Aside.</para></note> on.</t></a>") == [
        "See one two H2O",
        "Aside.",
        "on.",
    ]
    assert pieces("<r><price currency='EUR'>12</price><name>x</name></r>") == [
        "price: 12\nprice.currency: EUR\nname: x"
    ]


@pytest.mark.parametrize(
    ("rows", "headers"),
    [
        ("Product,2019,2020\nApples,10,20\n", ["Product | 2019 | 2020"]),
        ("Rank,1,2,3\nAnn,7,8,9\n", ["Rank | 1 | 2 | 3"]),
        ("Ann,1990,2001\nBo,1991,2002\n", [None]),
        ("Apples,10,20\nPears,30,40\n", [None]),
        ("Name,City\nAnn,Rome\n\nCid,Bonn\nDan,Lyon\n", ["Name | City"]),
        ("Name,Age\nAnn,30\n\nBo,31\n\nCity,Size\nRome,9\n", ["Name | Age", "City | Size"]),
        ("Name,City\nAnn,Rome\n\nName,City\nBo,Oslo\n", ["Name | City", "Name | City"]),
        ("Name,City,Team\nAnn,Rome,Red\n\nBo,,Blue\nCid,Bonn,\n", ["Name | City | Team"]),
        ("sep=;\na;b\n1,5;2,5\n", ["a | b"]),
    ],
)
def test_tables_and_their_headers(rows: str, headers: list[str | None]) -> None:
    parsed = parse(rows.encode(), "text/csv", "a.csv")
    assert [e.header_end and parsed.text[e.start : e.header_end] for e in parsed.elements] == headers


def test_an_entity_outside_the_file_is_left_out_and_counted() -> None:
    content = b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd"><!ENTITY y "and">]><a>words &x; &y; more</a>'
    parsed = parse(content, "application/xml", "a.xml")
    assert parsed.text == "words \ufffd and more"
    assert parsed.metadata == {"external_entities": 1}


def test_a_guess_says_that_it_is_one_and_utf8_does_not() -> None:
    assert parse("größer".encode("cp1252"), "text/plain", "a.txt").metadata == {
        "encoding": "cp1252",
        "encoding_guessed": True,
    }
    assert parse("größer".encode(), "text/plain", "a.txt").metadata == {}


def test_bytes_that_cannot_be_read_are_counted() -> None:
    content = (
        "Ein längerer Text, in dem alle Umlaute stehen: ä ö ü Ä Ö Ü ß und nochmals ä ö ü.".encode() + b"\xff\xfe x"
    )
    parsed = parse(content, "text/plain", "a.txt")
    assert parsed.metadata["undecodable_bytes"] == 2
    assert "längerer Text" in parsed.text


def test_declared_encodings_are_believed_unless_the_bytes_forbid_it() -> None:
    japanese = "<html><head><meta charset='Shift_JIS'></head><body><p>日本語</p></body></html>"
    assert "日本語" in parse(japanese.encode("shift_jis"), "text/html", "a.html").text
    wrong = b"<meta charset='ascii'><p>sch\xc3\xb6n</p>"
    assert "schön" in parse(wrong, "text/html", "a.html").text


def test_characters_are_as_a_reader_means_them() -> None:
    assert normalise("ﬁrst oﬃce") == "first office"
    assert normalise("hy\u00adphen\u00ad\nated") == "hyphenated"
    assert normalise("a\0b\x07c\ud800d") == "abc\ufffdd"
    assert normalise("e\u0301te\u0301") == "été"
    assert normalise("one\r\ntwo\rthree\u2028four") == "one\ntwo\nthree\nfour"
    assert normalise("a\u00a0b\u200bc\ufeff") == "a bc"


@given(st.text(alphabet=st.characters(codec=None)))
def test_normalising_twice_changes_nothing_and_leaves_what_postgres_takes(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert "\0" not in once
    once.encode()


BLOCKS = st.builds(
    Block,
    st.sampled_from(["title", "paragraph", "list_item", "code", "table"]),
    st.text(max_size=40),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(-3, 12),
)


@given(st.lists(BLOCKS, max_size=12))
def test_elements_are_sorted_disjoint_and_cover_all_but_white_space(blocks: list[Block]) -> None:
    try:
        parsed = assemble(Draft(blocks))
    except ParseFailure as failure:
        assert failure.reason == "empty"
        return
    end = 0
    for element in parsed.elements:
        assert not parsed.text[end : element.start].strip()
        assert end <= element.start < element.end
        assert parsed.text[element.start : element.end].strip()
        assert (element.level is not None) == (element.kind == "title")
        end = element.end
    assert end == len(parsed.text)
    assert ParsedText.from_json(parsed.text, parsed.to_json(), parsed.metadata) == parsed


@given(st.lists(st.lists(st.text(max_size=8), min_size=1, max_size=4), min_size=1, max_size=5), st.integers(0, 2))
def test_the_header_of_a_table_ends_where_its_rows_begin(rows: list[list[str]], header: int) -> None:
    block = table_block(rows, header)
    if block.text and block.header:
        parsed = assemble(Draft([Block("paragraph", "before"), block]))
        element = parsed.elements[1]
        assert parsed.text[element.start : element.header_end] == block.header


@pytest.mark.parametrize(
    "text", ["- item\n" * 100_000, "word" + " " * 2_000_000 + "word", "\n \n" * 300_000 + "word", "x\n" * 300_000]
)
def test_long_monotonous_texts_take_no_longer_than_others(text: str) -> None:
    parsed = parse(text.encode(), "text/plain", "a.txt")
    assert parsed.text.split() == text.split()
