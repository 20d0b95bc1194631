"""`[training.inference]` and `[training.generator]`: the two phases, and the halves of simultaneous training."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from popi.config.section import Section


def _refuse_uneven(setting: str, name: str, total: int, part: int | None) -> None:
    if part is not None and total % part:
        fits = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
        raise ValueError(f"{setting} = {part} does not divide {name} = {total}; divisors: {fits}")


BETAS = {"ipo": 0.04, "dpo": 0.1}
"""Default β of each generator loss."""


class OptimizerConfig(Section):
    """Optimizer settings of both phases, named as in TRL. The defaults differ from TRL's."""

    optim: str = Field(default="adamw_torch", min_length=1)
    """Optimizer, by transformers' name: `adamw_torch`, `adafactor`, `adamw_8bit` (needs bitsandbytes), …"""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay. Norms and biases are exempt."""
    lr_scheduler_type: str = Field(default="cosine", min_length=1)
    """Learning-rate schedule after the warm-up, by transformers' name: `cosine`, `linear`, `constant_with_warmup`,
    `cosine_with_min_lr`, …"""
    lr_scheduler_kwargs: dict[str, Any] = {}
    """Extra arguments of that scheduler, such as `min_lr_rate = 0.1`."""


class InferencePhaseConfig(OptimizerConfig):
    steps: PositiveInt = 60
    """Optimizer steps of one inference-model phase."""
    users_per_step: PositiveInt = 16
    """Distinct users whose signals are summarised per step."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Users of a step that go through the models at once, a divisor of `users_per_step`. Memory grows with it; the
    step's gradient is accumulated over the micro batches (TRL's `gradient_accumulation_steps` is `users_per_step`
    divided by it). Unset: all at once, as always in simultaneous training."""
    group_size: int = Field(default=8, ge=2)
    """Summaries sampled from one user's signals (G)."""
    targets_per_summary: PositiveInt = 4
    """Target pairs of the same user over which one summary's reward is averaged (the paper's released code uses 1)."""
    scored_on: Literal["targets", "signal"] = "targets"
    """With `summary.per_signal`: the pairs that a clause is rewarded for ranking. `targets`: the user's target pairs,
    most of which concern other things than the clause. `signal`: the preference pair that it restates, which needs no
    targets and has far less noise; signals that are not pairs then train nothing. Not with order `simultaneous`."""
    learning_rate: PositiveFloat = 3e-4
    """Peak learning rate."""
    warmup_steps: int = Field(default=5, ge=0)
    """Steps of linear warm-up."""
    beta: PositiveFloat = 0.1
    """β of the summary reward log σ(β·h)/β."""
    kl: float = Field(default=0.02, ge=0)
    """λ: weight of KL(π_φ ‖ π_φ₀) to the initial inference model."""
    length_target: int | None = Field(default=None, gt=0)
    """Tokens that a summary may have without a penalty (docs/method.md); must be below `summary.max_tokens`, the hard
    limit. Requires `length_penalty`."""
    length_penalty: float | None = Field(default=None, gt=0)
    """Summary reward lost per token beyond `length_target`. Unset: no penalty."""
    scale_rewards: bool = False
    """Divide advantages by the group's standard deviation (POPI does not)."""
    credit: Literal["summary", "clause"] = "summary"
    """What each token of a summary is credited with. `summary`: the whole summary's advantage. `clause`: what its
    clause and the following ones add to the text before it (docs/method.md), which has less noise and no bias. A step
    then also scores every prefix of every summary that ends at a clause boundary: for summaries of k clauses, up to k
    times as many texts, and as many API calls with `model.api_generator`."""
    clause_decay: float = Field(default=1.0, ge=0, le=1)
    """With `credit = "clause"`: a clause is credited with clause_decay^d of the gain of the clause d places after it.
    Values below 1 reduce noise but add bias wherever later clauses depend on earlier ones; on the nano base that bias
    is large."""
    max_grad_norm: PositiveFloat = 1.0
    """Maximum gradient norm; larger gradients are clipped."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        _refuse_uneven("micro_batch", "users_per_step", self.users_per_step, self.micro_batch)
        if (self.length_target is None) != (self.length_penalty is None):
            raise ValueError(
                f"length_target = {self.length_target} and length_penalty = {self.length_penalty} go together: the "
                "tokens without a penalty, and the reward lost per further token; set both or neither"
            )
        if self.credit == "summary" and self.clause_decay != 1:
            raise ValueError(
                f'clause_decay = {self.clause_decay} requires credit = "clause"; set that, or remove clause_decay'
            )
        return self

    @property
    def parts(self) -> int:
        """Number of micro batches per step."""
        return self.users_per_step // (self.micro_batch or self.users_per_step)


class GeneratorPhaseConfig(OptimizerConfig):
    steps: PositiveInt = 100
    """Optimizer steps of one generator phase."""
    batch_size: PositiveInt = 32
    """Target pairs per step."""
    targets_per_summary: PositiveInt = 1
    """Target pairs of the same user that share one sampled summary, a divisor of `batch_size` and of `micro_batch`.
    Their shared prefix, the summary or the raw signals, then goes through the generator only once, and a step sees
    proportionally fewer summaries (docs/method.md). Users with fewer target pairs form smaller groups, and a group
    split by the end of a step or micro batch is read once on either side: a step always holds `batch_size` pairs.
    Simultaneous training draws its pairs one by one from everything the step has sampled."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Target pairs of a step that go through the generator at once, a divisor of `batch_size`
    (`gradient_accumulation_steps` is `batch_size` divided by it). Unset: all at once, as always in simultaneous
    training."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate. Simultaneous training uses this and the weight decay for the generator, too."""
    warmup_steps: int = Field(default=5, ge=0)
    """Steps of linear warm-up. Simultaneous training uses the inference phase's warm-up, optimizer and scheduler for
    both models."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the generator's adapter during training, simultaneous training included. The inference
    model has none, since its samples come from the weights being trained."""
    loss: Literal["dpo", "ipo"] = "ipo"
    """`ipo`: (h − 1/(2β))², which asks for a margin of exactly 1/(2β) nats. `dpo`: the paper's −log σ(βh), TRL's
    `sigmoid` (β times the method's loss), whose margin grows without bound (docs/method.md)."""
    beta: PositiveFloat = BETAS["ipo"]
    """β of the generator's loss. Its meaning depends on the loss: with IPO, 1/(2β) is the target margin, 12.5 nats at
    0.04. Default: 0.04 with IPO, 0.1 with DPO."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """ε of conservative DPO: the assumed share of flipped labels. Requires `loss = "dpo"`."""
    max_grad_norm: PositiveFloat = 10.0
    """Gradient clip. IPO's gradients are some hundred times DPO's, so it clips nearly every step of IPO, and leaves the
    direction; Adam, whose steps depend on no scale, hardly notices."""
    max_chosen_loss: float = Field(default=0.03, ge=0)
    """Stop training the generator once the chosen responses have lost this much, in nats per token, compared with the
    untrained base given the same summary; the weights saved are those of the last checkpoint before that
    (docs/method.md). Measured every few steps, checked at checkpoints. 0 disables it."""

    @model_validator(mode="before")
    @classmethod
    def _beta_of_the_loss(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and "beta" not in tree and tree.get("loss") in BETAS:
            return {**tree, "beta": BETAS[tree["loss"]]}
        return tree

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _refuse_uneven("micro_batch", "batch_size", self.batch_size, self.micro_batch)
        for name, total in (("batch_size", self.batch_size), ("micro_batch", self.micro_batch)):
            if total is not None:
                _refuse_uneven("targets_per_summary", name, total, self.targets_per_summary)
        return self

    @property
    def parts(self) -> int:
        """Number of micro batches per step."""
        return self.batch_size // (self.micro_batch or self.batch_size)
