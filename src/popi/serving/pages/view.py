"""A profile as sentences for the templates, which escape these plain values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from difflib import SequenceMatcher
from typing import Literal

from popi.profiles.answers import Clause, SummaryAnswer
from popi.serving.pages.strings import say
from popi.signals.render import flat
from popi.signals.types import InteractionSignal, PairSignal, PostSignal, Signal, StatementSignal

MAX_QUOTE_CHARS = 320
"""Maximum characters of a signal's text to show."""
MAX_WORD_PAIRS = 1_000_000
"""Maximum pairs of words to compare per page; after that, changed clauses are shown whole, before and after."""

Run = tuple[Literal["same", "added", "removed"], str]


@dataclass(frozen=True)
class Reason:
    """A signal as a sentence.

    Attributes:
        sentence: the sentence.
        quotes: labels and texts of its quotations.
        signal: the signal's id.
    """

    sentence: str
    quotes: list[tuple[str, str]] = field(default_factory=list)
    signal: str = ""


@dataclass(frozen=True)
class ClauseView:
    """A clause with its reasons.

    Attributes:
        clause: in the profile API's form.
        reasons: the signals that it rests on.
        lost: how many of these signals are no longer stored.
    """

    clause: Clause
    reasons: list[Reason]
    lost: int


@dataclass(frozen=True)
class Change:
    """One difference between two versions: its kind, and the words as runs."""

    kind: Literal["added", "removed", "changed", "locked", "unlocked", "forbidden", "allowed"]
    runs: list[Run]


@dataclass(frozen=True)
class VersionView:
    """A version, and its differences from the previous one."""

    version: int
    when: datetime
    author: str
    changes: list[Change]
    current: bool


def clause_views(summary: SummaryAnswer | None, signals: Sequence[Signal]) -> list[ClauseView]:
    """The clauses of a summary with their reasons."""
    by_id = {one.id: one for one in signals}
    views = []
    for clause in summary.clauses if summary is not None else ():
        stored = [by_id[name] for name in clause.signals if name in by_id]
        reasons = [replace(reason(one), signal=one.id or "") for one in stored]
        views.append(ClauseView(clause, reasons, len(clause.signals) - len(stored)))
    return views


def reason(signal: Signal) -> Reason:
    """A signal as a sentence, with its quotations."""
    if isinstance(signal, PairSignal):
        quotes = [(say("quote_preferred"), signal.chosen), (say("quote_other"), signal.rejected)]
        return Reason(say("signal_pair", prompt=_cut(flat(signal.prompt), 120)), _cuts(quotes))
    if isinstance(signal, InteractionSignal):
        prompt = _cut(flat(signal.prompt), 120)
        if signal.edit is not None:
            quotes = [(say("quote_edit"), signal.edit), (say("quote_answer"), signal.response)]
            return Reason(say("signal_edit", prompt=prompt), _cuts(quotes))
        quotes = [(say("quote_answer"), signal.response)]
        if signal.rating is None:
            return Reason(say("signal_interaction", prompt=prompt), _cuts(quotes))
        thumbs = {1.0: "signal_up", -1.0: "signal_down"} if (signal.id or "").startswith("feedback-") else {}
        key = thumbs.get(signal.rating, "signal_rating")
        return Reason(say(key, prompt=prompt, rating=f"{signal.rating:g}"), _cuts(quotes))
    if isinstance(signal, PostSignal):
        quotes = [(say("quote_post"), signal.text)]
        if signal.context:
            quotes.append((say("quote_context"), signal.context))
        return Reason(say("signal_post"), _cuts(quotes))
    sentence = say("signal_statement" if isinstance(signal, StatementSignal) else "signal_demographic")
    return Reason(sentence, _cuts([(say("quote_words"), signal.text)]))


def version_views(versions: Sequence[SummaryAnswer]) -> list[VersionView]:
    """Versions, newest first, each with its differences from the previous one."""
    views = []
    remaining = MAX_WORD_PAIRS

    def compare(before: str, after: str) -> list[Run]:
        nonlocal remaining
        remaining -= before.count(" ") * after.count(" ")
        return word_runs(before, after) if remaining >= 0 else [("removed", before), ("added", after)]

    for index, version in enumerate(versions):
        before = versions[index + 1] if index + 1 < len(versions) else None
        changes = differences(before, version, compare)
        author = say(f"author_{version.author}")
        views.append(VersionView(version.version, version.updated_at, author, changes, index == 0))
    return views


def differences(
    before: SummaryAnswer | None, after: SummaryAnswer, compare: Callable[[str, str], list[Run]] | None = None
) -> list[Change]:
    """The differences between two versions, clause by clause; `compare` defaults to `word_runs`."""
    old = {one.id: one for one in before.clauses} if before is not None else {}
    new = {one.id: one for one in after.clauses}
    changes: list[Change] = []
    for name, clause in new.items():
        earlier = old.get(name)
        if earlier is None:
            changes.append(Change("added", [("added", clause.text)]))
            continue
        if earlier.text != clause.text:
            changes.append(Change("changed", (compare or word_runs)(earlier.text, clause.text)))
        if earlier.locked != clause.locked:
            changes.append(Change("locked" if clause.locked else "unlocked", [("same", clause.text)]))
    changes += [Change("removed", [("removed", one.text)]) for name, one in old.items() if name not in new]
    old_bans = {one.id: one.text or say("forbidden_deleted") for one in before.forbidden} if before is not None else {}
    new_bans = {one.id: one.text or say("forbidden_deleted") for one in after.forbidden}
    changes += [Change("forbidden", [("same", text)]) for name, text in new_bans.items() if name not in old_bans]
    changes += [Change("allowed", [("same", text)]) for name, text in old_bans.items() if name not in new_bans]
    return changes


def word_runs(before: str, after: str) -> list[Run]:
    """The difference between two wordings, as runs of unchanged, removed and added words."""
    old, new = before.split(), after.split()
    runs: list[Run] = []
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            runs.append(("same", " ".join(old[i1:i2])))
            continue
        if i2 > i1:
            runs.append(("removed", " ".join(old[i1:i2])))
        if j2 > j1:
            runs.append(("added", " ".join(new[j1:j2])))
    return runs


def _cuts(quotes: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(label, _cut(text, MAX_QUOTE_CHARS)) for label, text in quotes]


def _cut(text: str, maximum: int) -> str:
    text = text.strip()
    return text if len(text) <= maximum else text[: maximum - 1].rstrip() + "…"
