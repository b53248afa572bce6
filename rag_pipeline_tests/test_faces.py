"""What the catalog says of the assets agrees with the database and with the code."""

from rag_pipeline.assets import ASSETS
from rag_pipeline.assets.faces import TABLES
from rag_pipeline.core.parsing import PARSER_VERSION
from rag_pipeline_tests.test_dagster import metadata


def test_every_asset_tells_its_table_as_it_is(pipeline):
    for asset in ASSETS:
        (spec,) = asset.specs
        schema, table = spec.metadata["dagster/column_schema"], spec.metadata["dagster/table_name"]
        found = dict(
            pipeline.rows(
                """SELECT column_name, data_type FROM information_schema.columns
                   WHERE table_schema || '.' || table_name = %(table)s""",
                table=table,
            )
        )
        told = {column.name: column.type for column in schema.columns}
        assert told == {name: found.get(name) for name in told}
        assert all(column.description for column in schema.columns)


def test_every_asset_has_an_owner_a_version_and_a_description():
    assert [asset.key.to_user_string() for asset in ASSETS] == list(TABLES)
    for asset in ASSETS:
        (spec,) = asset.specs
        assert spec.owners == ["team:rag_pipeline"]
        assert spec.description
        assert spec.code_version
    assert ASSETS[1].specs_by_key[ASSETS[1].key].code_version == str(PARSER_VERSION)


def test_samples_have_places_and_no_text(rag, handbook, parsing_in_process):
    (handbook / "broken.pdf").write_bytes(b"%PDF-1.7 nothing of the kind")
    rag.done("ingest", handbook)
    told = metadata(rag, "handbook")
    assert [record.data for record in told["parsed_text"]["failures"].records] == [
        {"path": "broken.pdf", "stage": "parsed_text", "reason": "corrupt"}
    ]
    sample = [record.data for record in told["token_chunks"]["sample"].records]
    assert {each["path"] for each in sample} == {"passwords.md", "holidays.md", "travel.txt"}
    assert {tuple(each) for each in sample} == {("heading", "path", "span", "tokens")}
    assert {each["heading"] for each in sample} == {"Passwords", "Holidays", ""}
    rag.done("ingest", "handbook")
    assert "sample" not in metadata(rag, "handbook")["token_chunks"]
