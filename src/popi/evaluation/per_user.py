"""The per-user LoRA baseline: for each held-out user an adapter is trained on the user's own signals, scored, dropped.

Rows are kept user by user, so that an interrupted evaluation goes on with the users that are missing. Each user's
training has a seed of its own, so they are the rows of an unbroken one.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from popi.config import RunConfig
from popi.evaluation.methods import Context, RowKey, score_rows
from popi.generator import Generator
from popi.training.per_user import own_pairs, user_adapter
from popi.training.plan import phase_seed
from popi.training.run_directory import append_jsonl, read_jsonl, write_jsonl
from popi.users import Person


def kept_rows(folder: Path, name: str, stamp: str) -> Path:
    """Where the rows of an unfinished evaluation of a method are kept; the stamp says what they depend on."""
    return folder / f"{name}.{stamp}.part.jsonl"


def per_user_rows(
    generator: Generator,
    people: Sequence[Person],
    reference: Mapping[RowKey, tuple[float, float]],
    config: RunConfig,
    kept: Path,
) -> Iterator[dict[str, Any]]:
    """The rows of `score_rows`, each user's scored by the base with an adapter trained on that user's own pairs.

    A row also says how many pairs those were (`own_pairs`). With none the user keeps the base: the margin is 0.

    Args:
        generator: the untrained base; it has its own weights back when each user is done.
        people: held-out users.
        reference: (window, target) → log-probs of the base on the plain prompt.
        config: the run's.
        kept: file that rows are appended to as they come, and read from first.
    """
    scored: dict[int, list[dict[str, Any]]] = {}
    for row in read_jsonl(kept):
        scored.setdefault(row["window"], []).append(row)
    whole = {w: rows for w, rows in scored.items() if len(rows) == len(people[w].user.targets)}
    write_jsonl(kept, (row for rows in whole.values() for row in rows))
    for window, person in enumerate(people):
        if window not in whole:
            rows = _user_rows(generator, person, window, reference, config)
            append_jsonl(kept, rows)
            whole[window] = rows
        yield from whole[window]


def _user_rows(
    generator: Generator,
    person: Person,
    window: int,
    reference: Mapping[RowKey, tuple[float, float]],
    config: RunConfig,
) -> list[dict[str, Any]]:
    pairs = own_pairs(person.user.signals)
    seed = phase_seed(config.seed, f"per-user-lora/{window}/{person.user.user_id}")
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
        return [row | {"window": window, "own_pairs": len(pairs)} for row in rows]
