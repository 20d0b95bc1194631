"""The objective against numbers worked by hand, and against TRL's arithmetic where the two agree."""

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from popi.training.objective import (
    dpo_loss,
    generator_loss,
    group_advantages,
    ipo_loss,
    length_penalty,
    margin,
    policy_loss,
    summary_reward,
    token_kl,
)

LOG_SIGMOID_1 = -0.31326168751822286  # log σ(1) = −log(1 + e⁻¹)
LOG_SIGMOID_MINUS_1 = -1.3132616875182228  # log σ(−1) = log σ(1) − 1


def test_margin() -> None:
    # (−2 − −3) − (−5 − −4) = 1 + 1; and a model equal to its reference has none
    assert_close(margin(tensor([-2.0]), tensor([-5.0]), tensor([-3.0]), tensor([-4.0])), tensor([2.0]))
    assert_close(margin(tensor([-3.0]), tensor([-4.0]), tensor([-3.0]), tensor([-4.0])), tensor([0.0]))


def test_summary_reward() -> None:
    assert_close(summary_reward(tensor([2.0]), beta=0.5), tensor([LOG_SIGMOID_1 / 0.5]))
    assert_close(summary_reward(tensor([0.0]), beta=0.1), tensor([-math.log(2) / 0.1]))
    assert_close(summary_reward(tensor([-1000.0]), beta=0.1), tensor([-1000.0]))  # about h, and no overflow


def test_length_penalty() -> None:
    # two tokens are free, each further one costs a quarter
    assert_close(length_penalty(tensor([0, 2, 3, 8]), target=2, per_token=0.25), tensor([0.0, 0.0, 0.25, 1.5]))


def test_group_advantages() -> None:
    rewards = tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]])  # means 3 and 5
    assert_close(group_advantages(rewards), tensor([[-2.0, -1.0, 0.0, 3.0], [0.0] * 4]))
    std = math.sqrt((4 + 1 + 0 + 9) / 3)
    scaled = group_advantages(rewards, scale=True)
    assert_close(scaled[0], tensor([-2.0, -1.0, 0.0, 3.0]) / (std + 1e-4))
    assert_close(scaled[1], torch.zeros(4))


def test_dpo() -> None:
    assert_close(dpo_loss(tensor([2.0]), beta=0.5), tensor([-LOG_SIGMOID_1]))
    assert_close(dpo_loss(tensor([0.0]), beta=0.5), tensor([math.log(2)]))


def test_conservative_dpo() -> None:
    expected = -0.9 * LOG_SIGMOID_1 - 0.1 * LOG_SIGMOID_MINUS_1  # 0.4132617
    assert_close(dpo_loss(tensor([2.0]), beta=0.5, label_smoothing=0.1), tensor([expected]))
    best = tensor([math.log(9) / 0.5], requires_grad=True)  # log((1−ε)/ε)/β
    dpo_loss(best, beta=0.5, label_smoothing=0.1).sum().backward()
    assert_close(best.grad, tensor([0.0]), atol=1e-7, rtol=0)


def test_ipo_is_on_summed_log_probs() -> None:
    assert_close(ipo_loss(tensor([2.0, 5.0, 7.0]), beta=0.1), tensor([9.0, 0.0, 4.0]))  # (h − 5)²


def test_generator_loss_by_name() -> None:
    h = tensor([2.0])
    assert_close(generator_loss(h, "dpo", 0.5, 0.1), dpo_loss(h, 0.5, 0.1))
    assert_close(generator_loss(h, "ipo", 0.5), ipo_loss(h, 0.5))
    with pytest.raises(ValueError, match="'kto'.*'dpo' or 'ipo'"):
        generator_loss(h, "kto", 0.5)
    with pytest.raises(ValueError, match="label_smoothing=0.1"):
        generator_loss(h, "ipo", 0.5, 0.1)


def test_token_kl() -> None:
    policy, reference = tensor([0.5, 0.5]), tensor([0.25, 0.75])
    terms = token_kl(policy.log(), reference.log())
    assert_close(terms, tensor([0.5 - math.log(0.5) - 1, 1.5 - math.log(1.5) - 1]))
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)  # 0.1438410
    assert_close((policy * terms).sum(), tensor(kl))


def test_which_kl_the_gradient_belongs_to() -> None:
    """Differentiating sampled terms gives KL(ref ‖ π)'s gradient; weighing them by π/π.detach() gives KL(π ‖ ref)'s."""
    logits = tensor([0.3, -0.7, 0.1], requires_grad=True)
    reference = torch.log_softmax(tensor([0.9, 0.2, -0.5]), 0)

    def gradient(weigh: bool) -> torch.Tensor:
        logps = torch.log_softmax(logits, 0)
        ratio = torch.exp(logps - logps.detach()) if weigh else 1.0
        expected = (logps.detach().exp() * ratio * token_kl(logps, reference)).sum()  # over tokens drawn from π
        return torch.autograd.grad(expected, logits)[0]

    logps = torch.log_softmax(logits, 0)
    to_reference = torch.autograd.grad((logps.exp() * (logps - reference)).sum(), logits, retain_graph=True)[0]
    from_reference = torch.autograd.grad((reference.exp() * (reference - logps)).sum(), logits)[0]
    assert_close(gradient(weigh=False), from_reference)
    assert_close(gradient(weigh=True), to_reference)


def test_policy_loss() -> None:
    """Two summaries of two and one tokens, at most four: −(A + A + A') and the KL's terms, over 2 · 4."""
    logps = tensor([[-1.0, -2.0], [-0.5, 0.0]], requires_grad=True)
    advantages, mask = tensor([3.0, -3.0]), tensor([[1, 1], [1, 0]])
    loss = policy_loss(logps, advantages, mask, max_tokens=4)
    assert_close(loss, tensor(-(3.0 + 3.0 - 3.0) / 8))
    loss.backward()
    assert_close(logps.grad, tensor([[-3.0, -3.0], [3.0, 0.0]]) / 8)  # −A of each token, and nothing of the padding

    reference = tensor([[-1.5, -2.0], [-0.5, 9.0]])  # away by half a nat at one token
    loss = policy_loss(logps, advantages, mask, 4, reference, kl=0.2)
    term = math.exp(-0.5) + 0.5 - 1
    assert_close(loss, tensor((-3.0 + 0.2 * term) / 8))
    [gradient] = torch.autograd.grad(loss, logps)
    # of the term weighed by the ratio: 1 − exp(d) + (exp(d) − d − 1) = −d
    assert_close(gradient[0, 0], tensor((-3.0 + 0.2 * 0.5) / 8))
