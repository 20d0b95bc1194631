import pytest

from popi.models.architecture import Architecture
from popi.training.planning.population_cost import hours_per_million, seconds_per_user


def model(**shape: int) -> Architecture:
    """A model of 10⁹ parameters, almost all of them in the vocabulary."""
    shape = {"layers": 1, "hidden": 1000, "heads": 1, "kv_heads": 1, "head_dim": 1, "intermediate": 1} | shape
    return Architecture(**shape, vocab=10**6, tied=True, context=None)


def test_the_formula_by_hand() -> None:
    """Prompts: 2e9 operations a token; summaries: 2e9 / 256 bytes of weights a step, and 4 bytes a cached token."""
    seconds, together = seconds_per_user(model(), 1500, 240) or (0, 0)
    assert together == 256
    assert seconds == pytest.approx(2e9 * 1500 / 1.5e14 + 240 * (2e9 / 256 + 4 * 1620) / 2.4e12, rel=1e-4)
    assert hours_per_million(0.36) == pytest.approx(100)


def test_memory_limits_the_users_written_together() -> None:
    large = model(layers=10, kv_heads=10_000)  # 4e5 bytes of keys and values per token
    _, together = seconds_per_user(large, 10_000, 1_000) or (0, 0)
    left = 0.9 * 139 * 2**30 - 2 * large.parameters
    assert together == int(left / (4e5 * 11_000)) < 256
    assert seconds_per_user(model(hidden=100_000)) is None
