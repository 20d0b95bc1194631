"""The objective shared by both components, as tensor maths without a model.

With h(z) the margin of a target pair under a summary z (arXiv 2510.17881, the POPI paper):

    h(z) = [log π_θ(y⁺|x,z) − log π_ref(y⁺|x)] − [log π_θ(y⁻|x,z) − log π_ref(y⁻|x)]
    L(φ, θ) = E_z [ −log σ(β·h(z)) / β ] + λ·KL(π_φ ‖ π_φ₀)

For the inference model φ it becomes a summary reward with group-relative advantages, for the generator θ it is DPO.
Log-probabilities are sums over response tokens, in nats; all functions work elementwise on any shape.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE_EPSILON = 1e-4
"""Added to a group's standard deviation before dividing by it, as TRL does."""


def margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """h: the chosen minus the rejected log-ratio. Positive if the pair is ranked as the user ranks it."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def summary_reward(h: Tensor, beta: float) -> Tensor:
    """log σ(β·h)/β: never positive, about h for very negative h, and near 0 once the pair is ranked well."""
    return F.logsigmoid(beta * h) / beta


def accuracy(h: Tensor) -> float:
    """Share of positive margins; a margin of 0 counts half."""
    return float(((h.sign() + 1) / 2).mean())


def length_penalty(tokens: Tensor, target: int, per_token: float) -> Tensor:
    """per_token · max(0, tokens − target): deduction from a summary's reward for its length, in reward units."""
    return per_token * (tokens - target).clamp(min=0).float()


def group_advantages(rewards: Tensor, scale: bool = False) -> Tensor:
    """Rewards minus their group's mean, (groups, G) -> (groups, G) (GRPO, arXiv 2402.03300, eq. 3, without division).

    With `scale` they are also divided by the group's standard deviation (n−1 in the denominator), as in GRPO but not in
    POPI.
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
    """Advantages of a summary's segments, (groups, G, S): those of the tokens after its first 0, 1, … K clauses.

    With r_i the reward of the summary's first i clauses and d_j = r_j − r_{j−1} the gain of clause j,

        A_i = (1 − 1/G) · (D_i − mean of D_i over the group's other summaries of at least i clauses)
        D_i = Σ_{j>i} decay^{j−i−1} · d_j                                             decay = 1:  D_i = r_K − r_i

    For decay = 1 the baseline, r_i and the others' mean, is fixed before the segment's tokens are drawn, so the policy
    gradient is unbiased; A_0 equals `group_advantages`, whose mean brings in the factor (1 − 1/G). For decay < 1 it is
    generalised advantage estimation (arXiv 1506.02438, eq. 16) with γ = 1, λ = `decay`, clauses as steps and r_i as the
    value; docs/method.md states the bias.

    Args:
        stopped: (groups, G, S) r_0 … r_K of each summary, followed by arbitrary padding.
        clauses: (groups, G) K of each summary, below S.
        decay: 0 to 1.
        scale: divide by the standard deviation of the group's rewards, as in `group_advantages`.
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
    """−(1−ε)·log σ(βh) − ε·log σ(−βh): DPO (arXiv 2305.18290, eq. 7), or conservative DPO for ε > 0.

    ε is the assumed share of flipped labels (E. Mitchell, "A note on DPO with noisy preferences", 2023, eq. 3). For
    0 < ε < ½ the minimum is at h = log((1−ε)/ε)/β instead of infinity. It is β times the method's loss, as in TRL.
    """
    return -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)


def ipo_loss(h: Tensor, beta: float) -> Tensor:
    """(h − 1/(2β))²: IPO (arXiv 2310.12036, eq. 17, with τ = β), on summed, not per-token log-probs."""
    return (h - 1 / (2 * beta)) ** 2


def generator_loss(h: Tensor, loss: str, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """The loss named by `training.generator.loss`, one value per pair.

    Raises:
        ValueError: `loss` is neither `dpo` nor `ipo`, or label smoothing is set for IPO, which does not support it.
    """
    if loss == "dpo":
        return dpo_loss(h, beta, label_smoothing)
    if loss == "ipo":
        if label_smoothing:
            raise ValueError(f"label_smoothing={label_smoothing} applies only to loss='dpo'; IPO has no such term")
        return ipo_loss(h, beta)
    raise ValueError(f"loss={loss!r}: must be 'dpo' or 'ipo'")


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
    2503.20783). A mean over each summary's own tokens would give the tokens of short summaries more weight.

    On-policy, the importance ratio is 1 and its gradient is that of log π, so nothing is clipped. The ratio also weighs
    the KL's terms: the plain derivative of k3 is the gradient of KL(π_ref ‖ π), and with the weight it is that of
    KL(π ‖ π_ref), the method's term, token by token.

    Args:
        logps: (n, T) of each summary's tokens.
        advantages: (n,), or (n, T) for separate advantages per token.
        mask: (n, T) 1 on tokens.
        max_tokens: maximum tokens of a summary.
        ref_logps: (n, T) under the initial inference model, if there is a KL term.
        kl: λ.
    """
    ratio = torch.exp(logps - logps.detach())
    loss = -ratio * (advantages[:, None] if advantages.dim() == 1 else advantages)
    if ref_logps is not None:
        loss = loss + kl * (token_kl(logps, ref_logps) * ratio)
    return (loss * mask).sum() / (len(logps) * max_tokens)
