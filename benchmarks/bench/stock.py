"""Stock TRL: the methods of its GRPO and DPO trainers on the same tokens.

Scoring is the DPO trainer's reference pass, run with the generator; the reference's own log-probs are precomputed, as
the trainer supports. The generator step runs the reference at each step, which is the trainer's default.
"""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from bench.cases import PAIRS, SUMMARY, load
from bench.ways import Found, Way, dpo
from popi.nano.tokenizer import build_tokenizer

COMMON = {
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


class Stock(Way):
    """TRL's trainers for the policy and, if the part needs one, the generator."""

    def setup(self) -> None:
        part, group = self.case.what, self.case.group
        folder = tempfile.mkdtemp()
        cpu = self.case.device == "cpu"
        tokenizer = build_tokenizer()  # only to satisfy the trainers, whose methods take token ids
        self.grpo: Any = None
        self.dpo: Any = None
        if part in ("policy_update", "rollouts", "whole_step"):
            self.grpo = GRPOTrainer(
                model=self.policy,
                reward_funcs=lambda completions, **_: [0.0] * len(completions),
                args=GRPOConfig(
                    output_dir=folder,
                    use_cpu=cpu,
                    per_device_train_batch_size=group,
                    num_generations=group,
                    max_completion_length=SUMMARY,
                    temperature=1.0,
                    beta=0.0,
                    **COMMON,
                ),
                train_dataset=Dataset.from_dict({"prompt": ["a"] * group}),
                processing_class=tokenizer,
            )
            self.grpo.eos_token_ids = [-1]  # every way writes summaries of full length
            self.grpo.generation_config.min_new_tokens = SUMMARY
            self.anchor = load(self.case) if part == "whole_step" else None
            if self.anchor is not None:
                add_fused_lm_head(self.anchor)
        if part in ("scoring", "whole_step", "generator_step"):
            self.generator = self.policy if part == "generator_step" else load(self.case)
            self.reference = load(self.case)
            self.dpo = DPOTrainer(
                model=self.generator,
                ref_model=self.reference,
                args=DPOConfig(
                    output_dir=folder,
                    use_cpu=cpu,
                    max_length=None,
                    per_device_train_batch_size=PAIRS,
                    **COMMON,
                ),
                train_dataset=Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}),
                processing_class=tokenizer,
            )
            self.references = self.pairs(self.reference, self.plain_items(None if group else PAIRS))
            if part != "generator_step":  # its log-probs are cached, so the model is not needed any more
                self.dpo.ref_model = self.reference = None

    def collated(self, items: list[Any]) -> dict[str, Tensor]:
        rows = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in items]
        return {name: value.to(self.device) for name, value in self.dpo.data_collator(rows).items()}

    def pairs(self, model: torch.nn.Module, items: list[Any]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            chosen, rejected = self.dpo.compute_ref_log_probs(model, self.collated(items))
        return chosen, rejected

    def scoring(self) -> Found:
        return self.rewards(*self.pairs(self.generator, self.items()), *self.references)

    def rollouts(self) -> Found:
        prompts = [self.case.signal_ids(self.vocabulary)] * self.case.group
        drawn, _ = self.grpo._generate_single_turn(prompts, None, {}, self.case.group)
        assert all(len(ids) == SUMMARY for ids in drawn), "a summary ended early"
        return {}

    def logps(self, model: Any, train: bool) -> Tensor:
        logps: Tensor = self.grpo._get_per_token_logps_and_entropies(
            model, *self.batch(), SUMMARY, compute_entropy=train
        )[0]
        return logps

    def generator_step(self) -> Found:
        """TRL's forward pass and sums; the reference reads the plain prompt, as in the other ways."""
        references = self.pairs(self.reference, self.plain_items(PAIRS))
        inputs = self.collated(self.items(PAIRS))
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        keep = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        outputs = self.policy(**keep, labels=labels, fused_lm_head=True, use_cache=False)
        chosen, rejected = outputs.log_probs.sum(1).chunk(2)
        return dpo(chosen, rejected, *references) | {"gradient": self.gradient()}
