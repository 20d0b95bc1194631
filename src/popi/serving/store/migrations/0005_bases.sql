-- The version that renewals start from, and up to which position the user's signals are in that one. NULL: the current
-- version, and signals_read.
ALTER TABLE users ADD COLUMN base_version BIGINT;
ALTER TABLE users ADD COLUMN base_read BIGINT;
