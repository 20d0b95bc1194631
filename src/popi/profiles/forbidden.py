"""Statements that a user has forbidden: stored as keyed hashes, and compared word by word.

A summary version stores the HMAC of a forbidden statement's normal form (popi.profiles.statements.normal), with a salt
and the store's secret. That suffices to recognise the same words in any language, case and punctuation, but can't be
read. No model sees the statements unless the user allows it (`Forbidden.send_to_model`). Restatements in other
words can only be detected by a model: popi.serving.worker.restating.
"""

import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence

from popi.errors import DataError
from popi.profiles.fields import Forbidden
from popi.profiles.requests import ForbiddenEdit
from popi.profiles.statements import lines, normal
from popi.profiles.statements.phrases import words

MIN_WORDS = 3
"""Minimum number of words for a statement to be matched within a longer one."""


class Bans:
    """Forbidden statements, prepared for comparison with many texts.

    Args:
        forbidden: the statements.
        secret: the store's secret.
    """

    def __init__(self, forbidden: Iterable[Forbidden], secret: bytes = b"") -> None:
        self._secret = secret
        self._hashes: dict[tuple[str, int], set[str]] = {}
        self._plain: list[str] = []  # from versions older than the hashes
        for one in forbidden:
            if one.hash:
                self._hashes.setdefault((one.salt, one.length), set()).add(one.hash)
            elif one.text is not None:
                self._plain.append(normal(one.text))

    def hit(self, text: str) -> bool:
        """Whether `text` contains one of them in the same words: alone or, from `MIN_WORDS` on, within other words."""
        plain, text_words = normal(text), words(text)
        for ban in self._plain:
            if ban == plain or (ban.count(" ") + 1 >= MIN_WORDS and f" {ban} " in f" {plain} "):
                return True
        for (salt, length), hashes in self._hashes.items():
            runs = {plain}
            if length >= MIN_WORDS:
                starts = range(len(text_words) - length + 1)
                runs |= {" ".join(text_words[at : at + length]) for at in starts}
            if any(_hash(self._secret, salt, run) in hashes for run in runs):
                return True
        return False

    def within(self, text: str) -> bool:
        """Whether a longer text contains one of them, at least as a separate sentence or line."""
        return bool(self._hashes or self._plain) and (self.hit(text) or any(map(self.hit, lines(text))))


def ban(text: str, secret: bytes, *, name: str, salt: str = "", send_to_model: bool = False) -> Forbidden:
    """A statement in its stored form.

    Args:
        text: the user's words.
        secret: the store's secret.
        name: the entry's id.
        salt: the salt of the user's other entries; a new one if empty.
        send_to_model: whether it may be sent to the model that writes summaries.
    """
    salt = salt or secrets.token_hex(8)
    return Forbidden(
        id=name, hash=_hash(secret, salt, normal(text)), salt=salt, length=len(words(text)), send_to_model=send_to_model
    )


def from_edits(
    edits: Sequence[ForbiddenEdit], before: Sequence[Forbidden], secret: bytes
) -> tuple[list[Forbidden], dict[str, str]]:
    """The forbidden statements after a person's edit, and their words by hash.

    Entries that stay keep their ids, and duplicates are merged.

    Raises:
        DataError: an entry without text has an unknown id.
    """
    by_id = {one.id: one for one in before}
    salt = next((one.salt for one in before if one.salt), "")
    banned: dict[str, Forbidden] = {}
    texts: dict[str, str] = {}
    for edit in edits:
        if edit.text is None:
            old = by_id.get(edit.id or "")
            if old is None:
                raise DataError(f"forbidden: there is no entry with id {edit.id!r}; send its text to add one")
            banned[old.hash or old.id] = _with_tell(old, edit)
            continue
        old = next((one for one in before if Bans([one], secret).hit(edit.text) and _same(one, edit.text)), None)
        used_ids = by_id.keys() | {one.id for one in banned.values()}
        name = (
            old.id if old is not None else edit.id if edit.id not in (None, *used_ids) else f"f{secrets.token_hex(6)}"
        )
        hashed = old if old is not None and old.hash else ban(edit.text, secret, name=str(name), salt=salt)
        salt = hashed.salt
        banned[hashed.hash] = _with_tell(hashed, edit)
        texts[hashed.hash] = edit.text.strip()
    return list(banned.values()), texts


def in_words(forbidden: Iterable[Forbidden], texts: Mapping[str, str]) -> dict[str, str]:
    """The words of entries by id, for those whose words are stored. `texts`: the stored words by hash."""
    by_id = {one.id: one.text if one.text is not None else texts.get(one.hash) for one in forbidden}
    return {name: text for name, text in by_id.items() if text is not None}


def _with_tell(one: Forbidden, edit: ForbiddenEdit) -> Forbidden:
    return one if edit.send_to_model is None else one.model_copy(update={"send_to_model": edit.send_to_model})


def _same(one: Forbidden, text: str) -> bool:
    """Whether the entry, which `text` contains, is all of `text`."""
    return normal(one.text) == normal(text) if one.text is not None else one.length == len(words(text))


def _hash(secret: bytes, salt: str, text: str) -> str:
    return hmac.digest(secret, f"forbidden:{salt}:{text}".encode("utf-8", "surrogatepass"), "sha256").hex()
