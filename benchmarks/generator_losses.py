"""Which loss, β and learning rate should a generator train with? Chosen on training users of the nano world.

python benchmarks/generator_losses.py --run runs/nano [--steps 80] [--users 300] [--only NAME ...] [--quick]

Takes a finished run with plug-and-play and trains its generator again for each candidate, on the same pairs with the
same summaries: those that the run's inference model writes for its training users. No test users, test topics or test
wordings are used. Each candidate is measured on new training users that the run never saw, and on prompts about ten
topics of the training split that are excluded from the candidates' training pairs.

    accuracy, margin   of the users' target pairs, with greedy summaries
    lost               log π(y⁺|x,z) of the base minus that of the generator with the same summary: nats per response
    points             win rate against no personalisation by the world's truth, minus that of the untrained generator
                       with the same summaries, prompt by prompt; for all prompts, and for those on excluded topics

with 95 % intervals clustered by user. Results are in runs/bench/generator_losses-RUN; finished candidates are skipped,
and interrupted ones resume. `--quick`: a few steps and users, to check that it runs.
"""

import argparse
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from popi.config import RunConfig, resolve
from popi.data.users import users_of
from popi.evaluation.judge.question import Question, Verdict
from popi.evaluation.judge.truth import TruthJudge
from popi.evaluation.metrics import Estimate, clustered_mean, paired_difference, reward_accuracy
from popi.generator import Generator
from popi.inference_model import InferenceModel
from popi.nano.grammar import TOPICS
from popi.nano.truth import topics_in
from popi.runs.files import append_jsonl, read_jsonl, write_jsonl, write_text
from popi.runs.run_directory import RunDirectory
from popi.signals.render import flat
from popi.training.train import train

CANDIDATES: dict[str, dict[str, Any]] = {
    "ipo-0.04": {"loss": "ipo", "beta": 0.04},
    "ipo-0.05": {"loss": "ipo", "beta": 0.05},
    "ipo-0.1": {"loss": "ipo", "beta": 0.1},
    "ipo-0.04-lr-2e-5": {"loss": "ipo", "beta": 0.04, "learning_rate": 2e-5},
    "dpo-0.1": {"loss": "dpo", "beta": 0.1},
    "dpo-0.1-lr-1e-5": {"loss": "dpo", "beta": 0.1, "learning_rate": 1e-5},
    "cdpo-0.1-0.2": {"loss": "dpo", "beta": 0.1, "label_smoothing": 0.2},
}
ASIDE = 10
"""Topics of the training split that no candidate trains on."""
WON: dict[Verdict, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}


def topics_aside(seed: int) -> frozenset[str]:
    return frozenset(Random(f"generator losses/{seed}").sample(TOPICS, ASIDE))


def trained(run: RunDirectory, folder: Path, name: str, settings: dict[str, Any], options: Any, show: Console) -> Path:
    """The candidate's generator, trained after the run's own first phase."""
    file = folder / "users.jsonl"
    if not file.is_file():
        aside, users = topics_aside(run.config.seed), []
        for user in users_of(run.config, "train").users:
            # Files must not have duplicate signals.
            signals = {signal.model_dump_json(exclude={"id", "time"}): signal for signal in user.signals}
            targets = [target for target in user.targets if not topics_in(flat(target.prompt)) & aside]
            users.append(user.model_copy(update={"signals": list(signals.values()), "targets": targets}))
        write_text(file, "".join(user.model_dump_json() + "\n" for user in users))
    tree = run.config.model_dump(mode="json")
    tree |= {"name": name, "root": str(folder)}
    tree["data"] |= {"source": str(file), "test": None}
    tree["training"] |= {"orders": ["alternating"], "rounds": 1, "eval_steps": None, "early_stopping_patience": None}
    tree["training"]["generator"] |= {"steps": options.steps, "label_smoothing": 0.0, "max_chosen_loss": 0.0} | settings
    config = resolve(tree)
    phase = RunDirectory.resume(config).phase("inference-1").path
    if not phase.exists():
        temporary = phase.with_name("inference-1.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(run.phase("inference-1").path, temporary)
        temporary.rename(phase)
    return train(config, resume=True, console=show) / "phases/generator-1/generator"


class Arena:
    """Training users that the run never saw, their summaries, and the untrained generator's results on them."""

    def __init__(self, run: RunDirectory, folder: Path, users: int) -> None:
        config = run.config
        data = config.data.model_copy(update={"train_users": users})
        others = config.model_copy(update={"seed": config.seed + 1_000_003, "data": data})
        people = users_of(others, "train").people
        self.keys = [(person, target) for person in people for target in person.user.targets]
        self.users = [person.user.user_id for person, _ in self.keys]
        aside = topics_aside(config.seed)
        self.aside = [bool(topics_in(flat(target.prompt)) & aside) for _, target in self.keys]
        file = folder / f"summaries-{users}.jsonl"
        written = read_jsonl(file)
        if not written:
            writer = self.load(InferenceModel, run.models("plug_and_play")[0], config)
            texts = [summary.text for summary in writer.summarize_many([person.user.signals for person in people])]
            written = [{"user_id": p.user.user_id, "summary": text} for p, text in zip(people, texts, strict=True)]
            write_jsonl(file, written)
        of = {row["user_id"]: row["summary"] for row in written}
        self.summaries = [of[user] for user in self.users]
        self.targets = [target for _, target in self.keys]
        self.answer_tokens = config.evaluation.answer_tokens
        base = self.load(Generator, config.model.base, config)
        nothing = [None] * len(self.keys)
        self.reference, self.base = (
            base.pair_logps(self.targets, nothing),
            base.pair_logps(self.targets, self.summaries),
        )
        self.plain = self.responses(base, nothing)
        self.won = self.outcomes(self.responses(base, self.summaries))

    @staticmethod
    def load(kind: Any, path: str | Path, config: RunConfig) -> Any:
        return kind.from_pretrained(path, device=config.model.device)

    def responses(self, generator: Generator, summaries: list[Any]) -> list[str]:
        requests = [(target.prompt, summary) for target, summary in zip(self.targets, summaries, strict=True)]
        texts: list[str] = []
        for start in range(0, len(requests), 64):
            texts += generator.generate_many(requests[start : start + 64], max_new_tokens=self.answer_tokens)
        return texts

    def outcomes(self, responses: list[str]) -> list[float]:
        """Each response's result against the untrained generator without a summary."""
        verdicts: dict[int, Any] = {}
        every = zip(self.keys, responses, self.plain, strict=True)
        TruthJudge().ask([Question(p, t.prompt, one, other) for (p, t), one, other in every], verdicts.__setitem__)
        return [WON[verdicts[i]] for i in range(len(responses))]

    def measure(self, generator: Generator) -> dict[str, Any]:
        """A candidate's figures with their intervals."""
        chosen, rejected = generator.pair_logps(self.targets, self.summaries)
        pairs = zip(chosen, rejected, *self.reference, strict=True)
        margins = [(c - rc) - (r - rr) for c, r, rc, rr in pairs]
        won = self.outcomes(self.responses(generator, self.summaries))
        apart = [i for i, aside in enumerate(self.aside) if aside]
        of_apart = ([values[i] for i in apart] for values in (won, self.won, self.users))
        estimates: dict[str, Estimate] = {
            "accuracy": reward_accuracy(margins, self.users),
            "margin": clustered_mean(margins, self.users),
            "lost": paired_difference(self.base[0], chosen, self.users),
            "points": paired_difference(won, self.won, self.users),
            "points_aside": paired_difference(*of_apart),
        }
        return {name: estimate.as_dict() for name, estimate in estimates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished nano-world run with plug_and_play")
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps of each candidate")
    parser.add_argument("--users", type=int, default=300, help="training users to measure on")
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), help="candidates")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.users, options.only = 2, 4, options.only[:2]
    run = RunDirectory.open(options.run)
    if run.config.data.source != "nano":
        parser.error(
            f"--run {options.run}: its source is {run.config.data.source}, but only the nano world has a known truth"
        )
    run.models("plug_and_play")
    folder = Path("runs/bench") / f"generator_losses-{run.config.name}-{options.steps}"
    folder.mkdir(parents=True, exist_ok=True)
    show, arena = Console(stderr=True), None
    for name in options.only:
        done = {(row["name"], row["users"]) for row in read_jsonl(folder / "results.jsonl")}
        if (name, options.users) in done:
            continue
        path = trained(run, folder, name, CANDIDATES[name], options, show)
        arena = arena or Arena(run, folder, options.users)
        figures = arena.measure(arena.load(Generator, path, run.config))
        row = {"name": name, "users": options.users, "settings": CANDIDATES[name], **figures}
        append_jsonl(folder / "results.jsonl", [json.loads(json.dumps(row))])
    table = Table("candidate", "accuracy, %", "margin", "lost, nats", "points", "points, topics aside")
    scales = {"accuracy": 100, "margin": 1, "lost": 1, "points": 100, "points_aside": 100}
    for row in read_jsonl(folder / "results.jsonl"):
        if row["users"] == options.users and row["name"] in options.only:
            table.add_row(row["name"], *(shown(row[name], scale) for name, scale in scales.items()))
    Console(width=120).print(table)


def shown(estimate: dict[str, Any], scale: float) -> str:
    if estimate["value"] is None:
        return "–"
    value = f"{scale * estimate['value']:.2f}"
    return (
        value if estimate["low"] is None else f"{value} [{scale * estimate['low']:.2f}, {scale * estimate['high']:.2f}]"
    )


if __name__ == "__main__":
    main()
