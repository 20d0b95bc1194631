"""Command `infer`: summaries from a trained run, a local model or a model API."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popi.cli.api import (
    PANEL,
    Api,
    ApiName,
    Concurrency,
    Extra,
    InputPrice,
    KeyEnv,
    OutputPrice,
    fields_of,
    only_with_api,
    prices_of,
)
from popi.cli.population import (
    Address,
    EngineName,
    OutFormat,
    PopulationOptions,
    ShardUsers,
    WorkerCpus,
    WorkerGpus,
    Workers,
    infer_population,
)
from popi.cli.shared import (
    ChatTemplate,
    Device,
    Dtype,
    Force,
    LocalModel,
    Method,
    console,
    local_spec,
    need_training,
    progress_bars,
    reject_unrelated_options,
)
from popi.config import DataConfig
from popi.errors import DataError
from popi.runs.bars import passes

if TYPE_CHECKING:
    from rich.progress import Progress

    from popi.inference_model import InferenceModel
    from popi.runs.run_directory import RunDirectory
    from popi.signals.types import User


def infer(
    users: Annotated[Path, typer.Argument(help="File of users: JSONL, parquet, or a hub id (docs/data.md).")],
    run: Annotated[Path | None, typer.Option("--run", help="Directory of a trained run.")] = None,
    model: LocalModel = None,
    chat_template: ChatTemplate = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="Set of prompt templates: nano, default or a folder. With --api: the set that the served model was "
            "trained with, if popi trained it; it then answers with the summary, as a local model does."
        ),
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    method: Method = None,
    api: Api = None,
    api_model: ApiName = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="The API's protocol: openai (default) or anthropic.", rich_help_panel=PANEL),
    ] = None,
    key_env: KeyEnv = None,
    api_extra: Extra = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="TOML file whose [inference] table names a model API (docs/gateway_settings.md).",
            rich_help_panel=PANEL,
        ),
    ] = None,
    concurrency: Concurrency = 8,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum tokens per summary. Default: 512 with --api, 256 with --model."),
    ] = None,
    token_budget: Annotated[
        int | None,
        typer.Option(min=1, help="With --api or --model: maximum tokens of a user's signals. Default: 8192."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="With --run: drop summaries that don't fit the user's own pairs (docs/evidence.md)."
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--out", help="File to write, or folder with --engine ray. Default: stdout.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Add summaries only for users who are not in --out yet.")
    ] = False,
    force: Force = False,
    engine: EngineName = "own",
    address: Address = None,
    workers: Workers = None,
    worker_cpus: WorkerCpus = None,
    worker_gpus: WorkerGpus = None,
    shard_users: ShardUsers = None,
    out_format: OutFormat = None,
) -> None:
    """Write a preference summary for each user of a file, one JSON object per line."""
    population = PopulationOptions(address, workers, worker_cpus, worker_gpus, shard_users, out_format)
    if engine == "own":
        population.refuse_without_ray()
    elif check:
        raise typer.BadParameter("--check goes with --engine own")
    by_api = api is not None or settings is not None
    if [run is None, model is None, not by_api].count(True) != 2:
        raise typer.BadParameter(
            "name exactly one of the three: a trained run with --run, a model with --model, or a model API with --api "
            "or --config"
        )
    reject_unrelated_options(run, method, model, None if by_api else template, dtype, device, chat_template)
    if not by_api:
        only_with_api(api_model, key_env, api_extra, input_price, output_price)
    if run is not None and (max_tokens or token_budget):
        raise typer.BadParameter("--max-tokens and --token-budget go with --api or --model; a run has its own")
    if check and run is None:
        raise typer.BadParameter("--check requires --run, since it uses the run's generator")
    if resume and (output is None or force or check):
        raise typer.BadParameter("--resume continues an --out file; it does not go with --force or --check")
    from popi.data.jsonl import open_users, refuse_existing, write_rows

    if output is not None and engine == "own":
        refuse_existing(output, force or resume)
        for file in (output, _rejects(output)):
            if file.exists() and users.exists() and file.samefile(users):
                raise DataError(f"{file}: is the input file itself; name another file with --out")
    if by_api:
        from popi.serving.worker.inference import read

        if settings is None and api_model is None:
            raise typer.BadParameter("--api needs --api-model, the model's name at the API")
        inference = read(
            settings,
            url=api,
            model=api_model,
            protocol=protocol,
            key_env=key_env,
            max_tokens=max_tokens,
            token_budget=token_budget,
        )
        prices, fields = prices_of(input_price, output_price), inference.fields() | fields_of(api_extra)
        if engine == "ray":
            connect = partial(inference.connect, template, concurrency=concurrency, prices=prices, extra=fields)
            connect()  # wrong settings are reported here, and not by a worker
            described = inference.model_dump(mode="json") | {"extra": fields}
            described |= {} if template is None else {"template": template}
            infer_population(users, output, population, connect, {"api": described}, resume=resume, force=force)
            return
        writer = inference.connect(template, concurrency=concurrency, prices=prices, extra=fields)
        try:
            with passes(console) as report:
                people = open_users(users, report=report)
            _write(writer, people, output, force=force, resume=resume)
        finally:
            console.print(str(writer.backend.usage), highlight=False)  # failed runs cost money, too
        return
    need_training()
    from popi.inference_model import InferenceModel
    from popi.models.spec import ModelSpec
    from popi.runs.run_directory import RunDirectory

    opened = None if run is None else RunDirectory.open(run)
    if opened is not None:
        spec = ModelSpec.of(opened.config, opened.models(method)[0])
    else:
        spec = local_spec(str(model), template, dtype, device, chat_template)
    if engine == "ray":
        load = partial(InferenceModel.from_spec, spec, max_tokens=max_tokens, token_budget=token_budget)
        described = asdict(spec) | {"max_tokens": max_tokens, "token_budget": token_budget}
        infer_population(users, output, population, load, {"model": described}, resume=resume, force=force)
        return
    with passes(console) as report:
        windows = (DataConfig() if opened is None else opened.config.data).windows()
        people = open_users(users, **windows, report=report)
    inference_model = InferenceModel.from_spec(spec, max_tokens=max_tokens, token_budget=token_budget)
    if opened is None or not check:
        _write(inference_model, people, output, force=force, resume=resume)
        return
    with progress_bars() as progress:
        rows = _checked(opened, method, inference_model, people, progress)
        if output is not None:
            write_rows(output, rows, force=force)
        else:
            for row in rows:
                _print_row(row)
    if output is not None:
        console.print(f"{len(people)} summaries: {output}", highlight=False)


def _write(
    writer: "InferenceModel",
    people: "Sequence[User]",
    output: Path | None,
    *,
    force: bool,
    resume: bool,
) -> None:
    """Write summaries as they arrive, to a file or to stdout.

    Users without a summary are reported on stderr and in a file next to `output`; the exit code is then 1.
    """
    from popi.data.jsonl import write_rows
    from popi.runs.summary_file import SummaryFile, write_summaries

    file = SummaryFile(output, writer.name, force=force, resume=resume, show=_print_row)
    with progress_bars() as progress:
        task = progress.add_task("users")
        written, failures = write_summaries(
            writer, people, file, lambda done, n: progress.update(task, completed=done, total=n)
        )
    if output is not None and written:
        console.print(f"{written} summaries: {output}", highlight=False)
    rejects = None if output is None else _rejects(output)
    if rejects is not None:
        rejects.unlink(missing_ok=True)
    if not failures:
        return
    print(f"no summary for {sum(map(len, failures.values()))} users:", file=sys.stderr)
    for reason, user_ids in failures.items():
        print(f"  {', '.join(user_ids)}: {reason}", file=sys.stderr)
    if rejects is not None:
        rows = [{"user_id": user_id, "error": reason} for reason, ids in failures.items() for user_id in ids]
        write_rows(rejects, rows)
        print(f"they are listed in {rejects}; run the same command with --resume to retry only these", file=sys.stderr)
    raise typer.Exit(1)


def _rejects(output: Path) -> Path:
    """The file that lists users without a summary."""
    return output.with_name(f"{output.stem}.rejects.jsonl")


def _print_row(row: dict[str, Any]) -> None:
    print(json.dumps(row, ensure_ascii=False), flush=True)


def _checked(
    run: "RunDirectory",
    method: str | None,
    inference_model: "InferenceModel",
    people: "Sequence[User]",
    progress: "Progress",
) -> "Iterator[dict[str, Any]]":
    """Yield rows of checked summaries, holding `WINDOW` users in memory at a time."""
    from popi.evaluation.models import Models
    from popi.runs.summary_file import WINDOW, summary_row
    from popi.studies.evidence.own_evidence import checked_summaries

    generator = Models(run.config, {}).generator(run.models(method)[1])
    beta = run.config.training.inference.beta
    written, checked = (progress.add_task(label, total=len(people)) for label in ("users", "checked"))
    for start in range(0, len(people), WINDOW):
        users = list(people[start : start + WINDOW])
        signals = [user.signals for user in users]
        summaries = inference_model.summarize_many(signals, progress=lambda done: progress.advance(written, done))
        summaries = checked_summaries(
            inference_model,
            generator,
            signals,
            summaries,
            beta,
            progress=lambda done: progress.advance(checked, done),
        )
        for user, summary in zip(users, summaries, strict=True):
            yield summary_row(user.user_id, summary) | {"model": inference_model.name}
