"""Commands on models: push and merge trained models, build a nano base."""

from pathlib import Path
from typing import Annotated

import typer

from popi.cli.shared import Method, Run, console, need_training, out, progress_bars
from popi.errors import RunError

nano_app = typer.Typer(help="Build the nano base, the small model that ships with popi.", no_args_is_help=True)


def push(
    run: Run,
    to: Annotated[str, typer.Option("--to", help="Repository on the Hugging Face hub: owner/name.")],
    method: Method = None,
    part: Annotated[str | None, typer.Option(help="inference_model or generator, if the method trained both.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files without uploading them.")] = False,
) -> None:
    """Upload a run's trained model and its model card to the Hugging Face hub."""
    need_training()
    from popi.runs.run_directory import RunDirectory
    from popi.training.push import part_to_push, push_folder

    folder = part_to_push(RunDirectory.open(run), method, part)
    files = push_folder(folder, to, private=private, dry_run=dry_run)
    for name, size in files:
        out.print(f"{size:>12,} {name}", highlight=False)
    console.print(f"{'would push' if dry_run else 'pushed'} to {to}: {folder}", highlight=False)


def merge(
    adapter: Annotated[
        Path, typer.Argument(help="Folder of the adapter, such as RUN/phases/inference-1/inference_model.")
    ],
    output: Annotated[Path, typer.Option("--out", help="New folder for the merged model.")],
    dtype: Annotated[str, typer.Option(help="Data type of the weights: auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 and so on.")] = "auto",
) -> None:
    """Merge a trained adapter into its base model and save the result."""
    need_training()
    from popi.training.merging import merge as write_merged

    write_merged(adapter, output, dtype, device)
    console.print(f"merged: {output}", highlight=False)


@nano_app.command("build")
def nano_build(
    output: Annotated[Path, typer.Option("--out", help="New folder for the model.")] = Path("runs/nano-base"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights and the data. The shipped base uses 0.")] = 0,
    hidden_size: Annotated[
        int | None, typer.Option(min=16, help="Hidden size. Default: that of the shipped base.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Number of layers. Default: that of the shipped base.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Length of a shorter curriculum. Default: that of the shipped base.")
    ] = None,
) -> None:
    """Train a nano base from scratch. The shipped one takes 30 to 60 minutes on two cores."""
    if output.exists():
        raise RunError(f"{output}: already exists; name another folder with --out")
    output.mkdir(parents=True)  # fail now rather than after half an hour if it can't be created
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
