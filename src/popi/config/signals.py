"""`[signals]`: how signals become a prompt."""

from pydantic import PositiveInt

from popi.config.section import Section


class SignalsConfig(Section):
    template: str = "auto"
    """Set of prompt templates: one shipped with popi (`default`, `nano`, `elix`, `review`, `roleplay`, `alignx`,
    `polis`, `movielens`; for models of a few hundred million parameters `small`, `polis_small` and `persona`) or a
    folder. `auto`: the set the model was saved with (`nano` for the nano model), else the benchmark's if it has one,
    else `default`."""
    token_budget: PositiveInt = 8192
    """Maximum tokens of rendered signals. Whole signals are dropped to fit (docs/data.md); the newest and most
    contrasting ones stay. The template's own text is not counted."""
