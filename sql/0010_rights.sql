-- What a key may read stands in its row: a policy asks for it once for every table of a query, and looking it up through the grants
-- cost a vector search a seventh of its time. The grants stay what is true; triggers keep the rows with them.

ALTER TABLE rag.api_key
    ADD COLUMN granted_collections text[] NOT NULL DEFAULT '{}',
    ADD COLUMN granted_indexes bigint[] NOT NULL DEFAULT '{}';     -- every index of these collections

CREATE FUNCTION rag.collect_rights(keys text[]) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE rag.api_key
    SET granted_collections = ARRAY(SELECT g.collection FROM rag.collection_grant g WHERE g.key = name),
        granted_indexes = ARRAY(SELECT v.id FROM rag.collection_grant g JOIN rag.vector_index v ON v.collection = g.collection
                                WHERE g.key = name)
    WHERE name = ANY (keys);
END;

-- Each change of rights first waits for any other to be committed, which its next statement then sees. The lock is a table's, for
-- every login may take an advisory one, and keep a right from being taken away.
CREATE TABLE rag.rights_lock ();

CREATE FUNCTION rag.note_grant() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE rag.rights_lock;
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM rag.collect_rights(ARRAY(SELECT name FROM rag.api_key));
    ELSE
        PERFORM rag.collect_rights(ARRAY[OLD.key, NEW.key]);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION rag.note_index() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE rag.rights_lock;
    PERFORM rag.collect_rights(ARRAY(SELECT key FROM rag.collection_grant WHERE collection = NEW.collection));
    RETURN NULL;
END $$;

-- At commit, so that nobody who waits for another's tables holds that lock.
CREATE CONSTRAINT TRIGGER grant_changed AFTER INSERT OR UPDATE OR DELETE ON rag.collection_grant
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION rag.note_grant();
CREATE TRIGGER grants_truncated AFTER TRUNCATE ON rag.collection_grant EXECUTE FUNCTION rag.note_grant();
-- The number of an index that is gone is never given again, and may stay.
CREATE CONSTRAINT TRIGGER index_made AFTER INSERT ON rag.vector_index
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION rag.note_index();

SELECT rag.collect_rights(ARRAY(SELECT name FROM rag.api_key));

CREATE OR REPLACE FUNCTION rag.allowed_collections() RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN coalesce((
        SELECT granted_collections FROM rag.api_key
        WHERE secret_hash = sha256(convert_to(current_setting('rag.api_key', true), 'UTF8'))
              AND revoked_at IS NULL AND (expires_at > statement_timestamp()) IS NOT FALSE), '{}');
END $$;

CREATE OR REPLACE FUNCTION rag.allowed_indexes() RETURNS bigint[]
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN coalesce((
        SELECT granted_indexes FROM rag.api_key
        WHERE secret_hash = sha256(convert_to(current_setting('rag.api_key', true), 'UTF8'))
              AND revoked_at IS NULL AND (expires_at > statement_timestamp()) IS NOT FALSE), '{}');
END $$;

REVOKE ALL ON FUNCTION rag.collect_rights, rag.note_grant, rag.note_index, rag.note_garbage, rag.note_content, rag.drop_questions
    FROM PUBLIC;

-- The pipeline makes indexes.
SELECT rag.grant_pipeline_role();
