from typing import Any

import pytest

from popi.errors import ConfigError
from popi.evaluation.seeds import over_seeds, seeds_of


def test_lists_of_seeds() -> None:
    assert seeds_of("0-2") == [0, 1, 2]
    assert seeds_of("7, 0-1") == [7, 0, 1]


@pytest.mark.parametrize("text", ["", "0", "a", "2-0", "0-2,1", "0--2", "-1", "0,0"])
def test_what_is_no_list_of_seeds(text: str) -> None:
    with pytest.raises(ConfigError, match="at least two different seeds"):
        seeds_of(text)


def test_mean_and_interval_by_hand() -> None:
    def result(accuracy: float) -> dict[str, Any]:
        return {
            "popi": {"reward_accuracy": {"value": accuracy}, "margin": {"value": 1.0}, "context_overhead_tokens": 9}
        }

    found = over_seeds([result(0.7), result(0.8), result(0.9)])["popi"]
    # s = 0.1, t(0.975, 2) = 4.3027: 4.3027 · 0.1 / √3
    assert found["reward_accuracy"]["value"] == pytest.approx(0.8)
    assert found["reward_accuracy"]["high"] - 0.8 == pytest.approx(0.24841, abs=1e-5)
    assert 0.8 - found["reward_accuracy"]["low"] == pytest.approx(0.24841, abs=1e-5)
    assert found["reward_accuracy"]["of_seeds"] == [0.7, 0.8, 0.9]
    assert (found["margin"]["low"], found["context_overhead_tokens"]["value"]) == (1.0, 9)
