"""The profile API: signals come in; summaries are read, edited and rolled back; users are exported and erased.

    routes     every route, once: its path, its body, its answers; dispatch and OpenAPI both read this table
    models     bodies and answers
    clauses    a summary's text in parts
    service    what the routes do, on the store
    stored     what is stored of a user, as it is answered
    forbidden  whether a clause says again what a user has forbidden
    training   a user as the JSONL line that `popi train` reads
    api        from an HTTP request to a call, and back; who may
    openapi    the table as an OpenAPI document

Starlette's plumbing and pydantic, without FastAPI: a user id may be any text, slashes included, so paths are matched
here as they were sent; and a chat goes by the same event loop, which should not wait for a framework.
"""
