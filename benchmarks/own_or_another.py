"""Does a run's generator read *its own user's* summary, or only that there is one? Own context against another's.

python benchmarks/own_or_another.py runs/NAME [--methods raw_signals untrained_summary popi_alternating]

Every target pair of the run's held-out users is scored once more by each method's generator, with the summary (or raw
signals) of another user who was asked the same. What a method has learned of people at large is the same under both;
what it reads of a user is the difference. Needs the run's evaluation (popi evaluate --run).
"""

import argparse
from pathlib import Path

from reading import partners
from rich.console import Console
from rich.progress import track
from rich.table import Table

from popi.evaluation.job import read_rows
from popi.evaluation.methods import METHODS, Context, personalized, raw_signals
from popi.evaluation.metrics import Estimate, outcomes, paired_difference, reward_accuracy
from popi.evaluation.models import Models, trained_models
from popi.evaluation.runner import destination
from popi.evaluation.users import held_out
from popi.runs.run_directory import RunDirectory
from popi.summary import Summary


def shown(estimate: Estimate) -> str:
    """An estimate of a share, in points, with its interval."""
    value, low, high = (100 * (x or 0) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--methods", nargs="+", help="those of the run that have summaries or raw signals, if not given"
    )
    options = parser.parse_args()
    run = RunDirectory.open(options.run)
    people = held_out(run.config)[0]
    models = Models(run.config, trained_models(run))
    folder = destination(run)
    told = [name for name, method in METHODS.items() if method.has_summary or method.contexts is raw_signals]
    names = options.methods or [name for name in told if (folder / f"{name}.jsonl").is_file()]
    other = partners(people)
    size = run.config.evaluation.batch_size
    heads = ("own", "another's", "difference", "margin larger under own")
    table = Table("reward accuracy under", *heads, title=f"{len(people)} users; points, 95 % intervals")
    for name in names:
        method, rows = METHODS[name], read_rows(folder / f"{name}.jsonl")
        generator = models.generator(models.generator_path(method))
        if method.has_summary:
            first = {row["window"]: row["summary"] or "" for row in rows if row["target"] == 0}
            contexts = [Context((Summary(first[i], 0),)) for i in other]
        else:
            contexts = method.contexts(models.sources(method, lambda users: []), [people[i] for i in other])
        pairs = []
        for row in rows:
            target = people[row["window"]].user.targets[row["target"]]
            pairs.append((personalized(generator, target, contexts[row["window"]]), target))
        another: list[float] = []
        for start in track(range(0, len(pairs), size), name, console=Console(stderr=True)):
            chosen, rejected = generator.score(pairs[start : start + size], size)
            another += [
                (c - row["reference_chosen_logp"]) - (r - row["reference_rejected_logp"])
                for c, r, row in zip(chosen, rejected, rows[start : start + size], strict=True)
            ]
        own, users = [row["margin"] for row in rows], [row["user_id"] for row in rows]
        difference = paired_difference(outcomes(own), outcomes(another), users, (-1, 1))
        more = reward_accuracy([a - b for a, b in zip(own, another, strict=True)], users)
        both = (reward_accuracy(own, users), reward_accuracy(another, users), difference, more)
        table.add_row(method.label, *map(shown, both))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
