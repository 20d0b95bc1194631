"""From users to the rows that each phase trains on.

A phase draws as many rows as its steps need, in an order determined by its seed, and prepares only those: signals are
rendered once, responses encoded once, and the reference model reads each target once per run.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TypeVar

from popi.data.store import keep, people_of, sizes
from popi.engine.scoring import ScoringItem
from popi.errors import ConfigError, DataError
from popi.generator import Generator
from popi.inference_model import InferenceModel
from popi.models.local.model import LocalModel
from popi.signals.copying import copy_signals
from popi.signals.types import PairSignal, User
from popi.training.references import ReferencedTarget, References
from popi.training.renewals import Renewal

Member = TypeVar("Member")
EVERY = 1_000
"""Users between reports of progress."""


@dataclass(frozen=True)
class InferenceRow:
    """One user in an inference phase: the encoded signals, and the targets that score their summaries."""

    user_id: str
    prompt_ids: tuple[int, ...]
    targets: tuple[ReferencedTarget, ...]


@dataclass(frozen=True)
class GeneratorRow:
    """One target pair with one summary in a generator phase; an empty summary means the plain prompt.

    `user` is the user's index in the phase, for user embeddings; −1 if unknown. Rows with the same `group` are target
    pairs of one user with the same summary, and neighbours among them share a tree row; None is a group of one.
    """

    user_id: str
    summary: str
    item: ScoringItem
    ref_chosen: float
    ref_rejected: float
    user: int = -1
    group: int | None = None


def draw(n: int, per_step: int, steps: int, seed: int) -> list[int]:
    """Indices below `n` in training order, `per_step` different ones per step, with a new permutation for each pass.

    Raises:
        ConfigError: `n` is below `per_step`.
    """
    _refuse_few(n, per_step)
    generator = random.Random(seed)
    order: list[int] = []
    while (missing := per_step * steps - len(order)) > 0:
        one_pass, whole = shuffled(n, generator), n - n % per_step
        order += islice(one_pass, min(missing, whole))  # skip a short last step, so that no step has a user twice
        if missing > whole:
            deque(one_pass, maxlen=0)  # advance the generator past the whole permutation
    return order


def draw_groups(groups: Sequence[Sequence[Member]], per_step: int, steps: int, seed: int) -> list[Member]:
    """Members of groups in training order, `per_step` per step. Like `draw`, but each pass permutes the groups and
    keeps the members of a group together. A group that does not fit a step continues in the next.

    Raises:
        ConfigError: there are fewer than `per_step` members.
    """
    n = sum(map(len, groups))
    _refuse_few(n, per_step)
    generator = random.Random(seed)
    order: list[Member] = []
    while (missing := per_step * steps - len(order)) > 0:
        one_pass = [member for i in shuffled(len(groups), generator) for member in groups[i]]
        order += one_pass[: min(missing, n - n % per_step)]
    return order


def _refuse_few(n: int, per_step: int) -> None:
    if n < per_step:
        raise ConfigError(
            f"a step needs {per_step} different users or target pairs, but there are {n}: lower this phase's "
            "users_per_step or batch_size, or train on more users"
        )


def in_groups(n: int, most: int) -> list[int]:
    """Sizes of the fewest groups of at most `most` for `n` items, as even as possible: 5 in groups of 4 are 3 and 2."""
    groups = -(-n // most)
    return [n // groups + (i < n % groups) for i in range(groups)]


def grouped(rows: Sequence[GeneratorRow]) -> list[list[GeneratorRow]]:
    """Consecutive rows of the same group, in order."""
    keys = ((i, None) if row.group is None else (-1, row.group) for i, row in enumerate(rows))
    return [[row for _, row in some] for _, some in groupby(zip(keys, rows, strict=True), lambda one: one[0])]


def shuffled(n: int, generator: random.Random) -> Iterator[int]:
    """`generator.sample(range(n), n)`, one by one: memory grows with the number taken, not with `n`.

    Take all of them before using `generator` for something else.
    """
    moved: dict[int, int] = {}  # positions of a virtual list whose value has changed
    for left in range(n, 0, -1):
        place = generator.randrange(left)
        yield moved.get(place, place)
        moved[place] = moved.pop(left - 1, left - 1)


def trainable(users: Sequence[User]) -> Sequence[User]:
    """The users with target pairs.

    Raises:
        DataError: there are none.
    """
    remaining = keep(users, (targets > 0 for _, targets in sizes(users)))
    if not remaining:
        raise DataError(f"none of the {len(users)} training users has target pairs; training needs `targets`")
    return remaining


def hold_out(users: Sequence[User], n: int, seed: int) -> tuple[Sequence[User], Sequence[User]]:
    """Split users into those to train on and `n` others for evaluations; a user's windows stay together.

    Raises:
        DataError: there are no more than `n`.
    """
    people = max(people_of(users), default=-1) + 1
    if n >= people:
        raise DataError(f"training.eval_users={n} leaves none of {people} users to train on; lower it")
    held = set(random.Random(f"held out/{seed}").sample(range(people), n))
    return (
        keep(users, (person not in held for person in people_of(users))),
        keep(users, (person in held for person in people_of(users))),
    )


def readable(
    users: Sequence[User],
    inference_model: InferenceModel,
    report: Callable[[int], None] = lambda done: None,
    only_pairs: bool = False,
) -> Sequence[User]:
    """The users with a signal that fits the inference model's token budget. The model writes no summaries for others
    (see `nothing_new`), so there is nothing to train on.

    Args:
        report: called with the number of users checked.
        only_pairs: only preference pairs count (`training.inference.scored_on = "signal"`).

    Raises:
        DataError: there are none.
    """
    budget, count = inference_model.token_budget, inference_model.local.count_tokens

    def fits() -> Iterator[bool]:
        for done, user in enumerate(users, start=1):
            signals = [one for one in user.signals if isinstance(one, PairSignal)] if only_pairs else user.signals
            yield inference_model.templates.any_fits(signals, budget, count)
            if done % EVERY == 0 or done == len(users):
                report(done)

    remaining = keep(users, fits())
    if not remaining:
        raise DataError(
            f"none of the {len(users)} training users has a {'preference pair' if only_pairs else 'signal'} that fits "
            f"signals.token_budget={budget}; raise it, shorten the signals"
            + (', or set training.inference.scored_on="targets"' if only_pairs else "")
        )
    return remaining


def inference_rows(
    users: Sequence[User],
    order: Sequence[int],
    inference_model: InferenceModel,
    references: References,
    targets_per_summary: int,
    seed: int,
    renewals: Sequence[Renewal | None] | None = None,
) -> list[InferenceRow]:
    """One row for each entry of `order` (indices of `users`), with at most `targets_per_summary` targets each.

    Rows that are `renewals` show an old summary and the signals since, and are scored on the user's last targets. An
    inference model that is conditioned on the task prompt reads the prompt of the row's only target
    (`plan.refuse_settings`).
    """
    picker = random.Random(seed)
    targets = {i: references.targets(users[i]) for i in sorted(set(order))}
    prompts: dict[tuple[int, int | None], tuple[int, ...]] = {}
    rows = []
    for i, renewal in zip(order, renewals or [None] * len(order), strict=True):
        picked: Sequence[int] = range(len(targets[i]))
        if renewal is not None:
            ids = inference_model.prompt_ids(renewal.signals, None, renewal.previous)[0]
            rows.append(InferenceRow(users[i].user_id, tuple(ids), tuple(targets[i][-targets_per_summary:])))
            continue
        if len(picked) > targets_per_summary:
            picked = picker.sample(picked, targets_per_summary)
        read = picked[0] if inference_model.conditioned else None  # the target whose task prompt is read
        if (i, read) not in prompts:
            asked = None if read is None else users[i].targets[read].prompt
            prompts[i, read] = tuple(inference_model.prompt_ids(users[i].signals, asked)[0])
        rows.append(InferenceRow(users[i].user_id, prompts[i, read], tuple(targets[i][t] for t in picked)))
    return rows


def refuse_beyond_context(rows: Sequence[InferenceRow], inference_model: InferenceModel, generator: Generator) -> None:
    """Check that rows with a summary of full length fit both models' contexts. Otherwise a step would fail hours later,
    or a rotary model would train beyond its context.

    Raises:
        DataError: some do not fit; the message names the users.
    """
    longest = inference_model.max_tokens
    wide = {row.user_id: len(row.prompt_ids) + longest for row in rows}
    change = "lower signals.token_budget or summary.max_tokens"
    _refuse_wide(wide, inference_model.local, f"the signals and a summary of {longest} tokens", change)
    if not generator.trainable:
        return  # the server knows its context
    guide = len(generator.prompt_ids("x", "x")) - len(generator.prompt_ids("x", None)) + longest
    targets = {(row.user_id, id(target)): target.pair for row in rows for target in row.targets}
    reach: dict[str, int] = {}
    for (user_id, _), pair in targets.items():
        [item] = generator.reference_items([pair])
        width = len(item.prefix) + max(len(item.chosen), len(item.rejected)) + guide
        reach[user_id] = max(width, reach.get(user_id, 0))
    change = "lower summary.max_tokens or remove such targets"
    _refuse_wide(reach, generator.local, f"a summary of {longest} tokens, task prompt and response", change)


def _refuse_wide(tokens: dict[str, int], local: LocalModel, texts: str, change: str) -> None:
    beyond = [user for user, width in tokens.items() if local.context is not None and width > local.context]
    if beyond:
        named = ", ".join(beyond[:5]) + (", …" if len(beyond) > 5 else "")
        raise DataError(
            f"for {len(beyond)} of {len(tokens)} users, {texts} take up to {max(tokens.values()):,} tokens, but the "
            f"context of {local.name} is {local.context:,}: {change} (users {named})"
        )


def generator_rows(
    users: Sequence[User],
    summaries: Sequence[Sequence[str]] | None,
    generator: Generator,
    references: References,
    targets_per_summary: int = 1,
) -> list[GeneratorRow]:
    """One row per target pair: the j-th group of a user's targets with the j-th summary, or without summaries."""
    rows = []
    for n, j, group, target in _grouped_targets(users, references, targets_per_summary):
        summary = summaries[n][j] if summaries is not None else ""
        item = generator.items([target.pair], summary)[0]
        rows.append(GeneratorRow(users[n].user_id, summary, item, target.ref_chosen, target.ref_rejected, n, group))
    return rows


def copied_rows(
    users: Sequence[User],
    generator: Generator,
    references: References,
    token_budget: int,
    targets_per_summary: int = 1,
) -> list[GeneratorRow]:
    """One row per target pair, with a copy of the user's signals as summary (`popi.signals.copying`)."""
    templates, count = generator.templates, generator.count_tokens
    copies = [copy_signals(templates, user.signals, token_budget, count)[0] for user in users]
    summaries = [[text] * len(user.targets) for text, user in zip(copies, users, strict=True)]
    return generator_rows(users, summaries, generator, references, targets_per_summary)


def raw_signals_rows(
    users: Sequence[User],
    generator: Generator,
    references: References,
    token_budget: int,
    targets_per_summary: int = 1,
) -> list[GeneratorRow]:
    """One row per target pair, with as many of the user's raw signals in the prompt as fit the budget (FSPO)."""
    rows = []
    templates = generator.templates
    fitting = [templates.fit(user.signals, token_budget, generator.count_tokens)[0] for user in users]
    for n, _, group, target in _grouped_targets(users, references, targets_per_summary):
        messages = templates.raw_signals_messages(target.pair.prompt, fitting[n])
        item = generator.item(generator.local.encode_chat(messages), target.pair)
        rows.append(GeneratorRow(users[n].user_id, "", item, target.ref_chosen, target.ref_rejected, n, group))
    return rows


def _grouped_targets(
    users: Sequence[User], references: References, most: int
) -> Iterator[tuple[int, int, int | None, ReferencedTarget]]:
    """For every target: indices of its user and of its group for that user, the group's number or None, the target."""
    groups = 0
    for n, user in enumerate(users):
        targets = iter(references.targets(user))
        for j, size in enumerate(in_groups(len(user.targets), most)):
            for target in islice(targets, size):
                yield n, j, groups if size > 1 else None, target
            groups += 1
