-- From a file to a published chunk. Each table below is one stage's result, each row is done when it exists, and every key is a
-- hash of what the row was made from: a stage is "select the keys that have no row, make them".

-- Dagster keeps its own tables apart from ours, in the same database.
CREATE SCHEMA IF NOT EXISTS dagster;

CREATE TABLE rag.collection (
    name                text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9._-]{1,100}$'),
    source              text NOT NULL,
    settings            jsonb NOT NULL DEFAULT '{}',
    -- What every document's keys were last computed with; another value means that all of them are to be computed anew.
    parser_fingerprint  text,
    chunker_fingerprint text,
    active_index        bigint,
    created_at          timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION rag.parse_key(content_hash bytea, media_type text, parser_fingerprint text) RETURNS bytea
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN sha256(content_hash || convert_to(media_type || ' ' || parser_fingerprint, 'UTF8'));

CREATE FUNCTION rag.chunk_key(parse_key bytea, chunker_fingerprint text) RETURNS bytea
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN sha256(parse_key || convert_to(chunker_fingerprint, 'UTF8'));

-- The manifest. A document's keys form a chain, each made from the one before it:
-- content_hash -> wanted_parse_key -> parse_key (once that parse succeeded) -> chunk_key -> published_chunk_key (what readers see).
CREATE TABLE rag.document (
    collection          text NOT NULL REFERENCES rag.collection ON DELETE CASCADE,
    path                text NOT NULL,
    -- As seen in the source.
    stamp               text,                   -- modification time in ns, or the ETag; null: look again
    size                bigint NOT NULL,
    modified            timestamptz,
    content_hash        bytea,                  -- sha256 of the bytes; null while they could never be read
    media_type          text,
    removed             boolean NOT NULL DEFAULT false,
    -- As processed and as served.
    wanted_parse_key    bytea,
    parse_key           bytea,
    chunk_key           bytea,
    published_chunk_key bytea,
    -- Why the newest version is not served.
    failure_stage       text,
    failure_reason      text,
    failure_detail      text,
    pending             boolean GENERATED ALWAYS AS (
                            removed
                            OR wanted_parse_key IS DISTINCT FROM parse_key
                            OR chunk_key IS DISTINCT FROM published_chunk_key) STORED,
    PRIMARY KEY (collection, path)
);
-- Stages after raw_files read the pending documents alone, so that a run costs what changed and not what there is.
CREATE INDEX document_pending ON rag.document (collection) WHERE pending;
CREATE INDEX document_content ON rag.document (collection, content_hash);
CREATE INDEX document_wanted_parse ON rag.document (collection, wanted_parse_key);
CREATE INDEX document_parse ON rag.document (collection, parse_key);
CREATE INDEX document_chunk ON rag.document (collection, chunk_key);
CREATE INDEX document_published ON rag.document (collection, published_chunk_key);
CREATE INDEX document_failed ON rag.document (collection) WHERE failure_stage IS NOT NULL;

CREATE TABLE rag.parsed_text (
    collection     text NOT NULL REFERENCES rag.collection ON DELETE CASCADE,
    parse_key      bytea NOT NULL,
    text           text,
    elements       jsonb,
    metadata       jsonb,
    failure_reason text,                        -- why there is no text
    failure_detail text,
    PRIMARY KEY (collection, parse_key),
    CHECK ((text IS NULL) = (failure_reason IS NOT NULL))
);

CREATE TABLE rag.chunking (
    collection text NOT NULL REFERENCES rag.collection ON DELETE CASCADE,
    chunk_key  bytea NOT NULL,
    parse_key  bytea NOT NULL,
    chunks     integer NOT NULL,
    tokens     bigint NOT NULL,
    PRIMARY KEY (collection, chunk_key)
);

-- A chunk is the span [span_start, span_end) of its parsed text, in code points. What the model embeds is prefix || span || suffix,
-- and content_hash is the sha256 of that.
CREATE TABLE rag.token_chunk (
    collection   text NOT NULL,
    chunk_key    bytea NOT NULL,
    ordinal      integer NOT NULL,
    span_start   integer NOT NULL,
    span_end     integer NOT NULL,
    tokens       integer NOT NULL,
    first_page   integer,
    last_page    integer,
    headings     text[] NOT NULL,
    prefix       text NOT NULL,
    suffix       text NOT NULL,
    content_hash bytea NOT NULL,
    PRIMARY KEY (collection, chunk_key, ordinal),
    FOREIGN KEY (collection, chunk_key) REFERENCES rag.chunking ON DELETE CASCADE
);
CREATE INDEX token_chunk_content ON rag.token_chunk (collection, content_hash);

-- One row for everything that shapes an index. Neither active nor retired: it is being built.
CREATE TABLE rag.vector_index (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection      text NOT NULL REFERENCES rag.collection ON DELETE CASCADE,
    model           text NOT NULL,
    dimensions      integer NOT NULL,
    precision       text NOT NULL CHECK (precision IN ('full', 'half')),
    text_search     regconfig NOT NULL,
    m               integer NOT NULL,
    ef_construction integer NOT NULL,
    rows            bigint NOT NULL DEFAULT 0,
    dead_rows       bigint NOT NULL DEFAULT 0,  -- deleted since the graph was built
    created_at      timestamptz NOT NULL DEFAULT now(),
    retired_at      timestamptz
);
CREATE INDEX vector_index_collection ON rag.vector_index (collection);
ALTER TABLE rag.collection ADD FOREIGN KEY (active_index) REFERENCES rag.vector_index;

-- Unique text, embedded once for each index. One partition, and in it one HNSW and one GIN index, for each vector index.
CREATE TABLE rag.indexed_chunk (
    index_id     bigint NOT NULL,
    content_hash bytea NOT NULL,
    input        text NOT NULL,
    embedding    vector NOT NULL,
    terms        tsvector NOT NULL,
    PRIMARY KEY (index_id, content_hash)
) PARTITION BY LIST (index_id);

-- Keys that a document has let go of. Whoever collects them tests first that no other document holds them.
CREATE TABLE rag.garbage (
    collection text NOT NULL REFERENCES rag.collection ON DELETE CASCADE,
    kind       text NOT NULL CHECK (kind IN ('parsed_text', 'chunking')),
    key        bytea NOT NULL,
    PRIMARY KEY (collection, kind, key)
);

-- Written by the transaction that moves the pointer, so that no crash can lose one.
CREATE FUNCTION rag.note_garbage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO rag.garbage
    SELECT DISTINCT OLD.collection, kind, key
    FROM (VALUES ('parsed_text', OLD.wanted_parse_key), ('parsed_text', OLD.parse_key),
                 ('chunking', OLD.chunk_key), ('chunking', OLD.published_chunk_key)) AS held (kind, key)
    WHERE key IS NOT NULL AND EXISTS (SELECT FROM rag.collection WHERE name = OLD.collection)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER document_deleted AFTER DELETE ON rag.document FOR EACH ROW EXECUTE FUNCTION rag.note_garbage();
CREATE TRIGGER document_moved AFTER UPDATE ON rag.document FOR EACH ROW
    WHEN ((OLD.wanted_parse_key IS NOT NULL AND OLD.wanted_parse_key IS DISTINCT FROM NEW.wanted_parse_key)
          OR (OLD.parse_key IS NOT NULL AND OLD.parse_key IS DISTINCT FROM NEW.parse_key)
          OR (OLD.chunk_key IS NOT NULL AND OLD.chunk_key IS DISTINCT FROM NEW.chunk_key)
          OR (OLD.published_chunk_key IS NOT NULL
              AND OLD.published_chunk_key IS DISTINCT FROM NEW.published_chunk_key))
    EXECUTE FUNCTION rag.note_garbage();
