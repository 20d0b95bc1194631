"""Log-probs of responses under many summaries: the hot path.

A target pair under one summary is one tree row (prefix, chosen, rejected). Sums are over response tokens, including
the end-of-turn token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix

import torch
from torch import Tensor

from popi.engine.head import at_least_float32
from popi.engine.tree import Segment, pack, segment_logps

TOGETHER = 8
"""Maximum pairs with one prefix in a tree row. Attention covers the whole row, so its cost is quadratic in length."""


@dataclass(frozen=True)
class ScoringItem:
    """Token ids of one target pair under one prefix (summary and task prompt, templated)."""

    prefix: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def tree(self) -> list[Segment]:
        return [Segment(self.prefix), Segment(self.chosen, 0, True), Segment(self.rejected, 0, True)]

    def with_soft_prompt(self, soft: int, pad_id: int) -> "ScoringItem":
        """The same item preceded by `soft` padding tokens as placeholders for a soft prompt's vectors."""
        return replace(self, prefix=(pad_id,) * soft + self.prefix)

    def __len__(self) -> int:
        return len(self.prefix) + len(self.chosen) + len(self.rejected)


def shared_trees(items: Sequence[ScoringItem]) -> list[list[Segment]]:
    """Tree rows of several target pairs: one row that contains the longest common prefix of their prefixes once.

        common prefix ──▶ rest of prefix 1 ──▶ chosen 1, rejected 1
                      ──▶ rest of prefix 2 ──▶ chosen 2, rejected 2   …

    Without a common prefix there is one row per pair. Scored segments are in the order of the items, chosen first.
    """
    shared = commonprefix([item.prefix for item in items])
    if len(items) == 1 or not shared:
        return [item.tree for item in items]
    row = [Segment(shared)]
    for item in items:
        parent = 0
        if rest := item.prefix[len(shared) :]:
            parent = len(row)
            row.append(Segment(rest, 0))
        row += [Segment(item.chosen, parent, True), Segment(item.rejected, parent, True)]
    return [row]


def batches(groups: Sequence[list[ScoringItem]], size: int) -> Iterator[list[list[ScoringItem]]]:
    """Batches of consecutive groups with at most `size` items, or of a single larger group."""
    part: list[list[ScoringItem]] = []
    for group in groups:
        if part and sum(map(len, part)) + len(group) > size:
            yield part
            part = []
        part.append(group)
    if part:
        yield part


def pair_logps(
    model: torch.nn.Module, items: Sequence[ScoringItem], pad_id: int, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Summed log-probs of chosen and of rejected responses, two (n,) tensors, without gradient.

    Equal items are scored once. Up to `TOGETHER` items with the same prefix share a tree row, which contains it once.
    Rows are bucketed by length to limit padding.

    Args:
        batch_size: maximum pairs per batch.
    """
    by_prefix: dict[tuple[int, ...], list[ScoringItem]] = {}
    for item in dict.fromkeys(items):
        by_prefix.setdefault(item.prefix, []).append(item)
    most = min(TOGETHER, batch_size)
    groups = [group[start : start + most] for group in by_prefix.values() for start in range(0, len(group), most)]
    groups.sort(key=lambda group: sum(map(len, group)) - (len(group) - 1) * len(group[0].prefix))
    index = {item: i for i, item in enumerate(item for group in groups for item in group)}
    sums = []
    device = next(model.parameters()).device
    with torch.no_grad():
        for part in batches(groups, batch_size):
            batch = pack([row for group in part for row in shared_trees(group)], pad_id)
            sums.append(segment_logps(model, batch.to(device)).reshape(-1, 2))
    both = (torch.cat(sums) if sums else torch.zeros(0, 2)).cpu()  # (distinct, 2)
    order = torch.tensor([index[item] for item in items], dtype=torch.long)
    return both[order, 0], both[order, 1]


def soft_pair_logps(
    model: torch.nn.Module, items: Sequence[ScoringItem], soft: Tensor, pad_id: int, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """`pair_logps` of n items, each with its soft prompt.

    Args:
        soft: (n, k, d) vectors that precede the items' prefixes, as token embeddings.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(items)), key=lambda i: len(items[i]))
    sums = []
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = pack([items[i].with_soft_prompt(soft.shape[1], pad_id).tree for i in part], pad_id)
            batch.soft = soft[part]
            sums.append(segment_logps(model, batch.to(device)).reshape(-1, 2))
    both = (torch.cat(sums) if sums else torch.zeros(0, 2)).cpu()[torch.tensor(order, dtype=torch.long).argsort()]
    return both[:, 0], both[:, 1]


def pair_logps_plain(model: torch.nn.Module, items: Sequence[ScoringItem]) -> tuple[Tensor, Tensor]:
    """The same sums from whole sequences through the plain model, one at a time, as reference for tests.

    Differentiable.
    """
    device = next(model.parameters()).device

    def one(prefix: Sequence[int], response: Sequence[int]) -> Tensor:
        ids = torch.tensor([[*prefix, *response]], device=device)
        logps = torch.log_softmax(at_least_float32(model(input_ids=ids).logits[0]), dim=-1)
        return logps[len(prefix) - 1 : -1].gather(1, ids[0, len(prefix) :, None]).sum()

    chosen = torch.stack([one(item.prefix, item.chosen) for item in items])
    rejected = torch.stack([one(item.prefix, item.rejected) for item in items])
    return chosen, rejected
