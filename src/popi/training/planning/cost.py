"""Estimates a phase's peak memory and time from the model's shape, without loading weights.

    peak = weights + gradients + optimizer + the largest activity + OVERHEAD

with w bytes per weight (4 in float32, 2 in half precision), P weights, L layers, d hidden, i intermediate, q = heads ·
head_dim, kv = kv_heads · head_dim, V vocabulary:

- weights      full: w·P for each model that the phase holds (`training.components`: the base, and each component that
               is or was trained); LoRA: w·P once, and 4 bytes per weight of each adapter;
               with `model.quantization` the linear layers' share of P takes `PACKED` bytes per weight.
               Learned user embeddings: 4·k·d bytes for the generic user and each user of the table, or d times that for
               the map from the signals.
- gradients    the size of the trained parameters (for adapters: as if all linear layers had them), twice that in
               several processes, whose DDP averages copies; optimizer: AdamW's two moments, twice the size of the
               trained parameters, in their dtype.
- a forward    of T token positions in B rows of width W, N of them scored. In memory at once: T·w·(6d + 3i + 2q) for
               one layer; the mask, B·S·W·(2 + w) (indexed, boolean and additive; `popi.engine.tree`) with S the
               branches' tokens and a quarter of W for roots of different lengths; float32 logits, n·V·4 twice, n = N,
               at most `LOGITS_BYTES` of them (less if `popi.engine.head` uses tiles). Attention is assumed to be fused,
               without a matrix of scores.
- a backward   stores for each layer T·w·(8d + 4q + 4i): inputs of the norms with their float32 copies (4d), the
               inputs of the linear layers and what SDPA and the gated MLP save. The count follows Korthikanti et al.
               (arXiv 2205.05198, section 4.1), redone for RMSNorm, a gated MLP and no dropout. LoRA adds float32
               copies of its layers' inputs, T·4·(5d + q + i). With gradient checkpointing only T·w·d is stored per
               layer, and one layer in full. Logits: 5 · n·V·4; a vocabulary below `LARGE_VOCABULARY` stores all N.
               On a CPU the stored tensors count `HEAP` times if a layer's largest tensor, T·4·i, is below `MAPPED`:
               they are then allocated on the C library's heap, which becomes fragmented.
- sampling     the cache, w·2·L·kv for each position of prompt and samples, one layer's copies for grouped queries
               (w·2·q), and the prefill's forward; if the signals are read once for sampling and update
               (`popi.engine.roots`), also the tensors stored for their backward, also while scoring the rewards.
- the rollout check of one prompt and its summary: w·V per position, and float32 logits of the summary three times.
- the optimizer's step   one more copy of the trained parameters, on a GPU (torch's foreach kernels).

Sizes are those of the longest prompt and of summaries at `summary.max_tokens`: an upper bound for a step, not its mean.
`tests/unit/training/planning/test_cost.py` and docs/recipes.md compare the estimate with measured peaks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from popi.config import RunConfig
from popi.models.architecture import Architecture
from popi.models.backend import BATCH
from popi.training.planning.plan import Phase
from popi.training.planning.shapes import Shapes

OVERHEAD = 0.7 * 2**30
"""Bytes of the process itself: Python with torch, or a CUDA context with its libraries."""
HEAP, MAPPED = 1.6, 2**25
"""Measured for ten layers of SmolLM2's shape with LoRA and rows of 700 to 1,700 tokens: 0.9 GB stored, 1.4 GB used."""
LOGITS_BYTES, LARGE_VOCABULARY = {False: 2**26, True: 2**28}, 8192
"""By whether there is a GPU. Copied from `popi.engine.tree`, which can't be imported here because it imports torch."""
HALF = ("bfloat16", "float16")
PACKED = {"8bit": 1.0, "4bit": (4 + 8 / 64 + 32 / (64 * 256)) / 8}
"""Bytes per weight of the linear layers under `model.quantization`. 4bit: an 8-bit constant per 64 weights, and a
32-bit one per 256 of those (QLoRA, section 3)."""
SPEED = {("gpu", 2): 1.5e14, ("gpu", 4): 3e13, ("cpu", 2): 5e11, ("cpu", 4): 2e11}
"""Floating-point operations per second: (device, bytes per weight). Assumed for a GPU like an H100 (a sixth of its peak
in bfloat16, half of it in float32 without TF32); for two CPU cores, below the measurements of one machine with AMX: 240
GFLOP/s in float32, 570 to 800 in bfloat16."""
CLAUSE = 4
"""Tokens per clause, with credit per clause: those of a list item. Sentences are longer, so the actual number of scored
truncations of a summary is lower."""
DECODE = {"gpu": 0.03, "cpu": 0.03}
"""Seconds per decoded token of a batch besides its arithmetic, because layers are launched one by one."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a phase."""

    weights: float
    gradients: float
    optimizer: float
    activities: Mapping[str, float]
    """Activity of the phase → bytes besides weights, gradients and optimizer. Activities don't overlap."""

    @property
    def largest(self) -> str:
        return max(self.activities, key=lambda name: self.activities[name])

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activities[self.largest] + OVERHEAD


def dtype_of(config: RunConfig, gpu: bool, parameters: int) -> str:
    """The dtype that `model.dtype` resolves to, as `training.components` loads it."""
    model = config.model
    if model.dtype != "auto":
        return model.dtype
    if model.adapter == "none" or model.base == "nano":
        return "float32"
    from popi.models.local.loading import bfloat16_on_cpu

    return "bfloat16" if gpu or bfloat16_on_cpu(parameters) else "float32"


def phase_memory(
    config: RunConfig, phase: Phase, model: Architecture, shapes: Shapes, gpu: bool, processes: int = 1
) -> Memory:
    """The memory of one phase on one device.

    Args:
        config: what one process trains of a step (`shares.share_of`).
        processes: that train together.
    """
    lora = config.model.adapter == "lora"
    w = 2 if dtype_of(config, gpu, model.parameters) in HALF else 4
    used = phase.trains | ({"inference_model"} if phase.inference_from else set())
    used |= {"generator"} if phase.generator_from else set()
    each = 4 * model.lora_parameters(config.model.lora_rank) if lora else w * model.parameters
    soft = 4 * phase.soft(config) * model.hidden
    table = {None: 0, "user_id": soft * (1 + shapes.users), "signals": soft * (1 + model.hidden)}[phase.embedding]
    packed = sum(n * m for n, m in model.linears) * model.layers
    base = w * model.parameters - (w - PACKED.get(config.model.quantization, w)) * packed
    weights = base + len(used) * each + table
    trained = len(phase.trains) * each + table
    step = {"optimizer's step": float(trained)} if gpu else {}
    work = _Activities(config, model, shapes, w, gpu)
    return Memory(weights, trained * (1 if processes == 1 else 2), 2 * trained, work.of(phase) | step)


@dataclass(frozen=True)
class _Activities:
    config: RunConfig
    model: Architecture
    shapes: Shapes
    w: int
    gpu: bool

    def of(self, phase: Phase) -> dict[str, float]:
        """Activity → bytes."""
        config, shapes = self.config, self.shapes
        settings, generator = config.training.inference, config.training.generator
        local = not config.model.api_generator.given
        activities = {}
        if local:
            activities["reference log-probs"] = self.forward(
                config.evaluation.batch_size, shapes.plain, shapes.responses
            )
        if phase.kind == "generator":
            largest, mean = shapes.group(generator.targets_per_summary)
            if phase.context == "summary":
                activities["sampling"] = self.sampling(config.evaluation.users_at_once, round(shapes.targets / mean))
            rows = -(-(generator.batch_size // generator.parts) // largest)
            width = shapes.row(phase.context, phase.soft(config), largest)
            branches = shapes.responses if largest == 1 else largest * (shapes.plain - shapes.opening)
            activities["training"] = self.backward(rows, width, largest * shapes.responses, branches)
            return activities
        users, group = settings.users_per_step // settings.parts, settings.group_size
        pairs = settings.users_per_step * group * min(settings.targets_per_summary, shapes.targets)
        width, scored = shapes.prompt + group * shapes.summary, group * shapes.summary
        activities["sampling"] = self.sampling(users, group)
        if local:
            rows = min(config.training.rows_at_once, pairs * max(1, beginnings(config, shapes)))
            activities["scoring"] = self.forward(rows, shapes.row(), shapes.responses)
        activities["training"] = self.backward(users, width, scored)
        if shapes.held_out:
            activities["evaluating"] = self.sampling(users, 1)
            if local:
                targets = shapes.held_out * min(settings.targets_per_summary, shapes.targets)
                rows = min(config.training.rows_at_once, targets)
                scoring = self.forward(rows, shapes.row(), shapes.responses)
                activities["evaluating"] = max(activities["evaluating"], scoring)
        if config.training.reads_once:
            read = self._stored(users * shapes.prompt)
            activities |= {name: activities[name] + read for name in ("sampling", "scoring") if name in activities}
        check = shapes.prompt + shapes.summary  # `training.rollout_check`: all logits of one prompt and its summary
        activities["rollout check"] = self._layer(check) + (self.w * check + 3 * 4 * shapes.summary) * self.model.vocab
        if phase.kind == "joint":
            rows = min(generator.batch_size, pairs)
            activities["training the generator"] = self.backward(rows, shapes.row(), shapes.responses)
        return activities

    def _layer(self, tokens: float) -> float:
        m = self.model
        return tokens * self.w * (6 * m.hidden + 3 * m.intermediate + 2 * m.heads * m.head_dim)

    def _mask(self, rows: int, width: float, branches: float) -> float:
        return rows * min(branches + width / 4, width) * width * (2 + self.w)

    def _at_once(self, scored: float) -> float:
        """Scored tokens whose logits are in memory at once."""
        return min(scored, max(16, LOGITS_BYTES[self.gpu] / (4 * self.model.vocab)))

    def forward(self, rows: int, width: float, scored: float) -> float:
        n = self._at_once(rows * scored)
        return self._layer(rows * width) + self._mask(rows, width, scored) + 2 * 4 * n * self.model.vocab

    def backward(self, rows: int, width: float, scored: float, branches: float | None = None) -> float:
        m, tokens = self.model, rows * width
        n = rows * scored
        n = self._at_once(n) if m.vocab >= LARGE_VOCABULARY else n
        mask = self._mask(rows, width, scored if branches is None else branches)
        return self._stored(tokens) + self._layer(tokens) + mask + 5 * 4 * n * m.vocab

    def _stored(self, tokens: float) -> float:
        """Bytes stored for the backward pass."""
        m, w = self.model, self.w
        q = m.heads * m.head_dim
        layer = tokens * w * (8 * m.hidden + 4 * q + 4 * m.intermediate)
        if self.config.model.adapter == "lora":
            layer += tokens * 4 * (5 * m.hidden + q + m.intermediate)
        if self.config.training.gradient_checkpointing:
            stored = layer + m.layers * tokens * w * m.hidden
        else:
            stored = m.layers * layer
        return stored * (HEAP if not self.gpu and tokens * 4 * m.intermediate < MAPPED else 1.0)

    def sampling(self, users: int, samples: int) -> float:
        m, w, shapes = self.model, self.w, self.shapes
        positions = users * (shapes.prompt + samples * shapes.summary)
        cache = positions * 2 * m.layers * m.kv_heads * m.head_dim + positions * 2 * m.heads * m.head_dim
        logits = users * samples * m.vocab * 4 * 3
        return w * cache + self._layer(users * shapes.prompt) + users * shapes.prompt**2 + logits


@dataclass(frozen=True)
class Forward:
    """Tokens read and positions decoded, counted as in `Work`."""

    read: float
    decoded: float = 0.0

    def __add__(self, other: "Forward") -> "Forward":
        return Forward(self.read + other.read, self.decoded + other.decoded)


@dataclass(frozen=True)
class Work:
    """Total work of a phase's steps. Uses mean lengths and summaries of full length, so it is an upper estimate."""

    steps: int
    samples: int
    """Sampled summaries, or target pairs trained on."""
    decoded: float
    """Sequential decoding steps: tokens written one by one, for a whole batch at a time."""
    read: float
    """Tokens with a forward pass only."""
    trained: float
    """Tokens with forward and backward passes."""
    evaluations: int = 0
    """Evaluations on the users set aside, if the phase does not end early; included in `decoded` and `read`."""

    def operations(self, model: Architecture, checkpointing: bool) -> float:
        """Per weight and token: 2 for the forward, 4 for the backward, and 2 if the forward is recomputed."""
        return model.parameters * (2 * (self.read) + (8 if checkpointing else 6) * self.trained)

    def hours(self, model: Architecture, checkpointing: bool, gpu: bool, half: bool) -> float:
        """Estimated duration, to an order of magnitude; `half` means two bytes per weight."""
        device = "gpu" if gpu else "cpu"
        seconds = self.operations(model, checkpointing) / SPEED[device, 2 if half else 4]
        return (seconds + self.decoded * DECODE[device]) / 3600


def beginnings(config: RunConfig, shapes: Shapes) -> int:
    """Maximum truncations of a summary to score besides it, with credit per clause."""
    if config.training.inference.credit == "summary":
        return 0
    from popi.training.credit import CREDITED_CLAUSES

    return min(CREDITED_CLAUSES, max(1, shapes.summary // CLAUSE))


def work_of(config: RunConfig, phase: Phase, shapes: Shapes) -> Work:
    """A phase's work, from mean lengths."""
    settings, generator = config.training.inference, config.training.generator
    steps = phase.steps(config)
    evaluations, evaluated = _evaluated(config, phase, shapes)
    if phase.kind == "generator":
        pairs = steps * generator.batch_size
        users = min(shapes.users, -(-pairs // max(shapes.targets, 1)))
        group = shapes.group(generator.targets_per_summary)[1]
        prepared = _prepared(config, phase, shapes, users, group)
        if phase.context == "summary":
            prepared += _old(config, shapes, users)
        done = prepared + evaluated
        row = shapes.row_mean(phase.context, phase.soft(config), group)
        return Work(steps, pairs, done.decoded, done.read, pairs / group * row, evaluations)
    users = settings.users_per_step
    tree = users * (shapes.prompt_mean + settings.group_size * shapes.summary)
    targets = 1 if settings.scored_on == "signal" else min(settings.targets_per_summary, shapes.targets)
    scored = users * settings.group_size * targets * shapes.clause_row_mean
    if stops := beginnings(config, shapes):  # the empty one once per group; the others are half a summary on average
        scored += (
            users * (1 + settings.group_size * (stops - 1)) * targets * (shapes.clause_row_mean - shapes.summary / 2)
        )
    sampled = Forward(steps * (tree + scored + (tree if settings.kl else 0)), steps * settings.parts * shapes.summary)
    done = _prepared(config, phase, shapes, min(steps * users, shapes.users)) + sampled + evaluated
    done += _old(config, shapes, steps * users)
    trained = steps * tree
    if phase.kind == "joint":
        trained += config.training.generator_steps_of_joint * generator.batch_size * shapes.row_mean()
    return Work(steps, steps * users * settings.group_size, done.decoded, done.read, trained, evaluations)


def _prepared(config: RunConfig, phase: Phase, shapes: Shapes, users: int, group: float = 1.0) -> Forward:
    """Work before the first step: reference log-probs of users' targets; for a generator also reading signals, or a
    summary for each `group` of targets."""
    pairs = users * shapes.targets
    work = Forward(pairs * shapes.plain_mean)
    if phase.embedding == "signals":
        work += Forward(users * shapes.raw_mean)
    if phase.kind == "generator" and phase.context == "summary":
        prompts = pairs if config.summary.conditioned_on_prompt else users * shapes.clauses
        batches = -(-prompts // config.evaluation.users_at_once)
        work += Forward(
            prompts * shapes.prompt_mean + pairs / group * shapes.clauses * shapes.summary, batches * shapes.summary
        )
    return work


def _evaluated(config: RunConfig, phase: Phase, shapes: Shapes) -> tuple[int, Forward]:
    """Number of evaluations during a phase, assuming that it does not end early, and their work. Each scores all
    targets of the users set aside, or in an inference phase writes summaries and scores them on their targets.
    """
    training, users = config.training, shapes.held_out
    if training.eval_steps is None:
        return 0, Forward(0.0)
    n = phase.steps(config) // training.eval_steps
    if phase.kind == "generator":
        each = Forward(users * shapes.targets * shapes.row_mean(phase.context, phase.soft(config)))
    else:
        settings = training.inference
        scored = min(settings.targets_per_summary, shapes.targets) * shapes.row_mean()
        batches = -(-users // (settings.users_per_step // settings.parts))
        each = Forward(users * (shapes.prompt_mean + shapes.summary + scored), batches * shapes.summary)
    return n, _prepared(config, phase, shapes, users) + Forward(n * each.read, n * each.decoded)


def _old(config: RunConfig, shapes: Shapes, rows: int) -> Forward:
    """Work of writing the old summaries that a share of the rows renew."""
    written = config.training.renewal.share * rows
    return Forward(written * (shapes.earlier_mean + shapes.summary), -(-written // BATCH) * shapes.summary)
