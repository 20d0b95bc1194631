"""Every setting of a grid, each documented once, under its field. Imports no torch.

A grid is described by a TOML file, `popi evaluate GRID.toml`; `load_grid` reads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, PositiveInt, ValidationError, model_validator

from popi.config import Filled, FolderName, RunConfig, explain, read_tree
from popi.config.section import VariableName
from popi.errors import ConfigError
from popi.models.remote.usage import Prices
from popi.models.spec import ModelSpec

OWN = "own"
"""A grid's name for a run's own generator."""
REFERENCE = "no_personalization"
Pair = Annotated[list[str], Field(min_length=2, max_length=2)]


class _Section(BaseModel):
    renamed: ClassVar[Mapping[str, str]] = {}
    model_config = RunConfig.model_config


class GridBenchmark(_Section):
    """A run and the users to evaluate it on."""

    name: FolderName | None = None
    """Name in the tables. Unset: the name of its run, and of the file of users."""
    run: str | None = Field(default=None, min_length=1)
    """Directory of a trained run. Its summaries are evaluated on its held-out users."""
    config: str | None = Field(default=None, min_length=1)
    """Instead of `run`: a run's TOML file. The run is trained first if it does not exist, and resumed if it is not
    finished."""
    overrides: list[str] = []
    """Settings that replace the config's, as on the command line: `"training.inference.steps=100"`. With `run`, only
    `evaluation` settings are allowed."""
    users: str | None = Field(default=None, min_length=1)
    """JSONL file of users to evaluate on instead of the run's held-out ones."""

    @model_validator(mode="after")
    def _one_run(self) -> Self:
        if (self.run is None) == (self.config is None):
            raise ValueError("set exactly one of `run` (a trained run) and `config` (a run to train)")
        if self.run is not None and (wrong := [o for o in self.overrides if not o.startswith("evaluation.")]):
            raise ValueError(f"overrides: {wrong[0]!r} can't change a trained run; with `run`, only `evaluation.…` can")
        return self

    @property
    def label(self) -> str:
        """Its name, or the names of its run and users."""
        if self.name is not None:
            return self.name
        source = Path(self.run).name if self.run is not None else self.run_config().name
        return source if self.users is None else f"{source}-on-{Path(self.users).stem}"

    def run_config(self) -> RunConfig:
        """The config of the run to train.

        Raises:
            ConfigError: the file can't be read, or a setting is invalid.
        """
        from popi.config import load_config

        assert self.config is not None, "a trained run has its own config"
        return load_config(self.config, self.overrides)


class _Api(_Section):
    renamed: ClassVar[Mapping[str, str]] = {
        "price_in": "input_price",
        "price_out": "output_price",
        "told": "evidence",
        "without": "omit",
    }
    url: str | None = Field(default=None, min_length=1)
    """URL of its API (docs/api_models.md). Unset: a local model."""
    protocol: Literal["openai", "anthropic"] = "openai"
    """Protocol of the API."""
    key_env: VariableName | None = None
    """Environment variable that holds the key. Unset: OPENAI_API_KEY or ANTHROPIC_API_KEY, if set."""
    concurrency: PositiveInt = 8
    """Maximum concurrent requests."""
    input_price: float | None = Field(default=None, ge=0)
    """Price per million input tokens, to compute the cost."""
    output_price: float | None = Field(default=None, ge=0)
    """Price per million output tokens."""
    extra: dict[str, Any] = {}
    """Fields to add to each request."""
    omit: list[str] = []
    """Fields to remove from each request (`temperature`, for models that reject it)."""

    @model_validator(mode="after")
    def _both_prices(self) -> Self:
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("set both input_price and output_price, or neither")
        api_only = [name for name in _Api.model_fields if getattr(self, name) != _Api.model_fields[name].default]
        if self.url is None and api_only:
            raise ValueError(f"{api_only[0]} applies only to a model behind an API; set its url")
        return self

    @property
    def prices(self) -> Prices | None:
        """The prices, if they are set."""
        return (
            None
            if self.input_price is None or self.output_price is None
            else Prices(self.input_price, self.output_price)
        )

    def spec_of(self, name: str) -> ModelSpec:
        """A model with that name, on the server if `url` is set. Requests omit the fields in `omit`."""
        return ModelSpec(
            name,
            url=self.url,
            protocol=self.protocol,
            key_env=self.key_env,
            concurrency=self.concurrency,
            extra=self.extra | dict.fromkeys(self.omit),
            prices=self.prices,
        )


class GridGenerator(_Api):
    """Another generator."""

    name: FolderName
    """Name in tables and folders; `own` is reserved for the run's own generator."""
    model: Filled
    """`nano`, `smollm2`, a folder, a GGUF file or a hub id; with `url`, the API's name of the model."""
    scores: bool = False
    """With `url`: the server returns prompt log-probs, as vLLM does, so that target pairs can be scored. If false, its
    responses can only be judged. Local models always score."""
    template: Filled = "auto"
    """Its set of prompt templates. `auto`: for a local model, the set that it was saved with, else `default`; for a
    model behind an API, the set of the run that the cell evaluates."""
    chat_template: str | None = None
    """A Jinja chat template (text, or path of a file) for a local model whose tokenizer has none."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.name == OWN:
            raise ValueError(f"name = {OWN!r} is reserved for the run's own generator; see own_generator")
        if self.scores and self.url is None:
            raise ValueError("scores applies only to a model behind an API; local models always score")
        if self.scores and self.protocol != "openai":
            raise ValueError(f"scores = true needs a vLLM server, protocol openai; got {self.protocol!r}")
        if self.url is not None and self.chat_template is not None:
            raise ValueError("chat_template applies only to a local model; a server has its own")
        return self

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return replace(self.spec_of(self.model), templates=self.template, chat_template=self.chat_template)

    @property
    def scored(self) -> bool:
        """Whether it returns log-probs of responses."""
        return self.url is None or self.scores


class GridJudge(_Api):
    """A judge that compares responses."""

    name: FolderName
    """Name in tables and folders."""
    kind: Literal["truth", "local", "api"] = "api"
    """The nano world's truth, a local model's log-probs, or an LLM behind an API (docs/judging.md)."""
    model: str | None = Field(default=None, min_length=1)
    """The model. Unset: for `local`, the run's base."""
    evidence: Literal["auto", "persona", "signals"] = "auto"
    """What it sees of a user. `auto`: the oracle persona if known, else the signals."""
    prompt: str | None = Field(default=None, min_length=1)
    """`api`: a Jinja file to use instead of the built-in prompt."""
    judge_tokens: PositiveInt = 512
    """`api`: maximum tokens of its answer, including its reasons."""
    pairs: list[Pair] | None = None
    """The comparisons, such as `["popi_plug_and_play", "raw_signals"]`; the win rate is the first method's. Unset:
    every method of the cell that writes responses, against `no_personalization`."""
    generators: list[str] | None = None
    """Generators whose responses it judges. Unset: all."""
    benchmarks: list[str] | None = None
    """Benchmarks whose users it judges for. Unset: all."""
    prompts: PositiveInt | None = None
    """Maximum task prompts per user. Unset: all of the user's targets."""
    max_tokens: PositiveInt | None = None
    """Maximum tokens per response. Unset: the run's `evaluation.answer_tokens`."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "api" and (self.url is None or self.model is None):
            raise ValueError("a judge of kind api needs url and model")
        if self.kind != "api" and self.url is not None:
            raise ValueError(f"url applies only to a judge of kind api, not {self.kind}")
        if self.kind == "truth" and self.model is not None:
            raise ValueError("a judge of kind truth uses no model; remove model")
        if self.kind != "api" and self.prompt is not None:
            raise ValueError(f"prompt applies only to a judge of kind api, not {self.kind}")
        return self


class GridConfig(_Section):
    """A grid."""

    name: FolderName = "grid"
    """Name of the grid; its directory is `{root}/{name}`."""
    root: Filled = "runs"
    """Parent of the grid's directory."""
    benchmarks: list[GridBenchmark] = Field(min_length=1)
    """Runs with the users to evaluate them on."""
    methods: list[str] | None = None
    """The methods, named as in metrics.json. `no_personalization`, the reference for all, is always included. Unset:
    all that the run trained and that apply to the generator. `per_user_lora` and `copy` are included if named here
    or enabled by the run's config."""
    own_generator: bool = True
    """Whether to include each run's own generator, as `own`."""
    generators: list[GridGenerator] = []
    """Other generators that read the same summaries, for the transfer table."""
    judges: list[GridJudge] = []
    """Judges of responses. A generator without log-probs has only their figures."""
    skip_missing: bool = False
    """Skip benchmarks whose run, data or model is not on this machine, and print each with the reason. If false, a
    missing one is an error."""
    max_users: PositiveInt | None = None
    """Maximum held-out users per benchmark (each window of a user counts as one). Takes the first ones. Unset: all."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        from popi.evaluation.methods import METHODS

        if not self.own_generator and not self.generators:
            raise ValueError("own_generator = false and no generators: no generator would read the summaries")
        generators = [*([OWN] if self.own_generator else []), *(generator.name for generator in self.generators)]
        _refuse_duplicates("generators", generators)
        _refuse_duplicates("judges", [judge.name for judge in self.judges])
        _known("methods", self.methods or [], list(METHODS))
        for judge in self.judges:
            _known(f"judges.{judge.name}.generators", judge.generators or [], generators)
            for pair in judge.pairs or []:
                _known(f"judges.{judge.name}.pairs", pair, list(METHODS))
                if pair[0] == pair[1]:
                    raise ValueError(f"judges.{judge.name}.pairs: {pair[0]} is compared with itself")
        return self

    @property
    def directory(self) -> Path:
        """The grid's directory."""
        return Path(self.root) / self.name


def load_grid(path: str | Path, overrides: list[str] | None = None) -> GridConfig:
    """Read a grid's TOML file, or its saved config.json, with `key=value` overrides.

    Raises:
        ConfigError: the file can't be read, is a run's config, or has an invalid key, type or value.
    """
    tree = read_tree(path, overrides, GridConfig)
    if "benchmarks" not in tree and set(tree) & set(RunConfig.model_fields) - {"name", "root"}:
        raise ConfigError(
            f"{path} is the config of a run, not a grid; evaluate its run with popi evaluate --run DIRECTORY, or name "
            'it in a grid: [[benchmarks]] config = "…" (docs/evaluation.md)'
        )
    try:
        grid = GridConfig.model_validate(tree)
    except ValidationError as error:
        raise explain(error, str(path), GridConfig) from None
    labels = [benchmark.label for benchmark in grid.benchmarks]  # may read runs' configs
    try:
        _refuse_duplicates("benchmarks", labels)
        for judge in grid.judges:
            _known(f"judges.{judge.name}.benchmarks", judge.benchmarks or [], labels)
    except ValueError as error:
        raise ConfigError(f"{path}:\n  {error}") from None
    return grid


def _refuse_duplicates(key: str, names: Sequence[str]) -> None:
    if duplicates := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"{key}: {duplicates[0]!r} occurs twice; names must be unique")


def _known(key: str, names: Sequence[str], allowed: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in allowed]:
        raise ValueError(f"{key}: unknown {unknown[0]!r}; allowed: {', '.join(allowed)}")
