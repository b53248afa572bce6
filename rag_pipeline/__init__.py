"""Documents in, a pgvector index that is always true, answers with exact citations out."""
