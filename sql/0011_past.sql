-- What is remembered of what was: removals that were withheld, and texts that no document has any more.

-- A removal that wanted consent wants it until it is given or the file is back, whatever is added meanwhile.
ALTER TABLE rag.document ADD COLUMN withheld boolean NOT NULL DEFAULT false;

-- Hashes of texts that the collection's documents have let go of. Their embeddings may be in the cache for as long as it keeps them:
-- erasing one document, or purging the collection, has to find them there.
CREATE TABLE rag.past_text (
    collection   text NOT NULL REFERENCES rag.collection ON DELETE CASCADE,
    content_hash bytea NOT NULL,
    let_go_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (collection, content_hash)
);

-- A parsed text is held by what was cut from it, too: a document whose newest version is not whole yet is served in its older one, and
-- readers cut from the text of that.
CREATE INDEX chunking_parse ON rag.chunking (collection, parse_key);

SELECT rag.grant_pipeline_role();
