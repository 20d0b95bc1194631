"""Two ways to split pair rows into training and test users: by the dataset's own splits, or by a seeded hash."""

from collections.abc import Callable, Iterable

from popi.data.benchmarks.read import has_split
from popi.data.benchmarks.result import Loaded, Options, Split, share
from popi.data.benchmarks.rows import PairRow, by_user, fill, fill_two, usable, without

OTHER_PROMPTS = "a training user's row with a prompt reserved for testing"
SEEN_PROMPTS = "its prompt also appears in train (unseen_prompts)"
SEEN_USERS = "its user also appears in train (unseen_users)"


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
    """Load the users of a dataset that has its own splits.

    Args:
        loaded: receives the users.
        options: the loader's options.
        rows: (split, place, the split's name there, whether the place was configured for this split) → its rows.
        place: where the dataset is stored.
        unseen_prompts: drop test rows whose prompt also appears in train.
        unseen_users: drop test rows whose user also appears in train.
        seed: for the order of a user's rows; None preserves the original order.
        apart: as in `fill`.
        route: (row, its split) → the split to put it in, or the reason for dropping it.
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
                base.rows -= 1  # it now counts for the other split
                to.rows += 1
            routed.setdefault(to.name, []).append(row)
        for name, chosen in routed.items():
            split = loaded.splits[name]
            if held_out:
                if unseen_users:
                    chosen = without(chosen, lambda row: row.user_id in seen_users, SEEN_USERS, split)
                if unseen_prompts:
                    chosen = without(chosen, lambda row: row.prompt in seen_prompts, SEEN_PROMPTS, split)
            else:
                seen_users.update(row.user_id for row in chosen)
                seen_prompts.update(row.prompt for row in chosen)
            fill(split, by_user(chosen, seed), options, apart=apart)


def hash_splits(
    loaded: Loaded, options: Options, rows: Iterable[PairRow], *, by_prompt: bool, seed: int | None
) -> None:
    """Load the users of a dataset without splits: a seeded hash assigns each user to train or test.

    `by_prompt`: also split prompts this way. Test users then have targets with test prompts and signals with the other
    prompts, training users' rows with test prompts are dropped, and signals and targets share no prompts.
    """
    train, test = loaded.train, loaded.others["test"]
    by_held_out: dict[bool, list[PairRow]] = {True: [], False: []}
    for row in usable(rows, train):
        by_held_out[share(options.seed, "user", row.user_id) < options.test_share].append(row)
    train.rows -= len(by_held_out[True])
    test.rows += len(by_held_out[True])
    if not by_prompt:
        fill(train, by_user(by_held_out[False], seed), options, apart=False)
        fill(test, by_user(by_held_out[True], seed), options, apart=False)
        return

    def unseen(row: PairRow) -> bool:
        return share(options.seed, "prompt", row.prompt) < options.test_share

    seen = without(by_held_out[False], unseen, OTHER_PROMPTS, train)
    fill(train, by_user(seen, seed), options, apart=True)
    shown = [row for row in by_held_out[True] if not unseen(row)]
    target_rows = [row for row in by_held_out[True] if unseen(row)]
    fill_two(test, by_user(shown, seed), by_user(target_rows, seed), options)
