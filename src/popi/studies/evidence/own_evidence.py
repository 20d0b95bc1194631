"""Does what a user's other signals say hold for the user's own pairs? A check before a summary is used.

Each preference pair i among a user's signals is left out in turn; a summary of the others is scored on it, h_i. If the
summary is right about the user, it predicts such pairs better than a coin, under the objective's own model of choice:

    log ratio = Σ_i [ log σ(β·h_i) − log ½ ]

A summary is kept where this is above a threshold (at 0 it does as well as the coin), else the user is answered as if
nothing were known. It needs log-probs of the generator, no truth, and pairs: of a user with fewer than two there is
nothing to check, and the summary is kept. Being left out, a pair can't speak for the summary that it has made itself.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from popi.generator import AnyGenerator
from popi.inference_model import InferenceModel
from popi.signals.types import Signal, TargetPair
from popi.summary import Summary
from popi.training.per_user import own_pairs

MOST = 8
"""Most pairs of a user that are left out in turn, the last ones: each costs a summary."""
FEWEST = 2
"""With fewer pairs nothing is checked."""
THRESHOLD = 0.5
"""Of the log ratio, in nats: more than chance gives to most users without evidence (docs/evidence.md)."""


@dataclass(frozen=True)
class LeftOut:
    """One pair of a user, and the signals without it."""

    signals: tuple[Signal, ...]
    pair: TargetPair


def leave_out(signals: Sequence[Signal], most: int = MOST) -> list[LeftOut]:
    """A user's pairs (edits too), each with all signals but those of the same content; none if there are too few."""
    found = []
    for signal in signals:
        for pair in own_pairs([signal]):
            others = [one for one in signals if _content(one) != _content(signal)]
            found.append(LeftOut(tuple(others), pair))
    return found[-most:] if len(found) >= FEWEST else []


def _content(signal: Signal) -> dict[str, Any]:
    return signal.model_dump(exclude={"id", "time"})


def log_ratio(margins: Sequence[float], beta: float) -> float:
    """Σ log σ(β·h) − log ½, in nats, of margins h; 0 of none."""
    return sum(math.log(2) - _softplus(-beta * h) for h in margins)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def checked_summaries(
    inference_model: InferenceModel,
    generator: AnyGenerator,
    users: Sequence[Sequence[Signal]],
    summaries: Sequence[Summary],
    beta: float,
    threshold: float = THRESHOLD,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Summary]:
    """The summaries, those that do not hold for their user's own pairs replaced by one that says that nothing is known.

    Args:
        inference_model: wrote the summaries, and writes those of all but one pair.
        generator: scores them; untrained, it is its own reference.
        users: each user's signals.
        summaries: of those users.
        beta: β.
        threshold: of the log ratio.
        progress: told how many users are done, one by one.
    """
    templates, checked = inference_model.templates, []
    for signals, summary in zip(users, summaries, strict=True):
        cases = leave_out(signals) if summary.text and not summary.abstained else []
        if cases:
            told: list[Summary | None] = list(inference_model.summarize_many([case.signals for case in cases]))
            pairs, n = [case.pair for case in cases], len(cases)
            chosen, rejected = generator.pair_logps([*pairs, *pairs], [*told, *[None] * n])
            margins = [chosen[i] - chosen[n + i] - rejected[i] + rejected[n + i] for i in range(n)]
            if log_ratio(margins, beta) <= threshold:
                text = templates.no_preference
                tokens = inference_model.local.count_tokens(text)
                summary = replace(summary, text=text, tokens=tokens, abstained=True)
        checked.append(summary)
        progress(1)
    return checked
