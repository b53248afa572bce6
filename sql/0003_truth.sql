-- Who writes to a collection, what must not come back to it, and what its checks compare with.

-- The run that has a collection, or had it last. It lives as long as a session shares the run's advisory lock.
CREATE TABLE rag.claim (
    collection text PRIMARY KEY REFERENCES rag.collection ON DELETE CASCADE,
    run_id     text NOT NULL
);

-- Content that was forgotten: the collection takes it in no more, under whatever name.
CREATE TABLE rag.forgotten_content (
    collection   text NOT NULL REFERENCES rag.collection ON DELETE CASCADE,
    content_hash bytea NOT NULL,
    forgotten_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (collection, content_hash)
);

-- Texts that `rag forget` erased: a run that was under way may have stored or cached them since.
ALTER TABLE rag.garbage DROP CONSTRAINT garbage_kind_check;
ALTER TABLE rag.garbage ADD CHECK (kind IN ('parsed_text', 'chunking', 'embedding'));

-- Device and inode of a local source's folder when it was last listed: an empty mount point has others.
ALTER TABLE rag.collection ADD COLUMN source_identity text;

ALTER TABLE rag.document
    -- The bytes behind parse_key and published_chunk_key: of one document three versions can be about.
    ADD COLUMN parsed_content    bytea,
    ADD COLUMN published_content bytea,
    -- Whether the run before this one left it failed.
    ADD COLUMN failed_before     boolean NOT NULL DEFAULT false;

UPDATE rag.document
SET parsed_content = CASE WHEN parse_key = wanted_parse_key THEN content_hash END,
    published_content = CASE WHEN parse_key = wanted_parse_key AND published_chunk_key = chunk_key THEN content_hash END,
    failed_before = failure_stage IS NOT NULL;

-- Those whose state of failure no check has looked at yet.
CREATE INDEX document_unchecked ON rag.document (collection) WHERE failed_before <> (failure_stage IS NOT NULL);

CREATE FUNCTION rag.note_content() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.parse_key IS DISTINCT FROM OLD.parse_key THEN
        NEW.parsed_content := NEW.content_hash;
    END IF;
    IF NEW.published_chunk_key IS DISTINCT FROM OLD.published_chunk_key THEN
        NEW.published_content := NEW.parsed_content;
    END IF;
    RETURN NEW;
END $$;

-- A pointer that moves to a key takes along the bytes that the key was made from.
CREATE TRIGGER document_content_moved BEFORE UPDATE OF parse_key, published_chunk_key ON rag.document FOR EACH ROW
    WHEN (NEW.parse_key IS DISTINCT FROM OLD.parse_key
          OR NEW.published_chunk_key IS DISTINCT FROM OLD.published_chunk_key)
    EXECUTE FUNCTION rag.note_content();
