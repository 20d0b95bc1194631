-- The user's own words of what they forbade, apart from the versions, which hold keyed hashes of them (summaries.forbidden:
-- a list of {"id", "hash", "salt", "length", "tell"}; older versions have {"id", "text"}). hash: as there.
CREATE TABLE forbidden_words (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    hash TEXT NOT NULL,
    words TEXT NOT NULL,
    PRIMARY KEY (tenant, user_id, hash),
    FOREIGN KEY (tenant, user_id) REFERENCES users (tenant, user_id)
);

-- Signals that a user deleted, so that an upload that is sent again does not bring them back. hash: HMAC of the id.
CREATE TABLE deleted_signals (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    hash TEXT NOT NULL,
    PRIMARY KEY (tenant, user_id, hash),
    FOREIGN KEY (tenant, user_id) REFERENCES users (tenant, user_id)
);
