"""The gateway's profile API from Python: `Client`, and `AsyncClient` for asyncio.

    flows     the logic of each call (request, parsing, retries), shared by both clients and independent of I/O
    clients   the two clients: the same calls, blocking and async

Neither torch nor the gateway's own packages are needed.
"""

from popi.client.clients import AsyncClient, Client
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
