"""The gateway's database: who may call, users, their signals, summary versions, and which renewals are due.

    database     URL → connections and transactions; what SQLite and PostgreSQL do differently stands here alone
    threads      the same for an event loop
    migrate      numbered, append-only changes of the schema (migrations/*.sql)
    tables       the schema as the queries see it
    keys, users, controls, signals, summaries, jobs, answers, sessions, settings     the queries: functions of a
                 connection
    outbox       what webhooks are still to be told
    erasure, deletion, expiry     what goes, and when

Every query on a user's data takes the tenant. SQLAlchemy Core writes the SQL, so that there is one code path.
"""
