"""The phase of learned user embeddings: DPO of the generator with each user's soft prompt (P-RLHF, arXiv 2402.05133).

    L(e, θ) = E [ α·ℓ(h(e_u)) + (1 − α)·ℓ(h(e_0)) ]
    h(e)    = [log π_θ(y⁺|e,x) − log π_ref(y⁺|x)] − [log π_θ(y⁻|e,x) − log π_ref(y⁻|x)]

with ℓ the generator's loss (DPO or IPO). One of the two terms is drawn per row: it trains the generic user's e_0 with
probability 1 − α. So a step costs as much as one of population DPO, and its gradient is the same in expectation.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from popi.engine.tree import TreeBatch
from popi.models.local.model import LocalModel
from popi.models.local.user_embedding import UserEmbedding
from popi.training.phases.generator import GeneratorTrainer
from popi.training.phases.scorer import TreeScorer


class EmbeddingScorer(TreeScorer):
    """Scores tree rows that start with their users' soft prompts; trains embeddings and generator."""

    def __init__(self, model: Any, embedding: UserEmbedding) -> None:
        super().__init__(model)
        self.user_embedding = embedding

    def forward(self, batch: TreeBatch, users: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """`users`: (B, …) the embedding's input for each row's user."""
        return super().forward(replace(batch, soft=self.user_embedding(users)))

    def own(self) -> dict[str, Parameter]:
        """The embedding's parameters, by name."""
        return {f"user_embedding.{name}": p for name, p in self.user_embedding.named_parameters()}

    def components(self) -> dict[str, dict[str, Parameter]]:
        return {"the model": super().components()["the model"] | self.own()}


class UserEmbeddingTrainer(GeneratorTrainer):
    """`GeneratorTrainer` that also trains user embeddings, with a separate learning rate.

    Takes its arguments, and

        embedding: the embedding, on the generator's device.
        inputs: (n, …) the embedding's input for each of the phase's users.
    """

    def __init__(self, *, local: LocalModel, embedding: UserEmbedding, inputs: Tensor, **arguments: Any) -> None:
        self.embedding = embedding
        self.embedding_rate: float = arguments["config"].training.user_embedding.learning_rate
        # Rows of unknown users have index −1, the last row.
        self.inputs = torch.cat([inputs.to(local.device), embedding.unknown().to(local.device)[None]])
        self.trained = EmbeddingScorer(local.model, embedding)
        super().__init__(local=local, scorer=self.trained, soft=embedding.tokens, **arguments)

    def score(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        logps: Tensor = model(inputs["trees"], self.inputs[inputs["users"]])[0]
        return logps

    def groups(self) -> list[tuple[dict[str, Parameter], float, float]]:
        """A separate learning rate for the embeddings."""
        own, every, decay = self.trained.own(), self.scorer.trained_parameters(), self.args.weight_decay
        rest = {name: p for name, p in every.items() if name not in own}
        return [(rest, self.args.learning_rate, decay), (own, self.embedding_rate, decay)]
