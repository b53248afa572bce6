-- Full-text search ranked by BM25, which PostgreSQL's own ts_rank is not: it knows neither how rare a word is nor how long a text.

-- What an index says of its words; moved by the transactions that add and delete its rows.
CREATE TABLE rag.index_term (
    index_id bigint NOT NULL REFERENCES rag.vector_index ON DELETE CASCADE,
    term     text COLLATE "C" NOT NULL,
    chunks   bigint NOT NULL,                   -- how many rows of the index have it
    PRIMARY KEY (index_id, term)
);

-- The different words of all rows, summed: divided by the rows, the length that BM25 takes for usual.
ALTER TABLE rag.vector_index ADD COLUMN words bigint NOT NULL DEFAULT 0;

CREATE FUNCTION rag.has_cjk(input text) RETURNS boolean LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN input ~ '[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]';

-- Chinese, Japanese and Korean are written without spaces: there, every two neighbouring characters make a word.
CREATE FUNCTION rag.spaced(input text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE WHEN NOT rag.has_cjk(input) THEN input ELSE (
        SELECT string_agg(CASE WHEN NOT rag.has_cjk(here) THEN here
                               WHEN rag.has_cjk(next) THEN ' ' || here || next || ' '
                               WHEN rag.has_cjk(previous) THEN ' '
                               ELSE ' ' || here || ' ' END, '' ORDER BY position)
        FROM (SELECT here, position, lead(here) OVER (ORDER BY position) AS next,
                     lag(here) OVER (ORDER BY position) AS previous
              FROM unnest(string_to_array(input, NULL)) WITH ORDINALITY AS characters (here, position)) AS neighbours) END
$$;

-- The searchable form of a text, and of a question.
CREATE FUNCTION rag.terms(text_search regconfig, input text) RETURNS tsvector LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN to_tsvector(text_search, rag.spaced(input));

-- The query that finds one term, whatever characters it has.
CREATE FUNCTION rag.term_query(term text) RETURNS tsquery LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ('''' || replace(replace(term, '\', '\\'), '''', '''''') || '''')::tsquery;

-- How often a single term stands in a text. ts_rank of one term, all weights being 1, is the sum of 1/j² for j = 1 to that number, over
-- pi²/6; the array has these values for 1, 2, 3 ... 24 (a little less, for ts_rank is of single precision).
CREATE FUNCTION rag.frequency(terms tsvector, query tsquery) RETURNS integer LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN width_bucket(ts_rank('{1,1,1,1}'::real[], terms, query)::float8, ARRAY[
        0.60792, 0.75990, 0.82745, 0.86544, 0.88976, 0.90665, 0.91905, 0.92855, 0.93606, 0.94214, 0.94716, 0.95138,
        0.95498, 0.95808, 0.96078, 0.96316, 0.96526, 0.96714, 0.96882, 0.97034, 0.97172, 0.97298, 0.97412, 0.97518]::float8[]);
