"""Capture, for tenants that opt in: what a user does with a proxied answer becomes a signal (docs/profiles.md).

    texts      the user's own words of a request
    injected   what the gateway put in, taken out again
    answers    the text and id of an answer, plain or streamed, of each API
    recorder   looks on while the proxy passes an answer through, and keeps it for a bounded time
    feedback   thumbs, edits, regenerations and picks, as signals

Nothing is learned from a chat by itself: a signal is made only of what the user did with an answer.
"""
