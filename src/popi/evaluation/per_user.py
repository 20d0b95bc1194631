"""The per-user LoRA baseline: trains an adapter on each held-out user's own signals, scores it and discards it.

Rows come user by user, so that an interrupted evaluation resumes with the missing users. Each user's training has its
own seed, so an interruption does not change the rows.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from popi.config import RunConfig
from popi.data.users import Person
from popi.evaluation.methods import Context, RowKey, score_rows
from popi.generator import Generator
from popi.training.per_user import own_pairs, user_adapter
from popi.training.planning.plan import phase_seed


def per_user_blocks(
    generator: Generator,
    people: Sequence[Person],
    reference: Mapping[RowKey, tuple[float, float]],
    config: RunConfig,
    done: Collection[RowKey] = (),
) -> Iterator[list[dict[str, Any]]]:
    """The rows of `score_rows`, user by user, scored by the base with an adapter trained on that user's own pairs.

    Each row also records the number of those pairs (`own_pairs`). A user without any is scored by the base itself, with
    a margin of 0.

    Args:
        generator: the untrained base; its weights are restored after each user.
        people: held-out users.
        reference: (window, target) → log-probs of the base on the plain prompt.
        config: the run's config.
        done: keys to skip.
    """
    for window, person in enumerate(people):
        missing = {(window, t) for t in range(len(person.user.targets))}.difference(done)
        if missing:
            rows = _user_rows(generator, person, window, reference, config)
            yield [row for row in rows if (row["window"], row["target"]) in missing]


def _user_rows(
    generator: Generator,
    person: Person,
    window: int,
    reference: Mapping[RowKey, tuple[float, float]],
    config: RunConfig,
) -> list[dict[str, Any]]:
    pairs = own_pairs(person.user.signals)
    seed = phase_seed(config.seed, f"per-user-lora/{window}/{person.user.user_id}")
    seeds = {"own_pairs": len(pairs), "adapter_seed": seed}
    known = {(0, t): reference[(window, t)] for t in range(len(person.user.targets))}
    with user_adapter(generator, pairs, config.evaluation.per_user_lora, seed):
        rows = score_rows(
            generator,
            [person],
            [Context()],
            known,
            untrained=not pairs,
            batch_size=config.evaluation.batch_size,
        )
        return [row | {"window": window} | seeds for row in rows]
