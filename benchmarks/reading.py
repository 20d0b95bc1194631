"""Does a frozen generator's likelihood depend on the user's context? Its own user's context against another's.

python benchmarks/reading.py configs/smollm2_polis.toml [--users N] [dotted.key=value ...]

Every target pair of N held-out users is scored by the untrained base with: the user's raw signals, the untrained
summary, both of another user (with the same question if there is one), and a summary that says nothing. Reward accuracy
is the share of pairs with margin h > 0, relative to the log-probs of a reference prompt: the plain one, which the
method uses, or the one whose summary says nothing, which differs from the others only in the user. The information that
a context gives about its user is the difference between own and another's.
"""

import argparse
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from popi.config import load_config
from popi.data.users import Person, users_of
from popi.evaluation.metrics import clustered_mean, reward_accuracy
from popi.generator import Generator
from popi.inference_model import InferenceModel
from popi.training.components import load_base
from popi.training.templates import with_template

NOTHING = "Nothing is known of this user's preferences."
REFERENCES = ("plain prompt", "summary that says nothing")


def partners(people: list[Person]) -> list[int]:
    """Another person for each one, with the same first task prompt if possible."""
    by_prompt: dict[str, list[int]] = defaultdict(list)
    for i, person in enumerate(people):
        by_prompt[str(person.user.targets[0].prompt)].append(i)
    partner = [(i + 1) % len(people) for i in range(len(people))]
    for group in by_prompt.values():
        if len(group) > 1:
            for place, i in enumerate(group):
                partner[i] = group[(place + 1) % len(group)]
    return partner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--users", type=int, default=100)
    options = parser.parse_intermixed_args()
    config = with_template(load_config(options.config, options.overrides))
    people = [person for person in users_of(config, "test").people if person.user.targets][: options.users]
    local = load_base(config)
    generator = Generator(local, config.signals.template)
    model = InferenceModel(local, config.signals.template, config.summary.max_tokens, config.signals.token_budget)
    templates = generator.templates
    summaries = model.summarize_many([person.user.signals for person in people])
    signals = [templates.fit(p.user.signals, config.signals.token_budget, generator.count_tokens)[0] for p in people]
    other = partners(people)
    pairs = [(i, target) for i, person in enumerate(people) for target in person.user.targets]
    contexts = {
        REFERENCES[0]: lambda i, t: templates.generator_messages(t.prompt, None),
        REFERENCES[1]: lambda i, t: templates.generator_messages(t.prompt, NOTHING),
        "own raw signals": lambda i, t: templates.raw_signals_messages(t.prompt, signals[i]),
        "another's raw signals": lambda i, t: templates.raw_signals_messages(t.prompt, signals[other[i]]),
        "own untrained summary": lambda i, t: templates.generator_messages(t.prompt, summaries[i].text),
        "another's untrained summary": lambda i, t: templates.generator_messages(t.prompt, summaries[other[i]].text),
    }
    size = config.evaluation.batch_size
    logps: dict[str, list[float]] = {}
    for name, context in contexts.items():
        batches = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        differences: list[float] = []
        for batch in track(batches, name, console=Console(stderr=True)):
            chosen, rejected = generator.score([(context(i, t), t) for i, t in batch], size)
            differences += [a - b for a, b in zip(chosen, rejected, strict=True)]
        logps[name] = differences
    users = [people[i].user.user_id for i, _ in pairs]
    table = Table("context", "reference", "reward accuracy", "margin", title=f"{len(people)} users, {len(pairs)} pairs")
    margins: dict[tuple[str, str], list[float]] = {}
    for name in contexts:
        for reference in REFERENCES:
            if name not in REFERENCES:
                h = [a - b for a, b in zip(logps[name], logps[reference], strict=True)]
                margins[name, reference] = h
                accuracy, mean = reward_accuracy(h, users), clustered_mean(h, users)
                cells = (f"{e.value or 0:.3f} [{e.low or 0:.3f}, {e.high or 0:.3f}]" for e in (accuracy, mean))
                table.add_row(name, reference, *cells)
    for kind in ("raw signals", "untrained summary"):
        own, another = (margins[f"{owner} {kind}", REFERENCES[0]] for owner in ("own", "another's"))
        more = [a - b for a, b in zip(own, another, strict=True)]
        accuracy, mean = reward_accuracy(more, users), clustered_mean(more, users)
        cells = (f"{e.value or 0:.3f} [{e.low or 0:.3f}, {e.high or 0:.3f}]" for e in (accuracy, mean))
        table.add_row(f"own {kind}", f"another's {kind}", *cells)
    console = Console()
    console.print(table)
    for i in range(min(3, len(people))):
        console.print(f"[bold]{people[i].user.user_id}[/]: {summaries[i].text}", highlight=False)


if __name__ == "__main__":
    main()
