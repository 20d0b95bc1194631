"""The inference model's phase: GRPO (arXiv 2402.03300) on summary rewards.

A step samples `group_size` summaries of each of `users_per_step` users' signals, scores each by how well a generator
that reads it ranks the user's targets, subtracts the group's mean from the rewards, and goes backward through
`popi.training.objective.policy_loss`, with the KL to the *initial* inference model.

- Rollouts, log-probs and the KL all use `summary.temperature`: the tempered model is the policy. With `summary.top_p`
  below 1 log-probs are still those of the whole distribution, which is a small bias.
- A summary that reaches `summary.max_tokens` without its end token is truncated there, as in use: it is scored and
  trained on as it is, and its length is the limit.
- A token's effect on the KL of later tokens is ignored, as always in GRPO.
- One pass over the signals of a group serves its rollouts and their log-probs (`popi.engine.roots`), or, with several
  parts or gradient checkpointing, one pass for the rollouts and one for the log-probs.
- With `credit = "clause"` each token has its own advantage (`popi.training.credit`).
- A step may be split into parts (`micro_batch`) of whole groups. The whole step is sampled and rewarded before its
  first part is trained, and each part's loss is divided by their number, so the gradient is that of the whole step.
- Several processes divide the groups of each part among them. All receive the others' samples and scores.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popi.config import RunConfig
from popi.engine.plain import trees_hold
from popi.engine.roots import Roots
from popi.engine.tree import Segment, causal_lm, pack
from popi.errors import RunError
from popi.models.local.adapters import has_adapters, using
from popi.models.local.model import LocalModel
from popi.runs.files import append_jsonl
from popi.runs.phase_directory import PhaseDirectory
from popi.training.credit import Stops, token_advantages
from popi.training.objective import accuracy, clause_advantages, group_advantages, policy_loss, token_kl
from popi.training.phases.scorer import TreeScorer
from popi.training.phases.trainer import PhaseTrainer
from popi.training.planning.shares import parts_of
from popi.training.processes import ALONE, Processes
from popi.training.reward import Scores, SummaryReward
from popi.training.rollout_check import check_rollouts
from popi.training.rows import InferenceRow
from popi.training.sampling import generate_share
from popi.training.sharding import sharded, whole
from popi.training.vllm_rollouts import VllmRollouts, check_log_probs


def summary_logps(
    scorer: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    summaries: Sequence[Sequence[int]],
    pad_id: int,
    temperature: float,
    entropy: bool = False,
    roots: Roots | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of summaries, reading each distinct prompt once: (n, T), zero after a summary's end. Also entropies, if
    requested.

    Args:
        scorer: a `TreeScorer`, possibly wrapped.
        prompts: (n,) token ids of each summary's prompt.
        summaries: (n,) token ids, at most T.
        roots: the distinct prompts, if this model has read them already.

    Raises:
        ValueError: `roots` are for other prompts.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for n, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(n)
    if roots is not None:
        if set(groups) != set(roots.prompts):
            raise ValueError("roots are for other prompts")
        groups = {prompt: groups[prompt] for prompt in roots.prompts}
    trees = [[Segment(p), *(Segment(summaries[n], 0, True) for n in members)] for p, members in groups.items()]
    where = [(n, t) for members in groups.values() for n in members for t in range(len(summaries[n]))]
    device = next(scorer.parameters()).device
    logps, entropies = scorer(pack(trees, pad_id).to(device), temperature, entropy=entropy, roots=roots)
    index = torch.tensor(where, dtype=torch.long, device=device).reshape(-1, 2)
    shape = len(summaries), max(map(len, summaries))

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(shape).index_put((index[:, 0], index[:, 1]), values)

    return spread(logps), spread(entropies.detach()) if entropy else entropies


@dataclass
class Samples:
    """n summaries to train on."""

    prompts: list[tuple[int, ...]]
    """(n,) token ids of the prompt of each, the signals."""
    summaries: list[list[int]]
    """(n,) token ids, including the end token."""
    advantages: Tensor  # (n,), or (n, T) with credit per clause, T of the step's longest
    ref_logps: Tensor | None  # (n, T) under the initial inference model, with a KL term
    roots: Roots | None = None
    """The prompts, if the trained model has read them already."""

    def __len__(self) -> int:
        return len(self.summaries)


class InferenceTrainer(PhaseTrainer):
    """GRPO on the summaries of one inference model.

    Args:
        local: the inference model; with adapters, `default` is trained.
        rows: in training order, `users_per_step` per step.
        reward: scores summaries with this phase's generator.
        anchor: the initial inference model for the KL. Unused with adapters, where it is the base without them.
        held_out: rows for evaluations during the phase.
        scorer: the trained module, if it is more than the inference model.
        arguments: arguments common to all phases (`PhaseTrainer`).
    """

    loss_is_scaled_for_ga = True  # a step is one batch; `compute_loss` divides by its parts

    def __init__(
        self,
        *,
        local: LocalModel,
        rows: Sequence[InferenceRow],
        reward: SummaryReward,
        anchor: Any,
        config: RunConfig,
        phase: PhaseDirectory,
        held_out: Sequence[InferenceRow] = (),
        scorer: TreeScorer | None = None,
        processes: Processes = ALONE,
        **arguments: Any,
    ) -> None:
        settings = config.training.inference
        self.local, self.reward, self.summary = local, reward, config.summary
        self.group_size, self.scale_rewards, self.kl = settings.group_size, settings.scale_rewards, settings.kl
        self.by_clause, self.decay = settings.credit == "clause", settings.clause_decay
        self.stops: Stops | None = None
        users, size = settings.users_per_step, processes.size
        self.parts = parts_of("training.inference.users_per_step", users, settings.micro_batch, size)
        self.at_once = users // (size * self.parts)
        self.anchor = TreeScorer(local.model if has_adapters(local.model) else anchor)
        longest = max(len(row.prompt_ids) for row in rows) + self.summary.max_tokens
        self.reads_once = (
            not sharded(local.model) and config.training.reads_once and trees_hold(causal_lm(local.model), longest)
        )
        arguments |= {"config": config, "phase": phase, "processes": processes}
        arguments["per_device_train_batch_size"] = users // size
        super().__init__(scorer or TreeScorer(local.model), rows, held_out, list, settings, **arguments)
        self.vllm = None
        if config.training.rollouts == "vllm":
            self.vllm = VllmRollouts(config, local, self.accelerator, longest)
        self.check()

    def check(self) -> None:
        """Raise RolloutError if rollouts do not come from the weights being trained."""
        with whole(self.local.model):
            check_rollouts(self.local, self.scorer.model, self.rows[0].prompt_ids, self.summary.max_tokens)

    # a step

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Sample and score summaries for a step's users (`inputs`), and go backward, part by part."""
        model.train()
        losses = []
        for i, part in enumerate(self.samples(inputs), 1):
            with nullcontext() if i == self.parts else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part))  # type: ignore[arg-type]
        return torch.stack(losses).sum()

    def batch(self, rows: list[Any]) -> list[Any]:
        """A step's users, of whom `samples` takes this process's share."""
        return rows

    def own(self, users: Sequence[InferenceRow]) -> list[InferenceRow]:
        """Those of a step's users whose summaries this process samples: its share of each part."""
        size = self.at_once * self.processes.size
        parts = [users[start : start + size] for start in range(0, len(users), size)]
        return [row for part in parts for row in self.processes.share(part)]

    def samples(self, users: Sequence[InferenceRow]) -> list[Samples]:
        """Summaries of this process's share of a step's users, with advantages, by the parts in which they train."""
        rows = [row for row in self.own(users) for _ in range(self.group_size)]
        prompts = [row.prompt_ids for row in rows]
        with whole(self.local.model):
            summaries, roots = self.sample(prompts)
        with whole(self.reward.model):
            scores = self.score(rows, summaries)
        rewards = scores.rewards.reshape(-1, self.group_size)
        if self.by_clause:
            advantages = self.clause_advantages(scores, summaries).to(self.local.device)
        else:
            advantages = group_advantages(rewards, self.scale_rewards).flatten().to(self.local.device)
        samples, size = [], self.at_once * self.group_size
        for start in range(0, len(rows), size):
            ref_logps = self.ref_logps(prompts[start : start + size], summaries[start : start + size])
            # TRL shuffles a step like this. The draw also determines which summaries the next step samples.
            order = self.processes.permutation(size) if self.parts == 1 else torch.arange(size)
            picked = [start + int(i) for i in order]
            own = [prompts[i] for i in picked], [summaries[i] for i in picked], advantages[picked]
            samples.append(Samples(*own, None if ref_logps is None else ref_logps[order], roots))
        return samples

    def sample(self, prompts: Sequence[tuple[int, ...]]) -> tuple[list[list[int]], Roots | None]:
        """A summary for each prompt (a group's prompts are equal), and the roots read for sampling, if any."""
        roots = None
        if self.vllm is not None:
            summaries, reported = self.vllm.sample(prompts, self.group_size)
            with torch.no_grad():
                own, _ = summary_logps(self.scorer, prompts, summaries, self.local.pad_id, self.summary.temperature)
            self.note(rollout_difference=check_log_probs(reported, own, self.vllm.tolerance, self.summary.top_p))
        else:
            each = prompts[:: self.group_size]
            if self.reads_once:
                roots = Roots.read(self.local.model, each, self.local.pad_id)
            drawn = [
                group
                for start in range(0, len(each), self.at_once)
                for group in generate_share(
                    self.processes,
                    self.local,
                    each[start : start + self.at_once],
                    self.processes.rank * self.at_once,
                    self.processes.size * self.at_once,
                    n=self.group_size,
                    max_new_tokens=self.summary.max_tokens,
                    temperature=self.summary.temperature,
                    top_p=self.summary.top_p,
                    roots=roots,
                )
            ]
            summaries = [ids for group in drawn for ids in group]
        self.note(
            summary_tokens=sum(map(len, summaries)) / len(summaries),
            summaries_cut=sum(ids[-1] not in self.local.stop_ids for ids in summaries) / len(summaries),
        )
        return summaries, roots

    def score(self, rows: list[InferenceRow], summaries: list[list[int]]) -> Scores:
        """Rewards of summaries of these rows. The generator receives only text."""
        texts = [self.local.decode(ids) for ids in summaries]
        scores = self.reward.score(texts, rows, [self.local.length(ids) for ids in summaries])
        if self.by_clause:
            self.stops = Stops.of(self.reward, texts, rows, self.local.count_tokens)
            scores.clauses = self.stops.gains(scores.rewards)
        joined = self.joined(scores)
        self.refuse_invalid(joined)
        self.report(joined)
        return scores

    def refuse_invalid(self, scores: Scores) -> None:
        """Raise RunError if a reward of the step is not a finite number, as it would spoil the weights."""
        problem = scores.invalid()
        if problem is not None:
            step = self.state.global_step + 1
            raise RunError(
                f"{self.phase.path.name}, step {step}: {problem}, not a finite number. Check this target and the "
                "generator (float16 overflows: use model.dtype=bfloat16 or float32). Nothing of this step is saved; "
                f"resume from the newest checkpoint with: popi train {self.run.path / 'config.json'} --resume"
            )

    def joined(self, scores: Scores) -> Scores:
        """The scores of all processes in a step, in the order of its rows."""
        each = self.processes.gather(scores)
        if self.parts == 1 or self.processes.alone:
            return Scores.joined(each)
        size = self.at_once * self.group_size  # of each process, in each part
        return Scores.joined([own.part(i * size, (i + 1) * size) for i in range(self.parts) for own in each])

    def report(self, scores: Scores) -> None:
        """Log the scores of a step's summaries, and write the summaries to a file."""
        rewards = scores.rewards.reshape(-1, self.group_size)
        spread = rewards.std(-1)
        self.note(
            reward=float(rewards.mean()),
            reward_std=float(rewards.std()),
            groups_without_spread=float(torch.isclose(spread, torch.zeros_like(spread)).float().mean()),
            margin=float(scores.margins.mean()),
            reward_accuracy=accuracy(scores.margins),
        )
        if scores.penalties is not None:
            self.note(length_penalty=float(scores.penalties.mean()))
        if scores.clauses is not None:
            gains = torch.tensor([gain for own in scores.clauses for _, gain in own])
            self.note(
                clauses=sum(map(len, scores.clauses)) / len(scores.clauses),
                credit_std=float(gains.std()) if len(gains) > 1 else 0.0,
            )
        if not self.processes.first:
            return
        step = self.state.global_step + 1
        table = scores.table(step)
        append_jsonl(self.phase.samples, table)
        if step == 1 or step % self.args.save_steps == 0:
            self.run.show(self.phase.name, step, table)

    def clause_advantages(self, scores: Scores, summaries: list[list[int]]) -> Tensor:
        """Advantages of the summaries' tokens, (n, T), from the gains of their clauses."""
        stops, self.stops = self.stops, None
        assert stops is not None, "scored with credit per clause"
        stopped = torch.nn.utils.rnn.pad_sequence(stops.rewards(scores.rewards), batch_first=True)  # (n, S)
        counts = torch.tensor([max(len(own), 1) for own in stops.clauses])
        grouped = stopped.reshape(-1, self.group_size, stopped.shape[1]), counts.reshape(-1, self.group_size)
        advantages = clause_advantages(*grouped, self.decay, self.scale_rewards).flatten(0, 1)
        segments = [own.segments(self.local, ids) for own, ids in zip(stops.clauses, summaries, strict=True)]
        return token_advantages(advantages, segments)

    def ref_logps(self, prompts: list[tuple[int, ...]], summaries: list[list[int]]) -> Tensor | None:
        """Log-probs of summaries under the initial inference model: (n, T)."""
        if not self.kl:
            return None
        with whole(self.anchor.model), torch.no_grad(), using(self.anchor.model, None):
            return summary_logps(self.anchor, prompts, summaries, self.local.pad_id, self.summary.temperature)[0]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Loss of a part of a step (`Samples`), divided by the number of parts."""
        part: Samples = inputs
        logps, entropies = summary_logps(
            model, part.prompts, part.summaries, self.local.pad_id, self.summary.temperature, True, part.roots
        )
        lengths = torch.tensor([len(ids) for ids in part.summaries], device=logps.device)
        mask = torch.arange(logps.shape[1], device=logps.device) < lengths[:, None]  # (n, T)
        tokens = float(lengths.sum())
        if part.ref_logps is not None:
            self.note(tokens, kl=float(token_kl(logps.detach(), part.ref_logps)[mask].mean()))
        self.note(tokens, entropy=float(entropies[mask].mean()))
        advantages = part.advantages[..., : logps.shape[1]] if self.by_clause else part.advantages
        loss = policy_loss(logps, advantages, mask, self.summary.max_tokens, part.ref_logps, self.kl)
        return loss / self.parts

    # evaluation and checkpoints

    def measure(self) -> dict[str, float]:
        """Metrics of one greedy summary per held-out user; each process writes and scores its share."""
        with whole(self.local.model, self.reward.model):
            held_out = self.processes.share(self.held_out)
            prompts = [row.prompt_ids for row in held_out]
            written = [
                ids
                for start in range(0, len(prompts), self.at_once)
                for [ids] in self.local.generate(
                    prompts[start : start + self.at_once], max_new_tokens=self.summary.max_tokens
                )
            ]
            own = [self.local.length(ids) for ids in written]
            texts = [self.local.decode(ids) for ids in written]
            each = self.processes.gather(self.reward.score(texts, held_out, own) if texts else None)
        scores = Scores.joined([one for one in each if one is not None])
        lengths = [length for part in self.processes.gather(own) for length in part]
        return {
            "reward": float(scores.rewards.mean()),
            "reward_accuracy": accuracy(scores.margins),
            "summary_tokens": sum(lengths) / len(lengths),
        }

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint after checking that rollouts come from these weights."""
        self.check()
        super().save_model(*args, **kwargs)
