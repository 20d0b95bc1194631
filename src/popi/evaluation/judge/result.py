"""The figures of judge.json, from comparisons."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from popi.evaluation.judge.alpaca_eval import Annotation
from popi.evaluation.judge.comparisons import Comparison
from popi.evaluation.metrics import Estimate, clustered_mean, paired_difference, response_length
from popi.evaluation.win_rate import SHARE, length_controlled_win_rate, win_rate

REASONS = 5
"""Maximum number of distinct reasons for missing verdicts to report."""


def inspected(comparisons: Sequence[Comparison], inspect: Callable[[str, str], dict[str, bool]]) -> dict[str, Any]:
    """The share of responses that pass each check: NAME for the method, NAME_against for the other.

    Args:
        comparisons: holds the responses.
        inspect: (prompt, response) → check → whether it passes.
    """
    shares: dict[str, Any] = {}
    for end, texts in (("", [c.ours for c in comparisons]), ("_against", [c.theirs for c in comparisons])):
        answered = [(c, text) for c, text in zip(comparisons, texts, strict=True) if text is not None]
        facts = [inspect(c.prompt, text) for c, text in answered]
        for name in facts[0] if facts else ():
            share = clustered_mean([one[name] for one in facts], [c.user_id for c, _ in answered], SHARE)
            shares[f"{name}{end}"] = share.as_dict()
    return shares


def figures(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The method's win rates against the other, and how reliable they are.

    Win rates and lengths are over the comparisons with both verdicts (`judged`). `agreement` is the share of those,
    excluding identical responses, in which both orders agree; `first_position` is the share of their verdicts other
    than ties that favour the response shown first: ½ if the order does not matter. Missing verdicts are counted by
    kind, with the most frequent reasons.
    """
    judged = [c for c in comparisons if c.outcome is not None]
    compared = [c for c in judged if not c.identical]
    decided = [(c.user_id, v == "first") for c in compared for v in c.verdicts if v != "tie"]
    missing = [kind_and_reason for c in comparisons for kind_and_reason in c.missing]
    return {
        "users": len({c.user_id for c in comparisons}),
        "comparisons": len(comparisons),
        "judged": len(judged),
        "identical": sum(c.identical for c in comparisons),
        "missing_verdicts": dict(Counter(kind for kind, _ in missing)),
        "reasons": dict(Counter(reason for _, reason in missing).most_common(REASONS)),
        **_win_rates(
            [float(c.outcome or 0) for c in judged],
            [c.ours or "" for c in judged],
            [c.theirs or "" for c in judged],
            [c.user_id for c in judged],
        ),
        "agreement": clustered_mean([c.agrees for c in compared], [c.user_id for c in compared], SHARE).as_dict(),
        "first_position": clustered_mean([f for _, f in decided], [u for u, _ in decided], SHARE).as_dict(),
    }


def figures_of_annotations(annotations: Sequence[Annotation]) -> dict[str, Any]:
    """The same figures as far as alpaca_eval's annotations provide them, for output_2 against output_1.

    A row without a user counts as a separate user.
    """
    judged = [(i, a) for i, a in enumerate(annotations) if a.outcome is not None]
    users = [a.user_id if a.user_id is not None else f"#{i}" for i, a in enumerate(annotations)]
    return {
        "users": len(set(users)),
        "comparisons": len(annotations),
        "judged": len(judged),
        "identical": sum(a.output_1 == a.output_2 for a in annotations),
        "missing_verdicts": {"no preference": len(annotations) - len(judged)} if len(judged) < len(annotations) else {},
        "reasons": {},
        **_win_rates(
            [float(a.outcome or 0) for _, a in judged],
            [a.output_2 for _, a in judged],
            [a.output_1 for _, a in judged],
            [users[i] for i, _ in judged],
        ),
    }


def _win_rates(
    outcomes: Sequence[float], ours: Sequence[str], theirs: Sequence[str], users: Sequence[str]
) -> dict[str, Any]:
    lengths, others = [len(text) for text in ours], [len(text) for text in theirs]
    differences = [a - b for a, b in zip(lengths, others, strict=True)]
    estimates: dict[str, Estimate] = {
        "win_rate": win_rate(outcomes, users),
        "length_controlled_win_rate": length_controlled_win_rate(outcomes, differences, users),
        "length": response_length(ours, users),
        "length_against": response_length(theirs, users),
        "length_difference": paired_difference(lengths, others, users),
    }
    counts = {
        "wins": sum(o > 0.5 for o in outcomes),
        "ties": sum(o == 0.5 for o in outcomes),
        "losses": sum(o < 0.5 for o in outcomes),
    }
    return counts | {name: estimate.as_dict() for name, estimate in estimates.items()}
