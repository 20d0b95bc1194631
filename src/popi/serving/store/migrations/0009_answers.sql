-- answer_id is the gateway's own id, sent with the answer; upstream_id is the one that the upstream gave, which several
-- answers may have, or none ('').
ALTER TABLE answers ADD COLUMN upstream_id TEXT NOT NULL DEFAULT '';
UPDATE answers SET upstream_id = answer_id;
CREATE INDEX answers_by_upstream_id ON answers (tenant, user_id, upstream_id);
