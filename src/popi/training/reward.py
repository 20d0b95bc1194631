"""The summary reward: how well a generator ranks a user's targets once it has read a summary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popi.generator import Generator
from popi.scoring import ScoringItem, pair_logps
from popi.training.adapters import using
from popi.training.dataset import InferenceRow
from popi.training.objective import margin, summary_reward


@dataclass
class Scores:
    """A step's summaries under their users' targets: n summaries, m (summary, target) pairs.

    Attributes:
        summaries, rows: n each.
        rewards: (n,) mean over a summary's targets of log σ(β·h)/β.
        margins: (m,) h of each pair, in order of the summaries.
        owner: (m,) which summary each pair belongs to.
        items: m pairs, encoded under their summaries.
        ref_chosen, ref_rejected: (m,) reference log-probs.
    """

    summaries: list[str]
    rows: list[InferenceRow]
    rewards: Tensor
    margins: Tensor
    owner: Tensor
    items: list[ScoringItem]
    ref_chosen: Tensor
    ref_rejected: Tensor

    def table(self, step: int) -> list[dict[str, Any]]:
        """One row a summary, for samples.jsonl."""
        return [
            {"step": step, "user_id": row.user_id, "summary": text, "reward": round(reward, 6)}
            for text, row, reward in zip(self.summaries, self.rows, self.rewards.tolist(), strict=True)
        ]


class SummaryReward:
    """Scores summaries with one generator: frozen in an inference phase, training along in a joint one.

    Args:
        generator: its templates and its model.
        adapter: the adapter it runs under, None for the bare model.
        beta: β of log σ(β·h)/β.
    """

    def __init__(self, generator: Generator, adapter: str | None, beta: float, batch_size: int = 64) -> None:
        self.generator, self.adapter, self.beta, self.batch_size = generator, adapter, beta, batch_size

    def score(self, summaries: Sequence[str], rows: Sequence[InferenceRow]) -> Scores:
        """Score each summary on the targets of its row, without gradient."""
        prefixes: dict[tuple[int, str], tuple[int, ...]] = {}  # a group repeats both prompts and summaries
        items, owner, ref_chosen, ref_rejected = [], [], [], []
        for n, (text, row) in enumerate(zip(summaries, rows, strict=True)):
            for target in row.targets:
                key = id(target), text
                if key not in prefixes:
                    prefixes[key] = tuple(self.generator.prompt_ids(target.prompt, text))
                items.append(ScoringItem(prefixes[key], target.chosen, target.rejected))
                owner.append(n)
                ref_chosen.append(target.ref_chosen)
                ref_rejected.append(target.ref_rejected)
        model = self.generator.local.model
        was_training = model.training
        model.eval()
        with using(model, self.adapter):
            chosen, rejected = pair_logps(model, items, self.generator.local.pad_id, self.batch_size)
        model.train(was_training)
        references = torch.tensor(ref_chosen), torch.tensor(ref_rejected)
        h = margin(chosen, rejected, *references)
        owners = torch.tensor(owner)
        total = torch.zeros(len(summaries)).index_add(0, owners, summary_reward(h, self.beta))
        rewards = total / torch.bincount(owners, minlength=len(summaries))
        return Scores(list(summaries), list(rows), rewards, h, owners, items, *references)
