"""Cost on paper of the summaries of a million users (docs/sizing.md), with a batch engine such as vLLM.

For a user with n tokens of prompt and m of summary, on one GPU:

    seconds = 2·P·n / F  +  m · (2·P / B + K·(n + m/2)) / W
    B       = min(256, (0.9·memory − 2·P) / (K·(n + m)))

P: parameters, in bfloat16; F: operations per second while prompts are read; W: bytes per second of memory while
summaries are written, when each step reads all weights once for the B users that are written together, and each user's
keys and values, of K bytes per token. Costs of GPUs are 10⁶ · seconds / 3600 · price, those of an API
n · price in + m · price out.
"""

from collections.abc import Iterator

from popi.models.architecture import Architecture, architecture_of
from popi.training.planning.cost import SPEED

MEMORY = 139 * 2**30
"""Bytes of an H200."""
BANDWIDTH = 2.4e12
"""Bytes per second, assumed: half of an H200's 4.8 TB/s."""
TOGETHER = 256
"""Maximum users written together."""
PROMPT, SUMMARY = 2048, 256
PRICE = 3.0
"""Price of a GPU hour in the table, in any currency."""


def seconds_per_user(model: Architecture, prompt: int = PROMPT, summary: int = SUMMARY) -> tuple[float, int] | None:
    """Seconds of one GPU per user, and the users written together; None if the weights leave no memory for any."""
    weights = 2 * model.parameters
    cached = 2 * 2 * model.layers * model.kv_heads * model.head_dim  # keys and values, two bytes each
    together = min(TOGETHER, int((0.9 * MEMORY - weights) / (cached * (prompt + summary))))
    if together < 1:
        return None
    reading = weights * prompt / SPEED["gpu", 2]
    writing = summary * (weights / together + cached * (prompt + summary / 2)) / BANDWIDTH
    return reading + writing, together


def hours_per_million(seconds: float) -> float:
    """GPU hours of a million users."""
    return 1e6 * seconds / 3600


def section(models: dict[str, str]) -> Iterator[str]:
    """The lines of the page; `models`: the name of each size."""
    yield "## Summaries for a million users"
    yield ""
    yield f"By formula, for prompts of {PROMPT:,} tokens and summaries of {SUMMARY}, with weights in bfloat16 and a"
    yield "batch engine such as vLLM on one H200 ([how](population.md)); more GPUs take the same GPU hours:"
    yield ""
    yield f"| Model | Users written together | GPU hours | Cost at {PRICE:g} per GPU hour |"
    yield "|---|---|---|---|"
    for size, name in models.items():
        estimate = seconds_per_user(architecture_of(name)[0])
        if estimate is None:
            yield f"| {size} | does not fit on one GPU | – | – |"
        else:
            hours = hours_per_million(estimate[0])
            yield f"| {size} | {estimate[1]} | {hours:,.1f} | {PRICE * hours:,.0f} |"
    yield ""
    yield "    seconds per user = 2·P·n / F  +  m · (2·P / B + K·(n + m/2)) / W"
    yield "    users together B = min(256, (0.9·memory − 2·P) / (K·(n + m)))"
    yield "    cost per million = 10⁶ · seconds / 3600 · price per GPU hour"
    yield ""
    yield "*n* and *m* are tokens of prompt and summary, *P* parameters, *K* bytes of keys and values per token."
    yield f"Assumed: *F* = {SPEED['gpu', 2] / 1e12:.0f} TFLOP/s for prompts, *W* = {BANDWIDTH / 1e12:.1f} TB/s for"
    yield "summaries, half of what the memory can do. A model behind an API costs n · price in + m · price out. None"
    yield "of this was measured on a GPU; `popi infer` prints the tokens of a run, so try ten thousand users first. For"
    yield "other lengths and prices:"
    yield ""
    yield "    python benchmarks/population.py cost --tokens 2048 256 --price 3"
    yield ""
