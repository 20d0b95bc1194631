"""What is trained under torture: small runs of every kind, and how two of them are compared."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from safetensors.numpy import load_file

from popi.runs.files import read_jsonl

ORDERS = [
    "population_dpo",
    "fspo",
    "copy",
    "user_embedding",
    "user_embedding_from_signals",
    "plug_and_play",
    "alternating",
    "simultaneous",
]
ON_SUMMARIES = {"plug_and_play", "alternating", "simultaneous"}
CLOSE = 1e-9
"""How far weights and metrics may lie apart, in float64, after a run that changed its number of processes: sums are
added in another order."""

KINDS = ("weights", "tables", "facts")
"""What of two runs is compared: trained models, rows (the log, summaries), and what the run says of itself."""


@dataclass(frozen=True)
class Shape:
    """A kind of run.

    Attributes:
        order, adapter: what is trained.
        processes: how many train it.
        extra: the name of further settings, see EXTRAS.
    """

    order: str
    adapter: str
    processes: int = 1
    extra: str = "plain"

    @property
    def name(self) -> str:
        return f"{self.order}, {self.adapter}, {self.processes} proc., {self.extra}"


EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "evaluations": {"training": {"eval_steps": 2, "eval_users": 4}},
    "early stopping": {"training": {"eval_steps": 1, "eval_users": 4, "early_stopping_patience": 1}},
    "chosen loss": {"training": {"generator": {"max_chosen_loss": 1e-4, "learning_rate": 0.01}}},
    "one checkpoint": {"training": {"save_total_limit": 1}},
    "micro batches": {"training": {"inference": {"micro_batch": 1}, "generator": {"micro_batch": 2}}},
    "dropout": {"training": {"generator": {"lora_dropout": 0.1}}},
    "clauses": {"training": {"inference": {"credit": "clause"}}},
    "renewals": {"training": {"renewal": {"share": 0.5}}},
    "per signal": {"summary": {"per_signal": True}},
    "from copy": {"training": {"generator_start": "copy"}},
}


def extras_of(order: str, adapter: str) -> list[str]:
    """The extras that an order can be trained with."""
    names = ["plain", "evaluations", "early stopping", "one checkpoint"]
    if order != "simultaneous":
        names.append("micro batches")
    if order != "plug_and_play":
        names += ["chosen loss"] + ["dropout"] * (adapter == "lora")
    if order in ON_SUMMARIES:
        names += ["clauses", "renewals", "per signal", "from copy"]
    return names


def shapes(processes: list[int], random: Random) -> list[Shape]:
    """Every order with every adapter and number of processes, with extras that vary."""
    chosen = []
    for order in ORDERS:
        for adapter in ("none", "lora"):
            names = extras_of(order, adapter)
            random.shuffle(names)
            chosen += [Shape(order, adapter, n, names[i % len(names)]) for i, n in enumerate(processes)]
    return chosen


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two trees of settings; the second wins."""
    result = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def settings(shape: Shape, base: Path, root: Path, **more: Any) -> dict[str, Any]:
    """The settings of a run of a few seconds."""
    inference = {"steps": 6, "users_per_step": 4, "group_size": 3, "targets_per_summary": 2, "warmup_steps": 1}
    generator = {"steps": 6, "batch_size": 4, "targets_per_summary": 2, "warmup_steps": 1}
    plain = {
        "name": "run",
        "root": str(root),
        "data": {"train_users": 10},
        "signals": {"template": "nano"},
        "summary": {"max_tokens": 6},
        "model": {"base": str(base), "adapter": shape.adapter, "device": "cpu", "lora_rank": 4},
        "training": {
            "orders": [shape.order],
            "joint_steps": 6,
            "save_steps": 2,
            "inference": inference | {"learning_rate": 3e-3},
            "generator": generator | {"learning_rate": 3e-3},
        },
    }
    return merged(merged(plain, EXTRAS[shape.extra]), more)


def write_config(folder: Path, tree: dict[str, Any]) -> Path:
    """A run's config file, outside its root."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps(tree))
    return file


def tiny_base(folder: Path) -> None:
    """A random Llama of a few thousand weights with the nano world's tokens; call it in a child process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from popi.nano.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "popi.json").write_text('{"template": "nano", "max_tokens": 12}')


@dataclass
class Result:
    """What a run left, without what may differ between two runs: the time that steps took."""

    weights: dict[str, Path]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def result(run: Path) -> Result:
    """Read a run directory."""
    models = sorted(run.glob("phases/*/*/*.safetensors"))
    weights = {str(p.relative_to(run)): p for p in models if p.parent.name in ("inference_model", "generator")}
    tables = {str(p.relative_to(run)): read_jsonl(p) for p in sorted(run.rglob("*.jsonl"))}
    for row in tables.get("log.jsonl", []):
        row.pop("seconds", None)
    if "references.jsonl" in tables:  # in the order in which they were computed
        tables["references.jsonl"].sort(key=lambda row: str(row["targets"]))
    documents = [run / "methods.json", *sorted(run.glob("phases/*/done.json"))]
    facts = {str(p.relative_to(run)): json.loads(p.read_text()) for p in documents if p.is_file()}
    return Result(weights, tables, facts)


def difference(expected: Result, other: Result, exact: bool = True, kinds: tuple[str, ...] = KINDS) -> str | None:
    """The first difference of two runs; None if there is none.

    Args:
        exact: compare weights bit by bit; else up to CLOSE.
        kinds: what to compare.
    """
    if not expected.weights:
        return "no weights"
    for kind in kinds:
        one, two = getattr(expected, kind), getattr(other, kind)
        if one.keys() != two.keys():
            return f"{kind}: {sorted(one.keys() ^ two.keys())} in one of the runs"
    for name, file in expected.weights.items():
        if exact and file.read_bytes() != other.weights[name].read_bytes():
            return f"{name}: other weights"
        if not exact:
            tensors, others = load_file(file), load_file(other.weights[name])
            worst = max(float(abs(tensors[key] - others[key]).max()) for key in tensors)
            if not worst <= CLOSE:
                return f"{name}: weights differ by {worst:.3g}"
    for name, rows in expected.tables.items() if "tables" in kinds else ():
        if len(rows) != len(other.tables[name]):
            return f"{name}: {len(other.tables[name])} rows instead of {len(rows)}"
        for i, (row, twin) in enumerate(zip(rows, other.tables[name], strict=True)):
            if not same(row, twin, exact):
                return f"{name}, row {i + 1}: {json.dumps(twin)[:200]} instead of {json.dumps(row)[:200]}"
    for name, facts in expected.facts.items() if "facts" in kinds else ():
        if not same(without_checksums(facts), without_checksums(other.facts[name]), exact):
            return f"{name}: {other.facts[name]} instead of {facts}"
    return None


def without_checksums(facts: dict[str, Any]) -> dict[str, Any]:
    """Without what follows from the weights."""
    return {key: value for key, value in facts.items() if key != "sha256"}


def same(one: Any, other: Any, exact: bool) -> bool:
    """Whether two values are equal, numbers up to rounding unless `exact`."""
    if exact or type(one) is not type(other):
        return bool(one == other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key], exact) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(lambda a, b: same(a, b, exact), one, other))
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)
    return bool(one == other)
