"""The one objective of both components, as tensor maths without a model.

With h(z) the margin of a target pair under a summary z (arXiv 2510.17881, the POPI paper):

    h(z) = [log π_θ(y⁺|x,z) − log π_ref(y⁺|x)] − [log π_θ(y⁻|x,z) − log π_ref(y⁻|x)]
    L(φ, θ) = E_z [ −log σ(β·h(z)) / β ] + λ·KL(π_φ ‖ π_φ₀)

The inference model φ meets it as a summary reward and group-relative advantages, the generator θ as DPO.
Log-probabilities are sums over response tokens, in nats; all functions work elementwise on any shape.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE_EPSILON = 1e-4
"""Added to a group's standard deviation before dividing by it, as TRL does."""


def margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """h: the chosen minus the rejected log-ratio. Positive: the pair is ranked as the user does."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def summary_reward(h: Tensor, beta: float) -> Tensor:
    """log σ(β·h)/β: never positive, about h for very negative h, near 0 once the pair is ranked well."""
    return F.logsigmoid(beta * h) / beta


def accuracy(h: Tensor) -> float:
    """Share of margins that are positive; one of zero counts half."""
    return float(((h.sign() + 1) / 2).mean())


def length_penalty(tokens: Tensor, target: int, per_token: float) -> Tensor:
    """per_token · max(0, tokens − target): what a summary's reward loses for its length, in units of the reward."""
    return per_token * (tokens - target).clamp(min=0).float()


def group_advantages(rewards: Tensor, scale: bool = False) -> Tensor:
    """Rewards less their group's mean, (groups, G) -> (groups, G) (GRPO, arXiv 2402.03300, eq. 3 without the division).

    With `scale` also divided by the group's standard deviation (n−1 in the denominator), as GRPO does and POPI
    does not.
    """
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    if not scale:
        return centred
    return centred / _scale(centred)


def _scale(centred: Tensor) -> Tensor:
    size = centred.shape[-1]
    variance = centred.square().mean(dim=-1, keepdim=True) * (size / (size - 1))
    return variance.sqrt() + SCALE_EPSILON


def clause_advantages(stopped: Tensor, clauses: Tensor, decay: float = 1.0, scale: bool = False) -> Tensor:
    """Advantages of a summary's segments, (groups, G, S): of the tokens behind its first 0, 1, … K clauses.

    With r_i the reward of the summary's beginning of i clauses and d_j = r_j − r_{j−1} what clause j gains,

        A_i = (1 − 1/G) · (D_i − mean of D_i over the group's other summaries of at least i clauses)
        D_i = Σ_{j>i} decay^{j−i−1} · d_j                                             decay = 1:  D_i = r_K − r_i

    For decay = 1 what is taken off the reward, r_i and the others' mean, is fixed before the segment's tokens are
    drawn: the policy gradient is unbiased, and A_0 is `group_advantages`, whose factor (1 − 1/G) its mean brings in.
    For decay < 1 it is generalised advantage estimation (arXiv 1506.02438, eq. 16) with γ = 1, λ = `decay`, a clause as
    its step and r_i as its value; docs/method.md states the bias.

    Args:
        stopped: (groups, G, S) r_0 … r_K of each summary, anything behind them.
        clauses: (groups, G) K of each, below S.
        decay: 0 to 1.
        scale: divide by the standard deviation of the group's rewards, as `group_advantages` does.
    """
    size, longest = stopped.shape[1:]
    steps = torch.arange(longest, device=stopped.device)
    reached = steps <= clauses[..., None]  # (groups, G, S)
    to_go = torch.zeros_like(stopped)
    for i in range(longest - 2, -1, -1):
        gain = torch.where(reached[..., i + 1], stopped[..., i + 1] - stopped[..., i], 0.0)
        to_go[..., i] = gain + decay * to_go[..., i + 1]
    total, count = to_go.sum(1, keepdim=True), reached.sum(1, keepdim=True)
    others = (total - to_go) / (count - 1).clamp(min=1)
    advantages = torch.where(reached, (1 - 1 / size) * (to_go - others), 0.0)
    if not scale:
        return advantages
    rewards = stopped.gather(-1, clauses[..., None])[..., 0]
    return advantages / _scale(rewards - rewards.mean(dim=-1, keepdim=True))[..., None]


def dpo_loss(h: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """−(1−ε)·log σ(βh) − ε·log σ(−βh): DPO (arXiv 2305.18290, eq. 7), conservative DPO for ε > 0.

    ε is the assumed share of flipped labels (E. Mitchell, "A note on DPO with noisy preferences", 2023, eq. 3). For
    ε < ½ the minimum lies at h = log((1−ε)/ε)/β and no longer at infinity. β times the method's loss, as TRL counts.
    """
    return -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)


def ipo_loss(h: Tensor, beta: float) -> Tensor:
    """(h − 1/(2β))²: IPO (arXiv 2310.12036, eq. 17, with τ = β), on summed log-probs and not per token."""
    return (h - 1 / (2 * beta)) ** 2


def generator_loss(h: Tensor, loss: str, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """The loss named by `training.generator.loss`, one value a pair.

    Raises:
        ValueError: `loss` is neither `dpo` nor `ipo`, or IPO is given a label smoothing that it has no place for.
    """
    if loss == "dpo":
        return dpo_loss(h, beta, label_smoothing)
    if loss == "ipo":
        if label_smoothing:
            raise ValueError(f"label_smoothing={label_smoothing} belongs to loss='dpo'; IPO has no such term")
        return ipo_loss(h, beta)
    raise ValueError(f"loss={loss!r}: allowed are 'dpo' and 'ipo'")


def token_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """exp(d) − d − 1 with d = log π_ref − log π of a sampled token.

    Its mean over tokens drawn from π is the KL(π ‖ π_ref) (J. Schulman, "Approximating KL divergence", k3); it is
    never negative.
    """
    difference = ref_logps - logps
    return torch.exp(difference) - difference - 1


def policy_loss(
    logps: Tensor, advantages: Tensor, mask: Tensor, max_tokens: int, ref_logps: Tensor | None = None, kl: float = 0.0
) -> Tensor:
    """−(A·log π − λ·KL), summed over the tokens of n summaries and divided by n · max_tokens (Dr. GRPO, arXiv
    2503.20783): a mean over each summary's own tokens would weigh those of short summaries more.

    On-policy: the importance ratio is 1 and its gradient that of log π, so nothing is clipped. It weighs the KL's
    terms, too: k3 differentiated as it stands follows the gradient of KL(π_ref ‖ π); so weighed, that of KL(π ‖ π_ref),
    which is the method's term, token by token.

    Args:
        logps: (n, T) of each summary's tokens.
        advantages: (n,), or (n, T) where each token has its own.
        mask: (n, T) 1 on tokens.
        max_tokens: the most that a summary can have.
        ref_logps: (n, T) under the initial inference model, where there is a KL.
        kl: λ.
    """
    ratio = torch.exp(logps - logps.detach())
    loss = -ratio * (advantages[:, None] if advantages.dim() == 1 else advantages)
    if ref_logps is not None:
        loss = loss + kl * (token_kl(logps, ref_logps) * ratio)
    return (loss * mask).sum() / (len(logps) * max_tokens)
