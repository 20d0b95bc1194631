"""The generator's phase: DPO with the summary in the policy's prompt and the plain prompt in the reference's.

The baselines train here too: without a summary (population DPO), with raw signals in its place (FSPO), or behind a
soft prompt (`user_embedding`).

On TRL's `DPOTrainer`, with these departures:
- Reference log-probs come with the rows. TRL would recompute them under the policy's prompt, summary included, or
  ignore them without a word.
- A row is a tree (prompt, chosen, rejected), so the prompt is read once; nothing is truncated, since the cached
  reference was not.
- The loss is `popi.training.objective`: TRL ignores `label_smoothing` for `sigmoid` and divides IPO's log-ratios by
  the responses' lengths.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from popi.backends.local import LocalModel
from popi.config import RunConfig
from popi.scoring import ScoringItem
from popi.training.adapters import TRAINED, has_adapters, set_dropout
from popi.training.dataset import GeneratorRow
from popi.training.objective import accuracy, generator_loss, margin, summary_reward
from popi.training.phases.trainer import PhaseTrainer, Report, common_arguments
from popi.training.run_directory import PhaseDirectory, RunDirectory
from popi.tree import TreeBatch, pack, segment_logps


def collate(pad_id: int, soft: int = 0) -> Any:
    """Rows of TRL's columns -> tree rows (behind places for `soft` vectors), users and references, each batch first."""

    def call(rows: list[dict[str, Any]]) -> dict[str, Any]:
        items = [ScoringItem(tuple(row["prompt_ids"]), row["chosen_ids"], row["rejected_ids"]) for row in rows]
        return {
            "trees": pack([item.behind(soft, pad_id).tree for item in items], pad_id),
            "users": torch.tensor([row["user"] for row in rows]),
            "ref_chosen_logps": torch.tensor([row["ref_chosen_logps"] for row in rows]),
            "ref_rejected_logps": torch.tensor([row["ref_rejected_logps"] for row in rows]),
        }

    return call


def columns(rows: Sequence[GeneratorRow]) -> Dataset:
    """Rows as TRL's columns."""
    return Dataset.from_dict(
        {
            "prompt_ids": [row.item.prefix for row in rows],
            "chosen_ids": [row.item.chosen for row in rows],
            "rejected_ids": [row.item.rejected for row in rows],
            "user": [row.user for row in rows],
            "ref_chosen_logps": [row.ref_chosen for row in rows],
            "ref_rejected_logps": [row.ref_rejected for row in rows],
        }
    )


class GeneratorTrainer(PhaseTrainer, DPOTrainer):
    """DPO, IPO or conservative DPO on target pairs under summaries.

    Args:
        local: the generator; with adapters, `default` is trained.
        rows: in training order, `batch_size` a step.
        held_out: of users to evaluate on while it trains.
        soft: vectors of the soft prompt in front of each row's prompt.
    """

    def __init__(
        self,
        *,
        local: LocalModel,
        rows: Sequence[GeneratorRow],
        config: RunConfig,
        run: RunDirectory,
        phase: PhaseDirectory,
        seed: int,
        steps: int,
        report: Report,
        held_out: Sequence[GeneratorRow] = (),
        soft: int = 0,
    ) -> None:
        self.settings = settings = config.training.generator
        arguments = DPOConfig(
            **common_arguments(config, settings, phase, seed, steps),
            per_device_train_batch_size=settings.batch_size // settings.parts,
            gradient_accumulation_steps=settings.parts,
            router_aux_loss_coef=0.0,  # a mixture's load balance is no part of the objective, and is not computed
            beta=settings.beta,
            precompute_ref_log_probs=True,  # or TRL keeps a reference model and asks it
            max_length=None,  # TRL: 1024, for the policy alone
        )
        super().__init__(
            model=local.model,
            args=arguments,
            data_collator=collate(local.pad_id, soft),
            train_dataset=columns(rows),
            eval_dataset=columns(held_out) if held_out else None,
            processing_class=local.tokenizer,
        )
        if has_adapters(local.model) and "ref" in local.model.peft_config:
            local.model.delete_adapter("ref")  # TRL's copy of the adapter; our references are cached
            local.model.set_adapter(TRAINED)
        if settings.lora_dropout:  # TRL has switched all dropout off
            set_dropout(local.model, TRAINED, settings.lora_dropout)
        self.attach(run, phase, report)

    def trees(self, inputs: dict[str, Any]) -> TreeBatch:
        """What the generator reads of a batch."""
        trees: TreeBatch = inputs["trees"]
        return trees

    def margins(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """(B,) h of each row."""
        logps = segment_logps(model, self.trees(inputs)).reshape(-1, 2)  # (B, 2): chosen, rejected
        return margin(logps[:, 0], logps[:, 1], inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])

    def measure(self) -> dict[str, float]:
        plain, size = self.accelerator.unwrap_model(self.model), self.args.per_device_train_batch_size
        rows: Any = self.eval_dataset
        found = []
        for start in range(0, len(rows), size):
            batch = self.data_collator([rows[i] for i in range(start, min(start + size, len(rows)))])
            found.append(self.margins(plain, {name: value.to(plain.device) for name, value in batch.items()}))
        h = torch.cat(found)
        return {"reward": float(summary_reward(h, self.settings.beta).mean()), "reward_accuracy": accuracy(h)}

    # hooks

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # encoded already, when the rows were made

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        plain = self.accelerator.unwrap_model(model)
        h = self.margins(plain, inputs)
        settings = self.settings
        loss = generator_loss(h, settings.loss, settings.beta, settings.label_smoothing).mean()
        metrics = self._metrics["train" if plain.training else "eval"]
        metrics["margin"].append(float(h.detach().mean()))
        metrics["reward_accuracy"].append(accuracy(h.detach()))
        return (loss, None) if return_outputs else loss
