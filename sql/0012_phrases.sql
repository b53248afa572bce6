-- A phrase may begin or end inside an identifier: "server.port" stands in spring.server.port, "so.5 when" in libfoo.so.5 when.

-- The query that finds a phrase: its words in this order, next to each other; where all of them are stop words its identifiers;
-- empty where it has none. A row that it finds says the phrase if rag.says_identifiers of the row does.
CREATE OR REPLACE FUNCTION rag.phrase_query(text_search regconfig, input text) RETURNS tsquery
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN numnode(words) > 0 THEN words ELSE (
        SELECT string_agg(rag.term_query(identifier)::text, ' & ')::tsquery
        FROM unnest(rag.identifiers(rag.spaced(input))) AS identifier) END
    FROM phraseto_tsquery(text_search, rag.words(rag.spaced(input))) AS words
$$;

-- Whether each of the identifiers is one of a text's, or a part of one that its letters and digits do not go on from. The words of
-- such a part are words of the text too, also where they stand apart (wal level): what was typed as one must be one.
CREATE FUNCTION rag.says_identifiers(terms tsvector, identifiers text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 1000 SET search_path = pg_catalog, pg_temp AS $$
    SELECT bool_and(terms @@ rag.term_query(identifier) OR EXISTS (
        SELECT FROM unnest(tsvector_to_array(terms)) AS term
        WHERE strpos(term, identifier) > 0
              AND term ~ ('(^|[^[:alnum:]])' || regexp_replace(identifier, '[.+]', '\\\&', 'g') || '($|[^[:alnum:]])')))
    FROM unnest(identifiers) AS identifier
$$;
