-- Whose turn it is among tenants, and until when a tenant's renewals wait for its quota.
ALTER TABLE tenants ADD COLUMN served_at DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE tenants ADD COLUMN held_until DOUBLE PRECISION NOT NULL DEFAULT 0;
CREATE INDEX tenants_by_turn ON tenants (served_at);

-- key_id: the key that called for the renewal. bulk: 1 where an import did; such jobs come after the tenant's others.
-- held_by: the quota that the job waits for until due_at.
ALTER TABLE jobs ADD COLUMN key_id TEXT;
ALTER TABLE jobs ADD COLUMN bulk BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN held_by TEXT;
CREATE INDEX jobs_of_tenant ON jobs (tenant, bulk, due_at) WHERE failed_at IS NULL;
DROP INDEX jobs_by_time;

-- When the user's latest rebuild was due.
ALTER TABLE users ADD COLUMN rebuilt_at DOUBLE PRECISION NOT NULL DEFAULT 0;

-- What renewals used, by window: of a user (tenant, user_id), of a key (key_id alone), of a tenant (tenant alone).
-- began_at, seconds: the window. calls: to the inference model.
CREATE TABLE usage (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    seconds BIGINT NOT NULL,
    began_at DOUBLE PRECISION NOT NULL,
    renewals BIGINT NOT NULL,
    calls BIGINT NOT NULL DEFAULT 0,
    input_tokens BIGINT NOT NULL DEFAULT 0,
    output_tokens BIGINT NOT NULL DEFAULT 0,
    expires_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (tenant, user_id, key_id, seconds, began_at)
);
CREATE INDEX usage_by_time ON usage (expires_at);
