"""A run directory as files only (for the report), and tiny random models in memory (for the runner)."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from popi.config import RunConfig, resolve
from popi.evaluation.models import Models
from popi.generator import Generator
from popi.inference_model import InferenceModel
from popi.models.local.model import LocalModel
from popi.models.spec import ModelSpec
from popi.nano.tokenizer import build_tokenizer

METHODS = {  # reward accuracy, margin, tokens, precision, recall
    "no_personalization": (0.5, 0.0, 0.0, None, None),
    "raw_signals": (0.883, 3.1, 342.6, None, None),
    "untrained_summary": (0.641, 0.9, 13.2, 0.48, 0.41),
    "oracle": (0.978, 6.4, 14.9, 1.0, 1.0),
    "popi_plug_and_play": (0.921, 4.8, 13.8, 0.93, 0.9),
    "popi_alternating": (0.956, 7.2, 13.8, 0.93, 0.9),
}
NASTY = "<script>alert('no')</script> & \"quotes\" $x_1$"


def estimate(value: float | None, reach: float) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": value - reach, "high": value + reach}


def differences_of(name: str, accuracy: float) -> dict:
    others = ("no_personalization", "untrained_summary", "raw_signals")
    return {
        other: {"reward_accuracy": estimate(accuracy - METHODS[other][0], 0.02), "margin": estimate(1.0, 0.5)}
        for other in others
        if other != name
    }


def terms_of(error: float, unsaid: float) -> dict:
    parts = {"loss": error + unsaid, "generator_error": error, "left_unsaid": unsaid}
    return {key: estimate(value, 0.01) for key, value in parts.items()}


def metrics_of(methods: dict[str, tuple]) -> dict:
    return {
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "config": RunConfig(name="synthetic").model_dump(mode="json"),
        "seed": 0,
        "versions": {"python": "3.11.2", "popi": "0.1.0", "torch": "2.13.0"},
        "n_users": 400,
        "n_pairs": 1600,
        "methods": {
            name: {
                "reward_accuracy": estimate(accuracy, 0.0 if accuracy == 0.5 else 0.018),
                "margin": estimate(margin, 0.2 if margin else 0.0),
                "context_overhead_tokens": tokens,
                "attribute_precision": precision,
                "attribute_recall": recall,
                "differences": differences_of(name, accuracy),
                "calibration": {
                    "beta": 0.1,
                    "expected_calibration_error": estimate(0.171, 0.01),
                    "brier_score": estimate(0.066, 0.005),
                    "log_loss": estimate(0.266, 0.013),
                    "reliability": [
                        {"low": 0.5, "high": 0.55, "pairs": 40, "confidence": 0.52, "accuracy": estimate(0.56, 0.1)},
                        {"low": 0.9, "high": 0.95, "pairs": 90, "confidence": 0.93, "accuracy": estimate(0.99, 0.01)},
                        {"low": 0.95, "high": 1.0, "pairs": 0, "confidence": None, "accuracy": estimate(None, 0)},
                    ],
                },
                "loss_terms": {
                    "beta": 0.1,
                    "fitted": terms_of(0.164, 0.102),
                    "world": terms_of(0.244, 0.022),
                },
                "intervals": {
                    "context_overhead_tokens": estimate(tokens, 0.3),
                    "attribute_precision": estimate(precision, 0.02),
                    "attribute_recall": estimate(recall, 0.02),
                },
            }
            for name, (accuracy, margin, tokens, precision, recall) in methods.items()
        },
        "not_trained": ["population_dpo", "popi_simultaneous"],
        "not_applicable": [],
        "not_enabled": ["per_user_lora"],
        "loss_of_the_best": {"nothing": estimate(0.678, 0.01), "signals": estimate(0.0002, 0.0001)},
        "seconds": {"evaluation": 31.2, "raw_signals": 18.0},
    }


def write_run(run: Path, methods: dict[str, tuple] | None = None) -> Path:
    """Everything that a report reads."""
    rng = random.Random(0)
    folder = run / "evaluation"
    folder.mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps(metrics_of(methods or METHODS)))
    log = []
    for step in range(1, 81):
        kl = 0.4 * (1 - math.exp(-step / 30)) + rng.gauss(0, 0.02)
        reward = -0.6 + 0.5 * (1 - math.exp(-step / 25)) + rng.gauss(0, 0.03)
        log.append({"phase": "inference-1", "step": step, "reward": reward, "kl": kl, "loss": rng.gauss(0.02, 0.01)})
    for step in range(1, 61):
        log.append({"phase": "generator-1", "step": step, "loss": 0.69 * math.exp(-step / 40) + rng.gauss(0, 0.03)})
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log) + '{"phase": "cut sh')
    samples = run / "phases" / "inference-1"
    samples.mkdir(parents=True)
    said = ["prefers warnings, technical words and numbers.", "likes jokes.", NASTY, "wants short answers."]
    rows = [
        {"step": step, "user_id": f"train-0-{step:05d}", "summary": text, "reward": rng.uniform(-2, 0)}
        for step in (1, 40, 80)
        for text in said * 2
    ]
    (samples / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    users = []
    for i in range(3):
        answers = {name: f"hi there, puzzles via modular mechanism, in two percent. {NASTY}" for name in METHODS}
        users.append(
            {
                "user_id": f"test-0-{i:05d}",
                "preferences": {"closing": "warning", "level": "technical", "support": "numbers"},
                "signals": [
                    {
                        "type": "pair",
                        "prompt": "what about puzzles?",
                        "chosen": "hi friend, puzzles with modular mechanism, in two percent. take care though.",
                        "rejected": "hey, puzzles through small step, a painter told me. woo hoo haha! it works.",
                    },
                    {
                        "type": "interaction",
                        "prompt": [{"role": "user", "content": "engines?"}],
                        "response": "hm",
                        "rating": 5.0,
                    },
                    {"type": "interaction", "prompt": "engines?", "response": "hm", "edit": "hm. take care though."},
                    {"type": "post", "text": NASTY, "context": "so happy, illustrations again."},
                    {"type": "statement", "text": "i like statistics."},
                    {"type": "demographic", "text": "i am an analyst."},
                ],
                "summaries": {
                    "untrained_summary": "likes a playful mood and warnings.",
                    "oracle": "prefers warnings, technical words and numbers.",
                    "popi_plug_and_play": "prefers warnings and technical words.",
                    "popi_alternating": "prefers warnings, technical words and figures.",
                },
                "named": {
                    "untrained_summary": [["mood", "playful"], ["closing", "warning"]],
                    "oracle": [["closing", "warning"], ["level", "technical"], ["support", "numbers"]],
                    "popi_plug_and_play": [["closing", "warning"], ["level", "technical"]],
                    "popi_alternating": [["closing", "warning"], ["level", "technical"], ["support", "numbers"]],
                },
                "prompts": [
                    {"prompt": "how do i explain rice?", "chosen": "yes", "rejected": "no", "answers": answers},
                ],
            }
        )
    (folder / "examples.json").write_text(json.dumps({"stamp": "s", "users": users}))
    margins = {"no_personalization": 0.0, "raw_signals": -1.5, "popi_alternating": 12.34}
    for name in methods or METHODS:
        found = [
            {
                "user_id": f"test-0-{w:05d}",
                "window": w,
                "target": 0,
                "margin": margins.get(name, 1.0),
                "chosen_logp": -50.0,
                "reference_chosen_logp": -51.0,
            }
            for w in range(3)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    other = metrics_of({name: METHODS[name] for name in METHODS if name != "popi_alternating"})
    other |= {"generator": "runs/second-base", "gain_kept": {"popi_plug_and_play": 0.94, "untrained_summary": 0.91}}
    (folder / "with-second-base").mkdir()
    (folder / "with-second-base" / "metrics.json").write_text(json.dumps(other))
    return run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A run directory of that name, of the methods given: name → (accuracy, margin, tokens, precision, recall)."""
    return lambda name, methods=None: write_run(tmp_path / name, methods)


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "synthetic")


@dataclass
class TinyModels(Models):
    """Random two-layer models of the nano world's words, held in memory; counts how often each is asked for."""

    asked: list[str] = field(default_factory=list)

    def _local(self, path: str) -> LocalModel:
        tokenizer = build_tokenizer()
        torch.manual_seed(sum(map(ord, path)))
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **shape))
        for weight in model.parameters():
            weight.data.mul_(3)  # greedy decoding should not be a tie
        return LocalModel(model.eval(), tokenizer, path, {"template": "nano"})

    def generator(self, path: str) -> Generator:
        self.asked.append(f"generator {path}")
        if path not in self._generators:
            self._generators[path] = Generator(self._local(path), "nano")
        return self._generators[path]

    def inference_model(self, path: str) -> InferenceModel:
        self.asked.append(f"inference {path}")
        conditioned = self.config.summary.conditioned_on_prompt
        budget = self.config.signals.token_budget
        return InferenceModel(self._local(path), "nano", max_tokens=6, token_budget=budget, conditioned=conditioned)


@dataclass
class FakeRun:
    """A run of plug-and-play and alternating, on disk as far as evaluation writes."""

    path: Path
    config: RunConfig

    def methods(self) -> dict:
        return {"plug_and_play": {}, "alternating": {}}

    def models(self, method: str | None = None) -> tuple[str, str]:
        return "phases/inference-1", "nano" if method == "plug_and_play" else "phases/generator-1"


@pytest.fixture(autouse=True)
def one_thread():
    """These models are too small to share out, and threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    tree = {
        "data": {"test_users": 3, "targets_per_user": 2},
        "evaluation": {"examples": 2, "answer_tokens": 4, "prompt_users": 0},
    }
    return FakeRun(tmp_path / "run", resolve({"name": "run", "root": str(tmp_path), **tree}))


@pytest.fixture
def tiny():
    def make(run: FakeRun, other: str | None = None) -> TinyModels:
        another = None if other is None else ModelSpec(other)
        return TinyModels(run.config, {order: run.models(order) for order in run.methods()}, another)

    return make
