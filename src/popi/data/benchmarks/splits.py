"""The two ways in which pair rows become training and test users: the set's own splits, or a seeded hash."""

from collections.abc import Callable, Iterable

from popi.data.benchmarks.read import has_split
from popi.data.benchmarks.result import Loaded, Options, Split, share
from popi.data.benchmarks.rows import PairRow, by_user, fill, fill_two, usable, without

OTHER_PROMPTS = "a training user's row on a prompt kept for the test"
SEEN_PROMPTS = "its prompt stands in train (unseen_prompts)"
SEEN_USERS = "its user stands in train (unseen_users)"


def own_splits(
    loaded: Loaded,
    options: Options,
    rows: Callable[[Split, str, str, bool], Iterable[PairRow]],
    place: str,
    *,
    unseen_prompts: bool,
    unseen_users: bool,
    seed: int | None,
    apart: bool,
    route: Callable[[PairRow, Split], Split | str] = lambda row, split: split,
) -> None:
    """Users of a set that comes in splits of its own.

    Args:
        loaded: where the users go.
        options: of the loader.
        rows: (split, place, the split's name there, whether the place was named for it) → its rows.
        place: where the set lies.
        unseen_prompts: rows of the test whose prompt stands in train are dropped.
        unseen_users: rows of the test whose user stands in train are dropped.
        seed: of the order of a user's rows; None keeps theirs.
        apart: as in `fill`.
        route: (row, its split) → the split that it goes to, or the rule that drops it.
    """
    seen_prompts: set[str] = set()
    seen_users: set[str] = set()
    test_place, test_name = options.test_path or place, options.test_split or "test"
    for base in (loaded.train, loaded.others["test"]):
        held_out = base is not loaded.train
        where = test_place if held_out else place
        if held_out and not options.need_test and not options.test_path and not has_split(where, test_name):
            continue
        routed: dict[str, list[PairRow]] = {}
        for row in usable(
            rows(base, where, test_name if held_out else options.train_split, held_out and bool(options.test_path)),
            base,
        ):
            to = route(row, base)
            if isinstance(to, str):
                base.dropped[to] += 1
                continue
            if to is not base:
                base.rows -= 1  # the account of the split that it goes to
                to.rows += 1
            routed.setdefault(to.name, []).append(row)
        for name, mine in routed.items():
            split = loaded.splits[name]
            if held_out:
                if unseen_users:
                    mine = without(mine, lambda row: row.user_id in seen_users, SEEN_USERS, split)
                if unseen_prompts:
                    mine = without(mine, lambda row: row.prompt in seen_prompts, SEEN_PROMPTS, split)
            else:
                seen_users.update(row.user_id for row in mine)
                seen_prompts.update(row.prompt for row in mine)
            fill(split, by_user(mine, seed), options, apart=apart)


def hash_splits(
    loaded: Loaded, options: Options, rows: Iterable[PairRow], *, by_prompt: bool, seed: int | None
) -> None:
    """Users of a set without splits: a seeded hash says of each user whether they are of the test.

    `by_prompt`: the same for prompts. Test users' targets are of test prompts and their signals of the others;
    training users' rows on test prompts are dropped. Signals and targets then have no prompt in common.
    """
    train, test = loaded.train, loaded.others["test"]
    mine: dict[bool, list[PairRow]] = {True: [], False: []}
    for row in usable(rows, train):
        mine[share(options.seed, "user", row.user_id) < options.test_share].append(row)
    train.rows -= len(mine[True])
    test.rows += len(mine[True])
    if not by_prompt:
        fill(train, by_user(mine[False], seed), options, apart=False)
        fill(test, by_user(mine[True], seed), options, apart=False)
        return

    def unseen(row: PairRow) -> bool:
        return share(options.seed, "prompt", row.prompt) < options.test_share

    seen = without(mine[False], unseen, OTHER_PROMPTS, train)
    fill(train, by_user(seen, seed), options, apart=True)
    shown = [row for row in mine[True] if not unseen(row)]
    asked = [row for row in mine[True] if unseen(row)]
    fill_two(test, by_user(shown, seed), by_user(asked, seed), options)
