"""The rule by which old evidence fades, worked by hand at a half-life of one signal."""

import pytest

from popi.signals import fading
from popi.signals.fading import HALF_LIFE, Previous, previous, worth


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fading, "HALF_LIFE", 1)


@pytest.mark.usefixtures("one")
@pytest.mark.parametrize(
    ("read", "new", "wanted"),
    [
        (0, 0, 0.0),
        (1, 0, 1.0),
        (3, 0, 1.75),  # 1 + ½ + ¼
        (3, 2, 0.4375),  # ¼ + ⅛ + 1/16
        (None, 0, 2.0),  # 1 + ½ + ¼ + …
        (None, 3, 0.25),
    ],
)
def test_worth_by_hand(read: int | None, new: int, wanted: float) -> None:
    assert worth(read, new) == pytest.approx(wanted)


@pytest.mark.usefixtures("one")
def test_what_has_faded_is_not_shown() -> None:
    assert previous("likes tea.", 3, 0) == Previous("likes tea.", 2)  # 1.75
    assert previous("likes tea.", 1, 1) == Previous("likes tea.", 1)  # 0.5
    assert previous("likes tea.", 3, 2) is None  # 0.4375


def test_after_a_half_life_what_is_new_counts_as_much_as_all_before() -> None:
    assert worth(None, HALF_LIFE) == pytest.approx(worth(HALF_LIFE, 0))
    assert worth(1, HALF_LIFE) == pytest.approx(0.5)


@pytest.mark.parametrize("sizes", [(16,), (8, 8), (1, 5, 10), (1,) * 16])
def test_it_does_not_matter_in_how_many_batches_signals_came(sizes: tuple[int, ...]) -> None:
    """The old summary and the batch beside it count together as all signals read at once."""
    read = 0
    for size in sizes:
        together = worth(read, size) + worth(size, 0)
        read += size
        assert together == pytest.approx(worth(read, 0))
    assert worth(16, 0) == pytest.approx(sum(2 ** (-age / HALF_LIFE) for age in range(16)))
