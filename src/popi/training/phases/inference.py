"""The inference model's phase: GRPO on summary rewards, on TRL's `GRPOTrainer`.

Where it departs from TRL's defaults, and why:
- Loss `dr_grpo`: per-token terms are summed over a summary and divided by a constant (group · max_tokens), so the
  gradient is the method's E[A·∇log π(z|s)] + λ·∇KL up to that constant; a mean over tokens would weigh the tokens of
  short summaries more.
- Advantages are not divided by the group's standard deviation (`scale_rewards`).
- On-policy: one optimizer step a generation, so the importance ratio is 1 and never clipped.
- KL to the *initial* inference model, handed in and not loaded a second time. `use_bias_correction_kl` is on: TRL's
  k3 estimate, differentiated as it stands, follows the gradient of KL(π_φ₀ ‖ π_φ); weighted by the importance ratio it
  follows that of KL(π_φ ‖ π_φ₀), which is the method's term, token by token: what a token does to the KL of the tokens
  behind it is left out, as everywhere in GRPO.
- Rollouts, log-probs and the KL are all at `summary.temperature`: the tempered model is the policy. With
  `summary.top_p` below 1 log-probs stay those of the whole distribution, as in TRL: a small bias.
- A summary that reaches `summary.max_tokens` without its end token is cut there, as it is in use: it is scored and
  trained on as it stands (TRL's `mask_truncated_completions` is off), and its length is the limit.
- The hooks below: one pass over the signals of a group serves its rollouts and their log-probs (`popi.roots`), or, in
  parts or under gradient checkpointing, one for the rollouts and one for the log-probs.
- Or rollouts by vLLM, checked against the model that trains (`vllm_rollouts`).
- A step may go through the models in parts (`micro_batch`), each of whole groups. All of a step is sampled and rewarded
  before its first part trains, and TRL's loss is divided by the number of parts: the gradient is that of the whole.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from popi.backends.local import LocalModel
from popi.config import RunConfig
from popi.plain import trees_hold
from popi.roots import Roots
from popi.training.adapters import has_adapters
from popi.training.dataset import InferenceRow
from popi.training.objective import accuracy
from popi.training.phases.trainer import PhaseTrainer, Report, common_arguments
from popi.training.reward import SummaryReward
from popi.training.rollout_check import check_rollouts
from popi.training.run_directory import PhaseDirectory, RunDirectory, append_jsonl
from popi.training.vllm_rollouts import base_unchanged, check_log_probs, vllm_arguments
from popi.tree import Segment, causal_lm, pack, through_wrapper, token_logps_and_entropies


def group_logps(
    model: torch.nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    kept: int,
    pad_id: int,
    temperature: float,
    entropy: bool,
    roots: Roots | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of completions, reading each distinct prompt once: (rows, kept), zero where masked; entropies alike.

    Args:
        model: a causal LM, with adapters or without; or DDP around one, whose gradients are then averaged over the
            processes as they would be after its own forward.
        input_ids: (rows, prompt + kept), prompts padded on the left and completions on the right.
        attention_mask: the same shape; 0 on padding.
        kept: width of the completions.
        roots: the distinct prompts, where this model has read them already.

    Raises:
        ValueError: `roots` are others.
    """
    split = input_ids.shape[1] - kept
    groups: dict[tuple[int, ...], list[int]] = {}
    completions = []
    for row, (ids, mask) in enumerate(zip(input_ids.tolist(), attention_mask.tolist(), strict=True)):
        prompt = tuple(token for token, on in zip(ids[:split], mask[:split], strict=True) if on)
        completions.append([token for token, on in zip(ids[split:], mask[split:], strict=True) if on])
        groups.setdefault(prompt, []).append(row)
    if roots is not None:
        if set(groups) != set(roots.prompts):
            raise ValueError("the prompts are not those that were read before")
        groups = {prompt: groups[prompt] for prompt in roots.prompts}  # TRL shuffles a step's rows
    trees = [[Segment(p), *(Segment(completions[r], 0, True) for r in rows)] for p, rows in groups.items()]
    where = [(r, t) for rows in groups.values() for r in rows for t in range(len(completions[r]))]
    batch = pack(trees, pad_id).to(input_ids.device)
    logps, entropies = through_wrapper(
        model, lambda plain: token_logps_and_entropies(plain, batch, temperature, entropy=entropy, roots=roots)
    )
    index = torch.tensor(where, dtype=torch.long, device=input_ids.device).reshape(-1, 2)

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(len(completions), kept).index_put((index[:, 0], index[:, 1]), values)

    return spread(logps), spread(entropies.detach()) if entropy else None


def completion_logps(
    model: torch.nn.Module, prompts: list[list[int]], completions: list[list[int]], pad_id: int, temperature: float
) -> Tensor:
    """`group_logps` of completions that are not padded yet: (rows, longest completion)."""
    left, right = max(map(len, prompts)), max(map(len, completions))
    ids = torch.full((len(prompts), left + right), pad_id)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        both = slice(left - len(prompt), left + len(completion))
        ids[row, both], mask[row, both] = torch.tensor([*prompt, *completion]), 1
    device = next(model.parameters()).device
    return group_logps(model, ids.to(device), mask.to(device), right, pad_id, temperature, False)[0]


def columns(rows: Sequence[InferenceRow]) -> Dataset:
    """Rows as TRL's columns."""
    return Dataset.from_dict({"prompt": [list(row.prompt_ids) for row in rows], "row": list(range(len(rows)))})


class InferenceTrainer(PhaseTrainer, GRPOTrainer):
    """GRPO on the summaries of one inference model.

    Args:
        local: the inference model; with adapters, `default` is trained.
        rows: in training order, `users_per_step` a step.
        held_out: of users to evaluate on while it trains.
        reward: scores summaries with the generator of this phase.
        anchor: the initial inference model for the KL; None with adapters: then it is the base without them.
    """

    def __init__(
        self,
        *,
        local: LocalModel,
        rows: Sequence[InferenceRow],
        reward: SummaryReward,
        anchor: Any,
        config: RunConfig,
        run: RunDirectory,
        phase: PhaseDirectory,
        seed: int,
        steps: int,
        report: Report,
        held_out: Sequence[InferenceRow] = (),
    ) -> None:
        settings = config.training.inference
        self.local, self.rows, self.reward, self.held_out = local, rows, reward, held_out
        self.max_tokens = config.summary.max_tokens
        self.tolerance = config.training.vllm.tolerance
        self.parts = settings.parts
        self.at_once = settings.users_per_step // self.parts
        longest = max(len(row.prompt_ids) for row in rows) + self.max_tokens
        self.reads_once = config.training.reads_once and trees_hold(causal_lm(local.model), longest)
        self._roots: Roots | None = None
        arguments = GRPOConfig(
            **common_arguments(config, settings, phase, seed, steps),
            per_device_train_batch_size=self.at_once * settings.group_size,
            per_device_eval_batch_size=settings.group_size,
            gradient_accumulation_steps=self.parts,
            num_generations=settings.group_size,
            max_completion_length=config.summary.max_tokens,
            temperature=config.summary.temperature,
            top_p=config.summary.top_p,
            router_aux_loss_coef=0.0,  # a mixture's load balance is no part of the objective, and is not computed
            scale_rewards="group" if settings.scale_rewards else "none",
            loss_type="dr_grpo",
            beta=0.0,  # set below: TRL would load the anchor a second time, or copy today's adapter as anchor
            use_bias_correction_kl=True,
            steps_per_generation=self.parts,
            num_iterations=1,
            **vllm_arguments(config, local, [row.prompt_ids for row in rows]),
            shuffle_dataset=False,  # the rows come in training order
        )
        super().__init__(
            model=local.model,
            reward_funcs=[self.summary_reward],
            args=arguments,
            train_dataset=columns(rows),
            eval_dataset=columns(held_out) if held_out else None,
            processing_class=local.tokenizer,
        )
        self.beta = settings.kl
        self.ref_model = None if has_adapters(local.model) or not settings.kl else anchor
        self.eos_token_ids = list(dict.fromkeys((*self.eos_token_ids, *local.stop_ids)))
        self.attach(run, phase, report)
        self.check()

    def check(self) -> None:
        """Raises RuntimeError if rollouts do not come from the weights that train."""
        model = self.accelerator.unwrap_model(self.model)
        check_rollouts(self.local, model, self.rows[0].prompt_ids, self.max_tokens)

    def before_save(self) -> None:
        self.check()

    def summary_reward(
        self, completion_ids: list[list[int]], row: list[int], log_metric: Any, **_: Any
    ) -> list[float | None]:
        """TRL's reward function. Only text goes on to the generator."""
        rows = [self.rows[i] for i in row]
        texts = [self.local.decode(ids) for ids in completion_ids]
        scores = self.reward.score(texts, rows, [self.local.length(ids) for ids in completion_ids])
        self.scored(scores)
        if scores.penalties is not None:
            log_metric("length_penalty", float(scores.penalties.mean()))
        log_metric("margin", float(scores.margins.mean()))
        log_metric("reward_accuracy", accuracy(scores.margins))
        step = self.state.global_step + 1
        table = scores.table(step)
        append_jsonl(self.phase.samples, table)
        if step == 1 or step % self.args.save_steps == 0:
            self.run.show(self.phase.name, step, table)
        return scores.rewards.tolist()

    def measure(self) -> dict[str, float]:
        """Of one greedy summary of each held-out user."""
        prompts = [row.prompt_ids for row in self.held_out]
        written = [
            ids
            for start in range(0, len(prompts), self.at_once)
            for [ids] in self.local.generate(prompts[start : start + self.at_once], max_new_tokens=self.max_tokens)
        ]
        lengths = [self.local.length(ids) for ids in written]
        scores = self.reward.score([self.local.decode(ids) for ids in written], self.held_out, lengths)
        return {
            "reward": float(scores.rewards.mean()),
            "reward_accuracy": accuracy(scores.margins),
            "summary_tokens": sum(lengths) / len(lengths),
        }

    def scored(self, scores: Any) -> None:
        """For subclasses that go on with the step's scores."""

    # hooks

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return GRPOTrainer._get_train_sampler(self, dataset)  # repeats each row for its group; told not to shuffle

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}  # encoded already, when the rows were made

    def _generate_single_turn(
        self, prompt_ids: list, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> tuple[list[list[int]], None]:
        if self.use_vllm:
            return self._generate_with_vllm(prompt_ids, num_generations), None
        prompts = prompt_ids[::num_generations]  # TRL repeats each prompt for its group
        if self.reads_once:
            with torch.enable_grad():
                self._roots = Roots.read(self.local.model, prompts, self.local.pad_id)
        drawn = [
            group
            for start in range(0, len(prompts), self.at_once)
            for group in self.local.generate(
                prompts[start : start + self.at_once],
                n=num_generations,
                max_new_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                roots=self._roots,
            )
        ]
        return [ids for group in drawn for ids in group], None

    def _generate_with_vllm(self, prompt_ids: list[list[int]], num_generations: int) -> list[list[int]]:
        plain = self.accelerator.unwrap_model(self.model)
        with base_unchanged(plain):
            drawn, told = super()._generate_single_turn(prompt_ids, None, {}, num_generations)
        with torch.no_grad():
            ours = completion_logps(plain, prompt_ids, drawn, self.local.pad_id, self.temperature)
        found = check_log_probs(told, ours, self.tolerance, self.top_p)
        self._metrics["train"]["rollout_difference"].append(found)
        return drawn

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        # TRL's own shuffles the step's summaries: a part would then hold pieces of many groups, and read the signals
        # of each.
        if self.parts == 1 or not self.model.training:  # type: ignore[union-attr]
            return super()._prepare_inputs(generation_batch)
        part = self._step % self.parts
        if part == 0 or self._buffered_inputs is None:  # None: resumed from a checkpoint
            whole = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs: Any = split_tensor_dict(whole, self.parts)
        return self._buffered_inputs[part]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        roots = None
        if torch.is_grad_enabled():  # their graph goes with the backward pass; they are a step's that has one part
            roots, self._roots = self._roots, None
        more = (logits_to_keep, self.local.pad_id, self.temperature, compute_entropy, roots)
        rows = self.args.per_device_train_batch_size  # the KL's reference is asked about the whole step
        logps, entropies = zip(
            *(
                group_logps(model, ids, mask, *more)
                for ids, mask in zip(input_ids.split(rows), attention_mask.split(rows), strict=True)
            ),
            strict=True,
        )
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None
