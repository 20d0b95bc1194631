-- What a person decides: personalisation paused (1) or not, since when it goes on again, and what a summary must not
-- say again (JSON: a list of {"id", "text"}), which belongs to a version as its clauses do.
ALTER TABLE users ADD COLUMN paused BIGINT NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN resumed_at DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE summaries ADD COLUMN forbidden TEXT NOT NULL DEFAULT '[]';

-- Answers that feedback may name, of tenants that opted in: kept until expires_at. version: of the summary that the
-- model saw, 0 for none.
CREATE TABLE answers (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    answer_id TEXT NOT NULL,
    prompt TEXT NOT NULL,
    answer TEXT NOT NULL,
    version BIGINT NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (tenant, user_id, answer_id),
    FOREIGN KEY (tenant, user_id) REFERENCES users (tenant, user_id)
);
CREATE INDEX answers_by_time ON answers (expires_at);

-- Who was erased lately, so that a chat under way then is not written down after, and no link from before opens.
-- user_hash: SHA-256 of tenant and user id. Gone at expires_at, after an hour.
CREATE TABLE erasures (
    user_hash TEXT PRIMARY KEY,
    erased_at DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL
);

-- Who is signed in to the pages. session_hash: SHA-256 of the cookie. Of a user: tenant and user_id; of the team: the
-- admin key's id and hash, and no user.
CREATE TABLE sessions (
    session_hash TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    user_id TEXT,
    key_id TEXT,
    key_hash TEXT,
    expires_at DOUBLE PRECISION NOT NULL
);
CREATE INDEX sessions_of_user ON sessions (tenant, user_id);
CREATE INDEX sessions_by_time ON sessions (expires_at);

-- Links to a page that were opened: none is opened twice. link_hash: SHA-256 of the link, which holds random bits.
CREATE TABLE opened_links (
    link_hash TEXT PRIMARY KEY,
    expires_at DOUBLE PRECISION NOT NULL
);
