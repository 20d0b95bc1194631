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
    size = rewards.shape[-1]
    variance = centred.square().mean(dim=-1, keepdim=True) * (size / (size - 1))
    return centred / (variance.sqrt() + SCALE_EPSILON)


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
        advantages: (n,).
        mask: (n, T) 1 on tokens.
        max_tokens: the most that a summary can have.
        ref_logps: (n, T) under the initial inference model, where there is a KL.
        kl: λ.
    """
    ratio = torch.exp(logps - logps.detach())
    loss = -ratio * advantages[:, None]
    if ref_logps is not None:
        loss = loss + kl * (token_kl(logps, ref_logps) * ratio)
    return (loss * mask).sum() / (len(logps) * max_tokens)
