"""The plain fallback: each branch follows its ancestors in a separate sequence, through the model's own forward.

Tree rows are tested against it, and it runs the models for which tree rows are wrong (`popi.models.local.probe`): those
with a bias by the token's place in the row (ALiBi), a recurrent state, or windows that a mask can't express. Sequences
of equal length share a forward. Nothing is padded or masked, so sequences don't affect each other. It is slower: a
group's prompt is read once per summary, and all logits of a sequence are in memory at once.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessor

from popi.engine.head import at_least_float32
from popi.engine.soft_prompts import with_soft_prompts

if TYPE_CHECKING:
    from popi.engine.tree import TreeBatch

REASON = "popi_plain"
"""Attribute of a causal LM that holds the reason why it uses the fallback."""
LOGITS_BYTES = 2**28
"""Maximum bytes of float32 logits per forward without gradient."""


def run_plain(causal: Any, reason: str) -> None:
    """Make a causal LM use the fallback from now on."""
    setattr(causal, REASON, reason)


def plain_reason(causal: Any) -> str | None:
    """Why a causal LM uses the fallback; None if it does not."""
    return getattr(causal, REASON, None)


def rope_limit(config: Any) -> int | None:
    """With LongRoPE, the length beyond which *all* of a text uses the other table of frequencies.

    transformers picks the table by the longest text of a forward, which would be wrong for shorter ones in the batch.
    """
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [parameters, *(kind for kind in parameters.values() if isinstance(kind, dict))]
    limits = [k["original_max_position_embeddings"] for k in kinds if k.get("rope_type") == "longrope"]
    return min(limits, default=None)


def trees_hold(causal: Any, length: int) -> bool:
    """Whether texts of up to `length` tokens can share prefixes: tree rows, cached roots, parallel branches."""
    limit = rope_limit(causal.config)
    return plain_reason(causal) is None and (limit is None or length <= limit)


def plain_rows(causal: Any, batch: "TreeBatch") -> list[int]:
    """The rows of a batch that need the fallback."""
    limit = rope_limit(causal.config)
    if plain_reason(causal) is not None:
        return list(range(len(batch.lengths)))
    if limit is None or batch.position_ids.shape[1] <= limit:
        return []
    beyond: list[int] = (batch.position_ids.amax(1) >= limit).nonzero()[:, 0].tolist()
    return beyond


def plain_logps(causal: Any, batch: "TreeBatch", temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    """Like `popi.engine.tree.token_logps_and_entropies` for a causal LM: (N,) and (N,). Differentiable."""
    chains = _chains(batch)
    scored: dict[int, tuple[Tensor, Tensor]] = {}
    for part in _together(causal, chains):
        rows, places, _ = zip(*(chains[i] for i in part), strict=True)
        own = torch.tensor(rows, device=batch.input_ids.device)
        columns = torch.stack(places)  # (S, L)
        ids = batch.input_ids[own[:, None], columns]
        inputs = {"input_ids": ids}
        if batch.soft is not None:
            inputs = {"inputs_embeds": with_soft_prompts(causal.get_input_embeddings(), ids, batch.soft[own])}
        logits = at_least_float32(causal(**inputs, use_cache=False).logits) / temperature
        for i, of_one, tokens in zip(part, logits, ids, strict=True):
            n = chains[i][2]
            logps = torch.log_softmax(of_one[-n - 1 : -1], -1)
            entropies = -(logps.exp() * logps).sum(-1).detach() if entropy else logps.new_zeros(0)
            scored[i] = logps.gather(1, tokens[-n:, None])[:, 0], entropies
    if not scored:
        nothing = at_least_float32(causal.get_input_embeddings().weight.new_zeros(0))
        return nothing, nothing
    ordered = [scored[i] for i in range(len(chains))]
    return torch.cat([one[0] for one in ordered]), torch.cat([one[1] for one in ordered])


def _chains(batch: "TreeBatch") -> list[tuple[int, Tensor, int]]:
    """For each scored segment: its row, the columns of its ancestors' and its own tokens, and its number of tokens."""
    chains = []
    device = batch.input_ids.device
    for tokens in torch.tensor_split(
        torch.arange(len(batch.segment)), (batch.segment.cpu().diff().nonzero()[:, 0] + 1).tolist()
    ):
        if not len(tokens):
            continue
        row, last = int(batch.source[tokens[0], 0]), int(batch.place[tokens[-1]])
        segments = batch.segments[row, : last + 1]
        seen = batch.ancestors[row, segments[-1], segments]
        chains.append((row, torch.arange(last + 1, device=device)[seen], len(tokens)))
    return chains


def _together(causal: Any, chains: list[tuple[int, Tensor, int]]) -> list[list[int]]:
    """Group sequences of equal length into forwards with at most `LOGITS_BYTES` of logits."""
    vocabulary = causal.config.get_text_config().vocab_size
    by_length: dict[int, list[int]] = {}
    for i, (_, places, _) in enumerate(chains):
        by_length.setdefault(len(places), []).append(i)
    parts = []
    for length, members in by_length.items():
        size = max(1, LOGITS_BYTES // (4 * vocabulary * length))
        parts += [members[start : start + size] for start in range(0, len(members), size)]
    return parts


class _Finite(LogitsProcessor):
    """Records whether all logits were finite."""

    def __init__(self) -> None:
        self.holds = True

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        finite = bool(scores.amax(-1).isfinite().all())
        self.holds = self.holds and finite
        return scores if finite else torch.zeros_like(scores)  # otherwise sampling would raise


def plain_decode(
    causal: Any,
    prompts: Sequence[Sequence[int]],
    *,
    n: int,
    steps: int,
    temperature: float,
    top_p: float,
    stop_ids: Sequence[int],
    end_id: int,
    soft: Tensor | None = None,
) -> Tensor | None:
    """Like `popi.engine.decoding.decode`, with transformers' generation, for prompts of one length at a time."""
    device = causal.get_input_embeddings().weight.device
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 1e-5 else {}
    settings = GenerationConfig(
        do_sample=bool(sampling),
        **sampling,
        max_new_tokens=steps,
        num_return_sequences=n if sampling else 1,
        eos_token_id=list(stop_ids),
        pad_token_id=end_id,
    )
    finite = _Finite()
    drawn: dict[int, Tensor] = {}
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    own, causal.generation_config = causal.generation_config, GenerationConfig()  # the model's own defaults would apply
    try:
        for length, members in by_length.items():
            ids = torch.tensor([list(prompts[i]) for i in members], device=device)
            inputs = {"input_ids": ids}
            if soft is not None:
                inputs = {"inputs_embeds": with_soft_prompts(causal.get_input_embeddings(), ids, soft[members])}
            sequences = causal.generate(**inputs, generation_config=settings, logits_processor=[finite])
            new = sequences if soft is not None else sequences[:, length:]
            new = new if sampling else new.repeat_interleave(n, 0)
            for i, samples in zip(members, new.unflatten(0, (len(members), n)), strict=True):
                drawn[i] = samples
    finally:
        causal.generation_config = own
    if not finite.holds:
        return None
    widest = max(samples.shape[1] for samples in drawn.values())
    return torch.cat([pad(drawn[i], (0, widest - drawn[i].shape[1]), value=end_id) for i in range(len(prompts))])
