"""What a user did with an answer, as signals.

thumbs         an interaction rated 1 or -1; the later of the two on one answer counts
edit           an interaction with the answer as the user rewrote it; none where it is the answer as it was
replaced_by    a pair: the answer that was kept, over the one that was replaced
rather_than    pairs: the answer that was picked, over each of the others
"""

from hashlib import sha256

from sqlalchemy import Connection

from popi.profiles import clauses as parts
from popi.profiles.requests import Feedback
from popi.serving.capture.injected import Injected
from popi.serving.store import answers, signals, summaries
from popi.serving.store.answers import StoredAnswer
from popi.signals.types import InteractionSignal, PairSignal, Signal


def as_signals(
    connection: Connection, tenant: str, user_id: str, told: Feedback, now: float, injected: Injected
) -> list[Signal] | None:
    """The signals; none where nothing of the user's own is left. None: an answer that is named is not kept.

    In a transaction that writes: thumbs take back the opposite ones.
    """
    named = [told.answer, *([told.replaced_by] if told.replaced_by else ()), *(told.rather_than or ())]
    found: list[StoredAnswer] = []
    for answer_id in named:
        kept = answers.find(connection, tenant, user_id, answer_id, now)
        if kept is None:
            return None
        found.append(kept)
    first = found[0]
    if told.thumbs is not None:
        opposite = _id("thumbs", first.answer_id, "down" if told.thumbs == "up" else "up")
        signals.remove(connection, tenant, user_id, opposite)
        rating = 1.0 if told.thumbs == "up" else -1.0
        name = _id("thumbs", first.answer_id, told.thumbs)
        return [InteractionSignal(id=name, prompt=first.prompt, response=first.answer, rating=rating)]
    if told.edit is not None:
        versions = summaries.versions(connection, tenant, user_id)
        said = {part for version in versions for part in parts.all_parts(version.text)}
        edit = injected.out_of(told.edit, said)
        if not edit or edit == first.answer:
            return []
        name = _id("edit", first.answer_id, edit)
        return [InteractionSignal(id=name, prompt=first.prompt, response=first.answer, edit=edit)]
    chosen = found[1] if told.replaced_by is not None else first
    others = [first] if told.replaced_by is not None else found[1:]
    return [
        PairSignal(
            id=_id("pick", chosen.answer_id, other.answer_id),
            prompt=chosen.prompt,
            chosen=chosen.answer,
            rejected=other.answer,
        )
        for other in others
        if other.answer != chosen.answer
    ]


def _id(*parts: str) -> str:
    return "feedback-" + sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:32]
