"""A LoRA adapter for one user, trained by DPO on that user's own signals: the per-user fine-tuning baseline.

    L(θ_u) = mean over the user's own pairs of −log σ(β·h),   h as in `objective`, on plain prompts

It uses those of the user's signals that can be converted to preference pairs, and no data of other users. The adapter
exists only while the user is scored; all users share one base.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from popi.config import PerUserLoraConfig
from popi.engine.scoring import pair_logps
from popi.engine.tree import pack, segment_logps
from popi.errors import ConfigError, RunError
from popi.generator import Generator
from popi.models.local.adapters import TRAINED, attach_adapters, has_adapters
from popi.signals.types import InteractionSignal, PairSignal, Signal, TargetPair
from popi.training.objective import dpo_loss, margin
from popi.training.rows import draw

MAX_GRAD_NORM = 10.0
"""Gradient clipping, as in a generator phase."""


def own_pairs(signals: Sequence[Signal]) -> list[TargetPair]:
    """A user's signals as preference pairs: pairs themselves, and edits as preferred over the original response.

    Other signals (posts, statements, ratings, demographics) do not have two responses and are skipped.
    """
    pairs = []
    for signal in signals:
        if isinstance(signal, PairSignal):
            pairs.append(TargetPair(prompt=signal.prompt, chosen=signal.chosen, rejected=signal.rejected))
        elif isinstance(signal, InteractionSignal) and signal.edit and signal.edit != signal.response:
            pairs.append(TargetPair(prompt=signal.prompt, chosen=signal.edit, rejected=signal.response))
    return pairs


@contextmanager
def user_adapter(
    generator: Generator, pairs: Sequence[TargetPair], settings: PerUserLoraConfig, seed: int
) -> Iterator[None]:
    """A context in which the generator has an adapter trained on `pairs`; without pairs, none.

    Args:
        generator: the untrained base, whose weights do not change.
        pairs: the user's own pairs.
        settings: rank, steps, batch size, learning rate and β.
        seed: seed for the adapter's initial weights and the order of the pairs.

    Raises:
        ConfigError: the base is itself an adapter over another model.
        RunError: the training diverged.
    """
    local = generator.local
    base = local.model
    if has_adapters(base):
        raise ConfigError(
            f"evaluation.per_user_lora: {local.name} is an adapter over another model and can't have a second one; set "
            "model.base to a model without adapter, or disable per_user_lora"
        )
    if not pairs:
        yield
        return
    flags = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
    items = generator.reference_items(pairs)
    ref_chosen, ref_rejected = (logps.to(local.device) for logps in pair_logps(base, items, local.pad_id))
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses renamed arguments
        torch.manual_seed(seed)
        model = attach_adapters(base, settings.rank, 2.0 * settings.rank, {TRAINED: None})
    try:
        local.model = model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
        size = min(settings.batch_size, len(items))
        order = draw(len(items), size, settings.steps, seed)
        for start in range(0, len(order), size):
            picked = order[start : start + size]
            trees = pack([items[i].tree for i in picked], local.pad_id).to(local.device)
            logps = segment_logps(model, trees).reshape(-1, 2)  # (B, 2): chosen, rejected
            h = margin(logps[:, 0], logps[:, 1], ref_chosen[picked], ref_rejected[picked])
            loss = dpo_loss(h, settings.beta).mean()
            if not bool(loss.isfinite()):
                raise RunError(
                    f"evaluation.per_user_lora: training of the adapter diverged (loss {loss.item()} on {len(pairs)} "
                    f"pairs); lower its learning_rate, now {settings.learning_rate}"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
            optimizer.step()
        yield
    finally:
        local.model = model.unload()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
