"""The gateway's profile API from Python: `Client`, and `AsyncClient` for asyncio.

    flows     what each call sends, reads and does about failures: once, without any sending
    clients   the two that send: the same calls, one waiting, one awaiting

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
