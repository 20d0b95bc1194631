"""What a user does not want said: kept as a keyed hash, and compared word by word.

Of a forbidden statement a version of the summary holds the HMAC of its normal form (popi.profiles.statements.normal),
with a salt and the secret of the store: enough to know the same words again, in any language and however they are
written, and nothing that can be read. No model sees them, unless the user allows it (`Forbidden.tell`). Whether a
clause says the same in other words only a model can tell: popi.serving.worker.restating.
"""

import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence

from popi.errors import DataError
from popi.profiles.fields import Forbidden
from popi.profiles.requests import ForbiddenEdit
from popi.profiles.statements import lines, normal
from popi.profiles.statements.phrases import words

LEAST_WORDS = 3
"""Of so many words or more, a statement counts as said where its words stand within another's."""


class Bans:
    """What is forbidden, ready to be compared with many texts.

    Args:
        forbidden: the statements.
        secret: of the store.
    """

    def __init__(self, forbidden: Iterable[Forbidden], secret: bytes = b"") -> None:
        self._secret = secret
        self._hashes: dict[tuple[str, int], set[str]] = {}
        self._plain: list[str] = []  # of versions from before there were hashes
        for one in forbidden:
            if one.hash:
                self._hashes.setdefault((one.salt, one.length), set()).add(one.hash)
            elif one.text is not None:
                self._plain.append(normal(one.text))

    def hit(self, text: str) -> bool:
        """Whether `text` says one of them in the same words, alone or, if it has `LEAST_WORDS`, within others."""
        plain, said = normal(text), words(text)
        for ban in self._plain:
            if ban == plain or (ban.count(" ") + 1 >= LEAST_WORDS and f" {ban} " in f" {plain} "):
                return True
        for (salt, length), hashes in self._hashes.items():
            runs = {plain}
            if length >= LEAST_WORDS:
                runs |= {" ".join(said[at : at + length]) for at in range(len(said) - length + 1)}
            if any(_hash(self._secret, salt, run) in hashes for run in runs):
                return True
        return False

    def within(self, text: str) -> bool:
        """Whether one of them stands anywhere in a longer text, as a sentence or a line of its own at least."""
        return bool(self._hashes or self._plain) and (self.hit(text) or any(map(self.hit, lines(text))))


def ban(text: str, secret: bytes, *, name: str, salt: str = "", tell: bool = False) -> Forbidden:
    """A statement as it is stored.

    Args:
        text: the user's words.
        secret: of the store.
        name: its id.
        salt: of others of this user; a new one where there is none.
        tell: whether the model that writes summaries may be told it.
    """
    salt = salt or secrets.token_hex(8)
    return Forbidden(id=name, hash=_hash(secret, salt, normal(text)), salt=salt, length=len(words(text)), tell=tell)


def from_edits(
    edits: Sequence[ForbiddenEdit], before: Sequence[Forbidden], secret: bytes
) -> tuple[list[Forbidden], dict[str, str]]:
    """What a person forbids from now on, and their words by hash.

    An entry that stays keeps its id, and the same words stand there once.

    Raises:
        DataError: an entry without words is named that is not there.
    """
    by_id = {one.id: one for one in before}
    salt = next((one.salt for one in before if one.salt), "")
    banned: dict[str, Forbidden] = {}
    said: dict[str, str] = {}
    for edit in edits:
        if edit.text is None:
            old = by_id.get(edit.id or "")
            if old is None:
                raise DataError(f"forbidden: there is no entry of the id {edit.id!r}; give its text to add one")
            banned[old.hash or old.id] = _told(old, edit)
            continue
        old = next((one for one in before if Bans([one], secret).hit(edit.text) and _same(one, edit.text)), None)
        taken = by_id.keys() | {one.id for one in banned.values()}
        name = old.id if old is not None else edit.id if edit.id not in (None, *taken) else f"f{secrets.token_hex(6)}"
        hashed = old if old is not None and old.hash else ban(edit.text, secret, name=str(name), salt=salt)
        salt = hashed.salt
        banned[hashed.hash] = _told(hashed, edit)
        said[hashed.hash] = edit.text.strip()
    return list(banned.values()), said


def in_words(forbidden: Iterable[Forbidden], said: Mapping[str, str]) -> dict[str, str]:
    """The words of those entries whose words are kept, by id."""
    found = {one.id: one.text if one.text is not None else said.get(one.hash) for one in forbidden}
    return {name: text for name, text in found.items() if text is not None}


def _told(one: Forbidden, edit: ForbiddenEdit) -> Forbidden:
    return one if edit.tell is None else one.model_copy(update={"tell": edit.tell})


def _same(one: Forbidden, text: str) -> bool:
    """Not only within it."""
    return normal(one.text) == normal(text) if one.text is not None else one.length == len(words(text))


def _hash(secret: bytes, salt: str, text: str) -> str:
    return hmac.digest(secret, f"forbidden:{salt}:{text}".encode("utf-8", "surrogatepass"), "sha256").hex()
