"""Does a run's generator use *its own user's* summary, or only its presence? Own context against another user's.

python benchmarks/own_or_another.py runs/NAME [--methods raw_signals untrained_summary popi_alternating] [--flipped]
    [--signals N]

Every target pair of the run's held-out users is scored again by each method's generator, with the summary (or raw
signals) of another user with the same question; with --flipped, also with that of the user's own pairs with chosen and
rejected exchanged, and with --signals, with that of only the user's first N signals: copies as short as a summary, say.
What a method has learned about people in general is the same in all cases; what it reads about the user is the
difference. Needs the run's evaluation (popi evaluate --run), where margins are stored as they are computed, so that an
interrupted command resumes.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from reading import partners
from rich.console import Console
from rich.progress import track
from rich.table import Table

from popi.data.users import Person
from popi.evaluation.job import read_rows
from popi.evaluation.methods import METHODS, Context, Method, personalized
from popi.evaluation.metrics import Estimate, outcomes, paired_difference, reward_accuracy
from popi.evaluation.models import Models, identity, trained_models
from popi.evaluation.runner import destination
from popi.evaluation.users import held_out
from popi.models.spec import ModelSpec
from popi.runs.files import write_text
from popi.runs.rows import ResumableRows
from popi.runs.run_directory import RunDirectory
from popi.signals.types import PairSignal
from popi.summary import Summary


def shown(estimate: Estimate) -> str:
    """An estimate of a share in points, with its interval."""
    value, low, high = (100 * (x or 0) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def flipped(person: Person) -> Person:
    """The user with chosen and rejected exchanged in all pairs."""
    signals = [
        signal.model_copy(update={"chosen": signal.rejected, "rejected": signal.chosen})
        if isinstance(signal, PairSignal)
        else signal
        for signal in person.user.signals
    ]
    return replace(person, user=person.user.model_copy(update={"signals": signals}))


def with_first(person: Person, n: int) -> Person:
    """The user with their first `n` signals only."""
    return replace(person, user=person.user.model_copy(update={"signals": person.user.signals[:n]}))


def contexts_of(models: Models, method: Method, people: Sequence[Person]) -> list[Context]:
    """The method's contexts for these users, with newly written summaries."""

    def write(users: Sequence[Person]) -> list[tuple[Summary, ...]]:
        model, size = models.inference_model(models.inference_path(method)), models.config.evaluation.batch_size
        parts = [users[start : start + size] for start in range(0, len(users), size)]
        return [
            (summary,)
            for part in track(parts, "summaries", console=Console(stderr=True))
            for summary in model.summarize_many([person.user.signals for person in part])
        ]

    return method.contexts(models.sources(method, write, lambda users, prompt: write(users)), people)


def margins(
    models: Models, folder: Path, name: str, people: Sequence[Person], which: str, contexts: Sequence[Context]
) -> list[float]:
    """h of every target pair with the given contexts, one per user; stored in `folder`."""
    rows = read_rows(folder / f"{name}.jsonl")
    path = models.generator_path(METHODS[name])
    settings: dict[str, Any] = {"method": name, "contexts": which, "generator": identity(path), "users": len(people)}
    file = folder / "own_or_another" / f"{name}.{which}.jsonl"
    stored = ResumableRows(file, settings, ("window", "target"), resume=True, advice="delete it")
    missing = [row for row in rows if (row["window"], row["target"]) not in stored.rows]
    size = 4 * models.config.evaluation.batch_size
    for start in track(range(0, len(missing), size), f"{name}, {which}", console=Console(stderr=True)):
        part = missing[start : start + size]
        pairs = []
        for row in part:
            target = people[row["window"]].user.targets[row["target"]]
            context = contexts[row["window"]]
            pairs.append((personalized(models.generator(path), target, context, row["target"]), target))
        chosen, rejected = models.generator(path).score(pairs, models.config.evaluation.batch_size)
        stored.extend(
            {
                "window": row["window"],
                "target": row["target"],
                "margin": (c - row["reference_chosen_logp"]) - (r - row["reference_rejected_logp"]),
            }
            for row, c, r in zip(part, chosen, rejected, strict=True)
        )
    return [stored.rows[row["window"], row["target"]]["margin"] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--methods", nargs="+", help="default: the run's methods that use summaries or signals")
    parser.add_argument("--users", type=Path, help="as in `popi evaluate --users`; default: the run's held-out users")
    parser.add_argument("--generator", help="as in `popi evaluate --generator`; default: the run's own")
    parser.add_argument("--chat-template", help="as in `popi evaluate --chat-template`")
    parser.add_argument("--flipped", action="store_true", help="also score with chosen and rejected exchanged")
    parser.add_argument("--signals", type=int, metavar="N", help="also score with the first N signals of each user")
    options = parser.parse_args()
    run = RunDirectory.open(options.run)
    people = held_out(run.config, options.users)[0]
    other_generator = None
    if options.generator is not None:
        other_generator = ModelSpec(options.generator, chat_template=options.chat_template)
    models = Models(run.config, trained_models(run), other_generator)
    folder = destination(run, other_generator, options.users)
    personal = [name for name, method in METHODS.items() if method.tells in ("signals", "summary", "preferences")]
    personal = [name for name in personal if not METHODS[name].per_user and "embedding" not in name]
    names = options.methods or [name for name in personal if (folder / f"{name}.jsonl").is_file()]
    if missing := [name for name in names if not (folder / f"{name}.jsonl").is_file()]:
        parser.error(
            f"{folder} has no rows of {', '.join(missing)}; run `popi evaluate --run {options.run}` first, with "
            "the same --users and --generator"
        )
    other = partners(people)
    firsts = [] if options.signals is None else [f"first {options.signals} signals"]
    flips = ["flipped"] if options.flipped else []
    heads = ["own", "another's", "difference", *flips, *firsts, "margin larger under own"]
    table = Table("reward accuracy under", *heads, title=f"{len(people)} users; points, 95 % intervals")
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        method, rows = METHODS[name], read_rows(folder / f"{name}.jsonl")
        if method.has_summary:
            first = {row["window"]: row["summary"] or "" for row in rows if row["target"] == 0}
            strangers = [Context((Summary(first[i], 0),)) for i in other]
        else:
            strangers = contexts_of(models, method, [people[i] for i in other])
        own, users = [row["margin"] for row in rows], [row["user_id"] for row in rows]
        another = margins(models, folder, name, people, "another", strangers)
        cells = [
            reward_accuracy(own, users),
            reward_accuracy(another, users),
            paired_difference(outcomes(own), outcomes(another), users, (-1, 1)),
        ]
        if not method.needs_truth:
            if options.flipped:
                turned = contexts_of(models, method, [flipped(person) for person in people])
                cells.append(reward_accuracy(margins(models, folder, name, people, "flipped", turned), users))
            if options.signals is not None:
                fewer = contexts_of(models, method, [with_first(person, options.signals) for person in people])
                which = f"first_{options.signals}_signals"
                cells.append(reward_accuracy(margins(models, folder, name, people, which, fewer), users))
        more = reward_accuracy([a - b for a, b in zip(own, another, strict=True)], users)
        columns = ("own", "another", "difference", *flips, *(one.replace(" ", "_") for one in firsts))
        figures[name] = {column: asdict(cell) for column, cell in zip(columns, cells, strict=False)}
        texts = [shown(cell) for cell in cells]
        texts += ["–"] * (len(heads) - 1 - len(texts))
        table.add_row(method.label, *texts, shown(more))
    Console(width=140).print(table)
    write_text(folder / "own_or_another.json", json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
