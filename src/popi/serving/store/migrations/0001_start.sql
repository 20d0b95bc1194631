-- The same text runs on SQLite and PostgreSQL. Times are seconds since 1970; JSON is text.
CREATE TABLE tenants (
    tenant TEXT PRIMARY KEY,
    created_at DOUBLE PRECISION NOT NULL
);

-- key_hash: SHA-256 of the whole key, in hex. user_id: of a user's own key.
CREATE TABLE keys (
    key_id TEXT PRIMARY KEY,
    key_hash TEXT NOT NULL,
    scope TEXT NOT NULL CHECK (scope IN ('admin', 'app', 'user')),
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    user_id TEXT,
    created_at DOUBLE PRECISION NOT NULL,
    revoked_at DOUBLE PRECISION,
    CHECK ((scope = 'user') = (user_id IS NOT NULL))
);
CREATE INDEX keys_of_user ON keys (tenant, user_id);

-- next_position numbers a user's signals in the order in which they came in.
CREATE TABLE users (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    user_id TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    next_position BIGINT NOT NULL,
    PRIMARY KEY (tenant, user_id)
);

CREATE TABLE signals (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    signal_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    added_at DOUBLE PRECISION NOT NULL,
    signal TEXT NOT NULL,
    PRIMARY KEY (tenant, user_id, signal_id),
    FOREIGN KEY (tenant, user_id) REFERENCES users (tenant, user_id)
);
CREATE INDEX signals_in_order ON signals (tenant, user_id, position);

CREATE TABLE summaries (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    text TEXT NOT NULL,
    clauses TEXT NOT NULL,
    author TEXT NOT NULL CHECK (author IN ('model', 'user', 'admin')),
    model TEXT,
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (tenant, user_id, version),
    FOREIGN KEY (tenant, user_id) REFERENCES users (tenant, user_id)
);

-- One row a user whose summary is stale. revision counts the calls for a renewal: a worker removes the row only where
-- none came while it worked.
CREATE TABLE jobs (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    revision BIGINT NOT NULL,
    first_at DOUBLE PRECISION NOT NULL,
    due_at DOUBLE PRECISION NOT NULL,
    lease TEXT,
    lease_until DOUBLE PRECISION,
    attempts BIGINT NOT NULL,
    failed_at DOUBLE PRECISION,
    error TEXT,
    PRIMARY KEY (tenant, user_id),
    FOREIGN KEY (tenant, user_id) REFERENCES users (tenant, user_id)
);
CREATE INDEX jobs_by_time ON jobs (due_at);

-- What the store still has to do for itself, and since when.
CREATE TABLE chores (
    chore TEXT PRIMARY KEY,
    due_at DOUBLE PRECISION NOT NULL
);
