"""`[summary]`: how summaries are sampled."""

from pydantic import Field, PositiveFloat, PositiveInt

from popi.config.section import Section


class SummaryConfig(Section):
    max_tokens: PositiveInt = 32
    """Maximum tokens of a preference summary."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature during training. Evaluation is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling during training; 1 disables it."""
    per_signal: bool = False
    """The inference model reads one signal at a time and writes a clause for each; the summary is these clauses, each
    once, in the order of the signals (docs/method.md). For small LLMs, which can restate one signal and can't sum up
    eight. Training rewards each clause as a summary of one signal. Not with `conditioned_on_prompt`, nor with
    `training.renewal.share`."""
    conditioned_on_prompt: bool = False
    """Let the inference model also read the task prompt, and write one summary per user and prompt instead of one per
    user (docs/method.md). Requires `training.inference.targets_per_summary = 1`."""
