"""Marks: keyed hashes that stand for users of whom nothing may be stored. Only the store and its backups hold the key.

With them, opt-outs outlive an erasure (store.opt_outs), and logs can name erased users. A restored backup brings back
users who were erased since; from the log, only those who have the backup can tell which (serving.replay).
"""

import hmac
import secrets
from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy import Connection

from popi.serving.store.database import Database
from popi.serving.store.settings import get, set_default

SECRET = "opt_out_secret"
"""The setting's name, after its first use."""


@dataclass(frozen=True)
class Marks:
    """The marks of one store's users.

    Args:
        secret: the store's.
    """

    secret: str

    @property
    def store(self) -> str:
        """Identifies the secret, to distinguish log lines of other stores."""
        return sha256(f"marks of {self.secret}".encode()).hexdigest()[:12]

    def of(self, tenant: str, user_id: str) -> str:
        """A user's mark: HMAC-SHA256 of tenant and id, 64 hexadecimal digits."""
        text = f"{len(tenant)}:{tenant}:{user_id}"
        return hmac.digest(bytes.fromhex(self.secret), text.encode("utf-8", "surrogatepass"), "sha256").hex()

    def line(self, tenant: str, user_id: str, at: float) -> dict[str, object]:
        """The log fields that identify the user and the time (seconds since 1970)."""
        return {"tenant": tenant, "user": self.of(tenant, user_id), "store": self.store, "at": at}


def marks(connection: Connection) -> Marks:
    """This store's marks. Creates the secret on first use; needs a write transaction."""
    return Marks(get(connection, SECRET) or set_default(connection, SECRET, secrets.token_hex(32)))


def draw(database: Database) -> None:
    """Make sure that there is a secret, so that every backup from now on has it.

    Raises:
        StoreError: the database can't be reached or failed.
    """
    if database.read(get, SECRET) is None:
        database.write(marks)
