"""Models divided among processes (`training.sharding = "fsdp2"`), by torch's `fully_shard`.

Each process holds its shard of every parameter, gradient and optimizer state. What runs where:

- Through the sharded module: the trained forwards and their backward passes (`TreeScorer.forward`, by way of the
  method `score_trees`, which fires the root's hooks). Layers are gathered one after another, gradients are reduced and
  scattered. All processes make the same number of these calls.
- Beside it, with the whole model gathered (`whole`): rollouts, rewards, reference log-probs, the KL's anchor, summaries
  and evaluations. There the number of forwards differs between processes, so a gather per layer would deadlock.

Files are those of one process: tensors are gathered one at a time, and the first process writes them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from popi.engine.tree import causal_lm, token_logps_and_entropies

_WHOLE: set[int] = set()
"""Ids of the models that are gathered now."""


def shard(model: Any) -> None:
    """Divide a model's parameters among all processes, in place: one group per decoder layer, one for the rest."""
    causal = causal_lm(model)
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    names = set(getattr(causal, "_no_split_modules", None) or ())
    for module in list(causal.modules()):
        if type(module).__name__ in names and module is not causal:
            fully_shard(module, mesh=mesh)
    model.score_trees = MethodType(token_logps_and_entropies, model)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "score_trees")
    _begin(model)


def _begin(model: Any) -> None:
    """Make this module the root of its groups: torch takes the first that runs, and a layer may run first."""
    model.become_root = MethodType(lambda self: None, model)
    register_fsdp_forward_method(model, "become_root")
    model.become_root()
    model.reset_iter_state()


def sharded(model: Any) -> bool:
    """Whether a model is divided among processes."""
    return isinstance(model, FSDPModule)


@contextmanager
def whole(*models: Any) -> Iterator[None]:
    """A context in which these models are complete in every process; no-op for None and models that are not sharded.

    All processes must enter it; inside, each may run as many forwards as it likes. Afterwards only shards are left.
    """
    gathered = []
    for model in models:
        if sharded(model) and id(model) not in _WHOLE:
            model.set_reshard_after_forward(False)
            for part in model.modules():
                if isinstance(part, FSDPModule):
                    part.unshard()
            _WHOLE.add(id(model))
            gathered.append(model)
    try:
        yield
    finally:
        for model in gathered:
            _WHOLE.discard(id(model))
            model.reset_iter_state()  # reshards, and forgets the forwards, whose order differs between processes
            model.set_reshard_after_forward(True)
            model.set_reshard_after_forward(False, recurse=False)  # the root: backward follows at once


def full(tensor: Any) -> Any:
    """A sharded tensor, gathered; anything else as it is. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, or the tensor if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor that all processes hold, sharded as `other` is."""
    if not isinstance(other, DTensor):
        return tensor
    mesh, placements = other.device_mesh, other.placements
    return distribute_tensor(tensor.to(other.device), mesh, placements, src_data_rank=None)


def gathered_state(model: Any, first: bool) -> dict[str, Tensor] | None:
    """A sharded model's whole state dict, on the CPU of the first process (the others' is empty); None if the model is
    not sharded. Tied parameters stay one tensor."""
    if not sharded(model):
        return None
    model.reset_iter_state()
    copies: dict[int, Tensor] = {}
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in copies:
            complete = full(tensor.detach())
            copies[id(tensor)] = complete.cpu() if first else complete.new_empty(0)
        if first:
            state[name] = copies[id(tensor)]
    return state


class OptimizerStates:
    """Has a sharded optimizer saved and loaded as that of one process.

    `gather` must be called by all processes before the first one asks for `state_dict`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.states: dict[int, dict[str, Any]] | None = None
        optimizer.register_state_dict_post_hook(self._saved)
        optimizer.register_load_state_dict_pre_hook(self._loaded)

    def gather(self, first: bool) -> None:
        """Gather each tensor, and keep it in the first process until it has been saved."""
        self.states = None
        states: dict[int, dict[str, Any]] = {}
        for i, own in self.optimizer.state_dict()["state"].items():
            for name, value in own.items():
                complete = full(value)
                if first:
                    states.setdefault(i, {})[name] = complete.cpu() if isinstance(value, DTensor) else value
        self.states = states if first else None

    def _saved(self, _: Any, state: dict[str, Any]) -> dict[str, Any]:
        states, self.states = self.states, None
        return state if states is None else state | {"state": states}

    def _loaded(self, _: Any, state: dict[str, Any]) -> dict[str, Any]:
        every = [p for group in self.optimizer.param_groups for p in group["params"]]
        states = {
            i: {
                name: like(value, every[i])
                if isinstance(value, Tensor) and not isinstance(value, DTensor) and value.shape == every[i].shape
                else value
                for name, value in own.items()
            }
            for i, own in state["state"].items()
        }
        return state | {"state": states}
