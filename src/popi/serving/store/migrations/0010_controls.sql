-- Two switches: paused (1), what is known of the user is not used; learn_off (1), nothing is learned of them, and
-- resumed_at says since when it is again. Who had paused was not captured either.
ALTER TABLE users ADD COLUMN learn_off BIGINT NOT NULL DEFAULT 0;
UPDATE users SET learn_off = paused;

-- A user of whom nothing but captured answers is stored goes with those, at expires_at. NULL: stays.
ALTER TABLE users ADD COLUMN expires_at DOUBLE PRECISION;
CREATE INDEX users_by_time ON users (expires_at) WHERE expires_at IS NOT NULL;
UPDATE users SET expires_at = 0 WHERE paused = 0
    AND NOT EXISTS (SELECT 1 FROM signals s WHERE s.tenant = users.tenant AND s.user_id = users.user_id)
    AND NOT EXISTS (SELECT 1 FROM summaries s WHERE s.tenant = users.tenant AND s.user_id = users.user_id);
