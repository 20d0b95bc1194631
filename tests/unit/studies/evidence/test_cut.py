import pytest

from popi.data.users import Person
from popi.errors import ConfigError
from popi.nano.world import make_users
from popi.studies.evidence.cut import doubling, first_signals, read_sizes

PEOPLE = [Person(user.user) for user in make_users(4, 0, "test")]


@pytest.mark.parametrize("order", ["given", "shuffled"])
def test_cuts_are_nested_and_targets_stay(order) -> None:
    cuts = [first_signals(PEOPLE, k, order, seed=1) for k in (0, 1, 2, 4, 9, 20)]
    assert [[len(person.user.signals) for person in cut] for cut in cuts] == [[k] * 4 for k in (0, 1, 2, 4, 9, 9)]
    for shorter, longer in zip(cuts, cuts[1:], strict=False):
        for a, b, whole in zip(shorter, longer, PEOPLE, strict=True):
            assert a.user.signals == b.user.signals[: len(a.user.signals)]
            assert (a.user.targets, a.user.user_id) == (whole.user.targets, whole.user.user_id)


def test_the_given_order_is_the_users_and_a_shuffled_one_each_users_own() -> None:
    assert first_signals(PEOPLE, 9) == PEOPLE
    shuffled = first_signals(PEOPLE, 9, "shuffled", 0)
    assert shuffled == first_signals(PEOPLE, 9, "shuffled", 0) != first_signals(PEOPLE, 9, "shuffled", 1)
    assert shuffled[2:] == first_signals(PEOPLE[2:], 9, "shuffled", 0)
    orders = {
        tuple(old.user.signals.index(signal) for signal in new.user.signals)
        for new, old in zip(shuffled, PEOPLE, strict=True)
    }
    assert len(orders) == 4


def test_sizes() -> None:
    assert [doubling(most) for most in (0, 1, 2, 3, 8, 9)] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 4, 8],
        [0, 1, 2, 4, 8, 9],
    ]
    assert read_sizes("4,1, 2") == [0, 1, 2, 4]
    for wrong in ("", "1,x", "-1", "1.5"):
        with pytest.raises(ConfigError, match="integers of at least 0"):
            read_sizes(wrong)
