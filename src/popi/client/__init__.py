"""The gateway's profile API from Python: `Client`, and `AsyncClient` for asyncio.

    client, async_client   the same calls, blocking and async; `base` is what they have in common
    flows                  the logic of each call, shared by both clients and independent of I/O
    exchange               one request: its retries, and how the reply is parsed
    mcp_server             a user's profile as the tools of an MCP server

Neither torch nor the gateway's own packages are needed.
"""

from popi.client.async_client import AsyncClient
from popi.client.client import Client
from popi.profiles.answers import (
    Clause,
    ControlsAnswer,
    Deleted,
    ExportAnswer,
    ImportAnswer,
    KeyAnswer,
    LinkAnswer,
    MergeAnswer,
    NewKeyAnswer,
    PauseAnswer,
    Receipt,
    SignalsAnswer,
    SummaryAnswer,
    UserAnswer,
)
from popi.profiles.requests import ClauseEdit, ImportedUser, SummaryEdit

__all__ = [
    "AsyncClient",
    "Clause",
    "ClauseEdit",
    "Client",
    "ControlsAnswer",
    "Deleted",
    "ExportAnswer",
    "ImportAnswer",
    "ImportedUser",
    "KeyAnswer",
    "LinkAnswer",
    "MergeAnswer",
    "NewKeyAnswer",
    "PauseAnswer",
    "Receipt",
    "SignalsAnswer",
    "SummaryAnswer",
    "SummaryEdit",
    "UserAnswer",
]
