"""Turn a user's feedback on answers into signals.

thumbs         an interaction rated 1 or -1; a later rating of the same answer replaces it
edit           an interaction with the user's rewritten answer; nothing if it is unchanged
replaced_by    a pair: the new answer preferred over the one it replaced
preferred_over    pairs: the picked answer preferred over each of the others
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
    connection: Connection, tenant: str, user_id: str, given: Feedback, now: float, injected: Injected
) -> list[Signal] | None:
    """The signals of a piece of feedback; empty if it holds nothing of the user's own.

    Needs a write transaction: a rating removes the opposite one.

    Returns:
        None if an answer that the feedback names is not stored.
    """
    answer_ids = [given.answer, *([given.replaced_by] if given.replaced_by else ()), *(given.preferred_over or ())]
    stored_answers: list[StoredAnswer] = []
    for answer_id in answer_ids:
        stored = answers.find(connection, tenant, user_id, answer_id, now)
        if stored is None:
            return None
        stored_answers.append(stored)
    first = stored_answers[0]
    if given.thumbs is not None:
        opposite = _id("thumbs", first.answer_id, "down" if given.thumbs == "up" else "up")
        signals.remove(connection, tenant, user_id, opposite)
        rating = 1.0 if given.thumbs == "up" else -1.0
        name = _id("thumbs", first.answer_id, given.thumbs)
        return [InteractionSignal(id=name, prompt=first.prompt, response=first.answer, rating=rating)]
    if given.edit is not None:
        versions = summaries.versions(connection, tenant, user_id)
        clauses = {part for version in versions for part in parts.all_parts(version.text)}
        edit = injected.remove_from(given.edit, clauses)
        if not edit or edit == first.answer:
            return []
        name = _id("edit", first.answer_id, edit)
        return [InteractionSignal(id=name, prompt=first.prompt, response=first.answer, edit=edit)]
    chosen = stored_answers[1] if given.replaced_by is not None else first
    others = [first] if given.replaced_by is not None else stored_answers[1:]
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
