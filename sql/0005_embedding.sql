-- What embedding costs, whether a model is still the one it was, and what the steps of a run hand to each other.

-- The vector of a fixed text, as the provider gave it when the index was first embedded.
ALTER TABLE rag.vector_index ADD COLUMN probe vector;
-- Whether it still gave that when it was last asked.
ALTER TABLE rag.vector_index ADD COLUMN probe_holds boolean;

-- What was asked of providers over a collection's life; written with the vectors it was paid for.
CREATE TABLE rag.embedding_total (
    collection text PRIMARY KEY REFERENCES rag.collection ON DELETE CASCADE,
    cached     bigint NOT NULL DEFAULT 0,       -- vectors that the cache had
    requested  bigint NOT NULL DEFAULT 0,       -- vectors that a provider was asked for
    tokens     bigint NOT NULL DEFAULT 0,
    requests   bigint NOT NULL DEFAULT 0,
    retries    bigint NOT NULL DEFAULT 0,
    cost_usd   double precision NOT NULL DEFAULT 0,
    unpriced   bigint NOT NULL DEFAULT 0        -- tokens of models whose price is not known
);

-- Where vectors of a collection were asked, so that whoever erases a text finds all that the cache has of it.
CREATE TABLE rag.embedding_source (
    collection text NOT NULL REFERENCES rag.collection ON DELETE CASCADE,
    base_url   text NOT NULL,
    model      text NOT NULL,
    dimensions integer NOT NULL,
    PRIMARY KEY (collection, base_url, model, dimensions)
);

-- Outputs of a run's steps: keys and figures, never text or vectors.
CREATE TABLE rag.step_output (
    run_id     text NOT NULL,
    step_key   text NOT NULL,
    name       text NOT NULL,
    value      jsonb NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, step_key, name)
);
