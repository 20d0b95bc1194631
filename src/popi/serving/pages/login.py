"""A sign-in at an identity provider, as the pages see it."""

import json
from dataclasses import dataclass
from typing import Literal

CALLBACK = "/admin/oidc/callback"
LOGIN_SECONDS = 600.0
"""How long a sign-in may take at the provider."""


class NotAMember(Exception):
    """The provider knows who it is, and they have no role here."""


class SignInFailed(Exception):
    """There is no sign-in; the message says why, for the log: it holds nothing that a token says."""


@dataclass(frozen=True)
class Member:
    """Who signed in.

    Attributes:
        name: as the audit log names them.
        role: admin: may change things; viewer: may read them.
    """

    name: str
    role: Literal["admin", "viewer"]


@dataclass(frozen=True)
class Login:
    """A sign-in under way: what the browser keeps, signed by us, until it comes back from the provider."""

    state: str
    nonce: str
    verifier: str
    until: float

    def text(self) -> bytes:
        return json.dumps([self.state, self.nonce, self.verifier, self.until]).encode()

    @classmethod
    def read(cls, text: bytes) -> "Login":
        return cls(*json.loads(text))
