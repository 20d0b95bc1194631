"""Before a phase's first step: are the rewards of its first groups reliable enough to learn from?

A group of summaries of each of a run's first users is sampled and scored as in a step, on more targets where there are
more. Nothing trains, and the randomness of training goes on as if nothing had been sampled: learning curves stay what
they are, to the bit. It costs about what a step's sampling and scoring cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popi.config import RunConfig
from popi.models.local.adapters import using
from popi.signals.types import User
from popi.training.components import INFERENCE, Components
from popi.training.credit import Stops
from popi.training.references import References
from popi.training.reliability import Reliability, advice
from popi.training.reward import SummaryReward
from popi.training.rows import InferenceRow, inference_rows

LEAST_USERS, LEAST_TARGETS = 8, 4
"""Groups and targets of a rehearsal, if the phase draws so many users and they have so many, and a step fewer."""


@dataclass(frozen=True)
class Rehearsal:
    """What came of it.

    Attributes:
        summaries: reliability of a summary's reward.
        clauses: of what the clauses from one on gain, with credit for clauses.
        group: summaries of a group in training.
    """

    summaries: Reliability
    clauses: Reliability | None
    group: int

    def lines(self, phase: str) -> list[str]:
        """For the terminal: reliability, what more targets and a larger group would do; a warning if it is low."""
        found = [f"{phase}: {self.summaries.line('rewards')}"]
        if self.clauses is not None:
            found.append(f"{phase}: {self.clauses.line('credit for clauses')}")
        return [*found, *(f"{phase}: {line}" for line in advice(self.clauses or self.summaries, self.group))]

    def facts(self) -> dict[str, Any]:
        """For reliability.json."""
        own = {"summaries": self.summaries.facts()}
        return own | ({"clauses": self.clauses.facts()} if self.clauses is not None else {})


def first_users(order: Sequence[int], config: RunConfig) -> list[int]:
    """The users of a rehearsal: those of the first step, and more if they are few."""
    return list(dict.fromkeys(order))[: max(LEAST_USERS, config.training.inference.users_per_step)]


def rehearsal_rows(
    users: Sequence[User], first: Sequence[int], parts: Components, references: References, config: RunConfig, seed: int
) -> list[InferenceRow]:
    """A row of each of these users, with up to `LEAST_TARGETS` targets where a step takes fewer."""
    most = max(LEAST_TARGETS, config.training.inference.targets_per_summary)
    return inference_rows(users, first, parts.inference_model, references, most, seed)


def rehearse(
    rows: Sequence[InferenceRow], parts: Components, reward: SummaryReward, config: RunConfig, seed: int
) -> Rehearsal | None:
    """Sample and score a group for each row; None where targets can't be compared: users have one each, or the summary
    is for one prompt (`summary.conditioned_on_prompt`).
    """
    settings, local = config.training.inference, parts.inference_model.local
    if config.summary.conditioned_on_prompt or not any(len(row.targets) > 1 for row in rows):
        return None
    size, at_once = settings.group_size, settings.users_per_step // settings.parts
    groups: list[list[Tensor]] = []
    credit: list[list[Tensor]] = []
    with torch.random.fork_rng(), using(local.model, parts.adapters[INFERENCE]):
        torch.manual_seed(seed)
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            drawn = local.generate(
                [row.prompt_ids for row in part],
                n=size,
                max_new_tokens=config.summary.max_tokens,
                temperature=config.summary.temperature,
                top_p=config.summary.top_p,
            )
            own = [row for row in part for _ in range(size)]
            ids = [one for group in drawn for one in group]
            texts = [local.decode(one) for one in ids]
            each = reward.score(texts, own, [local.length(one) for one in ids]).on_targets(reward.beta)
            groups += [[torch.stack(each[i : i + size])] for i in range(0, len(each), size)]
            if settings.credit == "clause":
                stops = Stops.of(reward, texts, own, local.count_tokens)
                to_go = _to_go(stops, each, reward.beta, settings.clause_decay)
                credit += [_by_segment(to_go[i : i + size]) for i in range(0, len(each), size)]
    used = [min(len(row.targets), settings.targets_per_summary) for row in rows]
    targets = sum(used) / len(used)
    summaries = Reliability.of(groups, targets)
    if summaries is None:
        return None
    return Rehearsal(summaries, Reliability.of(credit, targets) if credit else None, size)


def _to_go(stops: Stops, each: Sequence[Tensor], beta: float, decay: float) -> list[Tensor]:
    """Of each summary (K, T): what is gained on each target from its first, second, … clause on."""
    stopped = stops.scores.on_targets(beta)
    found = []
    for at, whole in zip(stops.places, each, strict=True):
        to_go = torch.stack([*(stopped[i] for i in at), whole]).diff(dim=0)  # gains
        for i in range(len(to_go) - 2, -1, -1):
            to_go[i] += decay * to_go[i + 1]
        found.append(to_go)
    return found


def _by_segment(to_go: Sequence[Tensor]) -> list[Tensor]:
    """A group's (K, T) -> for each segment (summaries that have it, T)."""
    longest = max(map(len, to_go))
    return [torch.stack([own[i] for own in to_go if i < len(own)]) for i in range(longest)]
