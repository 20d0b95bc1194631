"""Commands that ask what personalising rests on and what it costs: evidence, streaming, abstention, side-effects."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from popi.cli.shared import Run, console, need_training, out, trained_run
from popi.signals.renewal import LEAST

if TYPE_CHECKING:
    from popi.studies.side_effects.facts import Fact
    from popi.studies.study import Study

app = typer.Typer()

Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="A method, as metrics.json calls it; can be repeated. All that apply if not given."),
]
TestUsers = Annotated[
    int | None, typer.Option(min=1, help="Most held-out users, the first ones; data.test_users if not given.")
]
OtherGenerator = Annotated[
    str | None, typer.Option("--generator", help="As for popi evaluate: another model that reads the run's summaries.")
]
Users = Annotated[Path | None, typer.Option("--users", help="As for popi evaluate: JSONL file of other users.")]


@app.command()
def evidence(
    run: Run,
    signals: Annotated[
        str | None,
        typer.Option(help="Numbers of signals, as 0,1,2,4,8; doubling up to all that a user has if not given."),
    ] = None,
    order: Annotated[
        Literal["given", "shuffled"], typer.Option(help="A user's first signals as they stand, or in a drawn order.")
    ] = "given",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawn order.")] = 0,
    method: Methods = None,
    test_users: TestUsers = None,
    generator: OtherGenerator = None,
    users: Users = None,
) -> None:
    """Reward accuracy against the number of signals that a method sees of a user: evaluation/evidence.json."""
    need_training()
    from popi.studies.evidence.curve import FILE
    from popi.studies.evidence.curve import evidence as measure
    from popi.studies.evidence.cut import read_sizes

    sizes = None if signals is None else read_sizes(signals)
    study = _study(run, method, test_users, generator, users)
    _show(study, FILE, measure(study, sizes, order, seed))


@app.command()
def streaming(
    run: Run,
    batches: Annotated[str, typer.Option(help="Numbers of batches in which the same signals come.")] = "1,2,4,8,16",
    signals: Annotated[
        int | None, typer.Option(min=5, help="Nano world: signals of a user, 16 if not given.", show_default=False)
    ] = None,
    least: Annotated[
        int, typer.Option(min=1, help="Signals until a summary is renewed upon; 1: each is made of the one before.")
    ] = LEAST,
    method: Methods = None,
    test_users: TestUsers = None,
    generator: OtherGenerator = None,
    users: Users = None,
) -> None:
    """Summaries renewed batch by batch against summaries from scratch: evaluation/streaming.json."""
    need_training()
    from popi.studies.streaming.batches import read_batches
    from popi.studies.streaming.run import FILE
    from popi.studies.streaming.run import streaming as measure

    counts = read_batches(batches)
    study = _study(run, method, test_users, generator, users, summaries_only=True)
    _show(study, FILE, measure(study, counts, signals, least))


@app.command()
def abstention(
    run: Run,
    check: Annotated[
        bool, typer.Option(help="Also with summaries checked on each user's own pairs (docs/evidence.md).")
    ] = True,
    threshold: Annotated[float, typer.Option(help="The check keeps a summary above this log ratio, in nats.")] = 0.5,
    no_evidence: Annotated[
        int | None, typer.Option(min=1, help="Nano world: users without evidence to make; as many as held-out ones.")
    ] = None,
    method: Methods = None,
    test_users: TestUsers = None,
    generator: OtherGenerator = None,
    users: Users = None,
) -> None:
    """What users of whom nothing is known get, and what it costs the others: evaluation/abstention.json."""
    need_training()
    from popi.studies.evidence.abstention import FILE
    from popi.studies.evidence.abstention import abstention as measure

    study = _study(run, method, test_users, generator, users, summaries_only=True)
    _show(study, FILE, measure(study, check, no_evidence, threshold))


@app.command("side-effects")
def side_effects(
    run: Run,
    facts: Annotated[
        str | None,
        typer.Option(help="`english`, `nano`, or a JSONL file; nano for runs on the nano world, else english."),
    ] = None,
    opinions: Annotated[int, typer.Option(min=0, help="Facts on which each user gets a wrong opinion.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the nano world's facts, and of who has which opinion.")] = 0,
    method: Methods = None,
    test_users: TestUsers = None,
    generator: OtherGenerator = None,
    users: Users = None,
) -> None:
    """Facts, wrong opinions, copied private text: what personalising spoils. evaluation/side_effects.json."""
    need_training()
    from popi.studies.side_effects.run import FILE
    from popi.studies.side_effects.run import side_effects as measure

    study = _study(run, method, test_users, generator, users)
    questions = _facts(facts or ("nano" if study.config.data.source == "nano" else "english"), seed)
    _show(study, FILE, measure(study, questions, opinions, seed))


def _facts(named: str, seed: int) -> "list[Fact]":
    from popi.studies.side_effects.facts import nano_facts, read_facts

    if named == "nano":
        return nano_facts(seed)
    return read_facts() if named == "english" else read_facts(named)


def _study(
    run: Path,
    methods: list[str] | None,
    test_users: int | None,
    generator: str | None,
    users: Path | None,
    summaries_only: bool = False,
) -> "Study":
    from popi.evaluation.models import Other
    from popi.studies.study import Study

    opened = trained_run(run)
    return Study.open(
        opened,
        methods=methods,
        test_users=test_users,
        generator=None if generator is None else Other(generator),
        users=users,
        summaries_only=summaries_only,
        report=lambda what: console.print(f"  {what}", highlight=False, style="dim"),
    )


def _show(study: "Study", file: str, result: dict[str, Any]) -> None:
    from popi.studies.study import result_table

    out.print(result_table(result))
    console.print(f"written: {study.folder / file}", highlight=False, soft_wrap=True)
