"""The generator's phase: IPO or DPO with the summary in the policy's prompt and the plain prompt in the reference's.

The baselines are also trained here: without a summary (population DPO), with raw signals instead (FSPO), or with a soft
prompt (`user_embedding`).

- Reference log-probs come with the rows, since the reference has no summary and does not change.
- A row is a tree (prompt, chosen, rejected), so the prompt is read once; nothing is truncated. Pairs of one group share
  a row that contains their common prefix, with the summary or signals, once (`targets_per_summary`).
- Several processes take equal shares of each batch; a group that is split between shares is read in both.
- The loss is `popi.training.objective.generator_loss` of the margins, a mean over the batch.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
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
from popi.training.planning.shares import parts_of
from popi.training.processes import ALONE, Processes
from popi.training.rows import GeneratorRow, grouped
from popi.training.sharding import whole


def collate(pad_id: int, soft: int = 0) -> Callable[[list[GeneratorRow]], dict[str, Any]]:
    """B pairs -> R tree rows, one per run of pairs of a group (with placeholders for `soft` vectors), the user of each
    tree row (R,), and references (B,); scored segments are in the order of the pairs."""

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
        rows: in training order, `batch_size` per step, in whole groups except at the ends of steps and micro-batches.
        held_out: rows for evaluations during the phase.
        base: the untrained model, which reads the same prompts to measure the chosen responses' loss; None if prompts
            have no context, so that the references are its log-probs.
        scorer: the trained module, if it is more than the generator.
        soft: number of soft-prompt vectors before each row's prompt.
        arguments: arguments common to all phases (`PhaseTrainer`).
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
        processes: Processes = ALONE,
        **arguments: Any,
    ) -> None:
        self.settings = settings = config.training.generator
        batch_size, size = settings.batch_size, processes.size
        parts = parts_of("training.generator.batch_size", batch_size, settings.micro_batch, size)
        self.base, self.reward_beta = base, config.training.inference.beta
        super().__init__(
            scorer or TreeScorer(local.model),
            rows,
            held_out,
            collate(local.pad_id, soft),
            settings,
            config=config,
            processes=processes,
            per_device_train_batch_size=batch_size // (size * parts),
            gradient_accumulation_steps=parts,
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
        """The mean loss of this process's share of a batch; shares are equal, so their mean is the batch's."""
        with self.processes.own_noise() if self.settings.lora_dropout else nullcontext():
            h, chosen = self.margins(model, inputs)
        self.note(margin=float(h.detach().mean()), reward_accuracy=accuracy(h.detach()))
        tokens, settings = chosen_tokens(inputs["trees"]), self.settings
        n = float(tokens.sum())
        moved = drift(chosen, inputs["ref_chosen"], tokens)
        self.note(n, chosen_drift_per_token=moved.pop("chosen_drift_per_token"))
        self.note(**moved)
        if settings.max_chosen_loss and (self.state.global_step + 1) % EVERY == 0:
            before = inputs["ref_chosen"] if self.base is None else base_logps(self.base, inputs["trees"])
            self.note(n, chosen_loss=chosen_loss(chosen, before, tokens))
        return generator_loss(h, settings.loss, settings.beta, settings.label_smoothing).mean()

    def measure(self) -> dict[str, float]:
        """Metrics on the held-out users' pairs; the reward uses the summary reward's β, not the loss's."""
        held_out = self.processes.share(self.held_out)
        size, device, own = self.args.per_device_train_batch_size, self.args.device, []
        with whole(*self.models):
            for start in range(0, len(held_out), size):
                batch = self.data_collator(list(held_out[start : start + size]))
                batch = {name: value.to(device) for name, value in batch.items()}
                h, chosen = self.margins(self.scorer, batch)
                own.append(torch.stack([h, chosen - batch["ref_chosen"]]).cpu())
        h, moved = torch.cat([part for parts in self.processes.gather(own) for part in parts], 1)
        reward = float(summary_reward(h, self.reward_beta).mean())
        return {"reward": reward, "reward_accuracy": accuracy(h), "chosen_drift": float(moved.mean())}
