"""Uploads a run's trained model to the Hugging Face hub: the folder that the run saved, with its model card."""

import re
from pathlib import Path
from typing import Any

from popi.errors import RunError, UpstreamError
from popi.runs.run_directory import RunDirectory
from popi.training.components import GENERATOR, INFERENCE

PARTS = (INFERENCE, GENERATOR)


def part_to_push(run: RunDirectory, method: str | None = None, part: str | None = None) -> Path:
    """The folder of a method's trained part; `part` may be omitted if the method trained only one.

    Raises:
        RunError: there is no such part, it is the untrained base, or `part` is needed to choose between two.
    """
    if part is not None and part not in PARTS:
        raise RunError(f"--part {part!r} is not one of {', '.join(PARTS)}")
    models = dict(zip(PARTS, run.models(method), strict=True))
    phases = run.path / "phases"
    trained = {name: Path(path) for name, path in models.items() if phases in Path(path).parents}
    if part is None and len(trained) > 1:
        raise RunError(f"{run.path}: this method trained {' and '.join(trained)}; name one with --part")
    chosen = part or next(iter(trained), None)
    if chosen is None or chosen not in trained:
        raise RunError(f"{run.path}: the {chosen or 'model'} of this method is the untrained base; nothing to push")
    return trained[chosen]


def push_folder(
    folder: Path, to: str, *, private: bool = False, dry_run: bool = False, api: Any = None
) -> list[tuple[str, int]]:
    """Upload a model's folder as one commit; returns the files' names and sizes in bytes.

    Args:
        folder: a folder that a run saved.
        to: owner/name of the repository, which is created if it does not exist.
        private: create a private repository. Does not change an existing one.
        dry_run: only list the files.
        api: a `huggingface_hub.HfApi`; tests pass a fake.

    Raises:
        RunError: `to` is not owner/name, or there is no model.
        UpstreamError: the hub can't be reached, or rejected the request.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", to):
        raise RunError(f"--to {to!r}: must be a repository on the hub, as owner/name")
    files = sorted((f.relative_to(folder).as_posix(), f.stat().st_size) for f in folder.rglob("*") if f.is_file())
    if not any(name.endswith(".safetensors") for name, _ in files):
        raise RunError(f"{folder}: has no weights; finish training the run first")
    if dry_run:
        return files
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = api or HfApi()
    try:
        api.create_repo(to, private=private, exist_ok=True)
        api.upload_folder(repo_id=to, folder_path=str(folder), commit_message="Trained with popi")
    except OfflineModeIsEnabled:
        raise UpstreamError(f"can't push to {to}: HF_HUB_OFFLINE is set; unset it, or use --dry-run") from None
    except LocalTokenNotFoundError:
        raise UpstreamError(f"can't push to {to}: no token; log in with `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        advice = "; log in with `hf auth login`, or set HF_TOKEN to a token with write access"
        raise UpstreamError(
            f"can't push to {to}: the hub answered {status}{advice if status in (401, 403) else ''}", status=status
        ) from None
    except Exception as error:  # without a network, the HTTP client's errors, which differ between versions
        raise UpstreamError(f"can't push to {to}: the hub can't be reached ({type(error).__name__}: {error})") from None
    return files
