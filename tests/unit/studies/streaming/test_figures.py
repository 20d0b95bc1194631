"""Drift, and how soon a change is told, on summaries made by hand."""

from popi.studies.streaming.figures import Stream, lost, stated_in_the_end, until_stated

FORMAL, CASUAL, SHORT, JOKES = ("tone", "formal"), ("tone", "casual"), ("length", "short"), ("mood", "playful")
STABLE = {"tone": "formal", "length": "short"}


def stable(*named: set[tuple[str, str]]) -> Stream:
    return Stream(named, [True] * len(named), STABLE, STABLE)


def test_what_was_told_rightly_and_is_lost() -> None:
    # tone right, then both, then tone both ways (no longer right), then both again: of 1 + 2 + 1 right ones 1 is lost
    stream = stable({FORMAL}, {FORMAL, SHORT}, {FORMAL, CASUAL, SHORT}, {FORMAL, SHORT})
    assert lost(stream) == (1, 4)


def test_what_was_never_right_can_not_be_lost() -> None:
    assert lost(stable({CASUAL, JOKES}, {JOKES}, set())) == (0, 0)
    assert lost(stable({FORMAL, SHORT})) == (0, 0), "one summary is no renewal"


def test_a_preference_that_changes_is_not_lost_when_it_is_given_up() -> None:
    before, after = {"tone": "formal", "length": "short"}, {"tone": "casual", "length": "short"}
    stream = Stream([{FORMAL, SHORT}, {CASUAL, SHORT}, {CASUAL}], [False, True, True], before, after)
    assert lost(stream) == (1, 3)  # length at the first renewal, both at the second: length is lost there


def test_until_a_change_is_told() -> None:
    before, after = {"tone": "formal", "length": "short"}, {"tone": "casual", "length": "short"}
    changed = [False, False, True, True, True]

    def stream(*named: set[tuple[str, str]]) -> Stream:
        return Stream(named, changed, before, after)

    at_once = stream({FORMAL}, {FORMAL}, {CASUAL}, {CASUAL}, {CASUAL})
    # Told before the change it was wrong; both values together are not right either.
    late = stream({FORMAL}, {CASUAL}, {FORMAL}, {FORMAL, CASUAL}, {CASUAL})
    never = stream({FORMAL}, {FORMAL}, {FORMAL}, {FORMAL}, set())
    assert [until_stated(one) for one in (at_once, late, never)] == [[1], [3], [4]]
    assert [stated_in_the_end(one) for one in (at_once, late, never)] == [(1, 1), (1, 1), (0, 1)]
    assert until_stated(stable({FORMAL})) == [] and stated_in_the_end(stable({FORMAL})) == (0, 0)
