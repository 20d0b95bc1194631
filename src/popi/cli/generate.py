"""Command `generate`: a response from a trained run, a local model or a model API."""

import math
from pathlib import Path
from typing import Annotated

import typer

from popi.cli.api import (
    Api,
    ApiName,
    Extra,
    InputPrice,
    KeyEnv,
    OutputPrice,
    Protocol,
    api_spec,
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
    local_spec,
    need_training,
    reject_unrelated_options,
)


def generate(
    prompt: Annotated[str, typer.Argument(help="The task prompt.")],
    run: Annotated[Path | None, typer.Option("--run", help="Directory of a trained run.")] = None,
    model: LocalModel = None,
    chat_template: ChatTemplate = None,
    template: TemplateSet = None,
    dtype: Dtype = None,
    device: Device = None,
    summary: Annotated[
        str | None, typer.Option(help="The user's preference summary. Without it, the prompt is answered as is.")
    ] = None,
    method: Method = None,
    api: Api = None,
    api_model: ApiName = None,
    protocol: Protocol = "openai",
    key_env: KeyEnv = None,
    api_extra: Extra = None,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of the response.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 decodes greedily.")] = 0.0,
) -> None:
    """Answer a task prompt for the user described by a summary."""
    if not prompt.strip():
        raise typer.BadParameter("the task prompt is empty; give it as text in quotes")
    if not math.isfinite(temperature):
        raise typer.BadParameter(f"--temperature must be a finite number; got {temperature}")
    if [run is None, model is None, api is None].count(True) != 2:
        raise typer.BadParameter(
            "name exactly one of the three: a trained run with --run, a model with --model, or a model API with --api"
        )
    reject_unrelated_options(run, method, model, template, dtype, device, chat_template)
    if api is not None:
        spec = api_spec(api, api_model, protocol, key_env, api_extra, 1, input_price, output_price)
        from popi.generator import Generator

        api_generator = Generator.from_spec(spec)
        print(api_generator.generate(prompt, summary, max_new_tokens=max_tokens, temperature=temperature))
        console.print(str(api_generator.backend.usage), highlight=False)
        return
    only_with_api(api_model, key_env, api_extra, input_price, output_price)
    need_training()
    if model is not None:
        from popi.generator import Generator

        generator = Generator.from_spec(local_spec(model, template, dtype, device, chat_template))
    else:
        from popi.evaluation.models import Models
        from popi.runs.run_directory import RunDirectory

        opened = RunDirectory.open(Path(str(run)))
        generator = Models(opened.config, {}).generator(opened.models(method)[1])
    print(generator.generate(prompt, summary=summary, max_new_tokens=max_tokens, temperature=temperature))
