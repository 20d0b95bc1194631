"""`[evaluation]`: what is measured."""

from pydantic import Field, PositiveFloat, PositiveInt

from popi.config.section import Section


class PerUserLoraConfig(Section):
    enabled: bool = False
    """Evaluate this method too; `popi evaluate --per-user-lora` does so for a run where it is disabled. It trains an
    adapter for every held-out user, which takes minutes to hours."""
    users: PositiveInt | None = None
    """Maximum held-out users to train an adapter for (the first ones). Unset: all."""
    rank: PositiveInt = 8
    """Rank of the adapter; its scaling numerator is twice that."""
    steps: PositiveInt = 10
    """Optimizer steps per user."""
    batch_size: PositiveInt = 4
    """Maximum pairs of the user in one step."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate (constant)."""
    beta: PositiveFloat = 0.1
    """β of the DPO loss."""


class CopiedConfig(Section):
    enabled: bool = False
    """Evaluate this method too: its summary is the user's signals verbatim, as rendered by the template set's
    `copy.j2`, with no model involved."""
    token_budget: PositiveInt | None = None
    """Maximum tokens of such a summary; whole signals are dropped to fit. Unset: `signals.token_budget`."""


class EvaluationConfig(Section):
    batch_size: PositiveInt = 32
    """Rows scored at once, in the evaluation and by the reference model before training. Also the number of users (at
    most 32) whose summaries are written at once for the generator's phase."""
    examples: PositiveInt = 8
    """Users shown in the report."""
    answer_tokens: PositiveInt = 64
    """Maximum tokens of an answer shown in the report."""
    token_price: float | None = Field(default=None, ge=0)
    """Price per million prompt tokens of the generator, in any currency. If set, metrics.json and the report include
    the cost of the tokens added to a prompt."""
    beta: PositiveFloat | None = None
    """β of σ(β·h) in the calibration figures and in the breakdown of the loss, the same for all methods. Unset:
    `training.inference.beta`, the β of the summary reward."""
    prompt_users: int = Field(default=64, ge=0)
    """Training users on whom the prompts of a template set's `prompts.toml` are compared; `untrained_summary` uses the
    best one. 0 skips the comparison and uses the set's own prompt, as do sets without that file."""
    copied: CopiedConfig = CopiedConfig()
    """The baseline whose summary is a copy of the signals (`copy` in metrics.json)."""
    per_user_lora: PerUserLoraConfig = PerUserLoraConfig()
    """The baseline that fine-tunes an adapter for each held-out user on that user's own signals."""

    @property
    def users_at_once(self) -> int:
        """Number of users whose summaries are written at once for the generator's phase."""
        return min(32, self.batch_size)
