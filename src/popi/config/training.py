"""`[training]`: what is trained, and in which order."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from popi.config.phases import GeneratorPhaseConfig, InferencePhaseConfig
from popi.config.section import Filled, Section

Order = Literal[
    "population_dpo",
    "fspo",
    "copy",
    "user_embedding",
    "user_embedding_from_signals",
    "plug_and_play",
    "alternating",
    "simultaneous",
]


class UserEmbeddingConfig(Section):
    tokens: PositiveInt = 10
    """Number of vectors in a user's soft prompt."""
    generic_share: float = Field(default=0.5, ge=0, lt=1)
    """Share of the target pairs that only train the generic user's embedding, as if nothing were known about the user
    (1 − α of arXiv 2402.05133)."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of the embeddings; the generator uses `training.generator.learning_rate`."""


class RenewalConfig(Section):
    share: float = Field(default=0.0, ge=0, le=1)
    """Share of a step's users whose summary is a renewal, in the inference phase and where a generator trains on
    summaries. Their signals are split in time, and the inference model reads an old summary of the earlier part plus
    the later signals themselves (docs/streaming.md). Incompatible with `summary.conditioned_on_prompt`."""


class VllmRolloutsConfig(Section):
    url: str | None = Field(default=None, min_length=1)
    """URL of a TRL vLLM server, started separately with the same base (`trl vllm-serve --model BASE`). Unset: vLLM runs
    inside this process, on the same GPU."""
    gpu_memory: float = Field(default=0.3, gt=0, lt=1)
    """Share of the GPU's memory for vLLM when it runs inside this process."""
    tolerance: PositiveFloat = 0.1
    """Maximum mean difference between vLLM's log-probs and the trained model's, in nats, over a step's tokens. With
    `summary.top_p` below 1, -log(top_p) is added, since vLLM reports log-probs within the nucleus."""


class TrainingConfig(Section):
    orders: list[Order] = ["plug_and_play"]
    """Which methods to train. Phases that two orders share are trained once."""
    generator_start: Literal["base", "copy"] = "base"
    """The generator that plug-and-play, alternating and simultaneous training start from: the base, or the one that
    order `copy` trains on summaries that are the user's signals, copied. A small LLM reads little of a summary until it
    is trained to, and a generator that does not read summaries gives the inference model nothing to learn from
    (docs/method.md)."""
    rounds: PositiveInt = 1
    """Rounds of alternating training (the inference model, then the generator)."""
    inference: InferencePhaseConfig = InferencePhaseConfig()
    """The inference model's phase, and the inference model's half of simultaneous training."""
    generator: GeneratorPhaseConfig = GeneratorPhaseConfig()
    """The generator's phase, and the generator's half of simultaneous training. The baselines `population_dpo`, `fspo`
    and `user_embedding` use the same settings."""
    user_embedding: UserEmbeddingConfig = UserEmbeddingConfig()
    """The learned user embeddings of the orders `user_embedding` and `user_embedding_from_signals`."""
    renewal: RenewalConfig = RenewalConfig()
    """Training to renew an old summary from new signals, in every order that trains on summaries."""
    joint_steps: PositiveInt = 60
    """Optimizer steps of simultaneous training."""
    joint_generator_steps: PositiveInt | None = None
    """How many of the `joint_steps` also train the generator, spread evenly. Unset: as many as in alternating training
    (`rounds` times `generator.steps`), but at most `joint_steps`."""
    save_steps: PositiveInt = 20
    """Steps between checkpoints, from which an interrupted run resumes."""
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] | None = None
    """Where to send metrics in addition to log.jsonl; `wandb` and `trackio` also get tables of sampled summaries every
    `save_steps`. Logins, servers and offline modes are configured as usual for those services (`WANDB_MODE=offline`).
    Unset: tensorboard, if it is installed."""
    report_project: Filled = "popi"
    """Project name there. Every phase is one run of the project, in a group named after popi's run."""
    save_total_limit: PositiveInt | None = None
    """Number of newest checkpoints to keep per phase, in addition to its best, also after the phase has ended.
    Unset: two while it trains, the second as a fallback in case the newest is damaged."""
    eval_steps: PositiveInt | None = None
    """Steps between evaluations during a phase, on users set aside for this, with greedy summaries. The phase then
    saves the weights of its best evaluation. Unset: no evaluations; the last step's weights are saved."""
    eval_users: PositiveInt = 64
    """With `eval_steps`: number of training users to set aside. Nothing trains on them; test users are only used by
    `popi evaluate`."""
    metric_for_best_model: Literal["reward", "reward_accuracy"] = "reward"
    """With `eval_steps`: which metric determines the best evaluation. The mean summary reward, with the phase's β, has
    less noise than the reward accuracy."""
    early_stopping_patience: PositiveInt | None = None
    """With `eval_steps`: end a phase after this many consecutive evaluations without improvement. Unset: run all
    steps."""
    gradient_checkpointing: bool = False
    """Trade compute for memory in the backward pass."""
    share_references: bool = True
    """Also store reference log-probs in `{root}/.references`, for later runs with the same base, templates and targets.
    The folder can be deleted at any time."""
    rollouts: Literal["own", "vllm"] = "own"
    """What samples summaries in the inference and joint phases: popi's own loop, or vLLM on a GPU (docs/performance.md;
    not yet tested on a GPU). Weights are sent to vLLM before each step, and the log-probs of every step's summaries are
    compared with the trained model's."""
    sharding: Literal["none", "fsdp2"] = "none"
    """How several processes hold the models: complete in each (DDP), or divided among them with their gradients and
    optimizer states (`fsdp2`, docs/scaling.md). One process always holds complete models."""
    vllm: VllmRolloutsConfig = VllmRolloutsConfig()
    """How vLLM runs. Requires `rollouts = "vllm"`."""

    @model_validator(mode="after")
    def _no_more_than_there_are(self) -> Self:
        if self.joint_generator_steps is not None and self.joint_generator_steps > self.joint_steps:
            raise ValueError(
                f"joint_generator_steps = {self.joint_generator_steps} exceeds joint_steps = {self.joint_steps}; lower "
                "the former or raise the latter"
            )
        return self

    @property
    def generator_steps_of_joint(self) -> int:
        """Number of simultaneous training's steps that also train the generator."""
        if self.joint_generator_steps is not None:
            return self.joint_generator_steps
        return min(self.joint_steps, self.rounds * self.generator.steps)

    @property
    def rows_at_once(self) -> int:
        """Number of (summary, target) pairs that the reward scores at once."""
        at_once = self.inference.micro_batch
        return at_once * self.inference.group_size if at_once else 64

    @property
    def reads_once(self) -> bool:
        """Whether the sampling and the update of a step share one forward pass over the signals. The pass's graph then
        stays in memory between the two, so this is off with micro batches, which hold few users' graphs at a time, and
        under gradient checkpointing, which stores no keys and values to sample from.
        """
        return self.rollouts == "own" and self.inference.parts == 1 and not self.gradient_checkpointing
