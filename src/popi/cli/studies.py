"""Commands of `popi study`: evidence, streaming, abstention, side-effects."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from popi.cli.shared import Run, console, need_training, out, trained_run
from popi.signals.renewal import MIN_SIGNALS

if TYPE_CHECKING:
    from popi.studies.side_effects.facts import Fact
    from popi.studies.study import Study

app = typer.Typer(help="Study what personalisation rests on, and what it costs.", no_args_is_help=True)

Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="Method, by its name in metrics.json. Can be repeated. Default: all that apply."),
]
TestUsers = Annotated[
    int | None, typer.Option(min=1, help="Maximum held-out users, in file order. Default: data.test_users.")
]
OtherGenerator = Annotated[
    str | None,
    typer.Option("--generator", help="As in popi evaluate: generate with another model from the run's summaries."),
]
Users = Annotated[Path | None, typer.Option("--users", help="As in popi evaluate: file of other users.")]


@app.command()
def evidence(
    run: Run,
    signals: Annotated[
        str | None,
        typer.Option(help="Numbers of signals, such as 0,1,2,4,8. Default: doubling up to all signals of a user."),
    ] = None,
    order: Annotated[
        Literal["given", "shuffled"],
        typer.Option(help="Take a user's first signals in file order, or in random order."),
    ] = "given",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random order.")] = 0,
    method: Methods = None,
    test_users: TestUsers = None,
    generator: OtherGenerator = None,
    users: Users = None,
) -> None:
    """Measure reward accuracy by the number of signals per user. Writes evaluation/evidence.json."""
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
    batches: Annotated[str, typer.Option(help="Numbers of batches in which the same signals arrive.")] = "1,2,4,8,16",
    signals: Annotated[
        int | None, typer.Option(min=5, help="Signals per synthetic user. Default: 16.", show_default=False)
    ] = None,
    min_signals: Annotated[
        int,
        typer.Option(
            min=1,
            help="Minimum new signals before a summary becomes the base of renewals; 1 renews from the previous one.",
        ),
    ] = MIN_SIGNALS,
    method: Methods = None,
    test_users: TestUsers = None,
    generator: OtherGenerator = None,
    users: Users = None,
) -> None:
    """Compare summaries renewed batch by batch with summaries from scratch. Writes evaluation/streaming.json."""
    need_training()
    from popi.studies.streaming.batches import read_batches
    from popi.studies.streaming.run import FILE
    from popi.studies.streaming.run import streaming as measure

    counts = read_batches(batches)
    study = _study(run, method, test_users, generator, users, summaries_only=True)
    _show(study, FILE, measure(study, counts, signals, min_signals))


@app.command()
def abstention(
    run: Run,
    check: Annotated[
        bool, typer.Option(help="Also measure summaries that are checked on each user's own pairs (docs/evidence.md).")
    ] = True,
    threshold: Annotated[
        float, typer.Option(help="The check keeps a summary if its log ratio, in nats, is above this.")
    ] = 0.5,
    no_evidence: Annotated[
        int | None,
        typer.Option(min=1, help="Number of synthetic users without evidence. Default: as many as held-out users."),
    ] = None,
    method: Methods = None,
    test_users: TestUsers = None,
    generator: OtherGenerator = None,
    users: Users = None,
) -> None:
    """Measure what users without evidence get, and what that costs the others. Writes evaluation/abstention.json."""
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
        typer.Option(
            help="`english`, `nano` or a JSONL file. Default: nano for runs on synthetic users, else english."
        ),
    ] = None,
    opinions: Annotated[
        int, typer.Option(min=0, help="Number of facts per user about which the user holds a wrong opinion.")
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the synthetic facts, and of who holds which opinion.")] = 0,
    method: Methods = None,
    test_users: TestUsers = None,
    generator: OtherGenerator = None,
    users: Users = None,
) -> None:
    """Measure what personalisation spoils: facts, flattery of wrong opinions, copied private text.

    Writes evaluation/side_effects.json.
    """
    need_training()
    from popi.studies.side_effects.run import FILE
    from popi.studies.side_effects.run import side_effects as measure

    study = _study(run, method, test_users, generator, users)
    questions = _facts(facts or ("nano" if study.config.data.source == "nano" else "english"), seed)
    _show(study, FILE, measure(study, questions, opinions, seed))


def _facts(source: str, seed: int) -> "list[Fact]":
    from popi.studies.side_effects.facts import nano_facts, read_facts

    if source == "nano":
        return nano_facts(seed)
    return read_facts() if source == "english" else read_facts(source)


def _study(
    run: Path,
    methods: list[str] | None,
    test_users: int | None,
    generator: str | None,
    users: Path | None,
    summaries_only: bool = False,
) -> "Study":
    from popi.models.spec import ModelSpec
    from popi.studies.study import Study

    opened = trained_run(run)
    return Study.open(
        opened,
        methods=methods,
        test_users=test_users,
        generator=None if generator is None else ModelSpec(generator),
        users=users,
        summaries_only=summaries_only,
        report=lambda line: console.print(f"  {line}", highlight=False, style="dim"),
    )


def _show(study: "Study", file: str, result: dict[str, Any]) -> None:
    from popi.studies.study import result_table

    out.print(result_table(result))
    console.print(f"written: {study.folder / file}", highlight=False, soft_wrap=True)
