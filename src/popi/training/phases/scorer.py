"""The trained parameters as one module whose `forward` scores tree rows.

The trainer wraps and calls this module, so DDP and FSDP wrap exactly what runs. A checkpoint contains its trainable
parameters, by their names in the models.
"""

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from popi.engine.roots import Roots
from popi.engine.tree import TreeBatch, token_logps_and_entropies
from popi.training.sharding import like


def tree_logps(model: Any) -> Any:
    """`token_logps_and_entropies` of a model; as a method of a sharded one, so that its parameters are gathered."""
    return getattr(model, "score_trees", None) or partial(token_logps_and_entropies, model)


class TreeScorer(torch.nn.Module):
    """Scores tree rows with a causal LM, with or without adapters."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: TreeBatch, temperature: float = 1.0, entropy: bool = False, roots: Roots | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of each scored token: (N,) and (N,). See `popi.engine.tree`."""
        return tree_logps(self.model)(batch, temperature, entropy=entropy, roots=roots)

    def components(self) -> dict[str, dict[str, Parameter]]:
        """Trainable parameters by component and name."""
        return {"the model": {name: p for name, p in self.model.named_parameters() if p.requires_grad}}

    def trained_parameters(self) -> dict[str, Parameter]:
        """The parameters in a checkpoint, by name, prefixed with the component's name if there are several."""
        parts = self.components()
        return {f"{part}.{n}" if len(parts) > 1 else n: p for part, own in parts.items() for n, p in own.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint's parameters, which must be exactly the trainable ones, regardless of `strict`.

        Raises:
            RuntimeError: the names differ.
        """
        parameters = self.trained_parameters()
        if state_dict.keys() != parameters.keys():
            raise RuntimeError(f"the checkpoint's parameters {sorted(state_dict.keys() ^ parameters.keys())} differ")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(like(state_dict[name], parameter))
        return SimpleNamespace(missing_keys=[], unexpected_keys=[])


def pair_sums(logps: Tensor, batch: TreeBatch) -> Tensor:
    """(N,) tokens' log-probs of B pairs -> (B, 2), summed over each response: chosen, rejected."""
    return logps.new_zeros(batch.n_segments).index_add(0, batch.segment, logps).reshape(-1, 2)
