"""The gateway's database: API keys, users, their signals, summary versions, and due renewals.

    database     connections and transactions; the only place that knows how SQLite and PostgreSQL differ
    threads      the same for an event loop
    migrate      numbered, append-only schema changes (migrations/*.sql)
    tables       the schema as the queries see it
    keys, users, controls, signals, summaries, jobs, answers, sessions, settings     the queries: functions of a
                 connection
    outbox       pending webhook events
    erasure, deletion, expiry     what is removed, and when

Every query on a user's data takes the tenant. SQLAlchemy Core writes the SQL, so there is one code path.
"""
