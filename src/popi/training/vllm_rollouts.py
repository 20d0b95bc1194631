"""Rollouts by vLLM on a GPU, through TRL's client, with checks of the weights.

Not tried on a GPU yet; the tests use a stand-in for vLLM.

- The weights being trained are sent before each step's rollouts (TRL's `sync_weights`). For this, adapters are merged
  and removed again, which in half precision does not restore the base's weights exactly. As the generator and the KL's
  reference share that base, its weights are restored from a copy.
- Every step's log-probs from vLLM are compared with those of the model being trained. A backend with outdated weights,
  or with the base's, raises an error instead of wasting weeks.
- There is no importance sampling: summaries count as samples of the model being trained, which the comparison ensures.
"""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from popi.config import RunConfig
from popi.errors import ConfigError
from popi.models.local.adapters import has_adapters
from popi.models.local.loading import locate
from popi.models.local.model import LocalModel
from popi.training.rollout_check import RolloutError


def refuse_vllm(config: RunConfig) -> None:
    """Raise ConfigError if vLLM is selected but can't run, or if it is configured but not selected."""
    training = config.training
    if training.rollouts != "vllm":
        if training.vllm != type(training.vllm)():
            raise ConfigError("training.vllm is set, but training.rollouts is 'own'; set rollouts = 'vllm' too")
        return
    if config.model.device == "cpu" or not torch.cuda.is_available():
        raise ConfigError("training.rollouts = 'vllm' needs a GPU, and none is in use here; set it to 'own'")
    if missing := [name for name in ("vllm", "trl") if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"training.rollouts = 'vllm': {' and '.join(missing)} is not installed "
            "(pip install 'trl[vllm]==1.16.0'), or use 'own'"
        )
    if config.model.quantization != "none":
        raise ConfigError(
            f"training.rollouts = 'vllm' does not work with model.quantization = {config.model.quantization!r}: it "
            "merges adapters into the base, which would be rounded; use rollouts = 'own'"
        )
    if locate(config.model.base).gguf is not None:
        raise ConfigError(
            f"training.rollouts = 'vllm' does not work with {config.model.base}, whose weights come from a GGUF file; "
            "set model.base to the folder of a Hugging Face model, or use rollouts = 'own'"
        )


@contextmanager
def base_unchanged(model: Any) -> Iterator[None]:
    """A context that restores a PEFT model's base weights exactly on exit; does nothing for other models."""
    if not has_adapters(model):
        yield
        return
    saved = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if ".base_layer." in name}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in saved:
                    parameter.copy_(saved[name])


class VllmRollouts:
    """Samples from vLLM, through TRL's client, with the weights being trained.

    Args:
        config: the run's config; `training.vllm` says where vLLM runs.
        local: the inference model.
        accelerator: the trainer's accelerator.
        longest: tokens of the longest prompt and summary together.
    """

    def __init__(self, config: RunConfig, local: LocalModel, accelerator: Any, longest: int) -> None:
        from trl.generation.vllm_generation import VLLMGeneration

        settings, summary = config.training.vllm, config.summary
        self.model, self.tolerance = local.model, settings.tolerance
        self.backend = VLLMGeneration(
            model=local.model,
            accelerator=accelerator,
            processing_class=local.tokenizer,
            mode="server" if settings.url else "colocate",
            server_base_url=settings.url,
            gpu_memory_utilization=settings.gpu_memory,
            max_model_length=longest,
            max_num_seqs=config.training.inference.users_per_step * config.training.inference.group_size,
            temperature=summary.temperature,
            top_p=summary.top_p,
            max_completion_length=summary.max_tokens,
            generation_kwargs={"stop_token_ids": list(local.stop_ids)},
        )

    def sample(self, prompts: Sequence[Sequence[int]], n: int) -> tuple[list[list[int]], list[list[float | None]]]:
        """A summary for each prompt (each repeated `n` times in a row) by the current weights, and vLLM's log-probs of
        their tokens."""
        with base_unchanged(self.model):
            self.backend.sync_weights()
            _, summaries, logps, _ = self.backend.generate(list(map(list, prompts)), images=None, num_generations=n)
        return summaries, [[token[0] for token in one] for one in logps]


def check_log_probs(
    reported: Sequence[Sequence[float | None]], ours: Tensor, tolerance: float, top_p: float = 1.0
) -> float:
    """Compare vLLM's log-probs with those of the model being trained. Returns the mean difference per token.

    Args:
        reported: vLLM's log-probs of each sample's tokens; None or NaN if missing.
        ours: (samples, ≥ tokens) log-probs of the same tokens, in the whole distribution.
        tolerance: maximum mean difference, besides the effect of `top_p`.
        top_p: vLLM's log-probs are within this nucleus, which makes them higher by at most -log(top_p).

    Raises:
        RolloutError: vLLM reported none, or the mean difference exceeds the tolerance.
    """
    differences = [
        abs(a - b)
        for theirs, own in zip(reported, ours.tolist(), strict=True)
        for a, b in zip(theirs, own, strict=False)
        if a is not None and a == a
    ]
    if not differences:
        raise RolloutError("vLLM returned no log-probs of its samples, so their weights can't be verified")
    mean = sum(differences) / len(differences)
    of_nucleus = -math.log(top_p)
    if not mean <= tolerance + of_nucleus:
        allowed = f"training.vllm.tolerance = {tolerance:g}"
        if of_nucleus > 0:
            allowed += f", plus {of_nucleus:.3g} for top_p = {top_p:g}"
        raise RolloutError(
            f"rollouts do not come from the weights being trained: vLLM's log-probs differ by {mean:.3g} nats per "
            f"token on average (allowed: {allowed}); check that the server was started with the run's base and with "
            "--logprobs-mode processed_logprobs (as `trl vllm-serve` does)"
        )
    return mean
