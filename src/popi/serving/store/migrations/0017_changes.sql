-- works with: 16
-- What processes must drop from memory, as other processes wrote it. kind and subject: user or erased, SHA-256 of tenant
-- and user id; key, a key's id. position: the transaction that wrote the row (PostgreSQL), or a counter (SQLite).
CREATE TABLE changes (
    position BIGINT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    PRIMARY KEY (position, kind, subject)
);
-- postgresql: ALTER TABLE changes ALTER COLUMN subject SET STATISTICS 0;

-- The processes that hold users' data in memory.
CREATE TABLE processes (process TEXT PRIMARY KEY);

-- Who still has to confirm that it has dropped everything that changed before the fence was raised.
CREATE TABLE fences (
    process TEXT NOT NULL,
    fence TEXT NOT NULL,
    PRIMARY KEY (process, fence)
);
CREATE INDEX fences_by_name ON fences (fence);

-- To find users by the beginning of their id, whatever the collation. With millions of users it takes a while, in which
-- nobody can write: create it with CONCURRENTLY before the upgrade.
-- postgresql: CREATE INDEX IF NOT EXISTS users_by_prefix ON users (tenant, user_id text_pattern_ops);
