"""The profile API: add signals; read, edit and roll back summaries; export and erase users.

app        the ASGI application: authentication, error responses, the OpenAPI document
routes     the FastAPI routes under `/users`
access     the routes for keys, tenants and the audit log
requests   the routes' dependencies: the caller, the user, and the body within its limits
service    what the routes do with the store
stored     stored profiles as API responses

`popi.profiles` defines profiles, including the bodies of requests and responses.
"""
