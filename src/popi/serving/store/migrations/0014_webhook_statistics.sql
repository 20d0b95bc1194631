-- only: postgresql
-- As in 0007: no user ids in pg_statistic.
ALTER TABLE outbox ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE outbox ALTER COLUMN merged_into SET STATISTICS 0;
