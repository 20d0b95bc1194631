"""Simultaneous training: both components on the same samples of every step.

Each step samples the groups, scores them once with the current generator, updates the inference model with the
advantages and the generator with its own loss on pairs of the same samples. Two pitfalls shape the code: a summed loss
over two adapters drops the first one's gradient, and gradient checkpointing recomputes with whichever adapter is active
at that time. So the generator has a separate forward *and backward*, with its own adapter, optimizer group and gradient
clipping.

In several processes each takes a share of the drawn pairs, whichever process sampled them. DDP averages the gradients
of both backward passes, if it knows of both components: the generator's adapter must require gradients when the trainer
wraps the scorer, or the processes' generators would silently diverge.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from popi.engine.roots import Roots
from popi.engine.scoring import ScoringItem
from popi.engine.tree import TreeBatch, pack
from popi.models.local.adapters import TRAINED, adapter_parameters, set_dropout, using
from popi.models.local.model import LocalModel
from popi.training.components import GENERATOR, INFERENCE
from popi.training.objective import generator_loss, margin
from popi.training.phases.drift import EVERY, base_logps, chosen_loss, chosen_tokens, drift
from popi.training.phases.inference import InferenceTrainer
from popi.training.phases.scorer import TreeScorer, pair_sums, tree_logps
from popi.training.reward import Scores
from popi.training.sharding import full

PARTNER = "generator"


class JointScorer(TreeScorer):
    """Scores tree rows with the inference model or with the generator.

    `generator`: a separate model, or None if it is the adapter `generator` of the inference model's base. That adapter
    must be active from before the generator's forward until after its backward (`using`).
    """

    def __init__(self, model: Any, generator: Any | None) -> None:
        super().__init__(model)
        self.generator = generator

    def forward(
        self,
        batch: TreeBatch,
        temperature: float = 1.0,
        entropy: bool = False,
        roots: Roots | None = None,
        generator: bool = False,
    ) -> tuple[Tensor, Tensor]:
        model = self.generator_model if generator else self.model
        return tree_logps(model)(batch, temperature, entropy=entropy, roots=roots)

    @property
    def generator_model(self) -> Any:
        return self.model if self.generator is None else self.generator

    def components(self) -> dict[str, dict[str, Parameter]]:
        if self.generator is not None:
            return {INFERENCE: dict(self.model.named_parameters()), GENERATOR: dict(self.generator.named_parameters())}
        adapters = {INFERENCE: TRAINED, GENERATOR: PARTNER}
        return {part: adapter_parameters(self.model, adapter) for part, adapter in adapters.items()}


class JointTrainer(InferenceTrainer):
    """`InferenceTrainer` that also trains the generator.

    Takes its arguments, and `generator`: the model to train, or None if it is the adapter `generator` of the inference
    model's base. `training.generator_steps_of_joint` of the steps train the generator, each on `generator.batch_size`
    of the step's (summary, target) pairs, drawn without replacement.
    """

    trains_generator = True
    scores: Scores | None = None
    """Scores of the step's samples, until the generator has trained on them."""

    def __init__(self, *, local: LocalModel, generator: LocalModel | None, **arguments: Any) -> None:
        training = arguments["config"].training
        self.settings = training.generator
        self.limits = {INFERENCE: training.inference.max_grad_norm, GENERATOR: self.settings.max_grad_norm}
        self.both = JointScorer(local.model, None if generator is None else generator.model)
        # Each component's gradient is clipped separately (`clip`), not both together.
        super().__init__(local=local, scorer=self.both, max_grad_norm=0.0, **arguments)
        for parameter in self.both.components()[GENERATOR].values():
            parameter.requires_grad_(True)  # for DDP; only the adapter in use gets gradients
        self.updates = min(self.args.max_steps, training.generator_steps_of_joint)
        self.base = self.anchor.model
        if generator is None and self.settings.lora_dropout:
            set_dropout(local.model, PARTNER, self.settings.lora_dropout)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The inference model's backward pass, then the generator's on the same samples."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        update = self.generator_update(self.state.global_step + 1)
        if update is not None:
            self.generator_backward(model, measure=bool(self.max_chosen_loss) and update % EVERY == 0)
        self.scores = None
        self.clip()
        return loss

    def generator_update(self, step: int) -> int | None:
        """The number of the generator's step, from 1, or None if it is not trained in this step. Its steps are spread
        evenly and include the last one."""
        done, before = (at * self.updates // self.args.max_steps for at in (step, step - 1))
        return done if done > before else None

    def report(self, scores: Scores) -> None:
        """Also remember what the whole step sampled, for the generator."""
        super().report(scores)
        self.scores = scores

    def item(self, scores: Scores, i: int) -> ScoringItem:
        """The i-th of a step's pairs, encoded with its summary."""
        generator = self.reward.generator
        return generator.items([scores.targets[i]], scores.summaries[int(scores.owner[i])])[0]

    def generator_backward(self, model: Any, measure: bool = False) -> None:
        """Forward and backward of the generator on pairs of this step's samples, without an optimizer step. `measure`
        also measures the chosen responses' loss."""
        scores, self.scores = self.scores, None
        assert scores is not None, "each training step scores its samples once"
        drawn = torch.randperm(len(scores.targets))[: self.settings.batch_size]
        picked = drawn[self.processes.rank :: self.processes.size]
        weight = len(picked) * self.processes.size / len(drawn)  # of this process's mean in the mean of all
        if not len(picked):  # fewer pairs than processes: this one takes part with a weight of 0
            picked = drawn[:1]
        trees = pack([self.item(scores, i).tree for i in picked.tolist()], self.local.pad_id).to(self.local.device)
        noise = self.processes.own_noise() if self.settings.lora_dropout else nullcontext()
        with noise, using(self.both.generator_model, PARTNER if self.both.generator is None else None):
            logps = pair_sums(model(trees, generator=True)[0], trees)  # (B, 2): chosen, rejected
            references = scores.ref_chosen[picked].to(logps.device), scores.ref_rejected[picked].to(logps.device)
            h = margin(logps[:, 0], logps[:, 1], *references)
            settings = self.settings
            loss = generator_loss(h, settings.loss, settings.beta, settings.label_smoothing).mean()
            self.accelerator.backward(loss * weight)
        tokens = chosen_tokens(trees)
        n = weight and float(tokens.sum())
        moved = drift(logps[:, 0], references[0], tokens)
        self.note(n, chosen_drift_per_token=moved.pop("chosen_drift_per_token"))
        self.note(weight, generator_loss=float(loss.detach()), **moved)
        if measure:
            self.note(n, chosen_loss=chosen_loss(logps[:, 0], base_logps(self.base, trees), tokens))

    def clip(self) -> None:
        """Clip each component's gradient to its own maximum norm."""
        names = {INFERENCE: "grad_norm", GENERATOR: "generator_grad_norm"}
        for part, parameters in self.scorer.components().items():
            trained = [p for p in parameters.values() if p.grad is not None]  # none in steps without a generator update
            if trained:
                self.note(**{names[part]: float(full(self.accelerator.clip_grad_norm_(trained, self.limits[part])))})

    def groups(self) -> list[tuple[dict[str, Parameter], float, float]]:
        """Separate learning rates and weight decays per component."""
        parts, args, own = self.scorer.components(), self.args, self.settings
        return [
            (parts[INFERENCE], args.learning_rate, args.weight_decay),
            (parts[GENERATOR], own.learning_rate, own.weight_decay),
        ]
