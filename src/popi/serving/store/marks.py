"""What stands for a user of whom nothing may be kept: a keyed hash, whose secret the store and its backups alone hold.

Opt-outs outlive an erasure by it (store.opt_outs), and it stands in the log. A restored backup brings back who was
erased since; the log says who that was, to those who have the backup and to nobody else (serving.replay).
"""

import hmac
import secrets
from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy import Connection

from popi.serving.store.database import Database
from popi.serving.store.settings import keep_first, kept

SECRET = "opt_out_secret"
"""Named for what it was drawn for first."""


@dataclass(frozen=True)
class Marks:
    """The marks of one store's users.

    Args:
        secret: the store's.
    """

    secret: str

    @property
    def store(self) -> str:
        """Which secret they are made with: lines of other stores' logs say another one."""
        return sha256(f"marks of {self.secret}".encode()).hexdigest()[:12]

    def of(self, tenant: str, user_id: str) -> str:
        """A user's mark: HMAC-SHA256 of tenant and id, 64 hexadecimal digits."""
        text = f"{len(tenant)}:{tenant}:{user_id}"
        return hmac.digest(bytes.fromhex(self.secret), text.encode("utf-8", "surrogatepass"), "sha256").hex()

    def line(self, tenant: str, user_id: str, at: float) -> dict[str, object]:
        """What a line of the log says of whom, and of when (seconds since 1970)."""
        return {"tenant": tenant, "user": self.of(tenant, user_id), "store": self.store, "at": at}


def marks(connection: Connection) -> Marks:
    """Those of this store; the secret is drawn by the first that asks, in a transaction that writes."""
    return Marks(kept(connection, SECRET) or keep_first(connection, SECRET, secrets.token_hex(32)))


def draw(database: Database) -> None:
    """See to it that there is a secret, so that every backup from now on has it.

    Raises:
        StoreError: the database can't be reached or failed.
    """
    if database.read(kept, SECRET) is None:
        database.write(marks)
