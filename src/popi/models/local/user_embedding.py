"""Learned user embeddings: a soft prompt of k vectors per user, prepended to the generator's prompt.

P-RLHF (Li et al., arXiv 2402.05133, example 2) gives user u the embedding e_u = e_0 + o_u, where e_0 is the generic
user's embedding and o_u the user's offset; users not seen in training get e_0. Here o_u is one of

- `UserIdEmbedding`: a row of a table, as in the paper, which only works for training users;
- `SignalsEmbedding`: W·f(s), a linear map of the untrained base's representation of the user's signals s, which works
  for any user with signals. f is the base's last hidden state, averaged over the tokens of the rendered signals and
  standardised by mean and deviation over the training users, so that f = 0 (no signals) is the average user.

Offsets are initialised to 0, and e_0 to the embeddings of tokens drawn from the vocabulary.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from popi.engine.head import at_least_float32
from popi.engine.plain import trees_hold
from popi.engine.tree import causal_lm
from popi.errors import ModelError
from popi.signals.types import User

if TYPE_CHECKING:  # imported only for types: the generator module imports this one
    from popi.generator import Generator

FILE = "user_embedding.safetensors"
ABOUT = "popi"
"""The file's only metadata key: with several, their order would vary, and equal embeddings should give equal files."""


class UserEmbedding(nn.Module):
    """Soft prompts of users: `inputs` turns n users into the module's inputs, and `forward` those into soft prompts."""

    def __init__(self, generic: Tensor) -> None:
        """`generic`: (k, d), the generic user's soft prompt."""
        super().__init__()
        self.generic = nn.Parameter(at_least_float32(generic.detach().clone()))

    @property
    def tokens(self) -> int:
        """k: the length of the soft prompt."""
        return self.generic.shape[0]

    def inputs(self, users: Sequence[User], base: "Generator", token_budget: int, batch_size: int = 8) -> Tensor:
        """The input of `forward` for each user, with first dimension n.

        Args:
            users: the n users.
            base: the untrained generator; adapters, if any, must be disabled.
            token_budget: maximum tokens of rendered signals.
            batch_size: users that the base reads at once.
        """
        raise NotImplementedError

    def unknown(self) -> Tensor:
        """The input of `forward` for a user about whom nothing is known, which gives the generic embedding."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, k, d) soft prompts."""
        raise NotImplementedError

    def soft_prompts(self, users: Sequence[User], base: "Generator", token_budget: int, batch_size: int = 8) -> Tensor:
        """(n, k, d) soft prompts of users, without gradients; see `inputs`."""
        with torch.no_grad():
            soft: Tensor = self(self.inputs(users, base, token_budget, batch_size).to(self.generic.device))
            return soft

    def _about(self) -> dict[str, Any]:
        return {"source": "user_id" if isinstance(self, UserIdEmbedding) else "signals"}

    def save(self, folder: Path) -> None:
        """Save to a model's folder."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / FILE, {ABOUT: json.dumps(self._about())})

    @staticmethod
    def load(folder: str | Path) -> "UserEmbedding | None":
        """Load the embedding in a model's folder; None if it has none.

        Raises:
            ModelError: if the file can't be read.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
                about = json.loads(opened.metadata()[ABOUT])
            embedding: UserEmbedding
            if about["source"] == "user_id":
                embedding = UserIdEmbedding(tensors["generic"], about["users"])
            else:
                embedding = SignalsEmbedding(tensors["generic"], tensors["mean"], tensors["deviation"])
            embedding.load_state_dict(tensors)
        except Exception as error:  # for a broken file, safetensors, json and torch may raise anything
            raise ModelError(f"{file}: can't be read ({error}); train this phase again") from None
        return embedding


class UserIdEmbedding(UserEmbedding):
    """e_0 plus a row of a table for training users, and just e_0 for all others.

    Args:
        generic: (k, d).
        users: the keys of the n training users (see `key`), in the order of the table.
    """

    def __init__(self, generic: Tensor, users: Sequence[str]) -> None:
        super().__init__(generic)
        self.row = {user: row for row, user in enumerate(dict.fromkeys(users))}
        self.offsets = nn.Parameter(self.generic.new_zeros(len(self.row), *generic.shape))  # (n, k, d)

    @staticmethod
    def key(user: User) -> str:
        """A user's key in the saved table: a hash instead of the plain id, since models are shared."""
        return hashlib.sha256(user.user_id.encode()).hexdigest()[:20]

    def inputs(self, users: Sequence[User], base: "Generator", token_budget: int, batch_size: int = 8) -> Tensor:
        return torch.tensor([self.row.get(self.key(user), -1) for user in users], dtype=torch.long)

    def unknown(self) -> Tensor:
        return torch.tensor(-1)

    def forward(self, inputs: Tensor) -> Tensor:
        offsets = self.offsets[inputs.clamp(min=0)] * (inputs >= 0)[:, None, None]  # (n, k, d)
        return self.generic + offsets

    def _about(self) -> dict[str, Any]:
        return {**super()._about(), "users": list(self.row)}


class SignalsEmbedding(UserEmbedding):
    """e_0 + W·f(s) for users with signals, and just e_0 for users without.

    Args:
        generic: (k, d).
        mean, deviation: (h,) of the base's averaged hidden states over the training users.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, generic: Tensor, mean: Tensor, deviation: Tensor) -> None:
        super().__init__(generic)
        self.register_buffer("mean", at_least_float32(mean))
        self.register_buffer("deviation", at_least_float32(deviation))
        self.map = nn.Linear(len(mean), generic.numel(), bias=False, dtype=self.generic.dtype)
        nn.init.zeros_(self.map.weight)

    @classmethod
    def of(cls, generic: Tensor, states: Tensor) -> "SignalsEmbedding":
        """A new embedding, standardised by the training users' averaged hidden states, (n, h), ignoring NaN rows."""
        states = states[~states.isnan().any(1)]
        if not len(states):
            states = torch.zeros(1, states.shape[1])
        return cls(generic, states.mean(0), states.std(0, correction=0).clamp(min=1e-6))

    def inputs(self, users: Sequence[User], base: "Generator", token_budget: int, batch_size: int = 8) -> Tensor:
        return self.standardised(hidden_states(users, base, token_budget, batch_size))

    def standardised(self, states: Tensor) -> Tensor:
        """(n, h) averaged hidden states -> f, (n, h); a row of NaN (no signals) becomes 0."""
        return ((states.to(self.mean.device) - self.mean) / self.deviation).nan_to_num(nan=0.0)

    def unknown(self) -> Tensor:
        return torch.zeros_like(self.mean)

    def forward(self, inputs: Tensor) -> Tensor:
        offsets: Tensor = self.map(inputs)
        return self.generic + offsets.unflatten(1, self.generic.shape)


def hidden_states(
    users: Sequence[User],
    base: "Generator",
    token_budget: int,
    batch_size: int = 8,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """(n, h): the base's last hidden state, averaged over the tokens of each user's rendered signals.

    Users without signals, or with none that fits the budget, get a row of NaN. `report` is called with the number of
    users read so far.
    """
    model = causal_lm(base.local.model)
    width = base.local.model.config.get_text_config().hidden_size
    dtype = torch.promote_types(base.local.model.dtype, torch.float32)
    states = torch.full((len(users), width), float("nan"), dtype=dtype)
    texts: dict[int, list[int]] = {}
    for i, user in enumerate(users):
        fitting, _ = base.templates.fit(user.signals, token_budget, base.count_tokens)
        if fitting:
            texts[i] = base.local.format.tokens(base.templates.signals_text(fitting))
    order = sorted(texts, key=lambda i: len(texts[i]))  # minimises padding
    if order and not trees_hold(model, len(texts[order[-1]])):
        batch_size = 1  # no padding at all
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        longest = max(len(texts[i]) for i in batch)
        ids = torch.tensor([texts[i] + [base.local.pad_id] * (longest - len(texts[i])) for i in batch])
        mask = torch.tensor([[1] * len(texts[i]) + [0] * (longest - len(texts[i])) for i in batch])
        ids, mask = ids.to(base.local.device), mask.to(base.local.device)
        with torch.no_grad():
            decoder = model.get_decoder()  # type: ignore[operator]
            hidden = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.to(dtype)
        states[batch] = ((hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)).cpu()
        if report:
            report(start + len(batch))
    return states


def generic_embedding(embeddings: Tensor, tokens: int, seed: int) -> Tensor:
    """(k, d): the initial e_0, `tokens` distinct rows of the (V, d) token embeddings, drawn with the seed."""
    drawn = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(seed))[:tokens]
    return at_least_float32(embeddings[drawn.to(embeddings.device)].detach())
