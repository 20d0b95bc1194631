"""The LM head by tiles against all logits at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact import assert_exact
from torch import Tensor

from popi.engine import head as module
from popi.engine.head import Head, tiled_logps, whole_logps

Found = tuple[Tensor, Tensor, list[Tensor | None]]
N, WIDTH, VOCABULARY = 11, 6, 23


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", {"cpu": (4, 5)})  # neither divides what it cuts


def linear(bias: bool) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, VOCABULARY, bias=bias)


def found(way: Callable[..., tuple[Tensor, Tensor]], head: Head, temperature: float) -> Found:
    """Log-probs, entropies, and gradients of a weighted sum: of the hidden states and the head's parameters."""
    made = torch.Generator().manual_seed(1)
    hidden = ((96 * torch.randn(N, WIDTH, generator=made)).round() / 32).to(head.linear.weight.dtype).requires_grad_()
    target = torch.randint(VOCABULARY, (N,), generator=made)
    head.linear.zero_grad()
    logps, entropies = way(hidden, target, head, temperature, True)
    (logps * torch.randn(N, generator=made)).sum().backward()
    return logps.detach(), entropies, [hidden.grad, *(each.grad for each in head.linear.parameters())]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("scale", [1.0, 0.125])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(bias: bool, scale: float, temperature: float, precision: torch.dtype) -> None:
    head = Head(linear(bias), scale, None)
    (logps, entropies, gradients), expected = (
        found(tiled_logps, head, temperature),
        found(whole_logps, head, temperature),
    )
    assert_exact((logps, entropies), expected[:2])
    assert all(plain is not None and plain.abs().max() > 0 for plain in expected[2])
    assert_exact(gradients, expected[2])


def test_by_hand(precision: torch.dtype) -> None:
    """Logits ln 1, ln 2, ln 5 of one token: its log-prob is ln(2/8), its gradient (1/8, 2/8 - 1, 5/8) times -1."""
    made = torch.nn.Linear(1, 3, bias=False)
    made.weight.data = torch.tensor([[1.0], [2.0], [5.0]]).log()
    hidden = torch.ones(1, 1, requires_grad=True)
    logps, entropies = tiled_logps(hidden, torch.tensor([1]), Head(made, 1.0, None), 1.0, True)
    assert_exact(logps, torch.tensor([0.25]).log())
    shares = torch.tensor([1.0, 2.0, 5.0]) / 8
    assert_exact(entropies, -(shares * shares.log()).sum()[None])
    logps.sum().backward()
    assert_exact(made.weight.grad, (torch.tensor([0.0, 1.0, 0.0]) - shares)[:, None])


def test_frozen_heads_get_no_gradient() -> None:
    made = linear(True)
    made.requires_grad_(False)
    _, _, gradients = found(tiled_logps, Head(made, 1.0, None), 1.0)
    assert gradients[0] is not None and gradients[1:] == [None, None]


def test_large_and_small_logits(precision: torch.dtype) -> None:
    made = linear(False)
    made.weight.data *= 1000
    head = Head(made, 1.0, None)
    (logps, entropies, _), expected = found(tiled_logps, head, 1.0), found(whole_logps, head, 1.0)
    assert logps.isfinite().all() and entropies.isfinite().all()
    assert_exact((logps, entropies), expected[:2], of=float(expected[0].abs().max()))


def test_bfloat16_is_rounded_where_the_plain_way_rounds() -> None:
    """Logits are sums of 6 products of multiples of 1/32: float32 holds them, so that no order of adding up shows."""
    made = linear(False).to(torch.bfloat16)
    made.weight.data = (64 * made.weight.data).round() / 32
    head = Head(made, 1.0, None)
    (logps, _, gradients), expected = found(tiled_logps, head, 1.0), found(whole_logps, head, 1.0)
    assert_exact(logps, expected[0])
    wide = Head(made.float(), 1.0, None)
    assert (logps - found(whole_logps, wide, 1.0)[0]).abs().max() > 0.01, "unrounded logits are others"
    for ours, plain in zip(gradients, expected[2], strict=True):
        assert ours is not None and plain is not None
        assert (ours.float() - plain.float()).norm() < 0.02 * plain.float().norm()


@pytest.mark.parametrize("way", [tiled_logps, whole_logps])
@pytest.mark.parametrize(
    ("given", "wanted"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_log_probs_are_at_least_float32(way: Any, given: torch.dtype, wanted: torch.dtype) -> None:
    logps, entropies, gradients = found(way, Head(linear(True).to(given), 1.0, None), 1.0)
    assert logps.dtype == entropies.dtype == wanted
    assert {gradient.dtype for gradient in gradients if gradient is not None} == {given}


def test_heads_that_are_more_than_their_weights_go_by_no_tiles() -> None:
    assert Head(linear(True), 1.0, None).tiles
    assert not Head(linear(True), 1.0, 30.0).tiles
    assert not Head(torch.nn.Sequential(linear(True)), 1.0, None).tiles
    hooked = linear(True)
    hooked.register_forward_hook(lambda *_: None)
    assert not Head(hooked, 1.0, None).tiles
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not Head(linear(True), 1.0, None).tiles
