"""Every setting of a run, each documented once, under its field. Imports no torch.

A run is described by a TOML file plus dotted overrides (``training.inference.steps=10``); the resolved
config is saved with the run. `load_config` is the only way in.
"""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypedDict, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from popi.errors import ConfigError

Order = Literal[
    "population_dpo",
    "fspo",
    "user_embedding",
    "user_embedding_from_signals",
    "plug_and_play",
    "alternating",
    "simultaneous",
]


def _folder_name(value: str) -> str:
    if value in ("", ".", "..") or "/" in value or "\\" in value or not value.isprintable():
        raise ValueError("must be the name of one folder, without slashes; where runs live is said by `root`")
    return value


FolderName = Annotated[str, AfterValidator(_folder_name)]
Filled = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    # Strict: `seed = true` or `steps = "3"` is a mistake to be named, not a number to be guessed.
    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, frozen=True, strict=True, allow_inf_nan=False
    )


class ApiGeneratorConfig(_Section):
    url: str | None = Field(default=None, min_length=1)
    """An OpenAI-compatible server that returns the log-probs of its prompt, as vLLM's does (`http://host:8000/v1`):
    the model on it is the generator, frozen, and gives the rewards (docs/api_models.md). Only with the order
    `plug_and_play`. Unset: the generator is a local model."""
    name: str | None = Field(default=None, min_length=1)
    """That model, as the server calls it."""
    key_env: str | None = Field(default=None, min_length=1)
    """The environment variable that holds the server's key; else OPENAI_API_KEY, and none where that is not set."""
    concurrency: PositiveInt = 32
    """Most requests under way at once."""

    @property
    def given(self) -> bool:
        return bool(self.url or self.name)


class ModelConfig(_Section):
    base: Filled = "nano"
    """The base model: `nano` (shipped with popi), `smollm2`, a folder, a GGUF file, or a hub id (docs/models.md).
    Inference model, generator and reference all start from it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights' type. `auto`: bfloat16 on a GPU that has it, and on a CPU that has it for models from 50 million
    parameters on; float32 else, for the nano model, and where full weights train (half precision would round their
    small updates away). float16 needs a GPU."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""
    adapter: Literal["none", "lora"] = "none"
    """`none` trains full weights (a copy of the base for each component); `lora` trains two adapters on
    one shared base."""
    lora_rank: PositiveInt = 16
    """Rank of each LoRA adapter."""
    lora_alpha: PositiveFloat = 32.0
    """LoRA scaling numerator."""
    chat_template: str | None = None
    """A Jinja chat template (text, or the path of a file) for a tokenizer that has none, or instead of its own."""
    api_generator: ApiGeneratorConfig = ApiGeneratorConfig()
    """A frozen generator behind an API instead of the base."""


class WindowSizes(TypedDict):
    """How TRL preference rows are cut, by the names that the readers of files take."""

    signals_per_user: int
    targets_per_user: int


BENCHMARKS: dict[str, WindowSizes] = {
    "elix": {"signals_per_user": 4, "targets_per_user": 1},
    "review": {"signals_per_user": 4, "targets_per_user": 1},
    "roleplay": {"signals_per_user": 8, "targets_per_user": 1},
    "alignx": {"signals_per_user": 4, "targets_per_user": 1},
    "polis": {"signals_per_user": 4, "targets_per_user": 4},
    "mtbench": {"signals_per_user": 4, "targets_per_user": 1},
    "preferences": {"signals_per_user": 4, "targets_per_user": 4},
}
"""The sources that are benchmarks (docs/data.md), with each one's own window sizes."""
_OWN_SPLITS = ("elix", "review", "roleplay", "alignx", "preferences")
_HASH_SPLITS = ("polis", "mtbench", "preferences")
_APPLIES: dict[str, tuple[str, ...]] = {
    "test_path": _OWN_SPLITS,
    "test_split": _OWN_SPLITS,
    "test_share": _HASH_SPLITS,
    "unseen_prompts": ("elix", "review", "roleplay", "mtbench", "preferences"),
    "unseen_users": ("roleplay", "preferences"),
    "choice_column": ("elix",),
    "scorer_match": ("elix",),
    "interpolated": ("review",),
    "alignx_signals": ("alignx",),
    "user_column": ("preferences",),
}
"""Setting of a benchmark → sources that it means something for; all others go with all of them."""


class BenchmarkConfig(_Section):
    path: str | None = Field(default=None, min_length=1)
    """Where the set lies: a folder of parquet or JSONL files, one such file, or a hub id. Unset: the benchmark's set
    on the hub (`polis`, `mtbench` and `preferences` have none)."""
    test_path: str | None = Field(default=None, min_length=1)
    """Where the test split lies, if not in `path` too (AlignX has a hub set for it, taken where `path` is unset)."""
    train_split: Filled = "train"
    """The split to train on: a split of the hub set, or the word in the names of a folder's files."""
    test_split: str | None = Field(default=None, min_length=1)
    """The split to test on (`validation`, say). Unset: `test`; `preferences`: users are split by a seeded hash,
    unless `test_path` is set."""
    test_share: float = Field(default=0.2, gt=0, lt=1)
    """`polis`, `mtbench`, `preferences`: share of the users (with `unseen_prompts`: and of the prompts) held out."""
    split_seed: int = Field(default=0, ge=0)
    """Seeds that hash and the order in which rows are cut into windows. Not the run's `seed`: runs of several seeds
    are tested on the same users."""
    unseen_prompts: bool | None = None
    """Test targets have prompts that no training user saw; what stands against it is dropped and counted. Unset: true
    for `elix`, `review`, `mtbench`, else false."""
    unseen_users: bool = True
    """`roleplay`, and `preferences` with a test split of its own: test rows of users that stand in train are dropped
    and counted."""
    on_bad_rows: Literal["refuse", "drop"] = "refuse"
    """Rows that do not fit the benchmark's columns: `refuse` stops and lists them, `drop` counts them."""
    choice_column: Literal["label", "det_choice"] = "label"
    """`elix`: the column that says which response was preferred (0: `response_x`)."""
    scorer_match: bool = True
    """`elix`: drop, and count, rows whose `scorer_level` is neither `level_x` nor `level_y`."""
    interpolated: bool = False
    """`review`: evaluate on the four combined levels, never trained on, instead of the four single ones."""
    alignx_signals: Literal["ugc", "pair", "demo", "arbitrary"] = "arbitrary"
    """`alignx`: which signals a user has: comments, choices, the demographic description, or a mix."""
    user_column: Filled = "user_id"
    """`preferences`: the column that says whose preference a row is (text or whole numbers)."""


class DataConfig(_Section):
    source: Filled = "nano"
    """`nano` (synthetic users with known preferences), a benchmark (`elix`, `review`, `roleplay`, `alignx`, `polis`,
    `mtbench`, or `preferences` for any TRL preference set with a user column), or the path of a JSONL file of training
    users."""
    test: str | None = None
    """JSONL file of test users, where `source` is a file; none of them may stand in it."""
    train_users: PositiveInt = 2000
    """How many users to train on (`nano` makes that many; a file is cut to the first ones)."""
    test_users: PositiveInt = 400
    """How many held-out users to evaluate on (`nano` makes that many; a file is cut to the first ones)."""
    signals_per_user: PositiveInt = 4
    """How many of a user's rows become signals of one window (TRL preference rows, benchmarks); AlignX: most signals of
    a kind. Not given: 4, and 8 for `roleplay`."""
    targets_per_user: PositiveInt = 4
    """`nano`: target pairs a user. TRL rows and benchmarks: targets a window. Not given: 4, and 1 for `elix`, `review`,
    `roleplay`, `alignx`, `mtbench`."""
    no_evidence_share: float = Field(default=0.0, ge=0, le=1)
    """`nano`: share of the training users whose signals say nothing of what they prefer, so that the inference model
    learns to say so (docs/evidence.md)."""
    benchmark: BenchmarkConfig = BenchmarkConfig()
    """Where a benchmark lies and how it is read; only with a `source` that is one."""

    @model_validator(mode="before")
    @classmethod
    def _own_sizes(cls, tree: Any) -> Any:
        """A benchmark's own window sizes, where none are given: the saved config then says which they were."""
        source = tree.get("source") if isinstance(tree, dict) else None
        return {**BENCHMARKS[source], **tree} if isinstance(source, str) and source in BENCHMARKS else tree

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        settings = self.benchmark
        if self.source != "nano" and self.no_evidence_share:
            raise ValueError(
                f"no_evidence_share = {self.no_evidence_share} belongs to source nano, not to {self.source!r}: "
                "leave it out"
            )
        for name, field in BenchmarkConfig.model_fields.items():
            sources = _APPLIES.get(name, tuple(BENCHMARKS))
            if self.source not in sources and getattr(settings, name) != field.default:
                raise ValueError(
                    f"benchmark.{name} = {getattr(settings, name)!r} belongs to source {', '.join(sources)}, not to "
                    f"{self.source!r}: leave it out"
                )
        if self.source not in BENCHMARKS:
            return self
        if self.test is not None:
            raise ValueError(
                f"test = {self.test!r} belongs to a source that is a file; {self.source!r} has its own test users "
                "(benchmark.test_path says where they lie)"
            )
        if settings.path is None and self.source in _HASH_SPLITS:
            raise ValueError(
                f"benchmark.path is not set, and {self.source!r} has no set of its own: name file or folder"
            )
        if self.source == "alignx" and self.targets_per_user != 1:
            raise ValueError(f"targets_per_user = {self.targets_per_user}: a row of AlignX is a user of 1 target")
        return self

    def windows(self) -> WindowSizes:
        """How TRL preference rows are cut, as the readers of files take it."""
        return {"signals_per_user": self.signals_per_user, "targets_per_user": self.targets_per_user}


class SignalsConfig(_Section):
    template: str = "auto"
    """Set of prompt templates: one that ships (`default`, `nano`, `elix`, `review`, `roleplay`, `alignx`, `polis`; for
    models of some hundred million weights `small` and `polis_small`) or a folder. `auto`: the set that the model was
    saved with (`nano` for the nano model); else that of the benchmark, if it has one; else `default`."""
    token_budget: PositiveInt = 8192
    """Most tokens of rendered signals; whole signals are dropped to fit (docs/data.md), newest and most contrasting
    kept. The template's own words come on top."""


class SummaryConfig(_Section):
    max_tokens: PositiveInt = 32
    """Most tokens of a preference summary."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature in training. Evaluation is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling in training; 1 keeps the whole distribution."""
    conditioned_on_prompt: bool = False
    """The inference model also reads the task prompt: a summary for each user and prompt, not one for all of a user's
    prompts (docs/method.md). Goes with `training.inference.targets_per_summary = 1`."""


def _refuse_uneven(name: str, whole: int, part: int | None) -> None:
    if part is not None and whole % part:
        fits = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
        raise ValueError(f"micro_batch = {part} does not divide {name} = {whole}; divisors: {fits}")


class InferencePhaseConfig(_Section):
    steps: PositiveInt = 60
    """Optimizer steps of one inference-model phase."""
    users_per_step: PositiveInt = 16
    """Distinct users whose signals are summarised in one step."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Users of a step that go through the models at once, a divisor of `users_per_step`: memory grows with it, the
    step's gradient is the sum over its parts. Unset: all at once. Simultaneous training takes all at once."""
    group_size: int = Field(default=8, ge=2)
    """Summaries sampled from one user's signals (G)."""
    targets_per_summary: PositiveInt = 4
    """Target pairs of the same user over which one summary's reward is averaged (the release uses 1)."""
    learning_rate: PositiveFloat = 3e-4
    """Peak learning rate (cosine, linear warm-up)."""
    warmup_steps: int = Field(default=5, ge=0)
    """Linear warm-up."""
    beta: PositiveFloat = 0.1
    """β of the summary reward log σ(β·h)/β."""
    kl: float = Field(default=0.02, ge=0)
    """λ: weight of KL(π_φ ‖ π_φ₀) to the initial inference model."""
    length_target: int | None = Field(default=None, gt=0)
    """Tokens that a summary may have without a penalty (docs/method.md); below `summary.max_tokens`, which is the hard
    limit. Goes with `length_penalty`."""
    length_penalty: float | None = Field(default=None, gt=0)
    """Summary reward lost for each token beyond `length_target`. Unset: length costs nothing."""
    scale_rewards: bool = False
    """Divide advantages by the group's standard deviation (POPI does not)."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clip."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        _refuse_uneven("users_per_step", self.users_per_step, self.micro_batch)
        if (self.length_target is None) != (self.length_penalty is None):
            raise ValueError(
                f"length_target = {self.length_target} and length_penalty = {self.length_penalty} go together: tokens "
                "without a penalty, and the reward that each further token costs; set both or neither"
            )
        return self

    @property
    def parts(self) -> int:
        """How many micro batches make a step."""
        return self.users_per_step // (self.micro_batch or self.users_per_step)


class GeneratorPhaseConfig(_Section):
    steps: PositiveInt = 100
    """Optimizer steps of one generator phase."""
    batch_size: PositiveInt = 32
    """Target pairs a step."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Target pairs of a step that go through the generator at once, a divisor of `batch_size`. Unset: all at once, as
    always in simultaneous training."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate (cosine, linear warm-up). In simultaneous training: the generator's own."""
    warmup_steps: int = Field(default=5, ge=0)
    """Linear warm-up. Simultaneous training takes the inference model's for both."""
    loss: Literal["dpo", "ipo"] = "dpo"
    """DPO: −log σ(βh), TRL's `sigmoid` (β times the method's loss); IPO: (h − 1/(2β))²."""
    beta: PositiveFloat = 0.1
    """β of the generator's loss."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """ε of conservative DPO: the assumed share of flipped labels."""
    max_grad_norm: PositiveFloat = 10.0
    """Gradient clip."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _refuse_uneven("batch_size", self.batch_size, self.micro_batch)
        return self

    @property
    def parts(self) -> int:
        """How many micro batches make a step."""
        return self.batch_size // (self.micro_batch or self.batch_size)


class UserEmbeddingConfig(_Section):
    tokens: PositiveInt = 10
    """Vectors of a user's soft prompt."""
    generic_share: float = Field(default=0.5, ge=0, lt=1)
    """Share of the target pairs that train the generic user's embedding alone, as if nothing were known of the user
    (1 − α of arXiv 2402.05133)."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of the embeddings; the generator beside them has `training.generator.learning_rate`."""


class VllmRolloutsConfig(_Section):
    url: str | None = Field(default=None, min_length=1)
    """TRL's vLLM server, started beside the run with the same base (`trl vllm-serve --model BASE`). Unset: vLLM runs
    inside this process, on the same GPU."""
    gpu_memory: float = Field(default=0.3, gt=0, lt=1)
    """Share of the GPU's memory that vLLM takes where it runs inside this process."""
    tolerance: PositiveFloat = 0.1
    """Largest mean difference, over a step's tokens, between vLLM's log-probs and the trained model's (nats)."""


class TrainingConfig(_Section):
    orders: list[Order] = ["plug_and_play"]
    """Which methods to train. Phases that two orders share are trained once."""
    rounds: PositiveInt = 1
    """Rounds of alternating training (inference model, then generator)."""
    inference: InferencePhaseConfig = InferencePhaseConfig()
    """The inference model's phase, and its half of simultaneous training."""
    generator: GeneratorPhaseConfig = GeneratorPhaseConfig()
    """The generator's phase, and its half of simultaneous training. The baselines `population_dpo`, `fspo` and
    `user_embedding` train with the same settings."""
    user_embedding: UserEmbeddingConfig = UserEmbeddingConfig()
    """The learned user embeddings of the orders `user_embedding` and `user_embedding_from_signals`."""
    joint_steps: PositiveInt = 60
    """Optimizer steps of simultaneous training."""
    save_steps: PositiveInt = 20
    """Steps between checkpoints (what a killed run resumes from)."""
    gradient_checkpointing: bool = False
    """Trade compute for memory in the backward pass."""
    share_references: bool = True
    """Keep reference log-probs in `{root}/.references`, too, for later runs over the same base, templates and targets.
    The folder can be deleted at any time."""
    rollouts: Literal["own", "vllm"] = "own"
    """What samples summaries in the inference and joint phases: popi's own loop, or vLLM on a GPU (docs/performance.md;
    not tried on a GPU yet). The weights go over before each step, and the log-probs of every step's summaries are
    compared with the trained model's."""
    vllm: VllmRolloutsConfig = VllmRolloutsConfig()
    """How vLLM runs; only with `rollouts = "vllm"`."""

    @property
    def rows_at_once(self) -> int:
        """(summary, target) pairs that the reward scores at once."""
        at_once = self.inference.micro_batch
        return at_once * self.inference.group_size if at_once else 64


class PerUserLoraConfig(_Section):
    enabled: bool = False
    """Evaluate this method too, as `popi evaluate --per-user-lora` does for a run that has it off. It trains an adapter
    for every held-out user: minutes to hours."""
    users: PositiveInt | None = None
    """Most held-out users to do it for, the first ones. Unset: all."""
    rank: PositiveInt = 8
    """Rank of the adapter; its scaling numerator is twice that."""
    steps: PositiveInt = 10
    """Optimizer steps a user."""
    batch_size: PositiveInt = 4
    """Most of a user's own pairs in one step."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate (constant)."""
    beta: PositiveFloat = 0.1
    """β of the DPO loss."""


class EvaluationConfig(_Section):
    batch_size: PositiveInt = 32
    """Rows scored at once: in the evaluation, and by the reference model before training. Also users (32 at most) whose
    summaries are written at once for the generator's phase."""
    examples: PositiveInt = 8
    """Users shown in the report."""
    answer_tokens: PositiveInt = 64
    """Most tokens of an answer shown in the report."""
    token_price: float | None = Field(default=None, ge=0)
    """Price of a million tokens of a generator's prompt, in any currency: metrics.json and the report then say what the
    tokens added to a prompt cost. Unset: no cost is shown."""
    per_user_lora: PerUserLoraConfig = PerUserLoraConfig()
    """The baseline that fine-tunes for each held-out user on that user's own signals."""

    @property
    def users_at_once(self) -> int:
        """Users whose summaries are written at once for the generator's phase."""
        return min(32, self.batch_size)


class RunConfig(_Section):
    """One run, whole."""

    name: FolderName = "nano"
    """Name of the run; its directory is `{root}/{name}`."""
    root: Filled = "runs"
    """Where run directories live."""
    seed: int = Field(default=0, ge=0)
    """Seeds the users, the sampling, the order of the data and new weights."""
    model: ModelConfig = ModelConfig()
    """The base model and how it is adapted."""
    data: DataConfig = DataConfig()
    """Users to train and to test on."""
    signals: SignalsConfig = SignalsConfig()
    """How signals become a prompt."""
    summary: SummaryConfig = SummaryConfig()
    """How summaries are sampled."""
    training: TrainingConfig = TrainingConfig()
    """What is trained, in which order."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured."""

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.root) / self.name


def with_per_user_lora(config: RunConfig) -> RunConfig:
    """The config with `evaluation.per_user_lora` enabled, its other settings as they are."""
    lora = config.evaluation.per_user_lora.model_copy(update={"enabled": True})
    evaluation = config.evaluation.model_copy(update={"per_user_lora": lora})
    return config.model_copy(update={"evaluation": evaluation})


def _set_dotted(tree: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw  # a bare word is a string: run names and paths need no quotes
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a setting, not a section")
    tree[last] = value


def _allowed(path: tuple[str | int, ...], root: type[BaseModel]) -> str:
    """The keys allowed where `path` ends, for the message about a wrong key."""
    section: Any = root
    for part in path[:-1]:
        if isinstance(part, int):  # of a list of sections
            section = (get_args(section) or (None,))[0]
        else:
            field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
            section = field.annotation if field else None
    return ", ".join(section.model_fields) if hasattr(section, "model_fields") else "nothing"


def explain(error: ValidationError, source: str, root: type[BaseModel]) -> ConfigError:
    """Each wrong key, type or value of settings that should be a `root`, as one error."""
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{name}: no such setting; allowed here: {_allowed(item['loc'], root)}")
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            # Settings that do not go together are told by the message; their whole section would drown it.
            whole = item["type"] in ("value_error", "missing") and isinstance(item["input"], dict)
            lines.append(f"{name}: {message}".removeprefix(": ") + ("" if whole else f"; got {item['input']!r}"))
    return ConfigError(f"{source}:\n  " + "\n  ".join(lines))


def resolve(tree: dict[str, Any], source: str = "config") -> RunConfig:
    """Validate a plain dictionary. Raises ConfigError naming each wrong key, type or value."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise explain(error, source, RunConfig) from None


def load_config(
    path: str | Path | None, overrides: list[str] | None = None, *, tree: dict[str, Any] | None = None
) -> RunConfig:
    """Read a TOML (or a run's saved JSON) config, or start from `tree`, and apply `section.key=value` overrides.

    Raises:
        ConfigError: the file can't be read, or a key, type or value is wrong.
    """
    tree = read_tree(path, overrides) if path is not None else set_all(tree or {}, overrides)
    return resolve(tree, source=str(path or "config"))


def read_tree(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The tables of a TOML or JSON file, with `section.key=value` overrides.

    Raises:
        ConfigError: the file can't be read, or an override is none.
    """
    path = Path(path)
    kind, parse = ("JSON", json.loads) if path.suffix == ".json" else ("TOML", tomllib.loads)
    try:
        tree = parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (ValueError, RecursionError) as error:  # both parsers' errors
        raise ConfigError(f"{path}: not valid {kind}: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a table of settings; got {type(tree).__name__}")
    return set_all(tree, overrides)


def set_all(tree: dict[str, Any], overrides: list[str] | None) -> dict[str, Any]:
    """The tree with `section.key=value` overrides set in it."""
    for override in overrides or []:
        _set_dotted(tree, override)
    return tree
