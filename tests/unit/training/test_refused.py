"""What can't be trained rightly is refused by name, and not trained a little."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import family
from safetensors.torch import load_file, save_file

from popi.config import RunConfig, resolve
from popi.errors import ConfigError, DataError, ModelError, RunError
from popi.generator import Generator
from popi.models.local.model import LocalModel
from popi.nano.tokenizer import build_tokenizer
from popi.signals.types import TargetPair
from popi.training.train import refuse, train

MIXTURES = ("qwen3_moe", "olmoe", "granitemoe", "gpt_oss")
STEP = {"steps": 2, "users_per_step": 2, "group_size": 2, "targets_per_summary": 1, "warmup_steps": 0}


def config(base: Path, root: Path, order: str = "plug_and_play", **settings: Any) -> RunConfig:
    inference, model = STEP | settings.pop("inference", {}), settings.pop("model", {})
    tree = {
        "name": "run",
        "root": str(root),
        "model": {"base": str(base), "device": "cpu"} | model,
        "data": {"train_users": 4, "targets_per_user": 2},
        "summary": {"max_tokens": 4},
        "training": {
            "orders": [order],
            "joint_steps": 2,
            "inference": inference,
            "generator": {"steps": 2, "batch_size": 2, "warmup_steps": 0},
        },
    }
    return resolve(tree | settings)


def saved(kind: str, folder: Path, **settings: Any) -> Path:
    """A small model of a family that speaks the nano world's tokens."""
    tokenizer = build_tokenizer()
    model = family(kind, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "popi.json").write_text(json.dumps({"template": "nano"}))
    return folder


def changed(before: Path, after: Path) -> bool:
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    return any(not torch.equal(old[name], new[name]) for name in new)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", ["mixtral", *(pytest.param(k, marks=SLOW) for k in MIXTURES)])
def test_mixtures_of_experts_train(kind: str, tmp_path: Path) -> None:
    """They crashed at the first step: TRL wanted the router's load balance of each forward."""
    base = saved(kind, tmp_path / "base", router_aux_loss_coef=0.01)
    path = train(config(base, tmp_path, "alternating"))
    assert changed(base, path / "phases/inference-1/inference_model")
    assert changed(base, path / "phases/generator-1/generator")


@pytest.mark.parametrize(
    ("kind", "adapter"), [("mpt", "none"), pytest.param("mamba", "none", marks=SLOW), ("bloom", "lora")]
)
def test_models_that_run_the_plain_way_train(kind: str, adapter: str, tmp_path: Path) -> None:
    base = saved(kind, tmp_path / "base", max_seq_len=512) if kind == "mpt" else saved(kind, tmp_path / "base")
    with pytest.warns(UserWarning, match="in its own row"):
        path = train(config(base, tmp_path, "simultaneous", model={"adapter": adapter, "lora_rank": 2}))
    if adapter == "none":
        assert changed(base, path / "phases/joint/inference_model") and changed(base, path / "phases/joint/generator")


@pytest.fixture(scope="module")
def trained_adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter that a run has trained."""
    root = tmp_path_factory.mktemp("adapter")
    path = train(config(tiny_base, root, model={"adapter": "lora", "lora_rank": 2}))
    return path / "phases/inference-1/inference_model"


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_an_adapter_as_base_is_refused(adapter: str, trained_adapter: Path, tmp_path: Path) -> None:
    """Its weights are frozen: nothing was trained, and "trained" was said."""
    with pytest.raises(ModelError, match="is an adapter, whose weights are frozen, so nothing would train; merge it"):
        train(config(trained_adapter, tmp_path, model={"adapter": adapter}))
    assert not (tmp_path / "run").exists()


def test_a_phase_whose_gradients_change_nothing_is_an_error(tiny_base: Path, tmp_path: Path) -> None:
    settings = config(tiny_base, tmp_path, inference={"learning_rate": 1e-30})
    for resume in (False, True):  # a resume does not call it trained either
        with pytest.raises(RunError, match=r"inference-1: no parameter of the model has changed in \d steps with grad"):
            train(settings, resume=resume)


def test_a_run_that_ends_within_its_warm_up_is_a_run(tiny_base: Path, tmp_path: Path) -> None:
    """One step to see whether all is well, under the default warm-up: its learning rate is 0."""
    with pytest.warns(UserWarning, match="inference-1: no parameter .* the learning rate was 0, .* warmup_steps"):
        path = train(config(tiny_base, tmp_path, inference={"steps": 1, "warmup_steps": 5}))
    assert (path / "methods.json").is_file()


def test_groups_of_equal_rewards_are_no_error(tiny_base: Path, tmp_path: Path) -> None:
    """In a few steps chance may have it so; here it is a temperature at which all summaries of a group are equal."""
    with pytest.warns(UserWarning, match="no parameter of the model has changed: all gradients were 0"):
        path = train(config(tiny_base, tmp_path, inference={"kl": 0}, summary={"max_tokens": 4, "temperature": 1e-3}))
    assert (path / "methods.json").is_file()


def test_a_phase_without_trainable_parameters_is_an_error(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = LocalModel.load

    def frozen(*args: Any, **kwargs: Any) -> LocalModel:
        local = load(*args, **kwargs)
        local.model.requires_grad_(False)
        return local

    monkeypatch.setattr(LocalModel, "load", frozen)
    with pytest.raises(RunError, match="has no trainable parameters"):
        train(config(tiny_base, tmp_path))


def test_weights_under_other_names_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    """transformers starts from random ones and logs it, and its log was switched off."""
    shutil.copytree(tiny_base, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    save_file({f"transformer.{name}": w for name, w in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks \d+ of its weights: .*the file has weights that the model lacks"):
        train(config(tmp_path / "base", tmp_path))


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    base = saved("qwen2", tmp_path / "base", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    LocalModel.load(base)


def test_an_adapter_whose_weights_fit_no_layer_is_refused(trained_adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(trained_adapter, folder)
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name.replace("layers.0", "layers.7"): w for name, w in weights.items()}, file)
    with pytest.raises(ModelError, match="the adapter's file lacks weights"):
        LocalModel.load(folder)


def test_code_of_its_own_is_refused_and_nobody_is_asked(tiny_base: Path, tmp_path: Path) -> None:
    """transformers would ask on the terminal, and wait."""
    shutil.copytree(tiny_base, tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    facts = json.loads(file.read_text()) | {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
    file.write_text(json.dumps(facts))
    (tmp_path / "base" / "own.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(ModelError, match="custom code .* which popi does not run"):
        LocalModel.load(tmp_path / "base")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    small = family("llama", vocab_size=40)
    small.save_pretrained(base)
    with pytest.raises(ModelError, match="the model only has weights for 40, so it belongs to another model"):
        LocalModel.load(base)


def test_an_added_token_without_weights_is_refused_where_a_text_has_it(tmp_path: Path) -> None:
    """As Gemma 3 of 1B has one: the model is good, but for that word."""
    base = saved("llama", tmp_path / "base")
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(base)
    local = LocalModel.load(base)
    with pytest.raises(ModelError, match="the token '<image>', for which the model has no weights"):
        local.encode_response("<image>")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_USE_MEGATRON_LM", "true"),
    ],
)
def test_what_accelerate_would_change_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    settings = resolve({})
    refuse(settings)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    refuse(settings)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable}={value} is set"):
        refuse(settings)


def short_context(tiny_base: Path, folder: Path, context: int) -> Path:
    """A rotary model: beyond its context it reads on, badly and without a word."""
    shutil.copytree(tiny_base, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": context}))
    return folder


def test_signals_beyond_the_context_are_refused_before_the_first_step(tiny_base: Path, tmp_path: Path) -> None:
    base = short_context(tiny_base, tmp_path / "base", 100)
    with pytest.raises(DataError, match=r"for 4 of 4 users, the signals and a summary of 4 tokens .* \(users train-"):
        train(config(base, tmp_path))
    assert not (tmp_path / "run").exists()


def test_targets_beyond_the_context_are_refused_before_the_first_step(tiny_base: Path, tmp_path: Path) -> None:
    users = tmp_path / "users.jsonl"
    pair = {"prompt": "tell me about tea", "chosen": "no " * 150, "rejected": "yes"}
    signal = {"type": "statement", "text": "short please"}
    lines = [json.dumps({"user_id": f"u{i}", "signals": [signal], "targets": [pair]}) + "\n" for i in range(4)]
    users.write_text("".join(lines))
    base = short_context(tiny_base, tmp_path / "base", 120)
    data = {"data": {"source": str(users)}}
    for order, named in (("plug_and_play", "tell me about tea"), ("population_dpo", "tell me about tea")):
        with pytest.raises(ModelError, match=rf"of a response \(to '{named}'\) exceed its context of 120"):
            train(config(base, tmp_path, order, **data))
    base = short_context(tiny_base, tmp_path / "base2", 175)  # enough without a summary
    with pytest.raises(DataError, match=r"a summary of 20 tokens, task prompt and response .*users u"):
        train(config(base, tmp_path, **data, summary={"max_tokens": 20}))


def test_evaluation_refuses_what_is_beyond_the_context(tiny_base: Path, tmp_path: Path) -> None:
    local = LocalModel.load(short_context(tiny_base, tmp_path / "base", 40))
    target = TargetPair(prompt="tea", chosen="no " * 50, rejected="yes")
    with pytest.raises(ModelError, match="exceed its context of 40; remove this target"):
        Generator(local).pair_logps([target], ["short"])
    with pytest.raises(ModelError, match="a text of 4,000,000 characters exceeds"):  # said before it is tokenised
        local.encode_response("word" * 1_000_000)
