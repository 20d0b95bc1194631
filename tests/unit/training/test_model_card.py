"""A run's models with their cards: what the card says, loading without popi, and the way to the hub."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import assert_exact
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from transformers import AutoModelForCausalLM, AutoTokenizer

from popi.config import resolve
from popi.errors import RunError, UpstreamError
from popi.models.local.adapters import using
from popi.models.local.model import LocalModel
from popi.runs.run_directory import RunDirectory
from popi.training.components import GENERATOR, INFERENCE, load_components
from popi.training.model_card import card, refresh_cards, write_card
from popi.training.push import part_to_push, push_folder

IDS = torch.tensor([[5, 9, 17, 30]])


@pytest.fixture(params=["none", "lora"])
def run(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> Iterator[RunDirectory]:
    """A run as training leaves it: both parts saved, changed a little from the base."""
    model = {"base": str(tiny_base), "adapter": request.param, "lora_rank": 2, "device": "cpu"}
    orders = ["plug_and_play", "alternating"]
    config = resolve({"name": "r", "root": str(tmp_path), "model": model, "training": {"orders": orders}})
    run = RunDirectory.create(config)
    parts = load_components(config, {INFERENCE, GENERATOR}, None, None)
    with torch.no_grad():
        for name, parameter in parts.inference_model.local.model.named_parameters():
            if "lora_B" in name or request.param == "none":
                parameter.add_(0.02)
    for phase, component in (("inference-1", INFERENCE), ("generator-1", GENERATOR)):
        folder = run.phase(phase).save(component, parts.saver(component, str(tiny_base)))
        write_card(folder, run, phase, component)
    run.parts = parts  # type: ignore[attr-defined]
    run.set_method("plug_and_play", "phases/inference-1/inference_model", str(tiny_base))
    run.set_method("alternating", "phases/inference-1/inference_model", "phases/generator-1/generator")
    yield run


def test_a_saved_run_loads_without_popi(run: RunDirectory, tiny_base: Path) -> None:
    parts = run.parts  # type: ignore[attr-defined]
    folder = run.phase("inference-1").path / INFERENCE
    if run.config.model.adapter == "lora":
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, str(folder))
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_base)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = parts.inference_model.local.model.eval()
    with torch.no_grad(), using(ours, parts.adapters[INFERENCE]):
        assert_exact(model.eval()(input_ids=IDS).logits, ours(input_ids=IDS).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "explain bees."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == parts.inference_model.local.format.render(messages)


def test_an_adapter_keeps_the_chat_template_that_it_was_trained_on(run: RunDirectory, tiny_base: Path) -> None:
    folder = run.phase("inference-1").path / INFERENCE
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    tokenizer.save_pretrained(folder)
    assert LocalModel.load(folder, device="cpu").format.render([{"role": "user", "content": "a"}]) == "a<|end|>"


def test_the_card_says_what_the_model_is(run: RunDirectory, tiny_base: Path) -> None:
    folder = run.phase("inference-1").path / INFERENCE
    refresh_cards(run)
    text = (folder / "README.md").read_text()
    facts = ModelCard.load(folder / "README.md").data
    assert facts.license == "unknown" and facts.tags == ["popi", "personalization"]
    assert facts.library_name == ("peft" if run.config.model.adapter == "lora" else "transformers")
    assert facts.base_model is None  # a folder is no id of the hub
    for said in (
        f"| Base model | `{tiny_base}` |",
        "| Used by | plug_and_play, alternating |",
        "source `nano`",
        "none of whom was trained on",
        "not stated;",
        "Not evaluated yet",
        "phase `inference-1` of the orders plug_and_play, alternating",
    ):
        assert said in text
    assert "| Used by | alternating |" in (run.phase("generator-1").path / GENERATOR / "README.md").read_text()


def test_figures_come_in_with_the_evaluation(run: RunDirectory) -> None:
    def measured(value: float) -> dict[str, Any]:
        accuracy = {"value": value, "low": value - 0.1, "high": value + 0.1}
        return {"reward_accuracy": accuracy, "context_overhead_tokens": 12.0}

    methods = {
        "no_personalization": measured(0.5),
        "popi_plug_and_play": measured(0.7),
        "popi_alternating": measured(0.8),
    }
    facts = {"methods": methods, "n_users": 40, "n_pairs": 160, "seed": 3}
    (run.path / "metrics.json").write_text(json.dumps(facts))
    refresh_cards(run)
    text = (run.phase("generator-1").path / GENERATOR / "README.md").read_text()
    assert "| popi_alternating | 0.800 | 0.700 to 0.900 | 12.0 |" in text and "| no_personalization | 0.500 |" in text
    assert "plug_and_play |" not in text.partition("## Figures")[2]  # its generator is another
    assert "On 40 held-out users, 160 target pairs, seed 3" in text
    (run.path / "metrics.json").write_text("{")
    assert "Not evaluated yet" in card(run, "generator-1", GENERATOR)


def test_a_base_on_the_hub_is_in_the_cards_front(tmp_path: Path) -> None:
    for base, named in (("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("owner/name", "owner/name")):
        config = resolve({"name": "r", "root": str(tmp_path), "model": {"base": base, "adapter": "lora"}})
        text = card(RunDirectory(tmp_path / "r", config), "inference-1", INFERENCE)
        assert f"\nbase_model: {named}\n" in text
        assert f"from_pretrained('{named}')" in text


class FakeHub:
    """Keeps what is asked of it, as HfApi would send it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.calls = error, []

    def create_repo(self, *args: Any, **kwargs: Any) -> None:
        if self.error:
            raise self.error
        self.calls.append(("create_repo", args, kwargs))

    def upload_folder(self, **kwargs: Any) -> None:
        self.calls.append(("upload_folder", (), kwargs))


def test_push_uploads_the_folder_as_it_lies(run: RunDirectory) -> None:
    hub = FakeHub()
    folder = part_to_push(run, "plug_and_play")
    assert folder == run.phase("inference-1").path / INFERENCE
    files = dict(push_folder(folder, "owner/name", private=True, api=hub))
    weights = "adapter_model.safetensors" if run.config.model.adapter == "lora" else "model.safetensors"
    assert {"README.md", "popi.json", "tokenizer.json", weights} <= files.keys()
    assert files[weights] == (folder / weights).stat().st_size
    made, sent = hub.calls
    assert made == ("create_repo", ("owner/name",), {"private": True, "exist_ok": True})
    assert sent[2]["repo_id"] == "owner/name" and sent[2]["folder_path"] == str(folder)
    hub = FakeHub()
    assert dict(push_folder(folder, "owner/name", dry_run=True, api=hub)) == files
    assert hub.calls == []


def test_what_can_not_be_pushed_is_named(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="trained inference_model and generator; name one with --part"):
        part_to_push(run, "alternating")
    assert part_to_push(run, "alternating", GENERATOR).name == GENERATOR
    with pytest.raises(RunError, match="the generator of this method is the untrained base"):
        part_to_push(run, "plug_and_play", GENERATOR)
    with pytest.raises(RunError, match="'weights' is not one of inference_model, generator"):
        part_to_push(run, "plug_and_play", "weights")
    folder = part_to_push(run, "plug_and_play")
    with pytest.raises(RunError, match="'name': must be a repository on the hub, as owner/name"):
        push_folder(folder, "name", api=FakeHub())
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="has no weights"):
        push_folder(tmp_path / "empty", "owner/name", dry_run=True)


def test_a_hub_that_does_not_take_it_is_told(run: RunDirectory) -> None:
    import httpx2 as httpx

    folder = part_to_push(run, "plug_and_play")
    response = httpx.Response(403, request=httpx.Request("POST", "https://example.org"))
    for error, said in (
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set; unset it, or use --dry-run"),
        (HfHubHTTPError("no", response=response), "the hub answered 403; log in with `hf auth login`"),
        (ConnectionError("no route"), "the hub can't be reached .ConnectionError: no route"),
    ):
        with pytest.raises(UpstreamError, match=said):
            push_folder(folder, "owner/name", api=FakeHub(error))


def test_offline_pushing_fails_with_the_way_out(run: RunDirectory) -> None:
    with pytest.raises(UpstreamError, match="can't push to owner/name"):  # the tests are offline
        push_folder(part_to_push(run, "plug_and_play"), "owner/name")


def test_with_adapters_the_base_is_in_memory_once(run: RunDirectory, tiny_base: Path) -> None:
    """Inference adapter, generator adapter, reference and KL anchor: one set of base weights, by their storage."""
    parts = run.parts  # type: ignore[attr-defined]
    locals_ = [part.local for part in (parts.inference_model, parts.generator, parts.base)]
    storages = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes()
        for local in locals_
        for name, parameter in local.model.named_parameters()
        if "lora_" not in name
    }
    plain = LocalModel.load(tiny_base, device="cpu").model
    once = sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in plain.parameters()}.values())
    assert sum(storages.values()) == once * (1 if run.config.model.adapter == "lora" else 3)
