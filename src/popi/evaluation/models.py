"""Which models a method uses in a run, and loading them when their turn comes."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from popi.config import ApiGeneratorConfig, RunConfig
from popi.data.users import Person
from popi.errors import ConfigError
from popi.evaluation.methods import METHODS, Method, Sources
from popi.generator import AnyGenerator, ApiGenerator, Generator
from popi.inference_model import InferenceModel
from popi.models.local.model import LocalModel
from popi.models.remote.api import ApiModel
from popi.models.remote.usage import Prices, Usage
from popi.summary import Summary
from popi.training.templates import template_of

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True)
class Other:
    """Another generator, which did not train with a run's summaries and reads them.

    Attributes:
        name: a folder, a hub id or a GGUF file; of a model behind an API what its server calls it.
        chat_template: a local model's, where its tokenizer has none.
        api: where the model is, if it is behind an API.
        templates: its set of prompt templates; `auto`: of a local model the one that it was saved with, else `default`;
            behind an API, where none is saved, the run's own.
        protocol: what the API speaks, `openai` or `anthropic`.
        extra: fields to put into each request to the API; None takes one out.
        prices: of a million of the API's tokens.
        scores: it gives log-probs. Without, its responses can be judged, and no pair be scored.
    """

    name: str
    chat_template: str | None = None
    api: ApiGeneratorConfig | None = None
    templates: str = "auto"
    protocol: str = "openai"
    extra: Mapping[str, Any] = field(default_factory=dict)
    prices: Prices | None = None
    scores: bool = True

    @property
    def label(self) -> str:
        """What metrics.json calls it."""
        return api_label(self.api) if self.api else self.name

    @property
    def folder(self) -> str:
        """What its folder of results is called."""
        return f"with-{Path(self.name).name}"

    def load(self, loading: Mapping[str, Any], run_templates: str) -> AnyGenerator:
        """Load it. `run_templates`: the run's own set, see `templates`."""
        if self.api is not None:
            return ApiGenerator(self.connect(), run_templates if self.templates == "auto" else self.templates)
        return Generator.from_pretrained(
            self.name, **{**loading, "templates": self.templates, "chat_template": self.chat_template}
        )

    def connect(self) -> ApiModel:
        """The model behind the API; nothing is sent yet.

        Raises:
            ConfigError: it is behind none, a wrong URL, or a named variable without a key.
        """
        if self.api is None or self.api.url is None:
            raise ConfigError(f"{self.name}: is behind no API; name its url")
        return ApiModel.connect(
            self.api.url,
            self.name,
            self.protocol,
            key_env=self.api.key_env,
            concurrency=self.api.concurrency,
            prices=self.prices,
            extra=self.extra,
        )


class Run(Protocol):
    """What is asked of a `popi.runs.run_directory.RunDirectory`."""

    path: Path
    config: RunConfig

    def methods(self) -> dict[str, Any]: ...
    def models(self, method: str | None = None) -> tuple[str, str]: ...


def trained_models(run: Run) -> dict[str, tuple[str, str]]:
    """Training order → paths of its inference model and its generator, as `Models` takes them."""
    return {order: run.models(order) for order in run.methods()}


def api_label(api: ApiGeneratorConfig) -> str:
    """What identifies a model behind an API."""
    return f"{api.name} at {api.url}"


@dataclass
class Models:
    """The models of one evaluation, by path.

    Attributes:
        config: the run's; says how to load.
        trained: training order → paths of its inference model and its generator.
        other: another, untrained generator, which then stands in for every generator of the run.
    """

    config: RunConfig
    trained: Mapping[str, tuple[str, str]]
    other: Other | None = None
    _generators: dict[str, AnyGenerator] = field(default_factory=dict)

    @property
    def untrained(self) -> str:
        """The untrained generator, which is also the reference."""
        if self.other is not None:
            return self.other.label
        api = self.config.model.api_generator
        return api_label(api) if api.given else self.config.model.base

    def generator_path(self, method: Method) -> str:
        """Path of the generator that a method answers with; of one behind an API its label."""
        if method.order is None or self.other is not None or self.config.model.api_generator.given:
            return self.untrained
        return self.trained[method.order][1]

    def inference_path(self, method: Method) -> str:
        """Path of the inference model that writes a method's summaries."""
        if method.order is None:
            return self.config.model.base
        return self.trained[method.order][0]

    def generator(self, path: str) -> AnyGenerator:
        """Load a generator. The untrained one is kept, of the others the last: a GPU need hold no more."""
        if path not in self._generators:
            self._generators = {p: g for p, g in self._generators.items() if p == self.untrained}
            self._generators[path] = self._load(path)
        return self._generators[path]

    def loaded(self, path: str) -> AnyGenerator | None:
        """A generator, if it is loaded by now."""
        return self._generators.get(path)

    def usage(self) -> Usage | None:
        """What was asked of the generator, if it is behind an API and was asked anything."""
        found = self.loaded(self.untrained)
        usage = found.chat.usage if isinstance(found, ApiGenerator) and isinstance(found.chat, ApiModel) else None
        return usage if usage is not None and usage.requests else None

    def release(self) -> None:
        """Let go of the generators; they are loaded again when asked for."""
        self._generators.clear()

    def _load(self, path: str) -> AnyGenerator:
        templates, api = self.config.signals.template, self.config.model.api_generator
        if self.other is not None:
            return self.other.load(self.config.model.loading, template_of(self.config))
        if api.given:
            return ApiGenerator.from_config(api, template_of(self.config))
        return Generator.from_pretrained(path, templates, **self.config.model.loading)

    def inference_model(self, path: str) -> InferenceModel:
        """Load an inference model."""
        config = self.config
        local = LocalModel.load(path, **self.config.model.loading)
        summary, signals = config.summary, config.signals
        return InferenceModel(
            local, signals.template, summary.max_tokens, signals.token_budget, summary.conditioned_on_prompt
        )

    def sources(self, method: Method, summarize: Callable[[Sequence[Person]], list[tuple[Summary, ...]]]) -> Sources:
        """What a method draws its contexts from; `summarize` writes summaries, or reads those that are kept."""
        generator = self.generator(self.generator_path(method))
        return Sources(summarize, partial(self.soft_prompts, method), generator, self.config.signals.token_budget)

    def soft_prompts(self, method: Method, users: Sequence[Person]) -> "Tensor":
        """(n, k, d) soft prompts by the user embeddings that a method's generator was trained with."""
        generator, base = self.generator(self.generator_path(method)), self.generator(self.untrained)
        assert isinstance(generator, Generator) and isinstance(base, Generator), "embeddings belong to local models"
        assert generator.embedding is not None, "the order saves them beside its generator"
        budget, size = self.config.signals.token_budget, self.config.evaluation.users_at_once
        return generator.embedding.soft_prompts([person.user for person in users], base, budget, size)

    def describe(self, name: str) -> dict[str, str]:
        """What identifies the models of a method: their paths and, for folders, their weight files."""
        method = METHODS[name]
        paths = {"generator": self.generator_path(method), "reference": self.untrained}
        if method.has_summary and not method.needs_truth:
            paths["inference_model"] = self.inference_path(method)
        facts = {role: identity(path) for role, path in paths.items()}
        behind_api = self.config.model.api_generator.given if self.other is None else self.other.api is not None
        if behind_api and (templates := self._api_templates()) != "default":
            facts["templates"] = templates
        return facts

    def _api_templates(self) -> str:
        """The set in which a generator behind an API is asked."""
        given = "auto" if self.other is None else self.other.templates
        return template_of(self.config) if given == "auto" else given


def identity(path: str) -> str:
    """A model's name or path, with a stamp of the weights that lie there."""
    return f"{path} {weights_stamp(path)}".strip()


def revision(generator: AnyGenerator) -> str | None:
    """The commit that a model from the hub was loaded at; None of all others."""
    if not isinstance(generator, Generator):
        return None
    found = getattr(getattr(generator.local.model, "config", None), "_commit_hash", None)
    return str(found) if found else None


def weights_stamp(path: str) -> str:
    """A short stamp of the weight files at a path (name, size, time of change); empty for names that are no path."""
    folder = Path(path)
    if folder.is_dir():
        files = sorted(file for file in folder.iterdir() if file.suffix in WEIGHTS)
    elif folder.is_file():  # a GGUF file
        files = [folder]
    else:
        return ""
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
