"""Every setting of a run, each documented once, under its field. Imports no torch.

A run is described by a TOML file plus dotted overrides (``training.inference.steps=10``); the resolved
config is saved with the run. `load_config` is the only way in.
"""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from popi.errors import ConfigError

Order = Literal["population_dpo", "plug_and_play", "alternating", "simultaneous"]


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


class ModelConfig(_Section):
    base: Filled = "nano"
    """The base model: `nano` (shipped with popi), a folder, or a hub id. Inference model, generator and
    reference all start from it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights' type. `auto`: bfloat16 on a GPU that has it; float32 on CPU, for the nano model, and where full
    weights train (half precision would round their small updates away)."""
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
    """A Jinja chat template (text, or the path of a file) for a tokenizer that has none."""


class WindowSizes(TypedDict):
    """How TRL preference rows are cut, by the names that the readers of files take."""

    signals_per_user: int
    targets_per_user: int


class DataConfig(_Section):
    source: Filled = "nano"
    """`nano` (synthetic users with known preferences) or the path of a JSONL file of training users."""
    test: str | None = None
    """JSONL file of test users; none of them may stand in `source`. Unused for `nano`."""
    train_users: PositiveInt = 2000
    """How many users to train on (`nano` makes that many; a file is cut to the first ones)."""
    test_users: PositiveInt = 400
    """How many held-out users to evaluate on (`nano` makes that many; a file is cut to the first ones)."""
    signals_per_user: PositiveInt = 4
    """For TRL preference rows with a `user_id`: how many of a user's rows become signals of one window."""
    targets_per_user: PositiveInt = 4
    """`nano`: target pairs a user. TRL rows: targets a window."""

    def windows(self) -> WindowSizes:
        """How TRL preference rows are cut, as the readers of files take it."""
        return {"signals_per_user": self.signals_per_user, "targets_per_user": self.targets_per_user}


class SignalsConfig(_Section):
    template: str = "auto"
    """Set of prompt templates: `nano`, `default`, or a folder. `auto`: `nano` for the nano model, else `default`."""
    token_budget: PositiveInt = 8192
    """Most tokens of rendered signals; whole signals are dropped (oldest first) to fit."""


class SummaryConfig(_Section):
    max_tokens: PositiveInt = 32
    """Most tokens of a preference summary."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature in training. Evaluation is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling in training; 1 keeps the whole distribution."""


class InferencePhaseConfig(_Section):
    steps: PositiveInt = 60
    """Optimizer steps of one inference-model phase."""
    users_per_step: PositiveInt = 16
    """Distinct users whose signals are summarised in one step."""
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
    scale_rewards: bool = False
    """Divide advantages by the group's standard deviation (POPI does not)."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clip."""


class GeneratorPhaseConfig(_Section):
    steps: PositiveInt = 100
    """Optimizer steps of one generator phase."""
    batch_size: PositiveInt = 32
    """Target pairs a step."""
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


class TrainingConfig(_Section):
    orders: list[Order] = ["plug_and_play"]
    """Which methods to train. Phases that two orders share are trained once."""
    rounds: PositiveInt = 1
    """Rounds of alternating training (inference model, then generator)."""
    inference: InferencePhaseConfig = InferencePhaseConfig()
    """The inference model's phase, and its half of simultaneous training."""
    generator: GeneratorPhaseConfig = GeneratorPhaseConfig()
    """The generator's phase, and its half of simultaneous training."""
    joint_steps: PositiveInt = 60
    """Optimizer steps of simultaneous training."""
    save_steps: PositiveInt = 20
    """Steps between checkpoints (what a killed run resumes from)."""
    gradient_checkpointing: bool = False
    """Trade compute for memory in the backward pass."""


class EvaluationConfig(_Section):
    batch_size: PositiveInt = 32
    """Rows scored at once."""
    examples: PositiveInt = 8
    """Users shown in the report."""
    answer_tokens: PositiveInt = 64
    """Most tokens of an answer shown in the report."""


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


def _allowed(path: tuple[str | int, ...]) -> str:
    """The keys allowed where `path` ends, for the message about a wrong key."""
    section: Any = RunConfig
    for part in path[:-1]:
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        section = field.annotation if field else None
    return ", ".join(section.model_fields) if hasattr(section, "model_fields") else "nothing"


def _explain(error: ValidationError, source: str) -> ConfigError:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{name}: no such setting; allowed here: {_allowed(item['loc'])}")
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            lines.append(f"{name}: {message}; got {item['input']!r}")
    return ConfigError(f"{source}:\n  " + "\n  ".join(lines))


def resolve(tree: dict[str, Any], source: str = "config") -> RunConfig:
    """Validate a plain dictionary. Raises ConfigError naming each wrong key, type or value."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, source) from None


def load_config(path: str | Path | None, overrides: list[str] | None = None) -> RunConfig:
    """Read a TOML (or a run's saved JSON) config and apply `section.key=value` overrides.

    Raises:
        ConfigError: the file can't be read, or a key, type or value is wrong.
    """
    tree: dict[str, Any] = {}
    if path is not None:
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
    for override in overrides or []:
        _set_dotted(tree, override)
    return resolve(tree, source=str(path or "config"))
