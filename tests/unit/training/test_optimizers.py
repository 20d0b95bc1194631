"""Optimizer, scheduler, weight decay, LoRA targets and dropout, attention: what a config says is what trains."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Adafactor

from popi.config import resolve
from popi.errors import ConfigError, ModelError
from popi.models.local.adapters import TRAINED, attach_adapters, save_adapter, set_dropout
from popi.models.local.model import LocalModel
from popi.training.components import load_components
from popi.training.phases.generator import GeneratorTrainer
from popi.training.phases.joint import PARTNER, JointTrainer
from popi.training.planning.plan import refuse_settings
from popi.training.reward import SummaryReward
from popi.training.train import refuse


def joint(b: Any, adapter: str) -> JointTrainer:
    return JointTrainer(
        generator=b.parts.generator.local if adapter == "none" else None,
        local=b.parts.inference_model.local,
        rows=b.rows,
        reward=SummaryReward(b.parts.generator, b.parts.adapters["generator"], 0.1),
        anchor=b.parts.base.local.model,
        **b.common("joint"),
    )


def test_optimizer_scheduler_and_decay_of_a_phase(bench: Callable[..., Any]) -> None:
    wanted = {"optim": "adafactor", "weight_decay": 0.1, "lr_scheduler_type": "linear", "learning_rate": 1e-3}
    trainer = joint(bench({"inference_model", "generator"}, inference=wanted, generator={"weight_decay": 0.3}), "none")
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, Adafactor)
    names = {id(p): name for name, p in trainer.scorer.trained_parameters().items()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == trainer.scorer.trained_parameters().keys()
    for name, value in decay.items():
        own = 0.1 if name.startswith("inference_model.") else 0.3
        assert value == (0.0 if "norm" in name else own), name
    rates = []
    scheduler = trainer.create_scheduler(4, optimizer)
    for _ in range(4):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"inference": {"optim": "adamm"}}, ["training.inference.optim = 'adamm'", "adamw_torch"]),
        ({"generator": {"optim": "stable_adamw"}}, ["training.generator.optim", "pip install torch-optimi"]),
        ({"generator": {"lr_scheduler_type": "cos"}}, ["training.generator.lr_scheduler_type = 'cos'", "linear"]),
        ({"inference": {"lr_scheduler_kwargs": {"floor": 1}}}, ["lr_scheduler_kwargs = {'floor': 1}", "floor"]),
        ({"inference": {"lr_scheduler_type": "reduce_lr_on_plateau"}}, ["needs an evaluation's loss"]),
    ],
)
def test_what_transformers_cannot_build_is_refused_at_the_start(settings: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        refuse(resolve({"training": settings}))
    for word in words:
        assert word in str(error.value)


def targeted(model: Any) -> set[str]:
    return {name.partition(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if "lora_A" in name}


@pytest.mark.parametrize(
    ("asked", "hit"),
    [
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        (r".*\.(gate|up)_proj", {"gate_proj", "up_proj"}),
    ],
)
def test_adapters_sit_on_the_layers_named(tiny_base: Path, tmp_path: Path, asked: Any, hit: set[str]) -> None:
    model = {"base": str(tiny_base), "adapter": "lora", "device": "cpu", "lora_target_modules": asked}
    parts = load_components(resolve({"model": model}), {"inference_model"}, None, None)
    trained = parts.inference_model.local.model
    assert targeted(trained) == hit
    save_adapter(trained, TRAINED, tmp_path, str(tiny_base))
    assert targeted(LocalModel.load(tmp_path, device="cpu").model) == hit


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["q_proj", "v_porj"], "no layer of this model is 'v_porj'; it has .*v_proj"),
        ("none", "no layer of this model is 'none'"),
        (["q_proj", "lm_head"], "'lm_head' matches the embeddings or the LM head"),
        (".*embed_tokens", "matches the embeddings"),
    ],
)
def test_layers_that_are_not_there_or_not_for_adapters(tiny_base: Path, asked: Any, words: str) -> None:
    base = LocalModel.load(tiny_base, device="cpu").model
    with pytest.raises(ModelError, match=words):
        attach_adapters(base, 2, 4.0, {TRAINED: None}, asked)


def rates(model: Any, adapter: str) -> set[float]:
    layers = [m.lora_dropout[adapter] for m in model.modules() if adapter in getattr(m, "lora_dropout", {})]
    return {getattr(layer, "p", 0.0) for layer in layers}


def test_the_generators_adapter_has_dropout_and_the_inference_models_none(bench: Callable[..., Any]) -> None:
    b = bench({"inference_model", "generator"}, "lora", generator={"lora_dropout": 0.25})
    trainer = joint(b, "lora")
    assert (rates(trainer.local.model, TRAINED), rates(trainer.local.model, PARTNER)) == ({0.0}, {0.25})


def test_dropout_acts_in_training_alone(tiny_base: Path) -> None:
    ids = torch.tensor([[5, 9, 17, 30]])
    model = attach_adapters(LocalModel.load(tiny_base, device="cpu").model, 4, 8.0, {TRAINED: None})
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    set_dropout(model, TRAINED, 0.5)
    with torch.no_grad():
        training = [model.train()(input_ids=ids).logits for _ in range(2)]
        using = [model.eval()(input_ids=ids).logits for _ in range(2)]
    assert not torch.equal(*training) and torch.equal(*using)
    assert model.peft_config[TRAINED].lora_dropout == 0.5


def test_a_generator_phase_trains_with_its_dropout(bench: Callable[..., Any]) -> None:
    from popi.data.users import users_of
    from popi.training.references import References
    from popi.training.rows import generator_rows

    b = bench({"generator"}, "lora", generator={"lora_dropout": 0.25})
    users = users_of(b.config, "train").users[:2]
    rows = generator_rows(users, None, b.parts.generator, References(b.run.path / "references.jsonl"))
    trainer = GeneratorTrainer(local=b.parts.generator.local, rows=rows[:8], **b.common("g"))
    trainer.run_phase()
    assert rates(b.parts.generator.local.model, TRAINED) == {0.25}
    folder = b.run.phase("g").save("generator", b.parts.saver("generator", b.config.model.base))
    assert json.loads((folder / "adapter_config.json").read_text())["lora_dropout"] == 0.25


def test_dropout_without_adapters_is_refused() -> None:
    with pytest.raises(ConfigError, match="lora_dropout=0.1 needs adapters"):
        refuse_settings(resolve({"training": {"generator": {"lora_dropout": 0.1}}}))


def test_attention_by_name(tiny_base: Path) -> None:
    loaded = LocalModel.load(tiny_base, device="cpu", attn_implementation="eager").model
    assert loaded.config._attn_implementation == "eager"
    with pytest.raises(ModelError, match="can't be loaded .*eagre"):
        LocalModel.load(tiny_base, device="cpu", attn_implementation="eagre")
