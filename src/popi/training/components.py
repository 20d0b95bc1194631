"""The models of a phase: inference model, generator and base, sharing weights where their roles allow."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from popi.config import RunConfig
from popi.errors import ModelError
from popi.generator import Generator
from popi.inference_model import InferenceModel
from popi.models.local.adapters import TRAINED, attach_adapters, has_adapters, save_adapter
from popi.models.local.loading import locate
from popi.models.local.model import LocalModel
from popi.models.spec import ModelSpec, model_path
from popi.training.processes import launched
from popi.training.sharding import gathered_state, shard
from popi.training.templates import template_of

INFERENCE, GENERATOR = "inference_model", "generator"


@dataclass
class Components:
    """The models of one phase.

    With adapters all three are one model, and `adapters` names each component's adapter (None: the bare base). Without
    adapters, `adapters` holds only None, and components that are the untrained base share its weights. The generator
    may be a frozen model behind an API, for which nothing is loaded.
    """

    inference_model: InferenceModel
    generator: Generator
    base: Generator
    adapters: dict[str, str | None]
    quantization: str = "none"
    """Quantization of the base that the adapters are trained over."""

    @property
    def reference(self) -> Generator:
        """The reference model: the base, or the generator behind an API on the plain prompt."""
        return self.base if self.generator.trainable else self.generator

    def gathered(self, component: str, first: bool) -> dict[str, Tensor] | None:
        """A sharded component's weights, gathered in the first process; None if it is not sharded. All processes must
        call it."""
        part: InferenceModel | Generator = self.inference_model if component == INFERENCE else self.generator
        return gathered_state(part.local.model, first)

    def saver(self, component: str, base: str, weights: dict[str, Tensor] | None = None) -> Callable[[Path], None]:
        """A function that writes a trained component to an empty folder, loadable by `from_pretrained`. `weights`: as
        `gathered` returned them."""
        part: InferenceModel | Generator = self.inference_model if component == INFERENCE else self.generator
        adapter = self.adapters[component]

        def write(path: Path) -> None:
            if adapter is None:
                part.save(path, weights)
                return
            save_adapter(part.local.model, adapter, path, model_path(base), weights)
            part.local.tokenizer.save_pretrained(path)
            settings: dict[str, str | int] = {"template": part.templates.name, "base": base}
            unpacked = locate(base).gguf
            if unpacked is not None:
                settings["base_weights"] = unpacked  # the adapter was trained over these, not the original weights
            if self.quantization != "none":
                settings["quantization"] = self.quantization
            if component == INFERENCE:
                settings |= self.inference_model.saved_settings()
            elif self.generator.embedding is not None:
                self.generator.embedding.save(path)
            (path / LocalModel.SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

        return write


def load_base(config: RunConfig) -> LocalModel:
    """A fresh copy of the base model.

    Raises:
        ModelError: the model can't be loaded.
    """
    return _load(config, config.model.base)


def _load(config: RunConfig, path: str | Path) -> LocalModel:
    model = config.model
    # With full weights in half precision, small updates are lost to rounding: 0.02 − 3e-5 is 0.02 in bfloat16.
    dtype = "float32" if model.dtype == "auto" and model.adapter == "none" else model.dtype
    local = replace(ModelSpec.of(config, path), dtype=dtype).load().local
    if divided(config) and model.adapter == "none":  # at once: the next model needs the room
        shard(local.model)
    return local


def divided(config: RunConfig) -> bool:
    """Whether several processes divide the models."""
    return config.training.sharding == "fsdp2" and launched() > 1


def load_components(
    config: RunConfig, trained: set[str], inference_from: Path | None, generator_from: Path | None
) -> Components:
    """Load a phase's models.

    Args:
        trained: which of `inference_model` and `generator` this phase trains; they get separate weights.
        inference_from, generator_from: folders saved by earlier phases; None is the untrained base.
    """
    templates, summary = config.signals.template, config.summary

    api = config.model.api_generator
    remote = Generator.from_spec(ModelSpec.of_api(api, template_of(config))) if api.given else None

    def inference_model(local: LocalModel) -> InferenceModel:
        budget = config.signals.token_budget
        renews = config.training.renewal.share > 0
        return InferenceModel(
            local,
            templates,
            summary.max_tokens,
            budget,
            summary.conditioned_on_prompt,
            renews,
            per_signal=summary.per_signal,
        )

    base = load_base(config)
    if has_adapters(base.model):
        raise ModelError(
            f"model.base: {config.model.base} is an adapter, whose weights are frozen, so nothing would train; merge "
            "it into its base (popi merge) and use that folder, or use its base"
        )
    if config.model.adapter == "none":

        def part(name: str, folder: Path | None) -> LocalModel:
            if folder is None and name not in trained:
                return base
            return _load(config, folder or config.model.base)

        return Components(
            inference_model(part(INFERENCE, inference_from)),
            remote or Generator(part(GENERATOR, generator_from), templates),
            Generator(base, templates),
            {INFERENCE: None, GENERATOR: None},
        )
    sources = {INFERENCE: inference_from, GENERATOR: generator_from}
    first = INFERENCE if INFERENCE in trained else GENERATOR
    adapters: dict[str, str | None] = {}
    folders: dict[str, Path | None] = {}
    for name in sorted(sources, key=lambda name: name != first):  # the adapter `default` must come first
        used = name in trained or sources[name] is not None
        adapters[name] = (TRAINED if name == first else name) if used else None
        if used:
            folders[adapters[name] or ""] = sources[name]
    model = config.model
    base.model = attach_adapters(base.model, model.lora_rank, model.lora_alpha, folders, model.lora_target_modules)
    if divided(config):
        shard(base.model)
    generator = remote or Generator(base, templates)
    return Components(inference_model(base), generator, Generator(base, templates), adapters, model.quantization)
