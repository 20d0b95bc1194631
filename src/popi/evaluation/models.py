"""The models that each method of a run uses, loaded on demand."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from popi.config import RunConfig
from popi.data.users import Person, users_of
from popi.evaluation.methods import METHODS, Method, Sources
from popi.generator import Generator
from popi.inference_model import InferenceModel
from popi.models.remote.usage import Usage
from popi.models.spec import ModelSpec
from popi.summary import Summary
from popi.training.templates import template_of

if TYPE_CHECKING:
    from torch import Tensor

VOTERS = 100
"""Maximum training users for methods that tune something on them without a model."""
WEIGHTS = (".safetensors", ".bin", ".gguf")


class Run(Protocol):
    """The part of `popi.runs.run_directory.RunDirectory` that an evaluation needs."""

    path: Path
    config: RunConfig

    def methods(self) -> dict[str, Any]: ...
    def models(self, method: str | None = None) -> tuple[str, str]: ...


def trained_models(run: Run) -> dict[str, tuple[str, str]]:
    """Training order → paths of its inference model and its generator, as `Models` takes them."""
    return {order: run.models(order) for order in run.methods()}


@dataclass
class Models:
    """The models of one evaluation, by path.

    Attributes:
        config: the run's config, with the settings for loading.
        trained: training order → paths of its inference model and its generator.
        other: an untrained generator that was not trained with the run's summaries and replaces every generator of the
            run. A local one is loaded with the run's dtype and device; one behind an API, which has no saved template
            set, uses the run's.
    """

    config: RunConfig
    trained: Mapping[str, tuple[str, str]]
    other: ModelSpec | None = None
    _generators: dict[str, Generator] = field(default_factory=dict)

    @property
    def untrained(self) -> str:
        """The untrained generator, which is also the reference."""
        return self._untrained.label

    @property
    def _untrained(self) -> ModelSpec:
        api, base = self.config.model.api_generator, ModelSpec.of(self.config)
        if self.other is None:
            return ModelSpec.of_api(api, template_of(self.config)) if api.given else base
        if self.other.url is None:
            attention = base.attn_implementation
            return replace(self.other, dtype=base.dtype, device=base.device, attn_implementation=attention)
        auto = self.other.templates == "auto"
        return replace(self.other, templates=template_of(self.config)) if auto else self.other

    def generator_path(self, method: Method) -> str:
        """Path of the generator that a method answers with, or its label if it is behind an API."""
        if method.order is None or self.other is not None or self._untrained.url is not None:
            return self.untrained
        return self.trained[method.order][1]

    def inference_path(self, method: Method) -> str:
        """Path of the inference model that writes a method's summaries."""
        if method.order is None:
            return self.config.model.base
        return self.trained[method.order][0]

    def generator(self, path: str) -> Generator:
        """Load a generator. Only the untrained one and the last other one stay loaded, to save GPU memory."""
        if path not in self._generators:
            self._generators = {p: g for p, g in self._generators.items() if p == self.untrained}
            fixed = self.other is not None or self._untrained.url is not None  # replaces all of the run's
            self._generators[path] = Generator.from_spec(self._untrained if fixed else ModelSpec.of(self.config, path))
        return self._generators[path]

    def base_generator(self) -> Generator:
        """The run's own base as generator, whatever generator is evaluated."""
        own = ModelSpec.of(self.config)
        same = self.other is None and not self.config.model.api_generator.given
        return self.generator(self.untrained) if same else Generator.from_spec(own)

    def loaded(self, path: str) -> Generator | None:
        """A generator, if it is loaded."""
        return self._generators.get(path)

    def usage(self) -> Usage | None:
        """The usage of the generator, if it is behind an API and received any request."""
        generator = self.loaded(self.untrained)
        usage = None if generator is None else generator.backend.usage
        return usage if usage is not None and usage.requests else None

    def release(self) -> None:
        """Unload the generators; they are loaded again on demand."""
        self._generators.clear()

    def inference_model(self, path: str) -> InferenceModel:
        """Load an inference model."""
        summary, budget = self.config.summary, self.config.signals.token_budget
        reads = {"max_tokens": summary.max_tokens, "conditioned": summary.conditioned_on_prompt, "token_budget": budget}
        reads["per_signal"] = summary.per_signal
        return InferenceModel.from_spec(ModelSpec.of(self.config, path), **reads)

    def sources(
        self,
        method: Method,
        summarize: Callable[[Sequence[Person]], list[tuple[Summary, ...]]],
        ask: Callable[[Sequence[Person], str | None], list[tuple[Summary, ...]]],
    ) -> Sources:
        """What a method builds its contexts from; `summarize` and `ask` write summaries or read stored ones."""
        budget = self.config.signals.token_budget
        return Sources(
            summarize,
            partial(self.soft_prompts, method),
            self.generator(self.generator_path(method)),
            token_budget=budget,
            copy_budget=self.config.evaluation.copied.token_budget or budget,
            ask=ask,
            training=lambda: [person.user for person in self.training_people(VOTERS)],
            world=self.config.data.world,
        )

    def training_people(self, most: int) -> Sequence[Person]:
        """The run's first training users, at most `most`."""
        data = self.config.data.model_copy(update={"train_users": min(most, self.config.data.train_users)})
        return users_of(self.config.model_copy(update={"data": data}), "train").people

    def soft_prompts(self, method: Method, users: Sequence[Person]) -> "Tensor":
        """(n, k, d) soft prompts from the user embeddings that a method's generator was trained with."""
        generator, base = self.generator(self.generator_path(method)), self.generator(self.untrained)
        assert generator.embedding is not None, "the order saves them beside its generator"
        budget, size = self.config.signals.token_budget, self.config.evaluation.users_at_once
        return generator.embedding.soft_prompts([person.user for person in users], base, budget, size)

    def describe(self, name: str) -> dict[str, str]:
        """What identifies the models of a method: their paths and, for folders, their weight files."""
        method = METHODS[name]
        paths = {"generator": self.generator_path(method), "reference": self.untrained}
        if method.writer is not None:
            paths["inference_model"] = self.inference_path(method)
        facts = {role: identity(path) for role, path in paths.items()}
        untrained = self._untrained
        if untrained.url is not None and untrained.templates != "default":
            facts["templates"] = untrained.templates
        return facts


def identity(path: str) -> str:
    """A model's name or path, with a stamp of its weight files."""
    return f"{path} {weights_stamp(path)}".strip()


def weights_stamp(path: str) -> str:
    """A short stamp of the weight files at a path (name, size, modification time); empty if it is not a path."""
    folder = Path(path)
    if folder.is_dir():
        files = sorted(file for file in folder.iterdir() if file.suffix in WEIGHTS)
    elif folder.is_file():  # a GGUF file
        files = [folder]
    else:
        return ""
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
