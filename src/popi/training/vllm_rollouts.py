"""Rollouts by vLLM on a GPU, through TRL's own client: what popi adds is care for the weights.

Not tried on a GPU yet: the code below runs in tests against a stand-in for vLLM.

- The weights that train go over before each step's rollouts (TRL's `sync_weights`). Adapters are merged for that
  and taken out again, which in half precision does not give the base's weights back to the bit, and the generator and
  the KL's anchor read the same base: so the base's weights are put back from a copy.
- Every step's log-probs, as vLLM tells them, are compared with those of the model that trains. A backend that answers
  with older weights, or with the base's, is an error and not a slow loss of weeks.
- There is no correction by importance sampling: the summaries count as samples of the model that trains, which the
  comparison holds to.
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
    """Raise ConfigError where vLLM was asked for and can't run, or where its settings are given without it."""
    training = config.training
    if training.rollouts != "vllm":
        if training.vllm != type(training.vllm)():
            raise ConfigError("training.vllm is set, but training.rollouts is 'own': set rollouts = 'vllm' beside it")
        return
    if config.model.device == "cpu" or not torch.cuda.is_available():
        raise ConfigError("training.rollouts = 'vllm' needs a GPU, and there is none in use here: set it to 'own'")
    if missing := [name for name in ("vllm", "trl") if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"training.rollouts = 'vllm': {' and '.join(missing)} is not installed "
            "(pip install 'trl[vllm]==1.16.0'), or use 'own'"
        )
    if config.model.quantization != "none":
        raise ConfigError(
            f"training.rollouts = 'vllm' does not go with model.quantization = {config.model.quantization!r}: adapters "
            "are merged into the base to go over, which would round it; use rollouts = 'own'"
        )
    if locate(config.model.base).gguf is not None:
        raise ConfigError(
            f"training.rollouts = 'vllm' does not go with {config.model.base}, whose weights are unpacked from a GGUF "
            "file; name the folder of a Hugging Face model as model.base, or use rollouts = 'own'"
        )


@contextmanager
def base_unchanged(model: Any) -> Iterator[None]:
    """Put a PEFT model's base weights back as they were, to the bit; other models pass through."""
    if not has_adapters(model):
        yield
        return
    kept = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if ".base_layer." in name}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])


class VllmRollouts:
    """Samples from vLLM behind TRL's client, which holds the weights that train.

    Args:
        config: of the run; `training.vllm` says where vLLM runs.
        local: the inference model.
        accelerator: the trainer's.
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
        """A summary behind each prompt (`n` equal ones follow each other), by the weights as they are now; and the
        log-probs that vLLM gives their tokens."""
        with base_unchanged(self.model):
            self.backend.sync_weights()
            _, summaries, logps, _ = self.backend.generate(list(map(list, prompts)), images=None, num_generations=n)
        return summaries, [[token[0] for token in one] for one in logps]


def check_log_probs(
    told: Sequence[Sequence[float | None]], ours: Tensor, tolerance: float, top_p: float = 1.0
) -> float:
    """Compare what vLLM says of its tokens with the model that trains. Returns the mean difference of a token.

    Args:
        told: log-probs of each sample's tokens; None or NaN where vLLM gives none.
        ours: (samples, ≥ tokens) of the same tokens, in the whole distribution.
        top_p: vLLM tells log-probs within this nucleus, which are higher by -log(top_p) at most.

    Raises:
        RolloutError: vLLM told none, or the mean difference is above `tolerance` and that.
    """
    differences = [
        abs(a - b)
        for theirs, own in zip(told, ours.tolist(), strict=True)
        for a, b in zip(theirs, own, strict=False)
        if a is not None and a == a
    ]
    if not differences:
        raise RolloutError("vLLM gave no log-probs of its samples, so nobody knows which weights they come from")
    mean = sum(differences) / len(differences)
    of_nucleus = -math.log(top_p)
    if not mean <= tolerance + of_nucleus:
        allowed = f"training.vllm.tolerance = {tolerance:g}"
        if of_nucleus > 0:
            allowed += f", and {of_nucleus:.3g} for top_p = {top_p:g}"
        raise RolloutError(
            f"rollouts do not come from the weights that train: vLLM's log-probs differ by {mean:.3g} nats a token on "
            f"average (allowed: {allowed}); is the server started with the run's base, "
            "and with --logprobs-mode processed_logprobs (as `trl vllm-serve` does)?"
        )
    return mean
