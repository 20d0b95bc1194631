"""Commands that use a model: infer, generate; of a run, of a folder, or behind an API."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popi.cli.shared import (
    ApiName,
    ChatTemplate,
    Concurrency,
    Force,
    KeyEnv,
    Method,
    console,
    loading,
    need_training,
    progress_bars,
)
from popi.errors import DataError

if TYPE_CHECKING:
    from rich.progress import Progress

    from popi.generator import AnyGenerator
    from popi.inference_model import ApiInferenceModel, InferenceModel
    from popi.models.remote.api import ApiModel
    from popi.models.remote.usage import Prices
    from popi.runs.run_directory import RunDirectory
    from popi.signals.types import User
    from popi.summary import Summary

app = typer.Typer()

Api = Annotated[
    str | None,
    typer.Option(
        "--api", help="URL of a model API instead of a run: https://host/v1 (docs/api_models.md).", metavar="URL"
    ),
]
LocalModel = Annotated[
    str | None, typer.Option(help="Instead of --run: `nano`, `smollm2`, a folder, a GGUF file or a hub id.")
]
TemplateSet = Annotated[
    str | None, typer.Option(help="With --model: the set of prompt templates (nano, default, or a folder).")
]
Dtype = Annotated[str | None, typer.Option(help="With --model: auto, float32, bfloat16 or float16; auto if not given.")]
Device = Annotated[str | None, typer.Option(help="With --model: auto, cpu, cuda, cuda:1 ...; auto if not given.")]
Protocol = Annotated[str, typer.Option(help="What the API speaks: openai or anthropic.")]
Extra = Annotated[
    str | None,
    typer.Option("--api-extra", help="JSON object of fields to put into each request; null takes a field out."),
]
PriceIn = Annotated[float | None, typer.Option(help="Price of a million input tokens, to reckon the cost.")]
PriceOut = Annotated[float | None, typer.Option(help="Price of a million output tokens.")]


@app.command()
def infer(
    users: Annotated[Path, typer.Argument(help="JSONL file of users (docs/data.md).")],
    run: Annotated[Path | None, typer.Option("--run", help="Directory of a trained run.")] = None,
    model: LocalModel = None,
    chat_template: ChatTemplate = None,
    template: TemplateSet = None,
    dtype: Dtype = None,
    device: Device = None,
    method: Method = None,
    api: Api = None,
    api_model: ApiName = None,
    protocol: Annotated[
        str | None, typer.Option(help="What the API speaks: openai (if not given) or anthropic.")
    ] = None,
    key_env: KeyEnv = None,
    api_extra: Extra = None,
    settings: Annotated[
        Path | None,
        typer.Option("--config", help="TOML file whose [inference] names a model API (docs/gateway_settings.md)."),
    ] = None,
    concurrency: Concurrency = 8,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum tokens of a summary; if not given, 512 with --api and 256 with --model."),
    ] = None,
    token_budget: Annotated[
        int | None,
        typer.Option(min=1, help="With --api or --model: most tokens of a user's signals; 8192 if not given."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="With --run: keep a summary only if it fits the user's own pairs (docs/evidence.md)."
        ),
    ] = False,
    output: Annotated[Path | None, typer.Option("--out", help="File to write; stdout by default.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Write only the summaries of users who are not in --out yet.")
    ] = False,
    force: Force = False,
) -> None:
    """Write a preference summary for every user of a file, one JSON object a line."""
    by_api = api is not None or settings is not None
    if [run is None, model is None, not by_api].count(True) != 2:
        raise typer.BadParameter(
            "name a trained run with --run, a model with --model, or --api (or --config): one of the three"
        )
    if run is None and method is not None:
        raise typer.BadParameter("--method names a method of a run; it does not go with --model or --api")
    if not by_api:
        _only_with_api(api_model, key_env, api_extra, price_in, price_out)
    if run is not None and (max_tokens or token_budget):
        raise typer.BadParameter("--max-tokens and --token-budget go with --api or --model; a run has its own")
    if model is None and any(value is not None for value in (chat_template, template, dtype, device)):
        raise typer.BadParameter("--chat-template, --template, --dtype and --device go with --model; a run has its own")
    if check and run is None:
        raise typer.BadParameter("--check needs the generator of a run: it goes with --run")
    if resume and (output is None or force or check):
        raise typer.BadParameter("--resume goes on with an --out file; it does not go with --force or --check")
    from popi.data.jsonl import read_users, refuse_existing, write_rows
    from popi.runs.summary_file import summary_row

    if output is not None:
        refuse_existing(output, force or resume)
        for file in (output, _rejects(output)):
            if file.exists() and users.exists() and file.samefile(users):
                raise DataError(f"{file}: is the file of users itself; name another file with --out")
    if by_api:
        from popi.serving.worker.inference import read

        if settings is None and api_model is None:
            raise typer.BadParameter("--api needs --api-model: the model, as the API calls it")
        inference = read(
            settings,
            url=api,
            model=api_model,
            protocol=protocol,
            key_env=key_env,
            max_tokens=max_tokens,
            token_budget=token_budget,
        )
        prices, fields = _prices(price_in, price_out), inference.fields() | fields_of(api_extra)
        writer = inference.connect(concurrency=concurrency, prices=prices, extra=fields)
        chat: Any = writer.chat
        try:
            _write(writer, read_users(users), output, force=force, resume=resume)
        finally:
            console.print(str(chat.usage), highlight=False)  # paid for, however it ended
        return
    need_training()
    from popi.inference_model import InferenceModel
    from popi.runs.run_directory import RunDirectory

    opened = None if run is None else RunDirectory.open(run)
    people = read_users(users) if opened is None else read_users(users, **opened.config.data.windows())
    if opened is not None:
        inference_model = InferenceModel.from_pretrained(opened.models(method)[0], **loading(opened.config))
    else:
        inference_model = InferenceModel.from_pretrained(
            str(model),
            templates=template or "auto",
            max_tokens=max_tokens,
            token_budget=token_budget,
            dtype=dtype or "auto",
            device=device or "auto",
            chat_template=chat_template,
        )
    if opened is None or not check:
        _write(inference_model, people, output, force=force, resume=resume)
        return
    with progress_bars() as progress:
        task = progress.add_task("users", total=len(people))
        summaries = inference_model.summarize_many(
            [user.signals for user in people], progress=lambda done: progress.advance(task, done)
        )
        summaries = _checked(opened, method, inference_model, people, summaries, progress)
    name = {"model": inference_model.name}
    rows = [summary_row(user.user_id, summary) | name for user, summary in zip(people, summaries, strict=True)]
    if output is not None:
        write_rows(output, rows, force=force)
        console.print(f"{len(rows)} summaries: {output}", highlight=False)
    else:
        for row in rows:
            _print_row(row)


def _write(
    writer: "InferenceModel | ApiInferenceModel",
    people: "list[User]",
    output: Path | None,
    *,
    force: bool,
    resume: bool,
) -> None:
    """Summaries to a file or to stdout as they come; users without one to stderr and beside the file, and then exit
    code 1.
    """
    from popi.data.jsonl import write_rows
    from popi.runs.summary_file import SummaryFile, write_summaries

    file = SummaryFile(output, writer.name, force=force, resume=resume, show=_print_row)
    with progress_bars() as progress:
        task = progress.add_task("users")
        rows, failures = write_summaries(
            writer, people, file, lambda done, n: progress.update(task, completed=done, total=n)
        )
    if output is not None and rows:
        console.print(f"{len(rows)} summaries: {output}", highlight=False)
    rejects = None if output is None else _rejects(output)
    if rejects is not None:
        rejects.unlink(missing_ok=True)
    if not failures:
        return
    print(f"no summary of {sum(map(len, failures.values()))} users:", file=sys.stderr)
    for reason, user_ids in failures.items():
        print(f"  {', '.join(user_ids)}: {reason}", file=sys.stderr)
    if rejects is not None:
        told = [{"user_id": user_id, "error": reason} for reason, ids in failures.items() for user_id in ids]
        write_rows(rejects, told)
        print(f"they are in {rejects}; with --resume the same command asks for these alone", file=sys.stderr)
    raise typer.Exit(1)


def _rejects(output: Path) -> Path:
    """Where users without a summary are listed."""
    return output.with_name(f"{output.stem}.rejects.jsonl")


def _print_row(row: dict[str, Any]) -> None:
    print(json.dumps(row, ensure_ascii=False), flush=True)


def _checked(
    run: "RunDirectory",
    method: str | None,
    inference_model: "InferenceModel",
    people: "list[User]",
    summaries: "list[Summary]",
    progress: "Progress",
) -> "list[Summary]":
    from popi.evaluation.models import Models
    from popi.studies.evidence.own_evidence import checked_summaries

    generator = Models(run.config, {}).generator(run.models(method)[1])
    task = progress.add_task("checked", total=len(people))
    return checked_summaries(
        inference_model,
        generator,
        [user.signals for user in people],
        summaries,
        run.config.training.inference.beta,
        progress=lambda done: progress.advance(task, done),
    )


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The task prompt.")],
    run: Annotated[Path | None, typer.Option("--run", help="Directory of a trained run.")] = None,
    model: LocalModel = None,
    chat_template: ChatTemplate = None,
    template: TemplateSet = None,
    dtype: Dtype = None,
    device: Device = None,
    summary: Annotated[
        str | None, typer.Option(help="The user's preference summary; without one, the plain prompt.")
    ] = None,
    method: Method = None,
    api: Api = None,
    api_model: ApiName = None,
    protocol: Protocol = "openai",
    key_env: KeyEnv = None,
    api_extra: Extra = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the response.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 decodes greedily.")] = 0.0,
) -> None:
    """Answer a task prompt for the user that a summary describes."""
    if not prompt.strip():
        raise typer.BadParameter("the task prompt is empty; give it as text in quotes")
    if not math.isfinite(temperature):
        raise typer.BadParameter(f"--temperature must be a finite number; got {temperature}")
    if [run is None, model is None, api is None].count(True) != 2:
        raise typer.BadParameter(
            "name a trained run with --run, a model with --model, or a model API with --api: one of the three"
        )
    if run is None and method is not None:
        raise typer.BadParameter("--method names a method of a run; it does not go with --model or --api")
    if model is None and any(value is not None for value in (chat_template, template, dtype, device)):
        raise typer.BadParameter("--chat-template, --template, --dtype and --device go with --model; a run has its own")
    if api is not None:
        chat = connect(api, api_model, protocol, key_env, api_extra, 1, price_in, price_out)
        from popi.generator import ApiGenerator

        print(ApiGenerator(chat).generate(prompt, summary, max_new_tokens=max_tokens, temperature=temperature))
        console.print(str(chat.usage), highlight=False)
        return
    _only_with_api(api_model, key_env, api_extra, price_in, price_out)
    need_training()
    generator: AnyGenerator
    if model is not None:
        from popi.generator import Generator

        load = {"dtype": dtype or "auto", "device": device or "auto", "chat_template": chat_template}
        generator = Generator.from_pretrained(model, template or "auto", **load)
    else:
        from popi.evaluation.models import Models
        from popi.runs.run_directory import RunDirectory

        opened = RunDirectory.open(Path(str(run)))
        generator = Models(opened.config, {}).generator(opened.models(method)[1])
    print(generator.generate(prompt, summary=summary, max_new_tokens=max_tokens, temperature=temperature))


def _only_with_api(*given: object) -> None:
    if any(value is not None for value in given):
        raise typer.BadParameter("--api-model, --key-env, --api-extra, --price-in and --price-out go with --api alone")


def fields_of(extra: str | None) -> dict[str, Any]:
    """The fields of an option that holds a JSON object."""
    try:
        fields = json.loads(extra or "{}")
    except ValueError as error:
        raise typer.BadParameter(f"the fields for each request are not JSON ({error}); got {extra}") from None
    if not isinstance(fields, dict):
        raise typer.BadParameter(f"the fields for each request must be a JSON object; got {extra}")
    return fields


def connect(
    url: str,
    name: str | None,
    protocol: str,
    key_env: str | None,
    extra: str | None,
    concurrency: int,
    price_in: float | None,
    price_out: float | None,
) -> "ApiModel":
    """The model that a command's options name."""
    if name is None:
        raise typer.BadParameter("--api needs --api-model: the model, as the API calls it")
    prices, fields = _prices(price_in, price_out), fields_of(extra)
    from popi.models.remote.api import ApiModel

    return ApiModel.connect(url, name, protocol, key_env=key_env, concurrency=concurrency, prices=prices, extra=fields)


def _prices(price_in: float | None, price_out: float | None) -> "Prices | None":
    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None:
        raise typer.BadParameter("a cost needs both prices: --price-in and --price-out")
    from popi.models.remote.usage import Prices

    return Prices(price_in, price_out)
