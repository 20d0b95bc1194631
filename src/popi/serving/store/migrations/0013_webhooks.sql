-- Endpoints that are told of events, as the processes that tell them say every minute; events: names with blanks between.
CREATE TABLE webhooks (
    name TEXT NOT NULL PRIMARY KEY,
    events TEXT NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL
);
CREATE INDEX webhooks_by_time ON webhooks (expires_at);

-- What each endpoint is still to be told, a user's events in the order of position. version: of the summary that is
-- current since. merged_into: the user that an erased one became part of.
CREATE TABLE outbox (
    endpoint TEXT NOT NULL,
    event_id TEXT NOT NULL,
    event TEXT NOT NULL,
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    version BIGINT,
    merged_into TEXT,
    happened_at DOUBLE PRECISION NOT NULL,
    due_at DOUBLE PRECISION NOT NULL,
    attempts BIGINT NOT NULL,
    lease TEXT,
    lease_until DOUBLE PRECISION,
    expires_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (endpoint, event_id)
);
CREATE INDEX outbox_by_user ON outbox (tenant, user_id, endpoint, position);
CREATE INDEX outbox_by_due ON outbox (endpoint, due_at);
CREATE INDEX outbox_by_time ON outbox (expires_at);
CREATE INDEX outbox_by_merged ON outbox (tenant, merged_into) WHERE merged_into IS NOT NULL;
