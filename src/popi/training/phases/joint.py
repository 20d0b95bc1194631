"""Simultaneous training: both components on the same samples of every step.

Each step samples the groups, scores them once with the generator as it stands, updates the inference model with the
advantages and the generator with its own loss on pairs of the same samples. Two traps shape the code: a summed loss
over two adapters drops the first one's gradient, and gradient checkpointing recomputes under whichever adapter is
active. Hence a forward *and backward* of its own for the generator, under its own adapter, with its own optimizer
group and its own gradient clip.
"""

from typing import Any

import torch
from trl.trainer.utils import disable_dropout_in_model

from popi.backends.local import LocalModel
from popi.generator import Generator
from popi.scoring import ScoringItem
from popi.training.adapters import TRAINED, adapter_parameters, set_dropout, using
from popi.training.objective import generator_loss, margin
from popi.training.phases.inference import InferenceTrainer
from popi.training.reward import Scores
from popi.tree import pack, segment_logps

PARTNER = "generator"


class JointTrainer(InferenceTrainer):
    """`InferenceTrainer` that also trains the generator.

    Takes its arguments, and `generator`: the model to train along, or None where it is the adapter `generator` of the
    inference model's own base. A step trains the generator on `generator.batch_size` of the step's
    (summary, target) pairs, drawn without replacement.
    """

    def __init__(self, *, generator: LocalModel | None, **arguments: Any) -> None:
        self.settings = arguments["config"].training.generator
        self._generator = generator
        self._scores: Scores | None = None
        super().__init__(**arguments)
        if generator is not None:
            disable_dropout_in_model(generator.model)  # TRL does it for the model that it was given
            if arguments["config"].training.gradient_checkpointing:
                generator.model.gradient_checkpointing_enable()
        elif self.settings.lora_dropout:
            set_dropout(self.local.model, PARTNER, self.settings.lora_dropout)

    @property
    def generator_model(self) -> Any:
        return self.local.model if self._generator is None else self._generator.model

    def components(self) -> dict[str, dict[str, torch.nn.Parameter]]:
        model = self.accelerator.unwrap_model(self.model)
        if self._generator is None:
            return {
                name: adapter_parameters(model, adapter)
                for name, adapter in (("inference_model", TRAINED), ("generator", PARTNER))
            }
        return {
            "inference_model": dict(model.named_parameters()),
            "generator": dict(self._generator.model.named_parameters()),
        }

    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {f"{part}.{n}": p for part, parameters in self.components().items() for n, p in parameters.items()}

    def scored(self, scores: Scores) -> None:
        self._scores = scores

    def item(self, scores: Scores, i: int) -> ScoringItem:
        """The i-th of a step's pairs, encoded under its summary."""
        generator = self.reward.generator
        assert isinstance(generator, Generator), "a generator behind an API is not trained (training.plan)"
        return generator.items([scores.targets[i]], scores.summaries[int(scores.owner[i])])[0]

    def generator_backward(self) -> None:
        """Forward and backward of the generator on pairs of this step's samples; leaves gradients, takes no step."""
        scores, self._scores = self._scores, None
        assert scores is not None, "each training step scores its own samples once"
        picked = torch.randperm(len(scores.targets))[: self.settings.batch_size]
        trees = [self.item(scores, i).tree for i in picked.tolist()]
        model = self.generator_model
        for parameter in self.components()["generator"].values():
            parameter.grad = None
        with using(model, PARTNER if self._generator is None else None):
            model.train()
            logps = segment_logps(model, pack(trees, self.local.pad_id).to(self.local.device)).reshape(-1, 2)
            references = scores.ref_chosen[picked].to(logps.device), scores.ref_rejected[picked].to(logps.device)
            h = margin(logps[:, 0], logps[:, 1], *references)
            settings = self.settings
            loss = generator_loss(h, settings.loss, settings.beta, settings.label_smoothing).mean()
            self.accelerator.backward(loss)
        self._metrics["train"]["generator_loss"].append(float(loss.detach()))

    # hooks

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.generator_backward()
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args)
            trained = {
                "inference_model": (self.accelerator.unwrap_model(self.model), self.args),
                "generator": (self.generator_model, self.settings),
            }
            groups = []
            for part, parameters in self.components().items():
                of_part, settings = trained[part]
                groups += self.groups(of_part, parameters, settings.learning_rate, settings.weight_decay)
            self.optimizer = kind(groups, **arguments)
        return self.optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        norms = {}
        limits = {"inference_model": self.args.max_grad_norm, "generator": self.settings.max_grad_norm}
        for part, parameters in self.components().items():
            norms[part] = self.accelerator.clip_grad_norm_(list(parameters.values()), limits[part])
        self._metrics["train"]["generator_grad_norm"].append(float(norms["generator"]))
        return norms["inference_model"]
