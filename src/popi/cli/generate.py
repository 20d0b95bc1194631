"""Command `generate`: a response by a trained run, a local model or a model API."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from popi.cli.api import (
    Api,
    ApiName,
    Extra,
    KeyEnv,
    PriceIn,
    PriceOut,
    Protocol,
    connect,
    only_with_api,
)
from popi.cli.shared import (
    ChatTemplate,
    Device,
    Dtype,
    LocalModel,
    Method,
    TemplateSet,
    console,
    need_training,
)

if TYPE_CHECKING:
    from popi.generator import AnyGenerator


def generate(
    prompt: Annotated[str, typer.Argument(help="The task prompt.")],
    run: Annotated[Path | None, typer.Option("--run", help="Directory of a trained run.")] = None,
    model: LocalModel = None,
    chat_template: ChatTemplate = None,
    template: TemplateSet = None,
    dtype: Dtype = None,
    device: Device = None,
    summary: Annotated[
        str | None, typer.Option(help="The user's preference summary. Without it, the prompt is answered as it is.")
    ] = None,
    method: Method = None,
    api: Api = None,
    api_model: ApiName = None,
    protocol: Protocol = "openai",
    key_env: KeyEnv = None,
    api_extra: Extra = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of the response.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 decodes greedily.")] = 0.0,
) -> None:
    """Answer a task prompt for the user whom a summary describes."""
    if not prompt.strip():
        raise typer.BadParameter("the task prompt is empty; give it as text in quotes")
    if not math.isfinite(temperature):
        raise typer.BadParameter(f"--temperature must be a finite number; got {temperature}")
    if [run is None, model is None, api is None].count(True) != 2:
        raise typer.BadParameter(
            "name exactly one of the three: a trained run with --run, a model with --model, or a model API with --api"
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
    only_with_api(api_model, key_env, api_extra, price_in, price_out)
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
