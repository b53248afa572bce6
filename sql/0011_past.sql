-- What is remembered of what was: removals that were withheld, and texts that no document has any more.

-- A removal that wanted consent wants it until it is given or the file is back, whatever is added meanwhile.
ALTER TABLE rag.document ADD COLUMN withheld boolean NOT NULL DEFAULT false;

-- Hashes of texts that a document has let go of. Their embeddings may be in the cache for as long as it keeps them: erasing the
-- document, or purging the collection, has to find them there.
CREATE TABLE rag.past_text (
    collection   text NOT NULL REFERENCES rag.collection ON DELETE CASCADE,
    path         text NOT NULL,
    content_hash bytea NOT NULL,
    let_go_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (collection, path, content_hash)
);

-- Of several documents that let go of a key at once, the first.
ALTER TABLE rag.garbage ADD COLUMN path text;

CREATE OR REPLACE FUNCTION rag.note_garbage() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO rag.garbage (collection, kind, key, path)
    SELECT DISTINCT OLD.collection, kind, key, OLD.path
    FROM (VALUES ('parsed_text', OLD.wanted_parse_key), ('parsed_text', OLD.parse_key),
                 ('chunking', OLD.chunk_key), ('chunking', OLD.published_chunk_key)) AS held (kind, key)
    WHERE key IS NOT NULL AND EXISTS (SELECT FROM rag.collection WHERE name = OLD.collection)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

-- A parsed text is held by what was cut from it, too: a document whose newest version is not whole yet is served in its older one, and
-- readers cut from the text of that.
CREATE INDEX chunking_parse ON rag.chunking (collection, parse_key);

SELECT rag.grant_pipeline_role();
