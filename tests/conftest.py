"""Fixtures shared by all tests."""

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_upstream import KEY, FakeUpstream, serving
from hypothesis import settings

settings.register_profile("popi", deadline=None)  # how long an example takes says nothing on a busy machine
settings.load_profile("popi")

# No test may reach a model hub; set before anything imports huggingface_hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A proxy that the machine has is none of the tests' business.
for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
    os.environ.pop(name, None)
# Every client makes a TLS context, and reading the system's authorities takes 50 ms each time. This one signs nothing:
# tests that need a certificate name an authority of their own (`private_ca`).
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("nobody.pem"))
# The tests' tensors are tiny: a second thread only waits, and waits long where the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test marked `timed` fails only if it fails three times: others run beside it, and may have the processor."""
    for item in items:
        if item.get_closest_marker("timed"):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=3))


def pytest_collection_finish() -> None:
    """What the tests have imported stays: a collection of garbage, as after each training, leaves it out."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def gateway_log() -> Iterator[None]:
    """A command that sends the gateway's log to stderr leaves it so: the next test starts without that."""
    logger = logging.getLogger("popi.gateway")
    before, level, propagates = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:] = before
    logger.setLevel(level)
    logger.propagate = propagates


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of a few thousand weights that speaks the nano world's tokens."""
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
        initializer_range=0.2,  # so that what it reads shows in what it says
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("tiny") / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "popi.json").write_text('{"template": "nano", "max_tokens": 12}')
    return folder


@pytest.fixture(params=["float64", "float32"])
def precision(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The type of all weights, for tests that compare two computations (`exact`): float64, in which they differ much
    by an error alone, and float32 as it is used. Asked for before the fixtures that make models."""
    from exact import in_precision

    with in_precision(request.param) as dtype:
        yield dtype


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeUpstream]:
    """A model API on this machine; its key is in OPENAI_API_KEY and ANTHROPIC_API_KEY."""
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("NO_PROXY", "*")
    with serving() as server:
        yield server
