"""The recipe of the nano base: what it is trained on, how long, and the hash that ties weights to recipe.

`popi nano build` runs it. The weights that ship are those of `Recipe()`; `recipe_hash` covers the settings, the
vocabulary and the data, and stands in the folder's `recipe.json`.
"""

import hashlib
import json
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

TreeRow = list[Segment]
HASHED_BATCHES = 6
"""How many batches of a stage stand for its data in the recipe's hash."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training with a schedule of its own: linear warm-up, then linear decay to zero.

    It starts from the weights of the stage before, rounded to bfloat16 as they would be saved.
    """

    steps: int
    contrast_steps: int = 0
    """First steps, in which users have one pair, or what stands beside pairs: first compare, then aggregate."""
    contrast_users: int = 40
    """Users a step in those."""
    users: int = 10
    """Users a step in the rest."""
    pairs: tuple[int, ...] = (1, 2, 4, 6, 6, 6)
    """How many pairs a user has in the rest, drawn uniformly; 1 is a lone pair, without other signals."""
    compared: int = 0
    """How many of a user's pairs are compared, each asked for by its topic."""
    short_rows: int = 20
    """Follow and plain rows a step (three quarters follow)."""
    learning_rate: float = 6e-3
    """AdamW's, on embeddings and norms."""
    muon_learning_rate: float = 0.02
    """Muon's, on the matrices."""
    warmup_steps: int = 50


@dataclass(frozen=True)
class Recipe:
    """Settings of a base model; the defaults are the shipped one's."""

    seed: int = 0
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    stages: tuple[Stage, ...] = (
        Stage(steps=1400, contrast_steps=400),
        Stage(
            steps=1500,
            users=12,
            pairs=(1, 2, 3, 4, 6, 6),
            compared=2,
            short_rows=16,
            learning_rate=4e-3,
            muon_learning_rate=0.014,
        ),
    )
    signals_weight: float = 0.3
    """Weight of the signals' own tokens in the loss, against 1 for the answers'."""

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 over what decides the weights: the settings, the vocabulary, and batches of the data as token ids.

    The data are sampled (both phases of the schedule), so that a change of world, task, template or tokenizer shows,
    and a change of comment does not.
    """
    tok = build_tokenizer()
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    digest.update(json.dumps([sorted(tok.get_vocab().items()), tok.chat_template]).encode())
    writer = Writer(tok, Templates.load("nano"))
    for number, stage in enumerate(recipe.stages):
        early = replace(stage, contrast_steps=min(stage.contrast_steps, HASHED_BATCHES // 2))
        for _, batches in zip(range(HASHED_BATCHES), rows(early, recipe.seed, number, writer), strict=False):
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


def rows(stage: Stage, seed: int, number: int, writer: Writer) -> Iterator[tuple[list[TreeRow], list[TreeRow]]]:
    """Endless batches of a stage: (user rows, short rows)."""
    rng = Random(f"popi-nano-base-{seed}" + (f"-{number}" if number else ""))
    step = 0
    while True:
        if step < stage.contrast_steps:
            kinds = rng.choices(((1, False), (0, True)), (3, 1), k=stage.contrast_users)
        else:
            kinds = [(n, n > 1) for n in rng.choices(stage.pairs, k=stage.users)]
        users = [writer.user(rng, pairs, others, compared=stage.compared) for pairs, others in kinds]
        short = [writer.plain(rng) if i % 4 == 0 else writer.follow(rng) for i in range(stage.short_rows)]
        yield users, short
        step += 1


def _losses(model: LlamaForCausalLM, batch_rows: list[TreeRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean negative log-prob of answer tokens, and of signal tokens (0 where none is scored)."""
    batch = pack(batch_rows, pad_id=0)
    nll = -token_logps(model, batch)
    scored = [s for row in batch_rows for s in row if s.scored]
    is_signal = torch.tensor([s.parent == 0 for s in scored])[batch.segment]
    signals = nll[is_signal].mean() if bool(is_signal.any()) else nll.sum() * 0
    return nll[~is_signal].mean(), signals


def train_stage(
    model: LlamaForCausalLM,
    stage: Stage,
    batches: Iterator[tuple[list[TreeRow], list[TreeRow]]],
    signals_weight: float,
) -> Iterator[dict[str, float]]:
    """Train in place; yields the losses of every step."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=stage.muon_learning_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=stage.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / stage.warmup_steps) * (1 - step / stage.steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, rate) for o in optimizers]
    for _ in range(stage.steps):
        users, short = next(batches)
        losses: dict[str, float] = {}
        for name, batch_rows in (("users", users), ("short", short)):
            with torch.autocast("cpu", torch.bfloat16):
                answers, signals = _losses(model, batch_rows)
            (answers + signals_weight * signals).backward()
            losses |= {name: float(answers.detach()), f"{name}_signals": float(signals.detach())}
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        yield losses


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
    done = 0
    for number, stage in enumerate(recipe.stages):
        if number:
            model.to(torch.bfloat16).to(torch.float32)
        for losses in train_stage(model, stage, rows(stage, recipe.seed, number, writer), recipe.signals_weight):
            if on_step:
                on_step(done, losses)
            done += 1
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
