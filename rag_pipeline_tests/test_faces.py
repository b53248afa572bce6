"""What the catalog says of the assets agrees with the database and with the code."""

from dagster import AssetKey

from rag_pipeline.assets import ASSETS
from rag_pipeline.assets.faces import TABLES
from rag_pipeline.assets.quality import retrieval_quality
from rag_pipeline.core.parsing import PARSER_VERSION
from rag_pipeline_tests.test_dagster import STAGES, metadata, opened


def test_every_asset_tells_its_table_as_it_is(pipeline):
    for asset in ASSETS:
        (spec,) = asset.specs
        schema, table = spec.metadata["dagster/column_schema"], spec.metadata["dagster/table_name"]
        found = dict(
            pipeline.rows(
                """SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
                   WHERE attrelid = %(table)s::regclass AND attnum > 0""",
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


def test_retrieval_quality_has_an_owner_and_a_version():
    (spec,) = retrieval_quality.specs
    assert (spec.owners, spec.code_version) == (["team:rag_pipeline"], "1")


def test_a_data_version_is_another_only_where_the_result_is(rag, handbook, parsing_in_process):
    def versions() -> dict[str, str]:
        rag.done("ingest", "handbook")
        with opened(rag) as instance:
            return {
                stage: instance.get_latest_materialization_event(AssetKey(stage)).asset_materialization.tags[
                    "dagster/data_version"
                ]
                for stage in STAGES
            }

    def moved(now: dict[str, str]) -> list[str]:
        return [stage for stage in STAGES if now[stage] != before[stage]]

    rag.done("ingest", handbook)
    before = versions()
    assert len(set(before.values())) == len(STAGES)
    assert moved(versions()) == []
    text = (handbook / "travel.txt").read_text()
    (handbook / "travel.txt").write_text("Trains alone.\n")
    assert moved(versions()) == STAGES
    (handbook / "travel.txt").write_text(text)
    assert moved(versions()) == []
    rag.done("collection", "set", "handbook", "hnsw_m=8")
    assert moved(versions()) == ["pgvector_index"]
    rag.done("collection", "set", "handbook", "chunk_tokens=300")
    assert moved(versions()) == ["token_chunks", "cached_embeddings", "pgvector_index"]


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
