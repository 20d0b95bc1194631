-- only: postgresql
-- ANALYZE copies values of columns into pg_statistic, where pg_stats shows them, also those of rows that were deleted
-- since. Nobody searches by these texts, so none of them is to be there; nor are user ids, where the planner can do without
-- (of users, signals and summaries it can't: Database.scrub). SET STATISTICS 0 has ANALYZE leave a column out; TYPE TEXT,
-- which it has already, drops what was copied before, and rewrites nothing.
ALTER TABLE signals ALTER COLUMN signal SET STATISTICS 0;
ALTER TABLE signals ALTER COLUMN signal TYPE TEXT;
ALTER TABLE signals ALTER COLUMN signal_id SET STATISTICS 0;
ALTER TABLE signals ALTER COLUMN signal_id TYPE TEXT;
ALTER TABLE summaries ALTER COLUMN text SET STATISTICS 0;
ALTER TABLE summaries ALTER COLUMN text TYPE TEXT;
ALTER TABLE summaries ALTER COLUMN clauses SET STATISTICS 0;
ALTER TABLE summaries ALTER COLUMN clauses TYPE TEXT;
ALTER TABLE summaries ALTER COLUMN forbidden SET STATISTICS 0;
ALTER TABLE summaries ALTER COLUMN forbidden TYPE TEXT;
ALTER TABLE answers ALTER COLUMN answer_id SET STATISTICS 0;
ALTER TABLE answers ALTER COLUMN answer_id TYPE TEXT;
ALTER TABLE answers ALTER COLUMN prompt SET STATISTICS 0;
ALTER TABLE answers ALTER COLUMN prompt TYPE TEXT;
ALTER TABLE answers ALTER COLUMN answer SET STATISTICS 0;
ALTER TABLE answers ALTER COLUMN answer TYPE TEXT;
ALTER TABLE jobs ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE jobs ALTER COLUMN user_id TYPE TEXT;
ALTER TABLE answers ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE answers ALTER COLUMN user_id TYPE TEXT;
ALTER TABLE usage ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE usage ALTER COLUMN user_id TYPE TEXT;
ALTER TABLE sessions ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE sessions ALTER COLUMN user_id TYPE TEXT;
ALTER TABLE keys ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE keys ALTER COLUMN user_id TYPE TEXT;
