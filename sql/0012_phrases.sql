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

-- In how many chunks of an index these words are. Chinese, Japanese and Korean are indexed by pairs of characters: for a question of
-- one character the pairs that have it count as its words, the hundred that stand in most chunks.
CREATE OR REPLACE FUNCTION rag.term_counts(index_id bigint, terms text[]) RETURNS TABLE (lexeme text, chunks bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT (rag.owns_data() OR index_id = ANY (rag.allowed_indexes())) THEN
        RETURN;
    END IF;
    IF cardinality($2) = 1 AND char_length($2[1]) = 1 AND rag.has_cjk($2[1]) THEN
        RETURN QUERY SELECT t.term, t.chunks FROM rag.index_term t WHERE t.index_id = $1 AND strpos(t.term, $2[1]) > 0
                     ORDER BY t.chunks DESC, t.term LIMIT 100;
    ELSE
        RETURN QUERY SELECT t.term, t.chunks FROM rag.index_term t WHERE t.index_id = $1 AND t.term = ANY ($2);
    END IF;
END $$;
