-- Partitions the tables with rows per user by hash of user_id, on a new, empty store:
--
--   popi users list --store "$URL"                         creates the tables
--   psql "$URL" -v ON_ERROR_STOP=1 -c "SET popi.partitions = 64" -f deploy/postgres/partition.sql
--
-- Without the setting: 64 partitions. It runs in one transaction, and fails without changing anything if a table has
-- rows. Constraints and indexes keep their names. See docs/scaling.md.
DO $$
DECLARE
    partitioned CONSTANT text[] := ARRAY[
        'users', 'signals', 'summaries', 'answers', 'forbidden_words', 'deleted_signals'
    ];
    partitions CONSTANT int := coalesce(nullif(current_setting('popi.partitions', true), '')::int, 64);
    one text;
    statement text;
    has_rows boolean;
    foreign_keys text[];
    rest text[];
BEGIN
    FOREACH one IN ARRAY partitioned LOOP
        EXECUTE format('LOCK TABLE %I', one);
        EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I)', one) INTO has_rows;
        IF has_rows THEN
            RAISE EXCEPTION 'table % has rows: partition a store before its first use, or copy its rows to one', one;
        END IF;
    END LOOP;

    SELECT array_agg(format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid)))
        INTO foreign_keys FROM pg_constraint
        WHERE contype = 'f' AND (conrelid = ANY (partitioned::regclass[]) OR confrelid = ANY (partitioned::regclass[]));
    FOR statement IN
        SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname) FROM pg_constraint
        WHERE contype = 'f' AND (conrelid = ANY (partitioned::regclass[]) OR confrelid = ANY (partitioned::regclass[]))
    LOOP
        EXECUTE statement;
    END LOOP;

    FOREACH one IN ARRAY partitioned LOOP
        -- primary and unique keys, checks, and then the indexes that belong to no constraint
        SELECT array_agg(definition) INTO rest FROM (
            SELECT format('ALTER TABLE %I ADD CONSTRAINT %I %s', one, conname, pg_get_constraintdef(oid)) AS definition
                FROM pg_constraint WHERE conrelid = one::regclass AND contype IN ('p', 'u', 'c')
            UNION ALL
            SELECT pg_get_indexdef(indexrelid) FROM pg_index
                WHERE indrelid = one::regclass
                AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = indexrelid AND conrelid = indrelid)
        ) AS definitions;
        EXECUTE format('ALTER TABLE %I RENAME TO %I', one, one || '_plain');
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS) PARTITION BY HASH (user_id)', one, one || '_plain');
        FOR number IN 0 .. partitions - 1 LOOP
            EXECUTE format(
                'CREATE TABLE %I PARTITION OF %I FOR VALUES WITH (MODULUS %s, REMAINDER %s)',
                one || '_p' || number, one, partitions, number
            );
        END LOOP;
        EXECUTE format('DROP TABLE %I', one || '_plain');
        FOREACH statement IN ARRAY rest LOOP
            EXECUTE statement;
        END LOOP;
    END LOOP;

    FOREACH statement IN ARRAY coalesce(foreign_keys, '{}') LOOP
        EXECUTE statement;
    END LOOP;
END
$$;
