-- Up to which position a user's signals are in their summary: a renewal reads those from there on. NULL: the next renewal
-- reads all.
ALTER TABLE users ADD COLUMN signals_read BIGINT;
