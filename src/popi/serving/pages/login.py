"""Types for signing in at an identity provider."""

import json
from dataclasses import dataclass
from typing import Literal

CALLBACK = "/admin/oidc/callback"
LOGIN_SECONDS = 600.0
"""Maximum seconds for a sign-in at the provider."""


class NotAMember(Exception):
    """The provider signed the person in, but they have no role here."""


class SignInFailed(Exception):
    """The sign-in failed; the message says why, for the log, without any content of a token."""


@dataclass(frozen=True)
class Member:
    """A member of the team who signed in.

    Attributes:
        name: their name in the audit log.
        role: `admin` may read and change profiles, `viewer` may only read them.
    """

    name: str
    role: Literal["admin", "viewer"]


@dataclass(frozen=True)
class Login:
    """A sign-in in progress. The browser keeps it, signed by us, until it returns from the provider."""

    state: str
    nonce: str
    verifier: str
    until: float

    def text(self) -> bytes:
        return json.dumps([self.state, self.nonce, self.verifier, self.until]).encode()

    @classmethod
    def read(cls, text: bytes) -> "Login":
        return cls(*json.loads(text))
