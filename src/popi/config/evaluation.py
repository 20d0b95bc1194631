"""`[evaluation]`: what is measured."""

from pydantic import Field, PositiveFloat, PositiveInt

from popi.config.section import Section


class PerUserLoraConfig(Section):
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


class CopiedConfig(Section):
    enabled: bool = False
    """Evaluate this method too: a summary that is the user's signals word for word, as the template set's `copy.j2`
    takes them, with no model in between."""
    token_budget: PositiveInt | None = None
    """Maximum tokens of such a summary; whole signals are dropped to fit. Unset: `signals.token_budget`."""


class EvaluationConfig(Section):
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
    beta: PositiveFloat | None = None
    """β of σ(β·h) in the figures of calibration and of where the loss comes from, one for all methods. Unset:
    `training.inference.beta`, that of the summary reward."""
    prompt_users: int = Field(default=64, ge=0)
    """Training users on whom the prompts of a template set's `prompts.toml` are compared; `untrained_summary` asks with
    the best of them. 0: it asks with the set's own prompt, as it does where there is no such file."""
    copied: CopiedConfig = CopiedConfig()
    """The baseline whose summary is the signals, copied (`copy` in metrics.json)."""
    per_user_lora: PerUserLoraConfig = PerUserLoraConfig()
    """The baseline that fine-tunes for each held-out user on that user's own signals."""

    @property
    def users_at_once(self) -> int:
        """Users whose summaries are written at once for the generator's phase."""
        return min(32, self.batch_size)
