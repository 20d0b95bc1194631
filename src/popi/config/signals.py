"""`[signals]`: how signals become a prompt."""

from pydantic import PositiveInt

from popi.config.section import Section


class SignalsConfig(Section):
    template: str = "auto"
    """Set of prompt templates: one that ships (`default`, `nano`, `elix`, `review`, `roleplay`, `alignx`, `polis`,
    `movielens`; for models of some hundred million weights `small`, `polis_small` and `persona`) or a folder. `auto`:
    the set that the model was saved with (`nano` for the nano model); else that of the benchmark, if it has one; else
    `default`."""
    token_budget: PositiveInt = 8192
    """Most tokens of rendered signals; whole signals are dropped to fit (docs/data.md), newest and most contrasting
    kept. The template's own words come on top."""
