"""Loading, encoding and generating with a local model, against transformers' own."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from exact import assert_exact
from transformers import AutoModelForCausalLM, AutoTokenizer

from popi.engine.decoding import pick
from popi.errors import ModelError
from popi.models.local import loading
from popi.models.local.model import LocalModel
from popi.models.remote.usage import metered

PROMPTS = ["tell me about bees.", "explain.", "how do i start with piano and with kites?"]


@pytest.fixture
def local(tiny_base: Path) -> LocalModel:
    return LocalModel.load(tiny_base)


def prompts(local: LocalModel) -> list[list[int]]:
    return [local.encode_chat([{"role": "user", "content": text}]) for text in PROMPTS]


@pytest.mark.parametrize("precision", ["float64"], indirect=True)  # a near tie may fall either way in float32
def test_greedy_equals_transformers_generate(precision: torch.dtype, local: LocalModel, tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=precision)
    for prompt, ours in zip(prompts(local), local.generate(prompts(local), max_new_tokens=12), strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        theirs = theirs[0, len(prompt) :].tolist()
        assert ours == [theirs[: theirs.index(local.end_id) + 1] if local.end_id in theirs else theirs]


def test_branches_of_a_prompt_do_not_see_each_other(
    precision: torch.dtype, local: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits behind every sampled token are those of its prompt and its own prefix alone."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        "popi.engine.decoding.pick", lambda logits, *rest: seen.append(logits.clone()) or pick(logits, *rest)
    )
    torch.manual_seed(3)
    groups = local.generate(prompts(local), n=4, max_new_tokens=6, temperature=1.0)
    assert len({tuple(ids) for ids in groups[0]}) == 4
    for p, (prompt, group) in enumerate(zip(prompts(local), groups, strict=True)):
        for g, ids in enumerate(group):
            plain = local.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 :]
            assert_exact(torch.stack([step[p * 4 + g] for step in seen[: len(ids)]]), plain[: len(ids)])


def test_samples_follow_the_model(local: LocalModel) -> None:
    """First sampled tokens of one prompt come as often as the softmax says (4000 draws, five likeliest tokens)."""
    torch.manual_seed(0)
    prompt = prompts(local)[0]
    drawn = local.generate([prompt], n=4000, max_new_tokens=1, temperature=1.5)[0]
    probs = torch.softmax(local.model(torch.tensor([prompt])).logits[0, -1].detach() / 1.5, -1)
    for p, token in zip(*probs.topk(5), strict=True):
        share = sum(ids[0] == int(token) for ids in drawn) / 4000
        assert abs(share - float(p)) < 4 * (float(p) * (1 - float(p)) / 4000) ** 0.5 + 1e-3


def test_sampling_is_seeded_and_grouped(local: LocalModel) -> None:
    torch.manual_seed(1)
    first = local.generate(prompts(local), n=3, max_new_tokens=6, temperature=1.0)
    torch.manual_seed(1)
    assert first == local.generate(prompts(local), n=3, max_new_tokens=6, temperature=1.0)
    assert [len(group) for group in first] == [3, 3, 3]
    assert len({tuple(ids) for group in first for ids in group}) > 3


def test_generation_leaves_the_models_mode_alone(local: LocalModel) -> None:
    local.model.train()
    local.generate(prompts(local), max_new_tokens=2)
    assert local.model.training
    local.model.eval()


def test_tokens_read_and_written_are_counted(local: LocalModel) -> None:
    asked = prompts(local)
    with metered() as used:
        written = local.generate(asked, max_new_tokens=4)
    local.generate(asked, max_new_tokens=4)  # outside of the block
    assert used.requests == len(asked) and used.input_tokens == sum(map(len, asked))
    assert used.output_tokens == sum(len(ids) for samples in written for ids in samples)


def test_nucleus_by_hand() -> None:
    """Probabilities .5 .3 .15 .05: a nucleus of 0.7 is the first two tokens, of 0.4 the first alone."""
    logits = torch.log(torch.tensor([[0.15, 0.5, 0.05, 0.3]])).repeat(2000, 1)
    torch.manual_seed(0)
    drawn = pick(logits, 1.0, 0.7)
    assert set(drawn.tolist()) == {1, 3}
    assert abs(float((drawn == 1).float().mean()) - 0.5 / 0.8) < 0.04
    assert set(pick(logits, 1.0, 0.4).tolist()) == {1}
    assert set(pick(logits, 0.0, 1.0).tolist()) == {1}


def test_text_is_cut_at_the_end_of_turn(local: LocalModel) -> None:
    ids = local.encode_response("tell me about bees.")
    assert ids[-1] == local.end_id
    assert local.decode([*ids, *ids]) == "tell me about bees."


def test_save_and_load_without_popi(local: LocalModel, tmp_path: Path) -> None:
    local.save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("explain bees.", return_tensors="pt")["input_ids"]
    assert_exact(model(ids).logits, local.model(ids).logits)
    assert LocalModel.load(tmp_path).settings == local.settings == {"template": "nano", "max_tokens": 12}


def test_no_chat_template_is_refused_with_the_way_out(tiny_base: Path, tmp_path: Path) -> None:
    local = LocalModel.load(tiny_base)
    local.tokenizer.chat_template = None
    local.save(tmp_path)
    with pytest.raises(ModelError, match=r"no chat template.*model\.chat_template="):
        LocalModel.load(tmp_path)
    template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    (tmp_path / "mine.jinja").write_text(template)
    for given in (template, str(tmp_path / "mine.jinja")):
        assert LocalModel.load(tmp_path, chat_template=given).end_id == local.end_id
    with pytest.raises(ModelError, match="neither Jinja text nor a readable file"):
        LocalModel.load(tmp_path, chat_template="nowhere.jinja")
    with pytest.raises(ModelError, match="fails on a plain conversation"):
        LocalModel.load(tmp_path, chat_template="{{ raise_exception('no') }}")


def test_what_is_not_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing: no such folder"):
        LocalModel.load(tmp_path / "nothing")
    with pytest.raises(ModelError, match="no such folder, and as a hub id"):
        LocalModel.load("nobody/nothing")
    with pytest.raises(ModelError, match="no model in this folder"):
        LocalModel.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-thing"}))
    with pytest.raises(ModelError, match="can't be loaded as a causal LM"):
        LocalModel.load(tmp_path)


@pytest.mark.parametrize(("template", "dtype"), [("nano", torch.float32), ("default", torch.bfloat16)])
def test_auto_dtype_where_there_is_a_gpu(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, dtype: torch.dtype
) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base" / LocalModel.SETTINGS).write_text(json.dumps({"template": template}))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    model = LocalModel.load(tmp_path / "base", device="meta").model  # any device but the CPU
    assert model.dtype == dtype


@pytest.mark.parametrize(
    ("capability", "parameters", "dtype"),
    [
        ({"amx_bf16": True}, 100_000_000, torch.bfloat16),
        ({"avx512_bf16": True}, 100_000_000, torch.bfloat16),
        ({"avx2": True}, 100_000_000, torch.float32),
        ({"amx_bf16": True}, 1_000_000, torch.float32),
    ],
)
def test_auto_dtype_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capability: dict[str, bool], parameters: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capability)
    monkeypatch.setattr(loading, "_parameters", lambda source: parameters)
    cpu, source = torch.device("cpu"), loading.Source("owner/name")
    assert loading.dtype_of("auto", cpu, source, nano=False) == dtype
    assert loading.dtype_of("auto", cpu, source, nano=True) == torch.float32
    assert loading.dtype_of("bfloat16", cpu, source, nano=True) == torch.bfloat16


def test_parameters_are_counted_without_weights(tiny_base: Path, tmp_path: Path) -> None:
    expected = LocalModel.load(tiny_base).model.num_parameters()
    shutil.copyfile(tiny_base / "config.json", tmp_path / "config.json")
    assert loading._parameters(loading.Source(str(tmp_path))) == expected
    assert loading._parameters(loading.Source(str(tmp_path / "nothing"))) == 0


def test_float16_on_a_cpu_is_refused(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match="float16 on a CPU .* use bfloat16, float32 or auto"):
        LocalModel.load(tiny_base, device="cpu", dtype="float16")


STORIES = Path(__file__).parents[4] / "shared" / "models" / "stories260k"


@pytest.mark.skipif(not STORIES.is_dir(), reason="the checkpoint stories260k is not beside this checkout")
@pytest.mark.parametrize("precision", ["float64"], indirect=True)  # a near tie may fall either way in float32
def test_a_foreign_checkpoint_with_a_template_given(precision: torch.dtype, tmp_path: Path) -> None:
    """A published Llama with a sentencepiece tokenizer, no chat template and no padding token."""
    with pytest.raises(ModelError, match="no chat template"):
        LocalModel.load(STORIES)
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    local = LocalModel.load(STORIES, chat_template=template, dtype="float32", device="cpu")
    prompts = [local.encode_chat([{"role": "user", "content": text}]) for text in ("a cat", "once upon a time")]
    assert all(ids.count(local.tokenizer.bos_token_id) == 1 for ids in prompts)
    assert local.end_id == local.tokenizer.eos_token_id
    together = local.generate(prompts, max_new_tokens=8)
    assert together == [local.generate([ids], max_new_tokens=8)[0] for ids in prompts]
    local.save(tmp_path)
    assert LocalModel.load(tmp_path, device="cpu").generate(prompts, max_new_tokens=8) == together


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", "junk"),
        ("tokenizer.json", "{"),
        ("config.json", "{"),
        ("popi.json", "{"),
        ("popi.json", "[]"),
        ("adapter_config.json", "{"),
        ("adapter_config.json", "{}"),
        ("adapter_config.json", '{"base_model_name_or_path": "./nowhere"}'),
    ],
)
def test_a_damaged_folder_is_named(tiny_base: Path, tmp_path: Path, file: str, content: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder)
    (folder / file).write_text(content)
    with pytest.raises(ModelError, match=str(folder)):
        LocalModel.load(folder)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("x")
    with pytest.raises(ModelError, match="is a file"):
        LocalModel.load(tmp_path / "model")


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_is_not_there_is_named(tiny_base: Path, device: str) -> None:
    with pytest.raises(ModelError, match=f"device '{device}' is not available"):
        LocalModel.load(tiny_base, device=device)


def test_more_than_the_context_is_refused(local: LocalModel) -> None:
    with pytest.raises(ModelError, match="4 tokens of prompt and 2045 new ones exceed its context of 2048"):
        local.generate([[5, 6, 7, 8]], max_new_tokens=2045)


def test_diverged_weights_are_named(tiny_base: Path) -> None:
    broken = LocalModel.load(tiny_base)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        broken.generate([[5, 6]], max_new_tokens=2, temperature=1.0)


def test_weights_that_diverge_on_the_way_are_named(tiny_base: Path) -> None:
    broken = LocalModel.load(tiny_base)
    forward, calls = broken.model.forward, []

    def third_is_none(**arguments: object) -> object:
        found = forward(**arguments)
        calls.append(found)
        if len(calls) == 3:
            found.logits = found.logits * float("nan")
        return found

    broken.model.forward = third_is_none
    with pytest.raises(ModelError, match="not finite"):
        broken.generate([[5, 6]], max_new_tokens=6, temperature=1.0)
    assert len(calls) > 2


def test_an_infinite_logit_is_named(tiny_base: Path) -> None:
    broken = LocalModel.load(tiny_base)
    forward = broken.model.forward

    def overflows(**arguments: object) -> object:
        found = forward(**arguments)
        found.logits[..., 3] = float("inf")
        return found

    broken.model.forward = overflows
    with pytest.raises(ModelError, match="not finite"):
        broken.generate([[5, 6]], max_new_tokens=2, temperature=1.0)


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    assert pick(torch.tensor([[1.0, 3.0, 2.0]]), 1e-45, 1.0).tolist() == [1]


def test_an_adapters_base_is_the_one_that_popi_noted(tiny_base: Path, tmp_path: Path) -> None:
    """PEFT's own file holds a folder of the machine that trained; popi's holds the name, good on any machine."""
    from peft import LoraConfig, get_peft_model

    base = LocalModel.load(tiny_base)
    get_peft_model(base.model, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path)
    facts = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(facts | {"base_model_name_or_path": "/gone/elsewhere"}))
    with pytest.raises(ModelError, match="/gone/elsewhere"):
        LocalModel.load(tmp_path)
    (tmp_path / "popi.json").write_text(json.dumps({"base": str(tiny_base)}))
    assert hasattr(LocalModel.load(tmp_path).model, "peft_config")
