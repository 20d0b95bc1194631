"""The recipe of the nano base: what it is trained on, how long, and the hash that ties weights to recipe.

`popi nano build` runs it. The weights that ship are those of `Recipe()`; `recipe_hash` covers the settings, the
vocabulary and the data, and stands in the folder's `recipe.json`.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from popi.nano.tasks import Writer
from popi.nano.tokenizer import build_tokenizer
from popi.signals.render import Templates
from popi.tree import Segment, pack, token_logps

HASHED_BATCHES = 6
"""How many batches stand for the data in the recipe's hash."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a base model; the defaults are the shipped one's."""

    seed: int = 0
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    steps: int = 1400
    contrast_steps: int = 400
    """First steps, in which users have one pair, or what stands beside pairs: first compare, then aggregate."""
    contrast_users_per_step: int = 40
    users_per_step: int = 10
    short_rows_per_step: int = 20
    """Follow and plain rows a step (three quarters follow)."""
    learning_rate: float = 6e-3
    muon_learning_rate: float = 0.02
    warmup_steps: int = 50
    signals_weight: float = 0.3
    """Weight of the signals' own tokens in the loss, against 1 for the answers'."""


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 over what decides the weights: the settings, the vocabulary, and batches of the data as token ids.

    The data are sampled (both phases of the schedule), so that a change of world, task, template or tokenizer shows,
    and a change of comment does not.
    """
    tok = build_tokenizer()
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    digest.update(json.dumps([sorted(tok.get_vocab().items()), tok.chat_template]).encode())
    short = replace(recipe, contrast_steps=HASHED_BATCHES // 2)
    for _, batches in zip(range(HASHED_BATCHES), rows(short, Writer(tok, Templates.load("nano"))), strict=False):
        for row in (row for batch in batches for row in batch):
            digest.update(json.dumps([[list(s.ids), s.parent, s.scored] for s in row]).encode())
    return digest.hexdigest()


def new_model(recipe: Recipe, vocabulary: int) -> LlamaForCausalLM:
    """A Llama with random weights."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.hidden_size * 11 // 4,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=5,
        )
    )


def rows(recipe: Recipe, writer: Writer) -> Iterator[tuple[list[list[Segment]], list[list[Segment]]]]:
    """Endless batches: (user rows, short rows)."""
    rng = Random(f"popi-nano-base-{recipe.seed}")
    step = 0
    while True:
        if step < recipe.contrast_steps:
            kinds = rng.choices(((1, False), (0, True)), (3, 1), k=recipe.contrast_users_per_step)
        else:
            kinds = rng.choices(((1, False), (2, True), (4, True), (6, True)), (1, 1, 1, 3), k=recipe.users_per_step)
        users = [writer.user(rng, pairs, others) for pairs, others in kinds]
        short = [writer.plain(rng) if i % 4 == 0 else writer.follow(rng) for i in range(recipe.short_rows_per_step)]
        yield users, short
        step += 1


def _losses(model: LlamaForCausalLM, batch_rows: list[list[Segment]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean negative log-prob of answer tokens, and of signal tokens (0 where none is scored)."""
    batch = pack(batch_rows, pad_id=0)
    nll = -token_logps(model, batch)
    scored = [s for row in batch_rows for s in row if s.scored]
    is_signal = torch.tensor([s.parent == 0 for s in scored])[batch.segment]
    signals = nll[is_signal].mean() if bool(is_signal.any()) else nll.sum() * 0
    return nll[~is_signal].mean(), signals


def build(
    out: str | Path,
    recipe: Recipe | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> Path:
    """Train a base from scratch and save it as an ordinary Hugging Face folder with `recipe.json`.

    `on_step(step, losses)` is called after every step. Seeded; about half an hour on two cores.
    """
    recipe = recipe or Recipe()
    tok = build_tokenizer()
    writer = Writer(tok, Templates.load("nano"))
    model = new_model(recipe, len(tok)).train()
    model.set_attn_implementation("eager")  # in bf16 on a CPU about a third faster than SDPA at these lengths
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=recipe.muon_learning_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / recipe.warmup_steps) * (1 - step / recipe.steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, rate) for o in optimizers]
    started = time.time()
    for step, (users, short) in zip(range(recipe.steps), rows(recipe, writer), strict=False):
        parts: dict[str, float] = {}
        for name, batch_rows, weight in (("users", users, 1.0), ("short", short, 1.0)):
            with torch.autocast("cpu", torch.bfloat16):
                answers, signals = _losses(model, batch_rows)
            (weight * answers + recipe.signals_weight * signals).backward()
            parts |= {name: float(answers.detach()), f"{name}_signals": float(signals.detach())}
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if on_step:
            on_step(step, parts | {"seconds": time.time() - started})
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    model.set_attn_implementation("sdpa")
    model.eval().to(torch.bfloat16).save_pretrained(out)
    tok.save_pretrained(out)
    (out / "popi.json").write_text(json.dumps({"template": "nano"}) + "\n")
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    facts = {"recipe": asdict(recipe), "hash": recipe_hash(recipe), "weights": weights, "torch": torch.__version__}
    (out / "recipe.json").write_text(json.dumps(facts, indent=1) + "\n")
    return out
