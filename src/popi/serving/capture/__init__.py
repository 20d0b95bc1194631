"""Capture, for tenants that opt in: turn a user's feedback on a proxied answer into a signal (docs/profiles.md).

    texts      extract the user's own words from a request
    injected   remove what the gateway injected
    answers    read an answer's id and text, streamed or not, in each API
    recorder   record answers as the proxy streams them, and store them for a limited time
    feedback   turn thumbs, edits, regenerations and picks into signals

A chat alone is never a signal: popi learns only from what users do with an answer.
"""
