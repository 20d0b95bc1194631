"""The generator's phase: IPO or DPO with the summary in the policy's prompt and the plain prompt in the reference's.

The baselines train here too: without a summary (population DPO), with raw signals in its place (FSPO), or behind a
soft prompt (`user_embedding`).

- Reference log-probs come with the rows: the reference has no summary, and is the same throughout.
- A row is a tree (prompt, chosen, rejected), so the prompt is read once; nothing is truncated. Pairs of one group share
  a row, in which what their prompts begin with, summary or signals, stands once (`targets_per_summary`).
- The loss is `popi.training.objective.generator_loss` of the margins, a mean over the batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from popi.config import RunConfig
from popi.engine.scoring import shared_trees
from popi.engine.tree import pack
from popi.models.local.adapters import TRAINED, set_dropout
from popi.models.local.model import LocalModel
from popi.training.objective import accuracy, generator_loss, margin, summary_reward
from popi.training.phases.drift import EVERY, base_logps, chosen_loss, chosen_tokens, drift
from popi.training.phases.scorer import TreeScorer, pair_sums
from popi.training.phases.trainer import PhaseTrainer
from popi.training.rows import GeneratorRow, grouped


def collate(pad_id: int, soft: int = 0) -> Callable[[list[GeneratorRow]], dict[str, Any]]:
    """B pairs -> R tree rows of neighbours of one group (behind places for `soft` vectors), the user of each tree row
    (R,), and references (B,); scored segments come in order of the pairs."""

    def call(rows: list[GeneratorRow]) -> dict[str, Any]:
        trees, users = [], []
        for group in grouped(rows):
            shared = shared_trees([row.item.with_soft_prompt(soft, pad_id) for row in group])
            trees += shared
            users += [group[0].user] * len(shared)
        return {
            "trees": pack(trees, pad_id),
            "users": torch.tensor(users),
            "ref_chosen": torch.tensor([row.ref_chosen for row in rows]),
            "ref_rejected": torch.tensor([row.ref_rejected for row in rows]),
        }

    return call


class GeneratorTrainer(PhaseTrainer):
    """DPO, IPO or conservative DPO on target pairs under summaries.

    Args:
        local: the generator; with adapters, `default` is trained.
        rows: in training order, `batch_size` a step: of whole groups, but for those that the end of a step or of a
            micro batch cuts.
        held_out: of users to evaluate on while it trains.
        base: the untrained model that reads the same prompts, to see what the chosen responses lose; None where
            nothing stands beside the prompts, and the references are what it says.
        scorer: what trains, where that is more than the generator.
        soft: vectors of the soft prompt in front of each row's prompt.
        arguments: of every phase (`PhaseTrainer`).
    """

    loss_is_scaled_for_ga = False  # the loss is a batch's mean
    trains_generator = True

    def __init__(
        self,
        *,
        local: LocalModel,
        rows: Sequence[GeneratorRow],
        config: RunConfig,
        held_out: Sequence[GeneratorRow] = (),
        base: Any = None,
        scorer: TreeScorer | None = None,
        soft: int = 0,
        **arguments: Any,
    ) -> None:
        self.settings = settings = config.training.generator
        self.base, self.reward_beta = base, config.training.inference.beta
        super().__init__(
            scorer or TreeScorer(local.model),
            rows,
            held_out,
            collate(local.pad_id, soft),
            settings,
            config=config,
            per_device_train_batch_size=settings.batch_size // settings.parts,
            gradient_accumulation_steps=settings.parts,
            **arguments,
        )
        if settings.lora_dropout:
            set_dropout(local.model, TRAINED, settings.lora_dropout)

    def score(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """(N,) log-probs of a batch's scored tokens."""
        logps: Tensor = model(inputs["trees"])[0]
        return logps

    def margins(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(B,) h of each pair, and (B,) log-probs of the chosen responses."""
        logps = pair_sums(self.score(model, inputs), inputs["trees"])  # (B, 2): chosen, rejected
        return margin(logps[:, 0], logps[:, 1], inputs["ref_chosen"], inputs["ref_rejected"]), logps[:, 0]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The mean loss of a batch."""
        h, chosen = self.margins(model, inputs)
        self.note(margin=float(h.detach().mean()), reward_accuracy=accuracy(h.detach()))
        tokens, settings = chosen_tokens(inputs["trees"]), self.settings
        self.note(**drift(chosen, inputs["ref_chosen"], tokens))
        if settings.max_chosen_loss and (self.state.global_step + 1) % EVERY == 0:
            before = inputs["ref_chosen"] if self.base is None else base_logps(self.base, inputs["trees"])
            self.note(chosen_loss=chosen_loss(chosen, before, tokens))
        return generator_loss(h, settings.loss, settings.beta, settings.label_smoothing).mean()

    def measure(self) -> dict[str, float]:
        """Of the held-out users' pairs; the reward with the β of the summary reward, whatever the loss's is."""
        size, device, found = self.args.per_device_train_batch_size, self.args.device, []
        for start in range(0, len(self.held_out), size):
            batch = self.data_collator(list(self.held_out[start : start + size]))
            batch = {name: value.to(device) for name, value in batch.items()}
            h, chosen = self.margins(self.scorer, batch)
            found.append(torch.stack([h, chosen - batch["ref_chosen"]]))
        h, moved = torch.cat(found, 1)
        reward = float(summary_reward(h, self.reward_beta).mean())
        return {"reward": reward, "reward_accuracy": accuracy(h), "chosen_drift": float(moved.mean())}
