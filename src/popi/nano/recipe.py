"""The recipe of the nano base: its training data, its schedule, and the hash that ties weights to the recipe.

`popi nano build` runs it. The shipped weights are those of `Recipe()`; `recipe_hash` covers the settings, the
vocabulary and the data, and is stored in the folder's `recipe.json`.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from random import Random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from popi.engine.tree import Segment, pack, token_logps
from popi.nano.tasks import Asked, Writer
from popi.nano.tokenizer import build_tokenizer
from popi.signals.render import Templates

TreeRow = list[Segment]
Batch = tuple[list[TreeRow], list[TreeRow]]
"""User rows, short rows."""
HASHED_BATCHES = 6
"""Number of batches per stage that represent its data in the recipe's hash."""


@dataclass(frozen=True)
class Stage:
    """A stage of training on users with a range of signal counts; a curriculum is a list of stages."""

    steps: int
    users: int
    """Users per step."""
    pairs: tuple[int, ...]
    """Pairs per user, drawn uniformly from these; 1 is a single pair without other signals."""
    asked: Asked = Asked()
    """Tasks about each user's signals."""
    short_rows: int = 12
    """Follow and plain rows per step (three quarters follow)."""
    rewriters: int = 0
    """Users per step whose only signals are rewritten answers."""


@dataclass(frozen=True)
class Course:
    """Stages under one schedule: linear warm-up, then linear decay to zero.

    A course starts from the weights of the previous one, rounded to bfloat16 as if they had been saved.
    """

    stages: tuple[Stage, ...]
    learning_rate: float
    """Learning rate of AdamW, for embeddings and norms."""
    muon_learning_rate: float
    """Learning rate of Muon, for the matrices."""
    warmup_steps: int = 50

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


FOLLOWING = Course(
    stages=(Stage(steps=700, users=0, pairs=(1,), short_rows=48),),
    learning_rate=6e-3,
    muon_learning_rate=0.02,
)
"""The base learns to follow stated preferences; a base that starts with users' signals may never learn to
follow some attributes (docs/lab_notes.md)."""
READING = Course(
    stages=(
        Stage(steps=120, users=16, pairs=(1,)),
        Stage(steps=180, users=14, pairs=(1, 2, 3)),
        Stage(steps=300, users=12, pairs=(1, 2, 3, 4)),
        Stage(steps=600, users=10, pairs=(2, 4, 6, 6, 8), asked=Asked(imitations=1, descriptions=1, short=1)),
        Stage(
            steps=1200, users=10, pairs=(4, 6, 6, 8), asked=Asked(reads=False, imitations=1, descriptions=1, short=1)
        ),
    ),
    learning_rate=6e-3,
    muon_learning_rate=0.02,
)
"""The base learns to read more and more signals and to describe them, and keeps following."""


REWRITING = Course(
    stages=(
        Stage(
            steps=400,
            users=6,
            pairs=(4, 6, 6, 8),
            asked=Asked(reads=False, imitations=1, descriptions=1, short=1),
            rewriters=10,
        ),
    ),
    learning_rate=4e-3,
    muon_learning_rate=0.012,
)
"""The base learns to read a few rewritten answers, and keeps reading everything else."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a base model; the defaults are those of the shipped one."""

    seed: int = 0
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    courses: tuple[Course, ...] = (FOLLOWING, READING, REWRITING)
    signals_weight: float = 0.3
    """Weight of the signals' own tokens in the loss, relative to 1 for the answers' tokens."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of all courses, in order."""
        return tuple(stage for course in self.courses for stage in course.stages)

    @property
    def steps(self) -> int:
        return sum(course.steps for course in self.courses)

    def shortened(self, steps: int) -> "Recipe":
        """The same curriculum in about `steps` steps, with at least one step per stage."""
        share = steps / self.steps
        courses = []
        for course in self.courses:
            stages = tuple(replace(s, steps=max(1, round(s.steps * share))) for s in course.stages)
            warmup = min(course.warmup_steps, sum(s.steps for s in stages))
            courses.append(replace(course, stages=stages, warmup_steps=warmup))
        return replace(self, courses=tuple(courses))


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 over everything that determines the weights: settings, vocabulary, and batches of the data as token ids.

    Some batches of every stage represent its data, so the hash changes with the world, tasks, templates or tokenizer,
    but not with comments.
    """
    tok = build_tokenizer()
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    digest.update(json.dumps([sorted(tok.get_vocab().items()), tok.chat_template]).encode())
    writer = Writer(tok, Templates.load("nano"))
    for number in range(len(recipe.stages)):
        for _, batches in zip(range(HASHED_BATCHES), batches_of(recipe, number, writer), strict=False):
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


def batches_of(recipe: Recipe, number: int, writer: Writer) -> Iterator[Batch]:
    """Yield a stage's batches."""
    stage, rng = recipe.stages[number], Random(f"popi-nano-base-{recipe.seed}-{number}")
    for _ in range(stage.steps):
        counts = rng.choices(stage.pairs, k=stage.users)
        users = [writer.user(rng, n, stage.asked) for n in counts]
        users += [writer.rewriter(rng) for _ in range(stage.rewriters)]
        short = [writer.plain(rng) if i % 4 == 0 else writer.follow(rng) for i in range(stage.short_rows)]
        yield users, short


def _losses(model: LlamaForCausalLM, batch_rows: list[TreeRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean negative log-prob of answer tokens, and of signal tokens (0 if none is scored)."""
    batch = pack(batch_rows, pad_id=0)
    nll = -token_logps(model, batch)
    scored = [s for row in batch_rows for s in row if s.scored]
    is_signal = torch.tensor([s.parent == 0 for s in scored])[batch.segment]
    signals = nll[is_signal].mean() if bool(is_signal.any()) else nll.sum() * 0
    return nll[~is_signal].mean(), signals


def fit(
    model: LlamaForCausalLM, course: Course, batches: Iterable[Batch], signals_weight: float
) -> Iterator[dict[str, float]]:
    """Train in place; yields the losses of every step, for the kinds of rows that it has."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=course.muon_learning_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=course.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / course.warmup_steps) * (1 - step / course.steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, rate) for o in optimizers]
    for users, short in batches:
        losses: dict[str, float] = {}
        for name, batch_rows in (("users", users), ("short", short)):
            if not batch_rows:
                continue
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
    compiled: bool | None = None,
) -> Path:
    """Train a base from scratch and save it as an ordinary Hugging Face folder with `recipe.json`.

    `on_step(step, losses)` is called after every step. `compiled` uses torch.compile, by default if there is a C++
    compiler; without it training takes half as long again. Deterministic; takes half an hour to an hour on two cores.
    """
    recipe = recipe or Recipe()
    tok = build_tokenizer()
    writer = Writer(tok, Templates.load("nano"))
    model = new_model(recipe, len(tok)).train()
    model.set_attn_implementation("eager")  # at these lengths, about a third faster than SDPA in bf16 on a CPU
    if shutil.which("g++") if compiled is None else compiled:
        model.model.forward = torch.compile(model.model.forward, dynamic=True)
    step = number = 0
    for course in recipe.courses:
        if step:
            model.to(torch.bfloat16).to(torch.float32)
        numbers = range(number, number + len(course.stages))
        batches = chain.from_iterable(batches_of(recipe, n, writer) for n in numbers)
        for losses in fit(model, course, batches, recipe.signals_weight):
            if on_step:
                on_step(step, losses)
            step += 1
        number = numbers.stop
    vars(model.model).pop("forward", None)
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
