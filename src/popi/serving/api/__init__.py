"""The profile API: signals come in; summaries are read, edited and rolled back; users are exported and erased.

app        the ASGI application: who calls, refusals, the OpenAPI document
routes     FastAPI's routes under `/users`
access     those of keys and tenants
requests   what they are given: who asks, about whom, and the body within its bounds
service    what the routes do, on the store
stored     what is stored of a user, as it is answered

What a profile is, bodies and answers included, is in `popi.profiles`.
"""
