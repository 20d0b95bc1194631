"""Commands about models: push and merge trained ones, build a nano base."""

from pathlib import Path
from typing import Annotated

import typer

from popi.cli.shared import Method, Run, console, need_training, out, progress_bars
from popi.errors import RunError

app = typer.Typer()
nano_app = typer.Typer(help="The nano base: the small model that ships with popi.", no_args_is_help=True)
app.add_typer(nano_app, name="nano")


@app.command()
def push(
    run: Run,
    to: Annotated[str, typer.Option("--to", help="Repository on the Hugging Face hub: owner/name.")],
    method: Method = None,
    part: Annotated[
        str | None, typer.Option(help="inference_model or generator, where the method trained both.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and send nothing.")] = False,
) -> None:
    """Upload a trained model of a run, with its model card, to the Hugging Face hub."""
    need_training()
    from popi.runs.run_directory import RunDirectory
    from popi.training.push import part_to_push, push_folder

    folder = part_to_push(RunDirectory.open(run), method, part)
    files = push_folder(folder, to, private=private, dry_run=dry_run)
    for name, size in files:
        out.print(f"{size:>12,} {name}", highlight=False)
    console.print(f"{'would go' if dry_run else 'pushed'} to {to}: {folder}", highlight=False)


@app.command()
def merge(
    adapter: Annotated[
        Path, typer.Argument(help="Folder of an adapter, such as RUN/phases/inference-1/inference_model.")
    ],
    output: Annotated[Path, typer.Option("--out", help="Folder to write; must not exist.")],
    dtype: Annotated[str, typer.Option(help="Type of the weights: auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Merge a trained adapter into its base and write the whole model."""
    need_training()
    from popi.training.merging import merge as write_merged

    write_merged(adapter, output, dtype, device)
    console.print(f"merged: {output}", highlight=False)


@nano_app.command("build")
def nano_build(
    output: Annotated[Path, typer.Option("--out", help="Folder to make.")] = Path("runs/nano-base"),
    seed: Annotated[int, typer.Option(min=0, help="Seeds weights and data; the shipped base has seed 0.")] = 0,
    hidden_size: Annotated[int | None, typer.Option(min=16, help="Width; the shipped base's if not given.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Depth; the shipped base's if not given.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="A shorter curriculum; the shipped base's if not given.")
    ] = None,
) -> None:
    """Train a nano base from scratch (the shipped one: half an hour to an hour on two cores)."""
    if output.exists():
        raise RunError(f"{output}: exists and is left as it is; name another folder with --out")
    output.mkdir(parents=True)  # can it be made at all? Better known now than after half an hour
    output.rmdir()
    need_training()
    from popi.nano.recipe import Recipe, build

    shipped = Recipe()
    recipe = Recipe(seed, hidden_size or shipped.hidden_size, layers or shipped.layers)
    recipe = recipe.shortened(steps) if steps else recipe
    with progress_bars() as progress:
        task = progress.add_task("steps", total=recipe.steps)
        build(output, recipe, on_step=lambda step, _losses: progress.update(task, completed=step + 1))
    console.print(f"built: {output}", highlight=False)
