"""Every order, with full weights and with LoRA: a few steps end to end, and interrupted at the awkward moments."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from popi.config import RunConfig, resolve
from popi.data.users import users_of
from popi.errors import ConfigError, RunError
from popi.generator import Generator
from popi.inference_model import InferenceModel
from popi.models.local.user_embedding import UserIdEmbedding
from popi.nano.world import make_users
from popi.runs.files import read_jsonl
from popi.runs.phase_directory import PhaseDirectory
from popi.runs.run_directory import RunDirectory
from popi.signals.types import User
from popi.training.train import train

BASELINES = ["population_dpo", "fspo", "user_embedding", "user_embedding_from_signals"]
ORDERS = [*BASELINES, "plug_and_play", "alternating", "simultaneous"]
PER_PROMPT = " per prompt"
CONDITIONED = [f"{order}{PER_PROMPT}" for order in ("alternating", "simultaneous")]
RENEWED = " renewed"
CASES = [(o, a) for a in ("none", "lora") for o in ORDERS] + [(o, "none") for o in CONDITIONED]
CASES += [(f"alternating{RENEWED}", "none"), (f"simultaneous{RENEWED}", "lora")]
# Each order once, each adapter with some of them; the other cases are slow.
QUICK = ["population_dpo-lora", "fspo-none", "user_embedding-lora", "user_embedding_from_signals-none"]
QUICK += ["plug_and_play-lora", f"alternating{PER_PROMPT}-none", f"simultaneous{RENEWED}-lora"]
STEPS = 4
QUIET = Console(quiet=True)


def make_config(root: Path, base: Path, order: str, adapter: str, name: str = "whole", **training: object) -> RunConfig:
    """`order` is one of `ORDERS`, or of those in `CONDITIONED` with the summaries conditioned on the task prompt; or
    ends in `RENEWED`: about half of the rows are renewals.
    """
    conditioned, renewed = order in CONDITIONED, order.endswith(RENEWED)
    order = order.removesuffix(PER_PROMPT).removesuffix(RENEWED)
    return resolve(
        {
            "name": name,
            "root": str(root),
            "model": {"base": str(base), "adapter": adapter, "device": "cpu"},
            "data": {"train_users": 12},
            "summary": {"max_tokens": 6, "conditioned_on_prompt": conditioned},
            "training": {
                "orders": [order],
                "joint_steps": STEPS,
                "save_steps": 2,
                "inference": {
                    "steps": STEPS,
                    "users_per_step": 3,
                    "group_size": 3,
                    "targets_per_summary": 1 if conditioned else 2,
                    "warmup_steps": 0,
                },
                "generator": {"steps": STEPS, "batch_size": 4, "warmup_steps": 0},
                "renewal": {"share": 0.5 if renewed else 0.0},
            }
            | training,
        }
    )


def as_parameter(order: str, adapter: str) -> Any:
    name = f"{order}-{adapter}"
    return pytest.param((order, adapter), id=name, marks=[] if name in QUICK else pytest.mark.slow)


@pytest.fixture(scope="module", params=[as_parameter(*case) for case in CASES])
def trained(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    order, adapter = request.param
    config = make_config(tmp_path_factory.mktemp("runs"), tiny_base, order, adapter)
    return RunDirectory.open(train(config, console=QUIET))


def test_what_a_run_leaves(trained: RunDirectory, tiny_base: Path) -> None:
    order = trained.config.training.orders[0]
    phases = {
        "plug_and_play": ["inference-1"],
        "alternating": ["inference-1", "generator-1"],
        "simultaneous": ["joint"],
    }.get(order, [order.replace("_", "-")])
    rows = read_jsonl(trained.log_file)
    assert [(row["phase"], row["step"]) for row in rows] == [(p, s) for p in phases for s in range(1, STEPS + 1)]
    assert all((trained.phase(phase).path / "done.json").is_file() for phase in phases)
    assert not any(trained.path.rglob("checkpoint-*")) and not any(trained.path.rglob("*.tmp"))
    assert any((trained.path / "tensorboard" / phases[0]).iterdir())

    inference_path, generator_path = trained.models()
    assert (inference_path == str(tiny_base)) == (order in BASELINES)
    assert (generator_path == str(tiny_base)) == (order == "plug_and_play")
    user = make_users(1, 7, "test")[0].user
    model = InferenceModel.from_pretrained(inference_path)
    assert model.templates.name == "nano"
    if order not in BASELINES:
        assert model.max_tokens == 6
        samples = read_jsonl(trained.phase(phases[0]).samples)
        assert len(samples) == STEPS * 9
        assert {"step", "user_id", "summary", "reward"} <= samples[0].keys()
    assert model.conditioned == trained.config.summary.conditioned_on_prompt
    assert model.renews == (trained.config.training.renewal.share > 0)
    summary = model.summarize(user.signals, prompt=user.targets[0].prompt if model.conditioned else None)
    generator = Generator.from_pretrained(generator_path)
    assert generator.generate(user.targets[0].prompt, summary, max_new_tokens=4)
    assert (generator.embedding is not None) == order.startswith("user_embedding")
    if generator.embedding is not None:
        base = Generator.from_pretrained(tiny_base)
        known, stranger = trained_user(trained), user
        soft = generator.embedding.soft_prompts([known, stranger], base, token_budget=500)
        own = [bool((one - generator.embedding.generic).abs().max() > 0) for one in soft]
        assert own == [True, order == "user_embedding_from_signals"], (
            "an id that was not trained on is the generic user"
        )


def trained_user(run: RunDirectory) -> User:
    """A user whose own embedding has been trained."""
    embedding = Generator.from_pretrained(run.models()[1]).embedding
    for user in users_of(run.config, "train").users:
        if not isinstance(embedding, UserIdEmbedding):
            return user
        row = int(embedding.inputs([user], None, 0)[0])  # type: ignore[arg-type]
        if row >= 0 and bool(embedding.offsets[row].abs().max() > 0):
            return user
    raise AssertionError("no user's offset has moved")


def test_only_what_a_phase_trains_has_moved(trained: RunDirectory, tiny_base: Path) -> None:
    base = load_file(tiny_base / "model.safetensors")
    for folder in trained.path.glob("phases/*/*/"):
        if (folder / "adapter_model.safetensors").is_file():
            weights = load_file(folder / "adapter_model.safetensors")
            moved = [name for name, tensor in weights.items() if "lora_B" in name and tensor.abs().max() > 0]
            assert len(moved) == len(weights) / 2
        elif (folder / "model.safetensors").is_file():
            weights = load_file(folder / "model.safetensors")
            assert weights.keys() == base.keys()
            assert all((weights[name] != base[name]).any() for name in base)


def raising(original: Callable, call: int) -> Callable:
    """`original`, that fails *instead* of its `call`-th call."""
    calls = 0

    def wrapped(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    return wrapped


def test_interrupted_at_awkward_moments(trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = trained.config
    again = config.model_copy(update={"root": str(tmp_path), "name": "broken"})
    moments: list[tuple[type, str, int]] = [
        (RunDirectory, "log", 3),  # between a checkpoint and the next
        (PhaseDirectory, "seal", 1),  # a checkpoint written, not yet declared complete
        (PhaseDirectory, "save", 1),  # trained, not yet saved
        (PhaseDirectory, "finish", 1),  # saved, not yet done
    ]
    for owner, method, call in moments:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, method, raising(getattr(owner, method), call))
            train(again, resume=True, console=QUIET)
    with again.directory.joinpath("log.jsonl").open("a") as log:
        log.write('{"phase": "join')  # a line cut short
    train(again, resume=True, console=QUIET)

    for file in sorted(trained.path.rglob("*.safetensors")):
        assert (again.directory / file.relative_to(trained.path)).read_bytes() == file.read_bytes(), file
    renewed = sorted(str(file.relative_to(trained.path)) for file in trained.path.rglob("renewals.jsonl"))
    assert bool(renewed) == bool(config.training.renewal.share)
    for name in ("log.jsonl", "references.jsonl", *renewed):
        whole, broken = read_jsonl(trained.path / name), read_jsonl(again.directory / name)
        for row in whole + broken:
            row.pop("seconds", None)
        assert whole == broken


def test_orders_share_phases_and_change_nothing_in_them(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "alternating", "none", rounds=2)
    alone = train(make_config(tmp_path, tiny_base, "plug_and_play", "none", "alone"), console=QUIET)
    both = config.model_copy(
        update={"training": config.training.model_copy(update={"orders": ["plug_and_play", "alternating"]})}
    )
    run = RunDirectory.open(train(both, console=QUIET))
    methods = run.methods()
    assert methods["plug_and_play"] == {
        "inference_model": "phases/inference-1/inference_model",
        "generator": str(tiny_base),
    }
    assert methods["alternating"] == {
        "inference_model": "phases/inference-2/inference_model",
        "generator": "phases/generator-2/generator",
    }
    file = "phases/inference-1/inference_model/model.safetensors"
    assert (run.path / file).read_bytes() == (alone / file).read_bytes()


def test_refusals(trained: RunDirectory, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="already exists and is not overwritten"):
        train(trained.config, console=QUIET)
    other = trained.config.model_copy(update={"seed": 5})
    with pytest.raises(RunError, match="seed: 0 -> 5"):
        train(other, resume=True, console=QUIET)
    generator = {"loss": "ipo", "label_smoothing": 0.1}
    with pytest.raises(ConfigError, match="label_smoothing"):
        train(make_config(tmp_path, tiny_base, "population_dpo", "none", generator=generator), console=QUIET)
    many = {"users_per_step": 40}
    with pytest.raises(ConfigError, match="needs 40 different"):
        train(make_config(tmp_path, tiny_base, "plug_and_play", "none", inference=many), console=QUIET)
    several = make_config(tmp_path, tiny_base, "alternating", "none")
    summary = several.summary.model_copy(update={"conditioned_on_prompt": True})
    with pytest.raises(ConfigError, match="targets_per_summary=2 does not work with.*set it to 1"):
        train(several.model_copy(update={"summary": summary}), console=QUIET)
    assert not json.loads((trained.path / "config.json").read_text())["seed"]


@pytest.mark.parametrize("scored_on", ["signal", pytest.param("targets", marks=pytest.mark.slow)])
def test_clauses_of_one_signal_each(scored_on: str, tiny_base: Path, tmp_path: Path) -> None:
    """A generator trained on copies first, then a writer of clauses, then the generator on what that writes."""
    tree = make_config(tmp_path, tiny_base, "alternating", "lora", generator_start="copy").model_dump(mode="json")
    tree["summary"]["per_signal"] = True
    tree["training"]["inference"]["scored_on"] = scored_on
    tree["training"]["orders"] = ["copy", "alternating"]
    run = RunDirectory.open(train(resolve(tree), console=QUIET))
    phases = ["copy", "inference-1", "generator-1"]
    assert list(dict.fromkeys(row["phase"] for row in read_jsonl(run.log_file))) == phases
    users = {user.user_id: user for user in users_of(run.config, "train").users}
    copies = run.phase("copy").path
    assert (copies / "generator").is_dir() and not (copies / "summaries.jsonl").exists()
    written = read_jsonl(run.phase("generator-1").path / "summaries.jsonl")
    assert written and all(len(row["summaries"]) == len(users[row["user_id"]].targets) for row in written)
    model = InferenceModel.from_pretrained(run.models()[0])
    assert model.per_signal, "saved with the weights"
    user = make_users(1, 7, "test")[0].user
    clauses = [model.summarize([signal]).text for signal in user.signals]
    assert model.summarize(user.signals).text == " ".join(dict.fromkeys(clauses))
