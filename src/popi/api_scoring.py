"""Summaries scored by a frozen generator behind an API: the counterpart of `scoring`, without weights or torch."""

import math
from collections.abc import Sequence

from popi.backends.vllm import VllmScorer
from popi.signals.render import Templates
from popi.signals.types import TargetPair
from popi.summary import Summary


class ApiScorer:
    """Margins and summary rewards under a frozen generator on a vLLM server.

    The generator is its own reference: with θ frozen, the method's h(z) compares the prompt with the summary to the
    plain prompt, on the same server.

    Args:
        scorer: scores responses on the server.
        templates: a set of prompt templates, or its name.
    """

    def __init__(self, scorer: VllmScorer, templates: str | Templates = "default") -> None:
        self.scorer = scorer
        self.templates = Templates.load(templates) if isinstance(templates, str) else templates

    def pair_logps(
        self, targets: Sequence[TargetPair], summaries: Sequence[str | Summary | None]
    ) -> tuple[list[float], list[float]]:
        """Summed log-probs of chosen and of rejected responses: n targets, each under the summary beside it.

        Raises:
            BatchError: some could not be scored.
        """
        pairs = []
        for target, summary in zip(targets, summaries, strict=True):
            messages = self.templates.generator_messages(target.prompt, None if summary is None else str(summary))
            pairs += [(messages, target.chosen), (messages, target.rejected)]
        logps = self.scorer.logps(pairs)
        return logps[::2], logps[1::2]

    def margins(self, targets: Sequence[TargetPair], summaries: Sequence[str | Summary | None]) -> list[float]:
        """h(z) of each target under the summary beside it (docs/method.md). Plain prompts are scored once a call.

        Raises:
            BatchError: some could not be scored.
        """
        n = len(targets)
        chosen, rejected = self.pair_logps([*targets, *targets], [*summaries, *[None] * n])
        return [(chosen[i] - chosen[n + i]) - (rejected[i] - rejected[n + i]) for i in range(n)]

    def rewards(
        self, targets: Sequence[TargetPair], summaries: Sequence[str | Summary | None], beta: float
    ) -> list[float]:
        """log σ(β·h)/β of each target under the summary beside it.

        Raises:
            BatchError: some could not be scored.
        """
        return [-_softplus(-beta * h) / beta for h in self.margins(targets, summaries)]


def _softplus(x: float) -> float:
    """log(1 + eˣ), without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
