"""The sizing page (docs/sizing.md): memory and hours of one workload, for models of 1B to 70B on 1, 8 and 64 GPUs.

Memory is that of one process by `phase_memory`, hours are those of its share of the steps by `work_of`. With several
processes the exchange of gradients is added: a ring all-reduce sends 2·(N−1)/N bytes for each byte of gradients.
"""

from collections.abc import Iterator

from popi.config import RunConfig, resolve
from popi.models.architecture import Architecture, architecture_of
from popi.training.planning import population_cost
from popi.training.planning.cost import HALF, dtype_of, phase_memory, work_of
from popi.training.planning.plan import plan
from popi.training.planning.shapes import Shapes
from popi.training.planning.shares import share_of

GIB = 2**30
MODELS = {
    "1B": "meta-llama/Llama-3.2-1B-Instruct",
    "3B": "meta-llama/Llama-3.2-3B-Instruct",
    "8B": "meta-llama/Llama-3.1-8B-Instruct",
    "70B": "meta-llama/Llama-3.1-70B-Instruct",
}
KINDS = {
    "LoRA": {"adapter": "lora"},
    "LoRA, 4-bit base": {"adapter": "lora", "quantization": "4bit"},
    "full": {"adapter": "none"},
}
GPUS = (1, 8, 64)
ROOM = 139.0
"""GiB of an H200."""
EXCHANGE = {8: 2e11, 64: 4e10}
"""Bytes per second and GPU of an all-reduce, assumed: NVLink within a machine, 400 Gb/s between machines."""
USERS, STEP = 20_000, 64
SHAPES = Shapes(
    users=USERS,
    signals=16,
    targets=4,
    prompt=2048,
    prompt_mean=2048,
    summary=256,
    plain=640,
    plain_mean=640,
    guide=288,
    raw=2048,
    raw_mean=2048,
    responses=512,
    reach=384,
    dropped=0,
    notes=(),
)
"""Prompts of signals of 2,048 tokens, task prompts of 128 and responses of 256."""


def config_of(model: str, kind: str) -> RunConfig:
    """The workload: each of the users once in an inference phase, and one pair of each in a generator phase."""
    each = {"steps": USERS // STEP, "micro_batch": 8}
    return resolve(
        {
            "model": {"base": MODELS[model], **KINDS[kind]},
            "summary": {"max_tokens": SHAPES.summary},
            "training": {
                "orders": ["alternating"],
                "rounds": 1,
                "gradient_checkpointing": True,
                "inference": each | {"users_per_step": STEP, "group_size": 8, "targets_per_summary": 4},
                "generator": each | {"batch_size": STEP},
            },
        }
    )


def estimate(config: RunConfig, model: Architecture, gpus: int) -> tuple[float, float]:
    """GiB of each GPU at the peak of the larger phase, and hours of all phases."""
    own, hours, peak = share_of(config, gpus), 0.0, 0.0
    half = dtype_of(config, True, model.parameters) in HALF
    for phase in (phase for phases in plan(config).values() for phase in phases):
        memory = phase_memory(own, phase, model, SHAPES, True, gpus)
        peak = max(peak, memory.total)
        hours += work_of(own, phase, SHAPES).hours(model, True, True, half)
        if gpus > 1:
            sent = phase.steps(config) * (gpus - 1) / gpus * memory.gradients  # counted twice there
            hours += sent / EXCHANGE[gpus] / 3600
    return peak / GIB, hours


def rows() -> Iterator[str]:
    """The lines of the table, in Markdown."""
    yield "| Model | Trained | GiB per GPU | " + " | ".join(f"Hours, {n} GPU{'s' * (n > 1)}" for n in GPUS) + " |"
    yield "|---|---|---|" + "---|" * len(GPUS)
    for model, name in MODELS.items():
        shape, _ = architecture_of(name)
        for kind in KINDS:
            config = config_of(model, kind)
            each = {n: estimate(config, shape, n) for n in GPUS}
            peak = max(memory for memory, _ in each.values())
            if peak > ROOM:
                yield f"| {model} | {kind} | {peak:,.0f}: does not fit |" + " – |" * len(GPUS)
            else:
                yield f"| {model} | {kind} | {peak:,.0f} | " + " | ".join(f"{h:,.1f}" for _, h in each.values()) + " |"


def page() -> str:
    """The page, without its note."""
    return "\n".join(
        [
            "# Sizing",
            "",
            f"Memory and hours of one workload, by formula: {USERS:,} users, each once in an inference phase and with",
            f"one target pair in a generator phase, {STEP} in a step; prompts of {SHAPES.prompt:,} tokens, 8 summaries",
            f"of {SHAPES.summary} tokens on 4 targets each, task prompts of 128 and responses of 256 tokens; gradient",
            "checkpointing, `micro_batch = 8`. LoRA is over a base in bfloat16, full weights are in float32 (steps of",
            "1e-6 are rounded away in bfloat16).",
            "",
            *rows(),
            "",
            "*Memory* is what one GPU holds, whatever their number: every process has whole models. With several GPUs",
            "it includes DDP's copy of the gradients. `does not fit`: in the",
            f"{ROOM:.0f} GiB of an H200; popi does not shard weights ([scaling](scaling.md#what-is-refused)).",
            "",
            "*Hours* are operations at an assumed speed (150 TFLOP/s in bfloat16, 30 in float32), 30 ms for each token",
            "of a batch that is sampled, and the exchange of gradients at an assumed 200 GB/s per GPU within a machine",
            "and 40 GB/s between machines. Sampling does not become faster with more GPUs once each has one batch of",
            "users: that is why 64 GPUs are less than 8 times as fast as 8.",
            "",
            "*Error.* On CPUs measured peaks of memory were between 0.9 and 1.6 times the formula's",
            "([recipes](recipes.md#memory)); nothing here was measured on a GPU. Speeds are guesses, within a",
            "factor of 3: the dry run was 2 times too low on two cores. Trust the ratios between rows more than the",
            "hours, and measure ten steps before you rent:",
            "",
            "    torchrun --nproc-per-node 8 -m popi train CONFIG name=probe training.inference.steps=10 \\",
            "      training.generator.steps=10",
            "",
            "For your own config, data and GPU:",
            "",
            "    popi train CONFIG --dry-run --gpu-memory 139 --processes 8",
            "",
            *population_cost.section(MODELS),
        ]
    )
