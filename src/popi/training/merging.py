"""Merges an adapter into its base: writes a folder with full weights, for tools that don't support adapters."""

import os
import shutil
from pathlib import Path

from popi.errors import RunError
from popi.models.local.adapters import has_adapters
from popi.models.local.loading import read_json
from popi.models.local.model import LocalModel
from popi.models.local.user_embedding import UserEmbedding


def merge(adapter: Path, out: Path, dtype: str = "auto", device: str = "auto") -> None:
    """Write the adapter's merged model and popi's settings to `out`, atomically.

    An adapter trained over quantised weights is refused: over full-precision weights it is a different model, and
    quantising the sum again would round it. In half precision the merged weights are rounded, so log-probs differ
    slightly from those with the adapter.

    Raises:
        RunError: the folder is not an adapter, or is one over quantised weights; or `out` exists.
        ModelError: the adapter or its base can't be loaded.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise RunError(
            f"{adapter}: not an adapter (no adapter_config.json); name an adapter's folder, such as "
            "RUN/phases/inference-1/inference_model"
        )
    settings = adapter / LocalModel.SETTINGS
    quantization = read_json(settings).get("quantization", "none") if settings.is_file() else "none"
    if quantization != "none":
        raise RunError(
            f"{adapter}: was trained over {quantization} weights (model.quantization), and merged into full-precision "
            "ones it would be a different model; use it as an adapter, or train with quantization = 'none'"
        )
    if out.exists():
        raise RunError(f"{out}: exists already; name another folder")
    local = LocalModel.load(adapter, dtype=dtype, device=device)
    assert has_adapters(local.model)
    local.model = local.model.merge_and_unload()
    for name in ("base", "base_weights"):  # the folder is its own base
        local.settings.pop(name, None)
    embedding = UserEmbedding.load(adapter)
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    local.save(aside)
    if embedding is not None:
        embedding.save(aside)
    os.replace(aside, out)
