"""The phase of learned user embeddings: DPO of the generator behind each user's soft prompt (P-RLHF, arXiv 2402.05133).

    L(e, θ) = E [ α·ℓ(h(e_u)) + (1 − α)·ℓ(h(e_0)) ]
    h(e)    = [log π_θ(y⁺|e,x) − log π_ref(y⁺|x)] − [log π_θ(y⁻|e,x) − log π_ref(y⁻|x)]

with ℓ the generator's loss (DPO or IPO). The two terms are drawn and not both computed: a row trains the generic user's
e_0 with probability 1 − α, so a step costs as much as one of population DPO and its gradient is the same on average.
"""

from typing import Any

import torch
from torch import Tensor

from popi.training.phases.generator import GeneratorTrainer
from popi.tree import TreeBatch
from popi.user_embedding import UserEmbedding

NAME = "user_embedding"
"""As which submodule of the model the embedding trains."""


class UserEmbeddingTrainer(GeneratorTrainer):
    """`GeneratorTrainer` that also trains user embeddings, with a learning rate of their own.

    Takes its arguments, and

        embedding: on the generator's device. While the phase runs it is a submodule of the model: gradients are cleared
            and clipped, and checkpoints kept, for both at once.
        inputs: (n, …) what the embedding reads of each of the phase's users.
    """

    def __init__(self, *, embedding: UserEmbedding, inputs: Tensor, **arguments: Any) -> None:
        super().__init__(soft=embedding.tokens, **arguments)
        self.embedding = embedding
        self.embedding_rate: float = arguments["config"].training.user_embedding.learning_rate
        device = embedding.generic.device
        # A row of an unknown user has index −1: the last.
        self.inputs = torch.cat([inputs.to(device), embedding.unknown().to(device)[None]])
        setattr(self.model, NAME, embedding)

    def trees(self, inputs: dict[str, Any]) -> TreeBatch:
        batch = super().trees(inputs)
        batch.soft = self.embedding(self.inputs[inputs["users"]])
        return batch

    def run_phase(self) -> None:
        try:
            super().run_phase()
        finally:
            delattr(self.model, NAME)  # saved beside the model, and not in it

    # hooks

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args)
            every = self.trained_parameters()
            own = {name: p for name, p in every.items() if name.startswith(f"{NAME}.")}
            rest = {name: p for name, p in every.items() if name not in own}
            rates = ((rest, self.args.learning_rate), (own, self.embedding_rate))
            decay = self.args.weight_decay
            groups = [one for p, rate in rates for one in self.groups(self.model, p, rate, decay)]
            self.optimizer = kind(groups, **arguments)
        return self.optimizer
