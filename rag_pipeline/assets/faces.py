"""What the catalog says of the assets beside what they do: whose they are, which code made them, and their tables."""

from dagster import AssetsDefinition, AssetSpec, TableColumn, TableSchema

from rag_pipeline.core.chunking import CHUNKER_VERSION
from rag_pipeline.core.parsing import PARSER_VERSION

OWNER = "team:rag_pipeline"

# Another version: what the asset made before is computed anew. The others compute nothing that a version could change.
CODE_VERSIONS = {"parsed_text": str(PARSER_VERSION), "token_chunks": str(CHUNKER_VERSION)}

# The table that each asset writes, and its columns: (name, type, what it holds).
TABLES = {
    "raw_files": ("document", [
        ("collection", "text", "the partition"),
        ("path", "text", "of the file, from the source's root"),
        ("stamp", "text", "modification time in ns, or the ETag: told from another before anything is read"),
        ("size", "bigint", "bytes"),
        ("modified", "timestamp with time zone", "when the file was last written to"),
        ("content_hash", "bytea", "sha256 of the bytes"),
        ("media_type", "text", "by the content"),
        ("removed", "boolean", "gone from the source, and on its way out of the search"),
        ("failure_stage", "text", "where the newest version failed"),
        ("failure_reason", "text", "why it is not served"),
        ("published_chunk_key", "bytea", "what readers see"),
    ]),
    "parsed_text": ("parsed_text", [
        ("collection", "text", "the partition"),
        ("parse_key", "bytea", "hash of content, media type and parser"),
        ("text", "text", "normalised; null when there is none"),
        ("elements", "jsonb", "kind, span, page and level of each"),
        ("metadata", "jsonb", "the document's own: title, authors, dates"),
        ("failure_reason", "text", "why there is no text"),
    ]),
    "token_chunks": ("token_chunk", [
        ("collection", "text", "the partition"),
        ("chunk_key", "bytea", "hash of the parse key and the chunk settings"),
        ("ordinal", "integer", "from 0, in the order of the text"),
        ("span_start", "integer", "code points into the parsed text"),
        ("span_end", "integer", "the first code point after the chunk"),
        ("tokens", "integer", "of cl100k"),
        ("first_page", "integer", "where there are pages"),
        ("headings", "text[]", "the heading path"),
        ("content_hash", "bytea", "sha256 of what is embedded"),
    ]),
    "cached_embeddings": ("indexed_chunk", [
        ("index_id", "bigint", "the vector index, a PostgreSQL partition each"),
        ("content_hash", "bytea", "sha256 of what is embedded; unique in the index"),
        ("input", "text", "what is embedded: heading path and span"),
        ("embedding", "vector", "of pgvector, as long as the model makes it"),
        ("terms", "tsvector", "what a text search finds it by"),
    ]),
    "pgvector_index": ("vector_index", [
        ("id", "bigint", "names the partition of indexed_chunk"),
        ("collection", "text", "the partition in Dagster's sense"),
        ("model", "text", "that made its vectors"),
        ("dimensions", "integer", "of each vector"),
        ("precision", "text", "of the graph: full or half"),
        ("rows", "bigint", "distinct texts"),
        ("dead_rows", "bigint", "deleted since the graph was built"),
        ("retired_at", "timestamp with time zone", "since when no reader is sent to it"),
    ]),
}  # fmt: skip


def with_face(asset: AssetsDefinition) -> AssetsDefinition:
    """The asset as the catalog is to show it."""
    return asset.map_asset_specs(_with_face)


def _with_face(spec: AssetSpec) -> AssetSpec:
    name = spec.key.to_user_string()
    table, columns = TABLES[name]
    schema = TableSchema([TableColumn(column, kind, description) for column, kind, description in columns])
    spec = spec.replace_attributes(code_version=CODE_VERSIONS.get(name, "1"))
    return spec.merge_attributes(
        owners=[OWNER], metadata={"dagster/table_name": f"rag.{table}", "dagster/column_schema": schema}
    )
