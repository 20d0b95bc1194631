"""Checks before a phase's first step whether the rewards of its first groups are reliable enough to learn from.

A group of summaries for each of the first users is sampled and scored as in a step, on more targets if available.
Nothing is trained and the random state of training is not affected, so learning curves stay exactly the same. It costs
about as much as a step's sampling and scoring.
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
"""Minimum groups and targets of a rehearsal, as far as the phase's users and their targets allow."""


@dataclass(frozen=True)
class Rehearsal:
    """The result of a rehearsal.

    Attributes:
        summaries: reliability of a summary's reward.
        clauses: with credit per clause, reliability of the gain from a clause on.
        group: summaries per group in training.
    """

    summaries: Reliability
    clauses: Reliability | None
    group: int

    def lines(self, phase: str) -> list[str]:
        """Lines for the terminal: reliability, the effect of more targets or a larger group, a warning if it is low."""
        lines = [f"{phase}: {self.summaries.line('rewards')}"]
        if self.clauses is not None:
            lines.append(f"{phase}: {self.clauses.line('credit for clauses')}")
        return [*lines, *(f"{phase}: {line}" for line in advice(self.clauses or self.summaries, self.group))]

    def facts(self) -> dict[str, Any]:
        """The values for reliability.json."""
        own = {"summaries": self.summaries.facts()}
        return own | ({"clauses": self.clauses.facts()} if self.clauses is not None else {})


def first_users(order: Sequence[int], config: RunConfig) -> list[int]:
    """The users of a rehearsal: those of the first step, and more if there are few."""
    return list(dict.fromkeys(order))[: max(LEAST_USERS, config.training.inference.users_per_step)]


def rehearsal_rows(
    users: Sequence[User], first: Sequence[int], parts: Components, references: References, config: RunConfig, seed: int
) -> list[InferenceRow]:
    """A row for each of these users, with up to `LEAST_TARGETS` targets if a step takes fewer."""
    most = max(LEAST_TARGETS, config.training.inference.targets_per_summary)
    return inference_rows(users, first, parts.inference_model, references, most, seed)


def rehearse(
    rows: Sequence[InferenceRow], parts: Components, reward: SummaryReward, config: RunConfig, seed: int
) -> Rehearsal | None:
    """Sample and score a group for each row. None if targets can't be compared, because users have only one, or
    summaries depend on the prompt (`summary.conditioned_on_prompt`).
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
    """For each summary (K, T): the gain on each target from its first, second, … clause on."""
    stopped = stops.scores.on_targets(beta)
    gains = []
    for at, whole in zip(stops.places, each, strict=True):
        to_go = torch.stack([*(stopped[i] for i in at), whole]).diff(dim=0)
        for i in range(len(to_go) - 2, -1, -1):
            to_go[i] += decay * to_go[i + 1]
        gains.append(to_go)
    return gains


def _by_segment(to_go: Sequence[Tensor]) -> list[Tensor]:
    """A group's (K, T) tensors -> for each segment, (summaries that have it, T)."""
    longest = max(map(len, to_go))
    return [torch.stack([own[i] for own in to_go if i < len(own)]) for i in range(longest)]
