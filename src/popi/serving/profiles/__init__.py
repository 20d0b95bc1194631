"""The profile API: signals come in; summaries are read, edited and rolled back; users are exported and erased.

api        the ASGI application: who calls, refusals, the OpenAPI document
routes     FastAPI's routes under `/users`
access     those of keys and tenants
requests   what they are given: who asks, about whom, and the body within its bounds
models     bodies and answers
clauses    a summary's text in parts
service    what the routes do, on the store
stored     what is stored of a user, as it is answered
forbidden  whether a clause says again what a user has forbidden
fit        what a person may write into a summary
training   a user as the JSONL line that `popi train` reads
"""
