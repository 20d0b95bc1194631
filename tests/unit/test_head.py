"""The LM head by tiles against all logits at once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from popi import head as module
from popi.head import Head, tiled_logps, whole_logps

Found = tuple[Tensor, Tensor, list[Tensor | None]]
N, WIDTH, VOCABULARY = 11, 6, 23


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", {"cpu": (4, 5)})  # neither divides what it cuts


def linear(bias: bool, dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)


def found(way: Callable[..., tuple[Tensor, Tensor]], head: Head, temperature: float) -> Found:
    """Log-probs, entropies, and gradients of a weighted sum: of the hidden states and the head's parameters."""
    made = torch.Generator().manual_seed(1)
    hidden = (3 * torch.randn(N, WIDTH, generator=made)).to(head.linear.weight.dtype).requires_grad_()
    target = torch.randint(VOCABULARY, (N,), generator=made)
    head.linear.zero_grad()
    logps, entropies = way(hidden, target, head, temperature, True)
    (logps * torch.randn(N, generator=made)).sum().backward()
    return logps.detach(), entropies, [hidden.grad, *(each.grad for each in head.linear.parameters())]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("scale", [1.0, 0.125])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(bias: bool, scale: float, temperature: float) -> None:
    head = Head(linear(bias), scale, None)
    (logps, entropies, gradients), expected = (
        found(tiled_logps, head, temperature),
        found(whole_logps, head, temperature),
    )
    assert_close(logps, expected[0], atol=1e-5, rtol=1e-5)
    assert_close(entropies, expected[1], atol=1e-5, rtol=1e-5)
    for ours, plain in zip(gradients, expected[2], strict=True):
        assert ours is not None and plain is not None and plain.abs().max() > 0
        assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_by_hand() -> None:
    """Logits ln 1, ln 2, ln 5 of one token: its log-prob is ln(2/8), its gradient (1/8, 2/8 - 1, 5/8) times -1."""
    made = torch.nn.Linear(1, 3, bias=False)
    made.weight.data = torch.tensor([[1.0], [2.0], [5.0]]).log()
    hidden = torch.ones(1, 1, requires_grad=True)
    logps, entropies = tiled_logps(hidden, torch.tensor([1]), Head(made, 1.0, None), 1.0, True)
    assert_close(logps, torch.tensor([0.25]).log())
    shares = torch.tensor([1.0, 2.0, 5.0]) / 8
    assert_close(entropies, -(shares * shares.log()).sum()[None])
    logps.sum().backward()
    assert_close(made.weight.grad, (torch.tensor([0.0, 1.0, 0.0]) - shares)[:, None])


def test_frozen_heads_get_no_gradient() -> None:
    made = linear(True)
    made.requires_grad_(False)
    _, _, gradients = found(tiled_logps, Head(made, 1.0, None), 1.0)
    assert gradients[0] is not None and gradients[1:] == [None, None]


def test_large_and_small_logits() -> None:
    made = linear(False)
    made.weight.data *= 1000
    head = Head(made, 1.0, None)
    for ours, plain in zip(found(tiled_logps, head, 1.0)[:2], found(whole_logps, head, 1.0)[:2], strict=True):
        assert ours.isfinite().all()
        assert_close(ours, plain, atol=1e-2, rtol=1e-5)


def test_bfloat16_is_rounded_where_the_plain_way_rounds() -> None:
    head = Head(linear(False, torch.bfloat16), 1.0, None)
    (logps, _, gradients), expected = found(tiled_logps, head, 1.0), found(whole_logps, head, 1.0)
    assert_close(logps, expected[0], atol=1e-5, rtol=1e-5)
    for ours, plain in zip(gradients, expected[2], strict=True):
        assert ours is not None and plain is not None
        assert (ours.float() - plain.float()).norm() < 0.02 * plain.float().norm()


def test_heads_that_are_more_than_their_weights_go_by_no_tiles() -> None:
    assert Head(linear(True), 1.0, None).tiles
    assert not Head(linear(True), 1.0, 30.0).tiles
    assert not Head(torch.nn.Sequential(linear(True)), 1.0, None).tiles
    hooked = linear(True)
    hooked.register_forward_hook(lambda *_: None)
    assert not Head(hooked, 1.0, None).tiles
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not Head(linear(True), 1.0, None).tiles
