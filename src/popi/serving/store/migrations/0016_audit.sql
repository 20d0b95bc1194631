-- Who read or changed whom. entry: the time in microseconds and random digits, so in the order of time. user_hash: HMAC of
-- tenant and user id; empty where the entry is about no one user. user_id: the same in plain, until the user is erased.
CREATE TABLE audit (
    entry TEXT PRIMARY KEY,
    at DOUBLE PRECISION NOT NULL,
    actor TEXT NOT NULL,
    role TEXT NOT NULL,
    way TEXT NOT NULL,
    action TEXT NOT NULL,
    tenant TEXT NOT NULL,
    user_id TEXT,
    user_hash TEXT NOT NULL
);
CREATE INDEX audit_of_user ON audit (user_hash, entry);
-- postgresql: ALTER TABLE audit ALTER COLUMN user_id SET STATISTICS 0;

-- Of a session that was opened at an identity provider, without a key: who it is, and what they may do (admin, viewer).
ALTER TABLE sessions ADD COLUMN member TEXT;
ALTER TABLE sessions ADD COLUMN role TEXT;
