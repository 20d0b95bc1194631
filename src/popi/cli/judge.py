"""Commands on judged comparisons: judge, win-rate."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from popi.cli.api import Concurrency, InputPrice, KeyEnv, OutputPrice, Protocol, api_spec
from popi.cli.shared import Run, console, need_training, out, progress_bars, trained_run
from popi.errors import ConfigError

if TYPE_CHECKING:
    from popi.evaluation.judge.question import Judge

JUDGE, OTHER = "Judge", "Another generator"
"""Help panels."""


def judge_command(
    run: Run,
    method: Annotated[str, typer.Option(help="Method to judge, by its name in metrics.json.")],
    against: Annotated[str, typer.Option(help="Method to compare with, or a .json file of alpaca_eval model outputs.")],
    judge: Annotated[
        Literal["truth", "local", "api"],
        typer.Option(
            help="The judge: the truth of the synthetic users, the log-probs of a local model, or an LLM behind an API."
        ),
    ],
    judge_url: Annotated[
        str | None,
        typer.Option(
            help="With --judge api: URL of the API (docs/api_models.md).", metavar="URL", rich_help_panel=JUDGE
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(
            help="With --judge api: the model's name at the API. With --judge local: `nano`, a folder, a GGUF file or "
            "a hub id. Default: the run's base.",
            metavar="NAME",
            rich_help_panel=JUDGE,
        ),
    ] = None,
    protocol: Protocol = "openai",
    key_env: KeyEnv = None,
    judge_extra: Annotated[
        str | None,
        typer.Option(
            help="With --judge api: JSON object of fields to add to each request; null removes a field.",
            metavar="JSON",
            rich_help_panel=JUDGE,
        ),
    ] = None,
    concurrency: Concurrency = 8,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    judge_prompt: Annotated[
        Path | None,
        typer.Option(help="With --judge api: Jinja file that replaces the built-in prompt.", rich_help_panel=JUDGE),
    ] = None,
    judge_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            help="With --judge api: maximum tokens of the judge's answer, its reasoning included.",
            metavar="N",
            rich_help_panel=JUDGE,
        ),
    ] = 512,
    evidence: Annotated[
        Literal["auto", "persona", "signals"],
        typer.Option(
            "--evidence",
            help="What the judge reads about a user; auto: the true persona if it is known, else the signals.",
            rich_help_panel=JUDGE,
        ),
    ] = "auto",
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Maximum task prompts per user. Default: all targets of the user.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens per response. Default: evaluation.answer_tokens.")
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(
            help="As in popi evaluate: generate with another model from the run's summaries.", rich_help_panel=OTHER
        ),
    ] = None,
    api: Annotated[
        str | None,
        typer.Option(
            "--api",
            help="Generate with a model API from the run's summaries; it need not return log-probs.",
            metavar="URL",
            rich_help_panel=OTHER,
        ),
    ] = None,
    api_model: Annotated[
        str | None, typer.Option(help="The model's name at --api.", metavar="NAME", rich_help_panel=OTHER)
    ] = None,
    api_protocol: Annotated[
        str, typer.Option(help="Protocol of --api: openai or anthropic.", rich_help_panel=OTHER)
    ] = "openai",
    api_key_env: Annotated[
        str | None,
        typer.Option(
            help="Environment variable that holds the key of --api. Default: as for --key-env.",
            metavar="VARIABLE",
            rich_help_panel=OTHER,
        ),
    ] = None,
    api_extra: Annotated[
        str | None,
        typer.Option(help="As --judge-extra, for --api.", metavar="JSON", rich_help_panel=OTHER),
    ] = None,
    users: Annotated[Path | None, typer.Option(help="As in popi evaluate: file of other users.")] = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="Folder for judge.json and comparisons.jsonl. Default: inside the run.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume comparisons that were interrupted or failed in part.")
    ] = False,
    alpaca_eval: Annotated[
        bool, typer.Option("--alpaca-eval", help="Also write the comparisons as alpaca_eval files.")
    ] = False,
) -> None:
    """Judge one method's responses against another's, per held-out user and in both orders: the win rate."""
    if judge != "api" and any(value is not None for value in (judge_url, judge_prompt, key_env, judge_extra)):
        raise typer.BadParameter("--judge-url, --judge-prompt, --key-env and --judge-extra go with --judge api")
    if judge == "api" and (judge_url is None or judge_model is None):
        raise typer.BadParameter("--judge api needs --judge-url and --judge-model")
    if judge == "truth" and judge_model is not None:
        raise typer.BadParameter("--judge-model does not go with --judge truth, which uses no model")
    if generator is not None and api is not None:
        raise typer.BadParameter("name another generator either with --generator or with --api")
    if api is None and any(value is not None for value in (api_model, api_key_env, api_extra)):
        raise typer.BadParameter("--api-model, --api-key-env and --api-extra go with --api")
    if api is not None and api_model is None:
        raise typer.BadParameter("--api needs --api-model, the model's name at the API")
    need_training()
    from popi.evaluation.judge.log_probs import LogProbJudge
    from popi.evaluation.judge.run import judge_run
    from popi.evaluation.models import Models, trained_models
    from popi.evaluation.tables import judge_table
    from popi.models.spec import ModelSpec

    opened = trained_run(run)
    chat = None
    chosen_judge: Judge
    if judge_url is not None:
        from popi.evaluation.judge.model import ModelJudge
        from popi.evaluation.judge.prompt import JudgePrompt

        spec = api_spec(judge_url, judge_model, protocol, key_env, judge_extra, concurrency, input_price, output_price)
        chat = spec.connect()
        budget = opened.config.signals.token_budget
        chosen_judge = ModelJudge(chat, evidence, JudgePrompt(judge_prompt), judge_tokens, budget)
    else:
        chosen_judge = _truth() if judge == "truth" else LogProbJudge.of(opened.config, judge_model, evidence)
    other = None if generator is None else ModelSpec(generator)
    if api is not None and api_model is not None:
        other = api_spec(api, api_model, api_protocol, api_key_env, api_extra, concurrency)
        other.connect()  # report a missing key before any work
    models = Models(opened.config, trained_models(opened), other)
    tasks: dict[str, Any] = {}
    try:
        with progress_bars() as bars:

            def progress(label: str, done: int, total: int) -> None:
                task = tasks[label] if label in tasks else tasks.setdefault(label, bars.add_task(label))
                bars.update(task, completed=done, total=total)

            result = judge_run(
                opened,
                method,
                against,
                chosen_judge,
                prompts=prompts,
                max_tokens=max_tokens,
                out=output,
                resume=resume,
                export=alpaca_eval,
                generator=other,
                users=users,
                models=models,
                progress=progress,
            )
    finally:  # even a failed run was paid for
        answers = models.usage()
        if answers is not None:
            console.print(f"generator: {answers}", highlight=False)
        if chat is not None:
            console.print(str(chat.usage), highlight=False)
    out.print(judge_table(result))
    console.print(f"written: {Path(result['folder']) / 'judge.json'}", highlight=False, soft_wrap=True)
    _report_missing(result)


def win_rate(
    annotations: Annotated[Path, typer.Argument(help="JSON file of alpaca_eval annotations.")],
) -> None:
    """Compute win rates, plain and length-controlled, from annotations made elsewhere (docs/judging.md)."""
    need_training()
    from popi.evaluation.judge.alpaca_eval import read_annotations
    from popi.evaluation.judge.result import figures_of_annotations
    from popi.evaluation.tables import judge_table

    rows = read_annotations(annotations)
    names = {(row.generator_2, row.generator_1) for row in rows}
    if len(names) > 1:
        shown = "; ".join(sorted(f"{method} against {other}" for method, other in names))
        raise ConfigError(f"{annotations}: has more than one comparison ({shown}); put each in its own file")
    ((method, other),) = names
    titles = {"method": method or "output_2", "against": other or "output_1"}
    out.print(judge_table(titles | figures_of_annotations(rows)))


def _truth() -> "Judge":
    from popi.evaluation.judge.truth import TruthJudge

    return TruthJudge()


def _report_missing(result: dict[str, Any]) -> None:
    """Report the reasons on stderr, and exit with 1 if --resume would retry any of them."""
    parts = [result, *([result["seen_topics"]] if "seen_topics" in result else [])]
    for part in parts:
        for method, reasons in part["failed_responses"].items():
            for reason, n in reasons.items():
                print(f"no response by {method} to {n} prompts: {reason}", file=sys.stderr)
        for reason, n in part["reasons"].items():
            print(f"no verdict on {n} questions: {reason}", file=sys.stderr)
    if any(part["missing_verdicts"].get(kind) for part in parts for kind in ("failed", "no response")):
        print("run the same command with --resume to retry only these", file=sys.stderr)
        raise typer.Exit(1)
