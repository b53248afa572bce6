-- Runs need not own what they write. The role rag_pipeline reads and writes every row; what a run does to tables themselves, the
-- making of an index's partition and its end, are functions with the owner's rights. Migrations stay the owner's.

CREATE FUNCTION rag.require_index(index_id bigint) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM rag.vector_index WHERE id = index_id) THEN
        RAISE EXCEPTION 'there is no index %', index_id;
    END IF;
END $$;

CREATE FUNCTION rag.create_partition(index_id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    partition text := 'indexed_chunk_' || index_id;
BEGIN
    PERFORM rag.require_index(index_id);
    -- Made apart and attached, which lets readers of other collections pass.
    EXECUTE format('CREATE TABLE rag.%I (LIKE rag.indexed_chunk INCLUDING ALL, CHECK (index_id = %s))', partition, index_id);
    EXECUTE format('ALTER TABLE rag.indexed_chunk ATTACH PARTITION rag.%I FOR VALUES IN (%s)', partition, index_id);
END $$;

-- The HNSW graph (cosine) and the text index over the rows that are there, as rag.vector_index says; nothing where they are built.
CREATE FUNCTION rag.build_graph(index_id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    partition text := 'indexed_chunk_' || index_id;
    vector_schema name := (SELECT nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
                           WHERE extname = 'vector');
    built rag.vector_index := (SELECT v FROM rag.vector_index v WHERE id = index_id);
    kind name := CASE built.precision WHEN 'half' THEN 'halfvec' ELSE 'vector' END;
BEGIN
    PERFORM rag.require_index(index_id);
    EXECUTE format(
        'CREATE INDEX IF NOT EXISTS %I ON rag.%I USING hnsw ((embedding::%I.%I(%s)) %I.%I) WITH (m = %s, ef_construction = %s)',
        partition || '_hnsw', partition, vector_schema, kind, built.dimensions, vector_schema, kind || '_cosine_ops',
        built.m, built.ef_construction);
    EXECUTE format('CREATE INDEX IF NOT EXISTS %I ON rag.%I USING gin (terms)', partition || '_terms', partition);
END $$;

-- A new index comes with many new rows elsewhere; until they are counted the planner takes them for none.
CREATE FUNCTION rag.analyze_index(index_id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('ANALYZE rag.%I, rag.document, rag.chunking, rag.token_chunk, rag.index_term', 'indexed_chunk_' || index_id);
END $$;

CREATE FUNCTION rag.drop_partition(index_id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('DROP TABLE IF EXISTS rag.%I', 'indexed_chunk_' || index_id);
END $$;

REVOKE ALL ON FUNCTION rag.require_index, rag.create_partition, rag.build_graph, rag.analyze_index, rag.drop_partition FROM PUBLIC;

-- Deleting a collection deletes its documents with the owner's rights, and so, from PostgreSQL 18 on, do the triggers of these run:
-- what the caller's search_path names must not come before what they mean.
ALTER FUNCTION rag.note_garbage SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION rag.note_content SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION rag.drop_questions SET search_path = pg_catalog, pg_temp;

-- Whoever makes an API key need not be the owner either, whose rights this takes.
ALTER FUNCTION rag.grant_query_role() SECURITY DEFINER;

-- Makes the pipeline role where that is missing and may be made, and grants it every row and Dagster's tables, also of tables that the
-- schema's owner is to make. It may create nothing anywhere: what others run must not find a thing of its making. Whether the role is
-- there.
CREATE FUNCTION rag.grant_pipeline_role() RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    by_owner text := 'ALTER DEFAULT PRIVILEGES FOR ROLE '
                     || (SELECT quote_ident(pg_get_userbyid(nspowner)) FROM pg_namespace WHERE nspname = 'rag');
    bound text;
BEGIN
    BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'rag_pipeline') THEN
            CREATE ROLE rag_pipeline NOLOGIN;
        END IF;
    EXCEPTION
        WHEN insufficient_privilege THEN
            RETURN false;
        WHEN unique_violation OR duplicate_object THEN
            -- Another database's migration made it at the same moment.
            NULL;
    END;
    GRANT USAGE ON SCHEMA rag, dagster TO rag_pipeline;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA rag, dagster TO rag_pipeline;
    GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA rag, dagster TO rag_pipeline;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA rag TO rag_pipeline;
    EXECUTE by_owner || ' IN SCHEMA rag, dagster GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO rag_pipeline';
    EXECUTE by_owner || ' IN SCHEMA rag, dagster GRANT USAGE, SELECT ON SEQUENCES TO rag_pipeline';
    EXECUTE by_owner || ' IN SCHEMA rag GRANT EXECUTE ON FUNCTIONS TO rag_pipeline';
    IF current_setting('server_version_num')::integer >= 170000 THEN
        -- VACUUM and ANALYZE; before PostgreSQL 17 they are the owner's alone, and left to autovacuum.
        EXECUTE 'GRANT MAINTAIN ON ALL TABLES IN SCHEMA rag, dagster TO rag_pipeline';
        EXECUTE by_owner || ' IN SCHEMA rag, dagster GRANT MAINTAIN ON TABLES TO rag_pipeline';
    END IF;
    REVOKE ALL ON rag.migration FROM rag_pipeline;
    GRANT SELECT ON rag.migration TO rag_pipeline;
    REVOKE EXECUTE ON FUNCTION rag.grant_pipeline_role FROM rag_pipeline;
    FOR bound IN SELECT relname FROM pg_class WHERE relnamespace = 'rag'::regnamespace AND relrowsecurity LOOP
        IF NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = format('rag.%I', bound)::regclass AND polname = 'pipeline') THEN
            EXECUTE format('CREATE POLICY pipeline ON rag.%I TO rag_pipeline USING (true)', bound);
        END IF;
    END LOOP;
    RETURN true;
END $$;

REVOKE ALL ON FUNCTION rag.grant_pipeline_role FROM PUBLIC;

SELECT rag.grant_pipeline_role();
