"""Checks that rollouts come from the weights being trained; other projects lost weeks to rollouts from the base."""

from collections.abc import Sequence
from typing import Any

import torch

from popi.engine.head import at_least_float32
from popi.engine.plain import rope_limit, trees_hold
from popi.engine.tree import causal_lm
from popi.errors import PopiError
from popi.models.local.model import LocalModel
from popi.models.local.probe import TOLERANCE


class RolloutError(PopiError):
    """Rollouts and training use different weights, because of a bug or a backend that is not synchronised."""


def check_rollouts(local: LocalModel, trained: Any, prompt: Sequence[int], max_new_tokens: int) -> float:
    """Compare the log-probs of a greedy rollout with a plain forward of the trained model.

    Draws no random numbers. Returns the largest difference in a token's log-prob.

    Raises:
        RolloutError: the difference is too large.
    """
    limit = rope_limit(local.model.config)
    if limit is not None and len(prompt) < limit:  # beyond the limit the model changes for the whole text
        max_new_tokens = min(max_new_tokens, limit - len(prompt))
    whole_rows = trees_hold(causal_lm(local.model), len(prompt) + max_new_tokens)
    generates = local.model if whole_rows else causal_lm(local.model)
    seen: list[torch.Tensor] = []
    hook = generates.register_forward_hook(lambda _, __, output: seen.append(at_least_float32(output.logits[0, -1])))
    try:
        ids = local.generate([prompt], max_new_tokens=max_new_tokens)[0][0]
    finally:
        hook.remove()
    was_training = trained.training
    trained.eval()
    with torch.no_grad():
        whole = torch.tensor([[*prompt, *ids]], device=local.device)
        logits = at_least_float32(trained(input_ids=whole).logits[0, len(prompt) - 1 : -1])  # (tokens, V)
    trained.train(was_training)
    index = torch.tensor(ids, device=local.device)[:, None]
    rollout = torch.log_softmax(torch.stack(seen[: len(ids)]), dim=-1).gather(1, index)
    plain = torch.log_softmax(logits, dim=-1).gather(1, index)
    difference = float((rollout - plain).abs().max())
    allowed = TOLERANCE.get(next(trained.parameters()).dtype, 0.25)
    if not difference <= allowed:
        raise RolloutError(
            f"rollouts do not come from the weights being trained: log-probs of a greedy summary differ by "
            f"{difference:.3g} (allowed {allowed:g}); the model that generates is not the one being trained"
        )
    return difference
