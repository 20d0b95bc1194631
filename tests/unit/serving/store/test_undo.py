"""Where "Undo" and "Redo" lead, whatever was done, deleted and merged before."""

from hypothesis import given
from hypothesis import strategies as st

from popi.serving.store.undo import Steps, steps_of


def test_without_versions_or_before_the_first() -> None:
    assert steps_of([]) == Steps() == steps_of([(1, None)])


def test_what_is_no_longer_kept() -> None:
    # 4 has the content of 1, which was deleted: 4 stands for it.
    assert steps_of([(4, 1), (3, None), (2, None)]) == Steps(undo=3, redo=None)


@given(st.lists(st.sampled_from(["change", "undo", "redo"]), max_size=40))
def test_it_is_what_an_editor_does(deeds: list[str]) -> None:
    rows: list[tuple[int, int | None]] = [(1, None)]
    contents = {1: 1}
    done, undone = [1], list[int]()  # an editor's two stacks
    for deed in deeds:
        version = rows[0][0] + 1
        steps = steps_of(rows)
        assert (steps.undo is not None, steps.redo is not None) == (len(done) > 1, bool(undone))
        if deed == "change":
            rows.insert(0, (version, None))
            contents[version] = version
            done, undone = [*done, version], []
            continue
        to = steps.undo if deed == "undo" else steps.redo
        if to is None:
            continue
        if deed == "undo":
            undone.append(done.pop())
        else:
            done.append(undone.pop())
        rows.insert(0, (version, to))
        contents[version] = contents[to]
        assert contents[version] == contents[done[-1]]
