"""An adapter merged into its base: a folder with whole weights, for servers and tools that take no adapters."""

import os
import shutil
from pathlib import Path

from popi.errors import RunError
from popi.models.local.adapters import has_adapters
from popi.models.local.loading import read_json
from popi.models.local.model import LocalModel
from popi.models.local.user_embedding import UserEmbedding


def merge(adapter: Path, out: Path, dtype: str = "auto", device: str = "auto") -> None:
    """Write the adapter's model to `out`, whole or not at all, with what popi needs to know of it.

    An adapter that was trained over quantised weights is refused: over weights in full it is another model, and
    quantised again the sum would be rounded. In half precision the merged weights are rounded: log-probs then differ a
    little from those under the adapter.

    Raises:
        RunError: the folder is no adapter or one over quantised weights, or something stands at `out`.
        ModelError: adapter or base can't be loaded.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise RunError(
            f"{adapter}: holds no adapter (adapter_config.json); name the folder of one, such as "
            "RUN/phases/inference-1/inference_model"
        )
    settings = adapter / LocalModel.SETTINGS
    quantization = read_json(settings).get("quantization", "none") if settings.is_file() else "none"
    if quantization != "none":
        raise RunError(
            f"{adapter}: was trained over weights of {quantization} (model.quantization), and merged into whole ones "
            "it would be another model; use it as an adapter over that base, or train with quantization = 'none'"
        )
    if out.exists():
        raise RunError(f"{out}: exists and is left as it is; name another folder")
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
