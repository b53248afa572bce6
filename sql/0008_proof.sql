-- Indexes that were filled before 0002_text_search.sql have no counted words, without which no word of theirs is found,
-- and their Chinese, Japanese and Korean is not yet cut into words.

CREATE TEMPORARY TABLE uncounted ON COMMIT DROP AS
    SELECT id, text_search FROM rag.vector_index v
    WHERE rows > 0 AND NOT EXISTS (SELECT FROM rag.index_term t WHERE t.index_id = v.id);

UPDATE rag.indexed_chunk i SET terms = rag.terms(u.text_search, i.input)
FROM uncounted u WHERE i.index_id = u.id AND rag.has_cjk(i.input);

INSERT INTO rag.index_term (index_id, term, chunks)
    SELECT i.index_id, lexeme, count(*) FROM rag.indexed_chunk i JOIN uncounted u ON u.id = i.index_id, unnest(i.terms)
    GROUP BY i.index_id, lexeme;

UPDATE rag.vector_index v
SET words = (SELECT coalesce(sum(length(i.terms)), 0) FROM rag.indexed_chunk i WHERE i.index_id = v.id)
FROM uncounted u WHERE v.id = u.id;
