"""The phases of a run: those of the configured orders, each once.

population_dpo  population-dpo: generator without summaries
fspo            fspo: generator with raw signals in its prompt
copy            copy: generator with copied signals as its summaries
user_embedding  user-embedding: generator with a soft prompt per user
user_embedding_from_signals  user-embedding-from-signals: the same, with a soft prompt computed from the signals
plug_and_play   inference-1
alternating     inference-1, generator-1, inference-2, generator-2, …   (`rounds` pairs)
simultaneous    joint

With `training.generator_start = "copy"` the last three start from the generator of phase `copy`.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

from popi.config import Order, RunConfig
from popi.errors import ConfigError
from popi.training.components import GENERATOR, INFERENCE

PromptContext = Literal["none", "summary", "raw_signals", "copy"]
EmbeddingSource = Literal["user_id", "signals"]


@dataclass(frozen=True)
class Phase:
    """One phase of a run: what it trains, and the phases whose models it starts from (None: the base).

    Attributes:
        context: what a generator phase adds to the task prompts that it trains on.
        embedding: what the user's soft prompt is learned from, if there is one.
    """

    name: str
    kind: Literal["inference", "generator", "joint"]
    inference_from: str | None = None
    generator_from: str | None = None
    context: PromptContext = "summary"
    embedding: EmbeddingSource | None = None

    @property
    def trains(self) -> set[str]:
        return {"inference": {INFERENCE}, "generator": {GENERATOR}, "joint": {INFERENCE, GENERATOR}}[self.kind]

    def soft(self, config: RunConfig) -> int:
        """Number of vectors of the soft prompt that the phase trains."""
        return config.training.user_embedding.tokens if self.embedding else 0

    def steps(self, config: RunConfig) -> int:
        training = config.training
        return {
            "inference": training.inference.steps,
            "generator": training.generator.steps,
            "joint": training.joint_steps,
        }[self.kind]


def plan(config: RunConfig) -> dict[str, list[Phase]]:
    """The phases of each order, in sequence; an order's models are those of its last phases."""
    copy = Phase("copy", "generator", context="copy")
    start = [copy] if config.training.generator_start == "copy" else []
    first = copy.name if start else None
    rounds: list[Phase] = []
    for k in range(1, config.training.rounds + 1):
        before_inference = f"inference-{k - 1}" if k > 1 else None
        before_generator = f"generator-{k - 1}" if k > 1 else first
        rounds.append(Phase(f"inference-{k}", "inference", before_inference, before_generator))
        rounds.append(Phase(f"generator-{k}", "generator", f"inference-{k}", before_generator))
    phases = {
        "copy": [copy],
        "population_dpo": [Phase("population-dpo", "generator", context="none")],
        "fspo": [Phase("fspo", "generator", context="raw_signals")],
        "user_embedding": [Phase("user-embedding", "generator", context="none", embedding="user_id")],
        "user_embedding_from_signals": [
            Phase("user-embedding-from-signals", "generator", context="none", embedding="signals")
        ],
        "plug_and_play": [*start, *rounds[:1]],
        "alternating": [*start, *rounds],
        "simultaneous": [*start, Phase("joint", "joint", generator_from=first)],
    }
    return {order: phases[order] for order in phases if order in config.training.orders}


def phase_seed(seed: int, phase: str) -> int:
    """A phase's seed, independent of what ran before it in the same process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{phase}".encode()).digest()[:4], "big") >> 1


def models_of(phases: list[Phase], config: RunConfig) -> tuple[str, str]:
    """Paths of an order's inference model and generator, relative to the run directory, or the base's name."""
    models = {INFERENCE: config.model.base, GENERATOR: config.model.base}
    for phase in phases:
        for component in phase.trains:
            models[component] = f"phases/{phase.name}/{component}"
    return models[INFERENCE], models[GENERATOR]


def refuse_settings(config: RunConfig) -> None:
    """Raise ConfigError for conflicting settings."""
    generator = config.training.generator
    if generator.loss == "ipo" and generator.label_smoothing:
        raise ConfigError(
            f"training.generator.label_smoothing={generator.label_smoothing} applies only to loss='dpo' (conservative "
            "DPO); with loss='ipo' set it to 0"
        )
    if generator.lora_dropout and config.model.adapter == "none":
        raise ConfigError(
            f"training.generator.lora_dropout={generator.lora_dropout} needs adapters: set model.adapter=lora"
        )
    if config.model.quantization != "none" and config.model.adapter != "lora":
        raise ConfigError(
            f"model.quantization='{config.model.quantization}' packs the base's weights, which can't be trained then: "
            "set model.adapter=lora"
        )
    if config.training.early_stopping_patience and not config.training.eval_steps:
        raise ConfigError(
            f"training.early_stopping_patience={config.training.early_stopping_patience} counts evaluations, but there "
            "are none: set training.eval_steps"
        )
    for name, each in (("inference", config.training.inference), ("generator", generator)):
        if config.summary.conditioned_on_prompt and each.targets_per_summary != 1:
            raise ConfigError(
                f"training.{name}.targets_per_summary={each.targets_per_summary} does not work with "
                "summary.conditioned_on_prompt, where a summary is for one prompt: set it to 1"
            )
    if config.summary.per_signal and config.summary.conditioned_on_prompt:
        raise ConfigError("summary.per_signal does not work with summary.conditioned_on_prompt; remove one of them")
    if config.summary.per_signal and config.training.renewal.share:
        raise ConfigError(
            f"training.renewal.share={config.training.renewal.share} does not work with summary.per_signal, where each "
            "clause is for one signal and a new signal adds a clause: set it to 0"
        )
    scored_on = config.training.inference.scored_on
    if scored_on == "signal" and (not config.summary.per_signal or "simultaneous" in config.training.orders):
        raise ConfigError(
            'training.inference.scored_on="signal" rewards a clause on the pair that it restates: it needs '
            "summary.per_signal = true, and excludes order 'simultaneous', whose generator would train on that pair"
        )
    if config.training.generator_start == "copy" and config.model.api_generator.given:
        raise ConfigError(
            'training.generator_start="copy" would train the generator, but model.api_generator names one behind an '
            "API, which stays frozen; remove it"
        )
    if config.summary.conditioned_on_prompt and config.training.renewal.share:
        raise ConfigError(
            f"training.renewal.share={config.training.renewal.share} does not work with summary.conditioned_on_prompt: "
            "a summary for one prompt is not stored with the user, so there is none to renew; set it to 0"
        )
    target = config.training.inference.length_target
    if target is not None and target >= config.summary.max_tokens:
        raise ConfigError(
            f"training.inference.length_target={target} is not below summary.max_tokens={config.summary.max_tokens}, "
            "where summaries are truncated, so there would be no penalties; lower one or raise the other"
        )
    if config.training.inference.micro_batch and "simultaneous" in config.training.orders:
        raise ConfigError(
            f"training.inference.micro_batch={config.training.inference.micro_batch} does not work with order "
            "'simultaneous', whose two models train on the whole step: remove it, and lower users_per_step"
        )
    if config.model.api_generator.given and set(config.training.orders) != {"plug_and_play"}:
        raise ConfigError(
            f"training.orders={config.training.orders} would train the generator, but model.api_generator names one "
            "behind an API, which stays frozen: set training.orders to ['plug_and_play']"
        )
    if not config.training.orders:
        raise ConfigError(f"training.orders is empty; name at least one of {', '.join(get_args(Order))}")
