"""`[training]`: what is trained, in which order."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from popi.config.phases import GeneratorPhaseConfig, InferencePhaseConfig
from popi.config.section import Filled, Section

Order = Literal[
    "population_dpo",
    "fspo",
    "user_embedding",
    "user_embedding_from_signals",
    "plug_and_play",
    "alternating",
    "simultaneous",
]


class UserEmbeddingConfig(Section):
    tokens: PositiveInt = 10
    """Vectors of a user's soft prompt."""
    generic_share: float = Field(default=0.5, ge=0, lt=1)
    """Share of the target pairs that train the generic user's embedding alone, as if nothing were known of the user
    (1 − α of arXiv 2402.05133)."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of the embeddings; the generator beside them has `training.generator.learning_rate`."""


class RenewalConfig(Section):
    share: float = Field(default=0.0, ge=0, le=1)
    """Share of the users of a step, and of those whose summaries a generator trains with, whose summary is a renewal:
    their signals are split in time, and the inference model reads an old summary of the earlier part and the later
    signals themselves (docs/streaming.md). Not with `summary.conditioned_on_prompt`."""


class VllmRolloutsConfig(Section):
    url: str | None = Field(default=None, min_length=1)
    """TRL's vLLM server, started beside the run with the same base (`trl vllm-serve --model BASE`). Unset: vLLM runs
    inside this process, on the same GPU."""
    gpu_memory: float = Field(default=0.3, gt=0, lt=1)
    """Share of the GPU's memory that vLLM takes where it runs inside this process."""
    tolerance: PositiveFloat = 0.1
    """Largest mean difference, over a step's tokens, between vLLM's log-probs and the trained model's (nats). With
    `summary.top_p` below 1, -log(top_p) more: vLLM tells those of the nucleus."""


class TrainingConfig(Section):
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
    renewal: RenewalConfig = RenewalConfig()
    """Training to renew an old summary from new signals, in every order that trains on summaries."""
    joint_steps: PositiveInt = 60
    """Optimizer steps of simultaneous training."""
    joint_generator_steps: PositiveInt | None = None
    """Of those, the steps in which the generator trains too, spread evenly. Unset: as many as in alternating training,
    `rounds` times `generator.steps`, but no more than there are."""
    save_steps: PositiveInt = 20
    """Steps between checkpoints (what a killed run resumes from)."""
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] | None = None
    """Where metrics go beside log.jsonl; `wandb` and `trackio` also get tables of sampled summaries, every
    `save_steps`. Logins, servers and offline modes are those services' own (`WANDB_MODE=offline`). Unset: tensorboard,
    where it is installed."""
    report_project: Filled = "popi"
    """Project there; every phase is a run of it, in a group named after popi's run."""
    save_total_limit: PositiveInt | None = None
    """Keep so many of a phase's newest checkpoints, and its best, after its end, too. Unset: two while it trains, the
    second to fall back on should the newest be damaged."""
    eval_steps: PositiveInt | None = None
    """Steps between evaluations while a phase trains, on users set aside for it: their summaries are greedy. The phase
    is then saved as it was at its best evaluation. Unset: no evaluations, and the last step's weights."""
    eval_users: PositiveInt = 64
    """With `eval_steps`: training users to set aside. Nothing trains on them; the test users are left for
    `popi evaluate`."""
    metric_for_best_model: Literal["reward", "reward_accuracy"] = "reward"
    """With `eval_steps`: what is best. The mean summary reward, with the β of the phase, has less noise than the reward
    accuracy."""
    early_stopping_patience: PositiveInt | None = None
    """With `eval_steps`: end a phase after so many evaluations in a row that were no better. Unset: all steps."""
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

    @model_validator(mode="after")
    def _no_more_than_there_are(self) -> Self:
        if self.joint_generator_steps is not None and self.joint_generator_steps > self.joint_steps:
            raise ValueError(
                f"joint_generator_steps = {self.joint_generator_steps} is more than joint_steps = {self.joint_steps}, "
                "of which they are a part; lower the one or raise the other"
            )
        return self

    @property
    def generator_steps_of_joint(self) -> int:
        """Steps of simultaneous training in which the generator trains too."""
        if self.joint_generator_steps is not None:
            return self.joint_generator_steps
        return min(self.joint_steps, self.rounds * self.generator.steps)

    @property
    def rows_at_once(self) -> int:
        """(summary, target) pairs that the reward scores at once."""
        at_once = self.inference.micro_batch
        return at_once * self.inference.group_size if at_once else 64

    @property
    def reads_once(self) -> bool:
        """Whether sampling and update of a step share one pass over the signals. Its graph lies in memory between the
        two: not so where micro batches keep that of few users at a time, nor under gradient checkpointing, which keeps
        no keys and values to sample from.
        """
        return self.rollouts == "own" and self.inference.parts == 1 and not self.gradient_checkpointing
