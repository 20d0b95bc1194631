"""Check a summary against the user's own pairs before it is used, by leave-one-out.

Each preference pair i among a user's signals is held out in turn, and a summary of the other signals is scored on it,
h_i. If the summary is right about the user, it predicts such pairs better than a coin flip, under the objective's model
of choice:

    log ratio = Σ_i [ log σ(β·h_i) − log ½ ]

The summary is used if this is above a threshold (0 means as good as a coin flip); otherwise the user is answered as if
nothing were known. The check needs the generator's log-probs and pairs, but no true preferences. Users with fewer than
two pairs can't be checked and keep their summary. Holding a pair out ensures that it does not confirm a summary made
from it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from popi.generator import Generator
from popi.inference_model import InferenceModel
from popi.signals.types import Signal, TargetPair
from popi.summary import Summary
from popi.training.per_user import own_pairs

MAX_PAIRS = 8
"""Maximum pairs to hold out per user (the last ones), since each requires another summary."""
MIN_PAIRS = 2
"""Users with fewer pairs are not checked."""
THRESHOLD = 0.5
"""Threshold of the log ratio in nats, above what most users without evidence reach by chance (docs/evidence.md)."""


@dataclass(frozen=True)
class LeftOut:
    """A held-out pair of a user, and the signals without it."""

    signals: tuple[Signal, ...]
    pair: TargetPair


def leave_out(signals: Sequence[Signal], limit: int = MAX_PAIRS) -> list[LeftOut]:
    """A user's pairs (including edits), each with all signals except those with the same content; empty if too few."""
    cases = []
    for signal in signals:
        for pair in own_pairs([signal]):
            others = [other for other in signals if _content(other) != _content(signal)]
            cases.append(LeftOut(tuple(others), pair))
    return cases[-limit:] if len(cases) >= MIN_PAIRS else []


def _content(signal: Signal) -> dict[str, Any]:
    return signal.model_dump(exclude={"id", "time"})


def log_ratio(margins: Sequence[float], beta: float) -> float:
    """Σ log σ(β·h) − log ½, in nats, over margins h; 0 if there are none."""
    return sum(math.log(2) - _softplus(-beta * h) for h in margins)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def checked_summaries(
    inference_model: InferenceModel,
    generator: Generator,
    users: Sequence[Sequence[Signal]],
    summaries: Sequence[Summary],
    beta: float,
    threshold: float = THRESHOLD,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Summary]:
    """The summaries, replacing those that fail the check by one that says that nothing is known.

    Args:
        inference_model: the author of the summaries, which also writes those without the held-out pairs.
        generator: scores them; untrained, so that it is its own reference.
        users: each user's signals.
        summaries: the users' summaries.
        beta: β.
        threshold: threshold of the log ratio.
        progress: called with 1 after each user.
    """
    templates, checked = inference_model.templates, []
    for signals, summary in zip(users, summaries, strict=True):
        cases = leave_out(signals) if summary.text and not summary.abstained else []
        if cases:
            partial: list[Summary | None] = list(inference_model.summarize_many([case.signals for case in cases]))
            pairs, n = [case.pair for case in cases], len(cases)
            chosen, rejected = generator.pair_logps([*pairs, *pairs], [*partial, *[None] * n])
            margins = [chosen[i] - chosen[n + i] - rejected[i] + rejected[n + i] for i in range(n)]
            if log_ratio(margins, beta) <= threshold:
                text = templates.no_preference
                tokens = inference_model.local.count_tokens(text)
                summary = replace(summary, text=text, tokens=tokens, abstained=True)
        checked.append(summary)
        progress(1)
    return checked
