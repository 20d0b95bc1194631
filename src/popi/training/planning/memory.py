"""How much memory a phase needs at its peak, reckoned from the model's shape: no weights are loaded.

    peak = weights + gradients + optimizer + the largest activity + OVERHEAD

with w bytes a weight (4 in float32, 2 in half precision), P weights, L layers, d hidden, i intermediate, q = heads ·
head_dim, kv = kv_heads · head_dim, V vocabulary:

- weights      full: w·P for each model that the phase holds (`training.components`: the base, and each component that
               trains or was trained before); LoRA: w·P once, and 4 bytes a weight of each adapter.
               Learned user embeddings: 4·k·d bytes for the generic user and each user of the table, or d times that for
               the map from the signals.
- gradients    as much as what trains (of adapters: as if all linear layers had them); optimizer: AdamW's two moments,
               twice that, in the type of what trains.
- a forward    of T token positions in B rows of width W, N of them scored. Held at one time: T·w·(6d + 3i + 2q) of one
               layer; the mask, B·S·W·(2 + w) (indexed, boolean and additive; `popi.engine.tree`) with S the branches'
               tokens and a quarter of W for roots of different lengths; float32 logits, n·V·4 two times, n = N, at most
               `LOGITS_BYTES` of them (less where `popi.engine.head` goes by tiles). Attention itself is taken to be
               fused: no matrix of scores.
- a backward   keeps of each layer T·w·(8d + 4q + 4i): inputs of the norms with their float32 copies (4d), the
               inputs of the linear maps and what SDPA and the gated MLP save. The count is that of Korthikanti et al.
               (arXiv 2205.05198, section 4.1) done again for RMSNorm, a gated MLP and no dropout. LoRA adds float32
               copies of its maps' inputs, T·4·(5d + q + i). With gradient checkpointing only T·w·d a layer is kept, and
               one layer in full. Logits: 5 · n·V·4; a vocabulary under `LARGE_VOCABULARY` keeps all N of them.
               On a CPU what is kept counts `HEAP` times where a layer's largest tensor, T·4·i, is below `MAPPED`: it
               then lies in the C library's heap, where what is freed between leaves holes.
- sampling     the cache, w·2·L·kv for each position of prompt and samples, one layer's copies for grouped queries
               (w·2·q), and the prefill's forward; where the signals are read once for sampling and update
               (`popi.engine.roots`), what the backward keeps of them, while the rewards are scored too.
- the rollout check, of one prompt and its summary: w·V a position, and float32 logits of the summary three times.
- the optimizer's step   one more copy of what trains, on a GPU (torch's foreach kernels).

Sizes are those of the longest prompt and of summaries at `summary.max_tokens`: an upper bound of a step, not its mean.
`tests/unit/training/test_memory.py` and docs/recipes.md hold it to measured peaks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from popi.config import RunConfig
from popi.training.planning.architecture import Architecture
from popi.training.planning.plan import Phase
from popi.training.planning.shapes import Shapes

OVERHEAD = 0.7 * 2**30
"""Bytes of the process itself: Python with torch, or a CUDA context with its libraries."""
HEAP, MAPPED = 1.6, 2**25
"""Measured for ten layers of SmolLM2's shape with LoRA and rows of 700 to 1,700 tokens: 0.9 GB kept, 1.4 GB taken."""
LOGITS_BYTES, LARGE_VOCABULARY = {False: 2**26, True: 2**28}, 8192
"""By whether there is a GPU; as in `popi.engine.tree`, which is not imported: it imports torch."""
HALF = ("bfloat16", "float16")


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a phase."""

    weights: float
    gradients: float
    optimizer: float
    activities: Mapping[str, float]
    """What the phase does, one at a time → bytes beside weights, gradients and optimizer."""

    @property
    def largest(self) -> str:
        return max(self.activities, key=lambda name: self.activities[name])

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activities[self.largest] + OVERHEAD


def dtype_of(config: RunConfig, gpu: bool, parameters: int) -> str:
    """The type that `model.dtype` comes to, as `training.components` loads it."""
    model = config.model
    if model.dtype != "auto":
        return model.dtype
    if model.adapter == "none" or model.base == "nano":
        return "float32"
    from popi.models.local.loading import bfloat16_on_cpu

    return "bfloat16" if gpu or bfloat16_on_cpu(parameters) else "float32"


def phase_memory(config: RunConfig, phase: Phase, model: Architecture, shapes: Shapes, gpu: bool) -> Memory:
    """The memory of one phase on one device."""
    lora = config.model.adapter == "lora"
    w = 2 if dtype_of(config, gpu, model.parameters) in HALF else 4
    used = phase.trains | ({"inference_model"} if phase.inference_from else set())
    used |= {"generator"} if phase.generator_from else set()
    each = 4 * model.lora_parameters(config.model.lora_rank) if lora else w * model.parameters
    soft = 4 * phase.soft(config) * model.hidden
    table = {None: 0, "user_id": soft * (1 + shapes.users), "signals": soft * (1 + model.hidden)}[phase.embedding]
    weights = w * model.parameters + len(used) * each + table
    trained = len(phase.trains) * each + table
    step = {"optimizer's step": float(trained)} if gpu else {}
    work = _Work(config, model, shapes, w, gpu)
    return Memory(weights, trained, 2 * trained, work.of(phase) | step)


@dataclass(frozen=True)
class _Work:
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
        found = {}
        if local:
            found["reference log-probs"] = self.forward(config.evaluation.batch_size, shapes.plain, shapes.responses)
        if phase.kind == "generator":
            if phase.context == "summary":
                found["sampling"] = self.sampling(config.evaluation.users_at_once, shapes.targets)
            rows = generator.batch_size // generator.parts
            found["training"] = self.backward(rows, shapes.row(phase.context, phase.soft(config)), shapes.responses)
            return found
        users, group = settings.users_per_step // settings.parts, settings.group_size
        pairs = settings.users_per_step * group * min(settings.targets_per_summary, shapes.targets)
        width, scored = shapes.prompt + group * shapes.summary, group * shapes.summary
        found["sampling"] = self.sampling(users, group)
        if local:
            found["scoring"] = self.forward(min(config.training.rows_at_once, pairs), shapes.row(), shapes.responses)
        found["training"] = self.backward(users, width, scored)
        if config.training.reads_once:
            read = self._kept(users * shapes.prompt)
            found |= {name: found[name] + read for name in ("sampling", "scoring") if name in found}
        check = shapes.prompt + shapes.summary  # `training.rollout_check`: all logits of one prompt and its summary
        found["rollout check"] = self._layer(check) + (self.w * check + 3 * 4 * shapes.summary) * self.model.vocab
        if phase.kind == "joint":
            rows = min(generator.batch_size, pairs)
            found["training the generator"] = self.backward(rows, shapes.row(), shapes.responses)
        return found

    def _layer(self, tokens: float) -> float:
        m = self.model
        return tokens * self.w * (6 * m.hidden + 3 * m.intermediate + 2 * m.heads * m.head_dim)

    def _mask(self, rows: int, width: float, branches: float) -> float:
        return rows * min(branches + width / 4, width) * width * (2 + self.w)

    def _at_once(self, scored: float) -> float:
        """Scored tokens of which there are logits at one time."""
        return min(scored, max(16, LOGITS_BYTES[self.gpu] / (4 * self.model.vocab)))

    def forward(self, rows: int, width: float, scored: float) -> float:
        n = self._at_once(rows * scored)
        return self._layer(rows * width) + self._mask(rows, width, scored) + 2 * 4 * n * self.model.vocab

    def backward(self, rows: int, width: float, scored: float) -> float:
        m, tokens = self.model, rows * width
        n = rows * scored
        n = self._at_once(n) if m.vocab >= LARGE_VOCABULARY else n
        return self._kept(tokens) + self._layer(tokens) + self._mask(rows, width, scored) + 5 * 4 * n * m.vocab

    def _kept(self, tokens: float) -> float:
        m, w = self.model, self.w
        q = m.heads * m.head_dim
        layer = tokens * w * (8 * m.hidden + 4 * q + 4 * m.intermediate)
        if self.config.model.adapter == "lora":
            layer += tokens * 4 * (5 * m.hidden + q + m.intermediate)
        if self.config.training.gradient_checkpointing:
            kept = layer + m.layers * tokens * w * m.hidden
        else:
            kept = m.layers * layer
        return kept * (HEAP if not self.gpu and tokens * 4 * m.intermediate < MAPPED else 1.0)

    def sampling(self, users: int, samples: int) -> float:
        m, w, shapes = self.model, self.w, self.shapes
        positions = users * (shapes.prompt + samples * shapes.summary)
        cache = positions * 2 * m.layers * m.kv_heads * m.head_dim + positions * 2 * m.heads * m.head_dim
        logits = users * samples * m.vocab * 4 * 3
        return w * cache + self._layer(users * shapes.prompt) + users * shapes.prompt**2 + logits
