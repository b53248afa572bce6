-- How far the runs are that are under way, for whoever polls them. A run's row goes when the run ends; one that a killed run
-- left behind says nothing, for Dagster's record of the run says first how it ended. A crash of the server may empty the table.
CREATE UNLOGGED TABLE rag.run_progress (
    run_id     text PRIMARY KEY,
    collection text NOT NULL,
    stage      text NOT NULL,
    done       bigint,                          -- null until the stage says how far it is
    total      bigint,
    unit       text NOT NULL,                   -- of done and total: files, documents, chunks
    at         timestamptz NOT NULL DEFAULT now()
);
