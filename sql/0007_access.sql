-- Who may read what. Readers have a login of their own, whose role rag_query sees the rows that the API key of its transaction is
-- granted, and no others, whatever SQL it runs. The owner of these tables is bound by no policy.

-- The secret itself is nowhere. A revoked key keeps its row: its name stays taken, and its queries stay attributed.
CREATE TABLE rag.api_key (
    name        text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9._-]{1,100}$'),
    secret_hash bytea NOT NULL UNIQUE,          -- sha256
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz,
    revoked_at  timestamptz
);

CREATE TABLE rag.collection_grant (
    key        text NOT NULL REFERENCES rag.api_key ON DELETE CASCADE,
    collection text NOT NULL REFERENCES rag.collection ON DELETE CASCADE,
    may_write  boolean NOT NULL DEFAULT false,
    PRIMARY KEY (key, collection)
);
CREATE INDEX collection_grant_collection ON rag.collection_grant (collection);

-- Every search and ask; written through rag.record_queries alone, kept for a set time.
CREATE TABLE rag.query_log (
    at          timestamptz NOT NULL,
    key         text,                           -- null: the owner, while access was open
    collections text[] NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('search', 'ask')),
    mode        text NOT NULL,
    k           integer NOT NULL,
    hits        integer NOT NULL,
    tokens      bigint NOT NULL,
    cost_usd    float8,
    seconds     float8 NOT NULL,
    answered    boolean,                        -- null for a search
    question    text                            -- null unless the setting log_questions of each collection is on
);
CREATE INDEX query_log_at ON rag.query_log (at);
CREATE INDEX query_log_collections ON rag.query_log USING gin (collections);

-- A collection's questions go with it.
CREATE FUNCTION rag.drop_questions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE rag.query_log SET question = NULL WHERE collections @> ARRAY[OLD.name] AND question IS NOT NULL;
    RETURN NULL;
END $$;

CREATE TRIGGER collection_deleted AFTER DELETE ON rag.collection FOR EACH ROW EXECUTE FUNCTION rag.drop_questions();

-- The functions below run with their owner's rights, so that the query role needs none on what they read. Their bodies name every
-- schema, and their search_path is pinned: nothing that a caller creates comes before it. They are plpgsql, which keeps its plans for
-- the session.

-- Whoever may write keys owns the data. The login is asked, for current_user is these functions' owner.
CREATE FUNCTION rag.owns_data() RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    RETURN has_table_privilege(session_user, 'rag.api_key', 'INSERT');

-- The caller is whose secret it knows: the key itself is bound for the transaction, and no name or hash stands for it.
CREATE FUNCTION rag.allowed_collections() RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN ARRAY(
        SELECT g.collection FROM rag.api_key k JOIN rag.collection_grant g ON g.key = k.name
        WHERE k.secret_hash = sha256(convert_to(current_setting('rag.api_key', true), 'UTF8'))
              AND k.revoked_at IS NULL AND (k.expires_at > now()) IS NOT FALSE);
END $$;

CREATE FUNCTION rag.allowed_indexes() RETURNS bigint[]
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN ARRAY(
        SELECT v.id FROM rag.api_key k
        JOIN rag.collection_grant g ON g.key = k.name JOIN rag.vector_index v ON v.collection = g.collection
        WHERE k.secret_hash = sha256(convert_to(current_setting('rag.api_key', true), 'UTF8'))
              AND k.revoked_at IS NULL AND (k.expires_at > now()) IS NOT FALSE);
END $$;

-- The rows of an index whose terms match. Under a policy `@@` would be no condition of the GIN index, for it is not leakproof: here
-- the grant is checked first, and one partition named.
CREATE FUNCTION rag.text_candidates(index_id bigint, query tsquery) RETURNS TABLE (content_hash bytea, terms tsvector)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF rag.owns_data() OR index_id = ANY (rag.allowed_indexes()) THEN
        RETURN QUERY EXECUTE
            format('SELECT content_hash, terms FROM rag.%I WHERE terms @@ $1', 'indexed_chunk_' || index_id) USING query;
    END IF;
END $$;

-- In how many chunks of an index these words are. The table itself is not granted: a condition on a word would reach it before a
-- policy did, and EXPLAIN tell whether the word is there.
CREATE FUNCTION rag.term_counts(index_id bigint, terms text[]) RETURNS TABLE (lexeme text, chunks bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF rag.owns_data() OR index_id = ANY (rag.allowed_indexes()) THEN
        RETURN QUERY SELECT t.term, t.chunks FROM rag.index_term t WHERE t.index_id = $1 AND t.term = ANY ($2);
    END IF;
END $$;

-- What a batch of queries was, from the one whose key is bound. That one may have been revoked in between, not long ago. The time is
-- the server's; an entry that no search can have made is left out.
CREATE FUNCTION rag.record_queries(entries jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    caller text := (
        SELECT name FROM rag.api_key
        WHERE secret_hash = sha256(convert_to(current_setting('rag.api_key', true), 'UTF8'))
              AND (least(revoked_at, expires_at) > now() - interval '1 minute') IS NOT FALSE);
BEGIN
    IF caller IS NULL AND NOT rag.owns_data() THEN
        RETURN;
    END IF;
    INSERT INTO rag.query_log
    SELECT clock_timestamp(), caller, e.collections, e.kind, e.mode, e.k, e.hits, e.tokens,
           e.cost_usd, e.seconds, e.answered,
           CASE WHEN (SELECT bool_and(coalesce(settings ->> 'log_questions' = 'true', false))
                      FROM rag.collection WHERE name = ANY (e.collections)) THEN e.question END
    FROM jsonb_to_recordset(entries) AS e (
        collections text[], kind text, mode text, k integer, hits integer, tokens bigint, cost_usd float8,
        seconds float8, answered boolean, question text)
    WHERE (caller IS NULL OR e.collections <@ ARRAY(SELECT collection FROM rag.collection_grant WHERE key = caller))
          AND cardinality(e.collections) BETWEEN 1 AND 1000
          AND e.kind IN ('search', 'ask') AND e.mode IN ('hybrid', 'vector', 'text')
          AND e.k BETWEEN 0 AND 1000 AND e.hits BETWEEN 0 AND 1000
          AND e.tokens BETWEEN 0 AND 100000000 AND coalesce(e.cost_usd, 0) BETWEEN 0 AND 10000
          AND e.seconds BETWEEN 0 AND 86400 AND coalesce(length(e.question), 0) <= 100000;
END $$;

REVOKE ALL ON FUNCTION rag.owns_data, rag.allowed_collections, rag.allowed_indexes, rag.text_candidates, rag.term_counts, rag.record_queries
    FROM PUBLIC;

-- A policy's list is made once for a query, for in its parentheses it depends on no row. To the planner an IS NOT NULL keeps nearly
-- every row: with `= ANY` it would expect hardly any of those that the query's own conditions select, and choose other joins for it.
ALTER TABLE rag.collection ENABLE ROW LEVEL SECURITY;
ALTER TABLE rag.document ENABLE ROW LEVEL SECURITY;
ALTER TABLE rag.parsed_text ENABLE ROW LEVEL SECURITY;
ALTER TABLE rag.chunking ENABLE ROW LEVEL SECURITY;
ALTER TABLE rag.token_chunk ENABLE ROW LEVEL SECURITY;
ALTER TABLE rag.vector_index ENABLE ROW LEVEL SECURITY;
ALTER TABLE rag.indexed_chunk ENABLE ROW LEVEL SECURITY;

CREATE POLICY granted ON rag.collection FOR SELECT USING (array_position((SELECT rag.allowed_collections()), name) IS NOT NULL);
CREATE POLICY granted ON rag.document FOR SELECT USING (array_position((SELECT rag.allowed_collections()), collection) IS NOT NULL);
CREATE POLICY granted ON rag.parsed_text FOR SELECT USING (array_position((SELECT rag.allowed_collections()), collection) IS NOT NULL);
CREATE POLICY granted ON rag.chunking FOR SELECT USING (array_position((SELECT rag.allowed_collections()), collection) IS NOT NULL);
CREATE POLICY granted ON rag.token_chunk FOR SELECT USING (array_position((SELECT rag.allowed_collections()), collection) IS NOT NULL);
CREATE POLICY granted ON rag.vector_index FOR SELECT USING (array_position((SELECT rag.allowed_collections()), collection) IS NOT NULL);
CREATE POLICY granted ON rag.indexed_chunk FOR SELECT USING (array_position((SELECT rag.allowed_indexes()), index_id) IS NOT NULL);

-- Makes the query role, which all databases of a server share, where that is missing and may be made, and grants it what it may
-- read in this one: parents, never a partition, and of a collection not its source. Whether the role is there.
CREATE FUNCTION rag.grant_query_role() RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'rag_query') THEN
        CREATE ROLE rag_query NOLOGIN;
    END IF;
    GRANT USAGE ON SCHEMA rag TO rag_query;
    GRANT SELECT (name, active_index) ON rag.collection TO rag_query;
    GRANT SELECT ON rag.document, rag.parsed_text, rag.chunking, rag.token_chunk, rag.vector_index, rag.indexed_chunk,
                    rag.migration TO rag_query;
    GRANT EXECUTE ON FUNCTION rag.owns_data, rag.allowed_collections, rag.allowed_indexes, rag.text_candidates,
                              rag.term_counts, rag.record_queries TO rag_query;
    RETURN true;
EXCEPTION
    WHEN insufficient_privilege THEN
        RETURN false;
    WHEN unique_violation OR duplicate_object THEN
        -- Another database's migration made it at the same moment.
        RETURN rag.grant_query_role();
END $$;

REVOKE ALL ON FUNCTION rag.grant_query_role FROM PUBLIC;

-- PostgreSQL lets every login store large objects, which fill the disk. Only who owns the server can take that back.
DO $$
BEGIN
    REVOKE EXECUTE ON FUNCTION pg_catalog.lo_creat(integer), pg_catalog.lo_create(oid), pg_catalog.lo_from_bytea(oid, bytea),
                               pg_catalog.lo_import(text), pg_catalog.lo_import(text, oid) FROM PUBLIC;
EXCEPTION
    WHEN insufficient_privilege THEN
        NULL;
END $$;

SELECT rag.grant_query_role();
