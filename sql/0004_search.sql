-- What a search finds beside plain words: identifiers as they are typed.

-- The form of the terms that an index was filled with; rag.terms makes the newest. An index in an older form is built anew.
ALTER TABLE rag.vector_index ADD COLUMN terms_form integer NOT NULL DEFAULT 1;

-- What punctuation joins to one: wal_level, ORA-01555, v1.2.3, libpq.so.5, std::vector, C++; each once, in small letters.
CREATE FUNCTION rag.identifiers(spaced text) RETURNS text[] LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ARRAY(
        SELECT DISTINCT lower(found[1])
        FROM regexp_matches(spaced, '\w+(?:(?:[._-]|::)\w+)+|\w+(?:\+\+|#)', 'g') AS found
        -- A lexeme has room for 2,046 bytes.
        WHERE char_length(found[1]) <= 100);

-- A text as PostgreSQL's parser gets to see it: words alone. It would take some identifiers apart and others not, and a
-- path or a tag for one word.
CREATE FUNCTION rag.words(spaced text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN translate(spaced, '._-/\:=<>@&+#', '             ');

-- The searchable form of a text, and of a question: its words as the configuration writes them, and its identifiers.
CREATE OR REPLACE FUNCTION rag.terms(text_search regconfig, input text) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT to_tsvector(text_search, rag.words(spaced)) || array_to_tsvector(rag.identifiers(spaced))
    FROM rag.spaced(input) AS spaced
$$;

-- The query that finds a phrase: its words in this order, next to each other, and its identifiers as they are; empty
-- where all of them are stop words.
CREATE FUNCTION rag.phrase_query(text_search regconfig, input text) RETURNS tsquery
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT string_agg(part::text, ' & ')::tsquery
    FROM (SELECT phraseto_tsquery(text_search, rag.words(rag.spaced(input))) AS part
          UNION ALL
          SELECT rag.term_query(identifier) FROM unnest(rag.identifiers(rag.spaced(input))) AS identifier) AS parts
    WHERE numnode(part) > 0
$$;

-- Whether a document's metadata says so: `=` takes a regular expression and looks at each item of a list; `>=` and `<=`
-- compare numbers as numbers and anything else, such as dates, as text, as far as the operand goes (2024-01 is all of January).
CREATE FUNCTION rag.says(value jsonb, operator text, operand text) RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT coalesce(bool_or(CASE
        WHEN operator = '=' THEN item ~* operand
        WHEN item ~ '^-?\d+(\.\d+)?$' AND operand ~ '^-?\d+(\.\d+)?$' THEN
            CASE operator WHEN '>=' THEN item::numeric >= operand::numeric ELSE item::numeric <= operand::numeric END
        WHEN operator = '>=' THEN left(item, length(operand)) COLLATE "C" >= operand
        ELSE left(item, length(operand)) COLLATE "C" <= operand END), false)
    FROM jsonb_array_elements_text(
        CASE jsonb_typeof(value) WHEN 'array' THEN value ELSE jsonb_build_array(value) END) AS item
$$;

-- As it was, with its values as one constant: a function with an ARRAY[] in it is not inlined, and planning it anew for
-- each chunk and word was most of a search's time.
CREATE OR REPLACE FUNCTION rag.frequency(terms tsvector, query tsquery) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN width_bucket(ts_rank('{1,1,1,1}'::real[], terms, query)::float8,
        '{0.60792, 0.75990, 0.82745, 0.86544, 0.88976, 0.90665, 0.91905, 0.92855, 0.93606, 0.94214, 0.94716, 0.95138,
          0.95498, 0.95808, 0.96078, 0.96316, 0.96526, 0.96714, 0.96882, 0.97034, 0.97172, 0.97298, 0.97412,
          0.97518}'::float8[]);
