"""`[summary]`: how summaries are sampled."""

from pydantic import Field, PositiveFloat, PositiveInt

from popi.config.section import Section


class SummaryConfig(Section):
    max_tokens: PositiveInt = 32
    """Most tokens of a preference summary."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature in training. Evaluation is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling in training; 1 keeps the whole distribution."""
    conditioned_on_prompt: bool = False
    """The inference model also reads the task prompt: a summary for each user and prompt, not one for all of a user's
    prompts (docs/method.md). Goes with `training.inference.targets_per_summary = 1`."""
