"""The summary reward: how well a generator ranks a user's targets, given a summary."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popi.config import InferencePhaseConfig
from popi.generator import Generator
from popi.models.local.adapters import using
from popi.signals.render import shortened
from popi.signals.types import TargetPair
from popi.training.objective import length_penalty, margin, summary_reward
from popi.training.rows import InferenceRow


@dataclass
class Scores:
    """Scores of a step's summaries on their users' targets: n summaries, m (summary, target) pairs.

    Attributes:
        summaries, rows: n each.
        rewards: (n,) mean over a summary's targets of log σ(β·h)/β, minus the penalty.
        penalties: (n,) deductions for length; None without a budget.
        margins: (m,) h of each pair, in the order of the summaries.
        owner: (m,) index of each pair's summary.
        targets: m target pairs.
        ref_chosen, ref_rejected: (m,) reference log-probs.
    """

    summaries: list[str]
    rows: list[InferenceRow]
    rewards: Tensor
    margins: Tensor
    owner: Tensor
    targets: list[TargetPair]
    ref_chosen: Tensor
    ref_rejected: Tensor
    penalties: Tensor | None = None
    clauses: list[list[tuple[str, float]]] | None = None
    """Each summary's clauses with their gains, with credit per clause."""

    @classmethod
    def joined(cls, parts: Sequence["Scores"]) -> "Scores":
        """The scores of several parts of a step as one."""
        if len(parts) == 1:
            return parts[0]
        starts = [sum(len(part.summaries) for part in parts[:i]) for i in range(len(parts))]
        together = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("rewards", "margins", "ref_chosen", "ref_rejected")
        }
        penalties = [part.penalties for part in parts if part.penalties is not None]
        return cls(
            summaries=[text for part in parts for text in part.summaries],
            rows=[row for part in parts for row in part.rows],
            owner=torch.cat([start + part.owner for start, part in zip(starts, parts, strict=True)]),
            targets=[target for part in parts for target in part.targets],
            penalties=torch.cat(penalties) if penalties else None,
            clauses=[own for part in parts for own in part.clauses or ()] if parts[0].clauses is not None else None,
            **together,
        )

    def part(self, start: int, stop: int) -> "Scores":
        """The scores of the summaries from `start` to `stop`."""
        pairs = (self.owner >= start) & (self.owner < stop)
        return Scores(
            self.summaries[start:stop],
            self.rows[start:stop],
            self.rewards[start:stop],
            self.margins[pairs],
            self.owner[pairs] - start,
            [target for target, own in zip(self.targets, pairs.tolist(), strict=True) if own],
            self.ref_chosen[pairs],
            self.ref_rejected[pairs],
            None if self.penalties is None else self.penalties[start:stop],
            None if self.clauses is None else self.clauses[start:stop],
        )

    def invalid(self) -> str | None:
        """The first margin, reward or gain that is not a finite number, with its user; None if all are finite."""
        for h, owner, target in zip(self.margins.tolist(), self.owner.tolist(), self.targets, strict=True):
            if not math.isfinite(h):
                return (
                    f"user {self.rows[owner].user_id!r} has the margin {h} on the prompt {shortened(target.prompt)!r}"
                )
        for n, reward in enumerate(self.rewards.tolist()):
            gains = [gain for _, gain in self.clauses[n]] if self.clauses else []
            if not all(map(math.isfinite, (reward, *gains))):
                return f"a summary of user {self.rows[n].user_id!r} has the reward {reward} and the gains {gains}"
        return None

    def on_targets(self, beta: float) -> list[Tensor]:
        """Each summary's reward on each of its row's targets, minus the penalty."""
        each = summary_reward(self.margins, beta)
        if self.penalties is not None:
            each = each - self.penalties[self.owner]
        return list(each.split([len(row.targets) for row in self.rows]))

    def table(self, step: int) -> list[dict[str, Any]]:
        """One row per summary, for samples.jsonl."""
        table = [
            {"step": step, "user_id": row.user_id, "summary": text, "reward": round(reward, 6)}
            for text, row, reward in zip(self.summaries, self.rows, self.rewards.tolist(), strict=True)
        ]
        if self.penalties is not None:
            for entry, penalty in zip(table, self.penalties.tolist(), strict=True):
                entry["length_penalty"] = round(penalty, 6)
        for entry, clauses in zip(table, self.clauses or [], strict=False):
            entry["clauses"] = [[text, round(gain, 6)] for text, gain in clauses]
        return table


@dataclass(frozen=True)
class LengthBudget:
    """Cost of a summary's length.

    Attributes:
        target: number of free tokens.
        penalty: deduction from the reward per further token.
    """

    target: int
    penalty: float

    @classmethod
    def of(cls, settings: InferencePhaseConfig) -> "LengthBudget | None":
        """The settings' budget, if they define one."""
        if settings.length_target is None or settings.length_penalty is None:
            return None
        return cls(settings.length_target, settings.length_penalty)


class SummaryReward:
    """Scores summaries with a generator, which is frozen in an inference phase and trained in a joint one.

    Args:
        generator: a local model, or a frozen one behind an API.
        adapter: the generator's adapter; None is the bare model.
        beta: β of log σ(β·h)/β.
        budget: cost of a summary's length, if any.
    """

    def __init__(
        self,
        generator: Generator,
        adapter: str | None,
        beta: float,
        batch_size: int = 64,
        budget: LengthBudget | None = None,
    ) -> None:
        self.generator, self.adapter, self.beta, self.batch_size = generator, adapter, beta, batch_size
        self.budget = budget

    @property
    def model(self) -> Any:
        """The local model that scores; None if it is behind an API."""
        return self.generator.local.model if self.generator.trainable else None

    def score(self, summaries: Sequence[str], rows: Sequence[InferenceRow], tokens: Sequence[int]) -> Scores:
        """Score each summary on the targets of its row, without gradient.

        Args:
            summaries: (n,) texts.
            rows: (n,) the row of each summary.
            tokens: (n,) their lengths without the end token. A truncated summary has the length of the limit, one more
                than any complete one.
        """
        pairs = [(n, target) for n, row in enumerate(rows) for target in row.targets]
        targets = [target.pair for _, target in pairs]
        with self._frozen():
            logps = self.generator.pair_logps(targets, [summaries[n] for n, _ in pairs], self.batch_size)
        chosen, rejected = map(torch.tensor, logps)
        references = torch.tensor([t.ref_chosen for _, t in pairs]), torch.tensor([t.ref_rejected for _, t in pairs])
        h = margin(chosen, rejected, *references)
        owners = torch.tensor([n for n, _ in pairs])
        total = torch.zeros(len(summaries)).index_add(0, owners, summary_reward(h, self.beta))
        rewards = total / torch.bincount(owners, minlength=len(summaries))
        penalties = None
        if self.budget is not None:
            penalties = length_penalty(torch.tensor(tokens), self.budget.target, self.budget.penalty)
            rewards = rewards - penalties
        return Scores(list(summaries), list(rows), rewards, h, owners, targets, *references, penalties)

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """A context in which a local model is in evaluation mode, with its adapter."""
        if not self.generator.trainable:
            yield
            return
        model = self.generator.local.model
        was_training = model.training
        model.eval()
        with using(model, self.adapter):
            yield
        model.train(was_training)
