"""The ways to compare: popi's own, and the floor. The others are in `released.py` and `stock.py`.

Each way loads the models that it needs and does one part of a step, without the optimizer's step, which is the same for
all. The results are compared between the ways: rewards, log-probs, a sample of the gradient.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from bench.cases import BETA, PAIRS, SUMMARY, Case, load
from popi.engine.roots import Roots
from popi.engine.scoring import ScoringItem, pair_logps
from popi.engine.tree import pack, segment_logps
from popi.models.local.model import LocalModel
from popi.training.phases.inference import summary_logps
from popi.training.phases.scorer import TreeScorer

SAMPLED = 256
"""Values to compare per parameter's gradient."""
KL = 0.02
Found = dict[str, Tensor]


class Way:
    """A way to compute the parts of a step with the models of a case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.policy = load(case)
        self.vocabulary = int(self.policy.config.vocab_size)
        self.device = torch.device(case.device)
        self.anchor: Any = None  # reference of the KL
        self.setup()

    def setup(self) -> None:
        """Load and prepare everything else this way needs."""

    def run(self) -> Found:
        """Run the case's part once."""
        self.policy.zero_grad(set_to_none=True)
        result: Found = getattr(self, self.case.what)()
        return result

    def check(self) -> Found:
        """Further results to compare, computed outside the timed runs."""
        return {}

    # -- parts of a step that all trainers share; the floor overrides them -----------------------------------------

    def logps(self, model: Any, train: bool) -> Tensor:
        """(G, SUMMARY) log-probs of the group's summaries given by a model."""
        raise NotImplementedError

    def update(self, reference: Tensor | None = None) -> Found:
        """Forward and backward of the policy's loss."""
        logps = self.logps(self.policy, True)
        self.loss(logps, reference).backward()
        return {"logps": logps.detach().float().cpu(), "gradient": self.gradient()}

    def policy_update(self) -> Found:
        return self.update()

    def whole_step(self) -> Found:
        self.rollouts()
        rewards = self.scoring()
        with torch.no_grad():
            anchor = self.logps(self.anchor, False)
        return rewards | self.update(anchor)

    def rollouts(self) -> Found:
        """Sample the group's summaries."""
        raise NotImplementedError

    def scoring(self) -> Found:
        """The summaries' rewards."""
        raise NotImplementedError

    # -- pieces ---------------------------------------------------------------------------------------------------

    def batch(self) -> tuple[Tensor, Tensor]:
        """The group in TRL's layout: (G, signals + SUMMARY) ids, and the mask."""
        prompt = self.case.signal_ids(self.vocabulary)
        ids = torch.tensor([prompt + summary for summary in self.case.summaries(self.vocabulary)], device=self.device)
        return ids, torch.ones_like(ids)

    def items(self, n: int | None = None) -> list[tuple[list[int], list[int], list[int]]]:
        """(prefix with the summary, chosen, rejected) of each summary, or of `n` different target pairs."""
        summaries = self.case.summaries(self.vocabulary, n)
        pairs = [self.case.pair(self.vocabulary, i if n else 0) for i in range(len(summaries))]
        return [(summary + prompt, c, r) for summary, (prompt, c, r) in zip(summaries, pairs, strict=True)]

    def plain_items(self, n: int | None = None) -> list[tuple[list[int], list[int], list[int]]]:
        """The same without summaries, for the reference; within a group they are all equal."""
        return [(prefix[SUMMARY:], chosen, rejected) for prefix, chosen, rejected in self.items(n)]

    def loss(self, logps: Tensor, reference: Tensor | None = None, first: int = 0) -> Tensor:
        """GRPO's on-policy loss, −Σ A·log π divided by a constant, plus TRL's k3 estimate of the KL. `logps` are those
        of the group's summaries starting with the `first`.
        """
        advantages = self.case.advantages().to(logps.device)[first : first + len(logps), None]
        loss = -(advantages * torch.exp(logps - logps.detach())).sum()
        if reference is not None:
            away = reference - logps
            loss = loss + KL * (torch.exp(away) - away - 1).sum()
        return loss / (self.case.group * SUMMARY)

    def gradient(self) -> Tensor:
        """A sample of every parameter's gradient."""
        taken = []
        for parameter in self.policy.parameters():
            flat = parameter.grad.detach().flatten()
            taken.append(flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].float().cpu())
        return torch.cat(taken)

    @staticmethod
    def rewards(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Found:
        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        return {"rewards": (logsigmoid(BETA * h) / BETA).detach().float().cpu()}


class Ours(Way):
    """popi: tree rows, one prefill, cached references; the base is generator, anchor and reference at the same time."""

    def setup(self) -> None:
        self.base = self.policy if self.case.what in ("policy_update", "rollouts") else load(self.case)
        self.anchor = self.base
        self.roots: Roots | None = None
        self.local = LocalModel.__new__(LocalModel)
        self.local.model, self.local.name, self.local.pad_id = self.policy, self.case.model, 0
        self.local.end_id, self.local.stop_ids = 0, ()  # every way writes summaries of full length
        n = None if self.case.group else PAIRS
        if self.case.what in ("scoring", "whole_step", "generator_step"):
            self.references = self.score(self.plain_items(n))  # computed once per run

    def score(self, items: list[Any]) -> tuple[Tensor, Tensor]:
        return pair_logps(self.base, [ScoringItem(*map(tuple, item)) for item in items], 0)

    def scoring(self) -> Found:
        return self.rewards(*self.score(self.items()), *self.references)

    def rollouts(self) -> Found:
        prompt = self.case.signal_ids(self.vocabulary)
        [self.drawn] = self.local.generate(
            [prompt], n=self.case.group, max_new_tokens=SUMMARY, temperature=1.0, roots=self.roots
        )
        assert all(len(ids) == SUMMARY for ids in self.drawn), "a summary ended early"
        return {}

    def check(self) -> Found:
        """Compare the log-probs of a group's sampled tokens from decoding with those of whole sequences."""
        if self.case.what != "rollouts":
            return {}
        outputs: list[Tensor] = []
        hook = self.policy.register_forward_hook(lambda module, args, output: outputs.append(output.logits.float()))
        self.rollouts()
        hook.remove()
        group = self.case.group
        steps = [outputs[0][:, -1].expand(group, -1), *(logits[0] for logits in outputs[1:])]
        drawn = torch.tensor(self.drawn, device=self.device)
        prompt = torch.tensor(self.case.signal_ids(self.vocabulary), device=self.device)
        worst = torch.zeros(())
        with torch.no_grad():
            for g in range(group):
                whole = torch.cat([prompt, drawn[g]])[None]
                plain = self.policy(input_ids=whole, logits_to_keep=SUMMARY + 1).logits[0, :-1].float()
                own = torch.stack([logits[g] for logits in steps])
                both = [logits.log_softmax(-1).gather(1, drawn[g][:, None]) for logits in (plain, own)]
                worst = torch.maximum(worst, (both[0] - both[1]).abs().max().cpu())
        return {"rollouts_against_plain": worst}

    def whole_step(self) -> Found:
        """The signals go through the policy only once, for rollouts and update together."""
        self.roots = Roots.read(self.policy, [self.case.signal_ids(self.vocabulary)], 0)
        result = super().whole_step()
        self.roots = None
        return result

    def logps(self, model: Any, train: bool) -> Tensor:
        summaries = self.case.summaries(self.vocabulary)
        prompts = [self.case.signal_ids(self.vocabulary)] * len(summaries)
        roots = self.roots if train else None
        return summary_logps(TreeScorer(model), prompts, summaries, 0, 1.0, train, roots)[0]

    def generator_step(self) -> Found:
        trees = [ScoringItem(*map(tuple, item)).tree for item in self.items(PAIRS)]
        logps = segment_logps(self.policy, pack(trees, 0).to(self.device)).reshape(-1, 2)
        result = dpo(logps[:, 0], logps[:, 1], *(r.to(self.device) for r in self.references))
        return result | {"gradient": self.gradient()}


def dpo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Found:
    """Backward pass of the DPO loss; returns its log-probs for comparison."""
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    (-logsigmoid(BETA * h).mean()).backward()
    return {"logps": torch.stack([chosen, rejected]).detach().float().cpu()}


class Floor(Way):
    """The distinct tokens once through the model as one causal batch: forward, and backward if they train."""

    def once(self, rows: int, width: int, scored: int, train: bool) -> None:
        """(rows, width) tokens, of which the last `scored` of each row go through the head."""
        ids = torch.tensor(self.case.ids(rows * width, 9, self.vocabulary), device=self.device).reshape(rows, width)
        with torch.set_grad_enabled(train):
            hidden = self.policy.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, -scored:]
            logits = self.policy.get_output_embeddings()(hidden)
            loss = cross_entropy(logits.flatten(0, 1).float(), ids[:, -scored:].flatten())
            if train:
                loss.backward()

    def row(self) -> tuple[int, int]:
        prefix, chosen, rejected = self.items(1)[0]
        return len(prefix) + len(chosen) + len(rejected), len(chosen) + len(rejected)

    def scoring(self) -> Found:
        self.once(self.case.group, *self.row(), train=False)
        return {}

    def rollouts(self) -> Found:
        branches = self.case.group * SUMMARY
        self.once(1, self.case.signals + branches, branches, train=False)
        return {}

    def policy_update(self) -> Found:
        branches = self.case.group * SUMMARY
        self.once(1, self.case.signals + branches, branches, train=True)
        return {}

    def whole_step(self) -> Found:
        return self.policy_update() | self.scoring()

    def generator_step(self) -> Found:
        self.once(PAIRS, *self.row(), train=True)
        return {}
