"""Tables of results for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from popi.evaluation.judge.question import CHECKED, SEEN
from popi.evaluation.methods import METHODS

REASONS = {"not_trained": "not trained here", "not_applicable": "not applicable", "not_enabled": "not enabled"}
"""Why metrics.json has no figures for a method."""

_CHECKED = {name: name.replace("_", " ") for name in CHECKED}
_SIDES = (("", ""), ("_against", ", of the other"))
"""Shares of responses in judge.json, and their names in the table."""


def methods_table(metrics: Mapping[str, Any]) -> Table:
    """The table of methods from metrics.json: values ± half the width of their 95 % interval."""
    table = Table(
        caption=_caption(metrics), caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("method", no_wrap=True, vertical="bottom")
    truth = any(entry["attribute_recall"] is not None for entry in metrics["methods"].values())
    heads = ["accuracy", "margin", "tokens", *(["precision", "recall"] if truth else [])]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, entry in metrics["methods"].items():
        cells = [
            with_reach(entry["reward_accuracy"], 100, 1),
            with_reach(entry["margin"], 1, 2),
            f"{entry['context_overhead_tokens']:.1f}",
        ]
        if truth:
            cells += [_share(entry["attribute_precision"]), _share(entry["attribute_recall"])]
        label = METHODS[name].label.split(" (")[0]
        table.add_row(label, *cells, style="bold" if name.startswith("popi_") else None)
    return table


def judge_table(result: Mapping[str, Any]) -> Table:
    """The figures of judge.json, or of alpaca_eval's annotations, with their 95 % intervals."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    for head in (f"{result['method']} against {result['against']}", "", "95 % interval"):
        table.add_column(head, justify="left" if head and "%" not in head else "right")
    rows = {
        "win rate, a tie is half": ("win_rate", 100, "%"),
        "win rate at equal length": ("length_controlled_win_rate", 100, "%"),
        "both orders agree": ("agreement", 100, "%"),
        "verdicts for the response shown first": ("first_position", 100, "%"),
        "characters": ("length", 1, ""),
        "characters of the other": ("length_against", 1, ""),
        "difference in characters": ("length_difference", 1, ""),
    }
    rows |= {f"{label}{of}": (f"{name}{end}", 100, "%") for name, label in _CHECKED.items() for end, of in _SIDES}
    for label, (name, scale, unit) in rows.items():
        if name in result:
            table.add_row(label, *_value_and_interval(result[name], scale, unit))
    seen = result.get(SEEN, {})
    for name, label in {"win_rate": "win rate", **_CHECKED}.items():
        if name in seen:
            table.add_row(f"{label}, training topics", *_value_and_interval(seen[name], 100, "%"))
    lost = ", ".join(f"{n} {kind}" for kind, n in result["missing_verdicts"].items())
    table.caption = (
        f"{result['judged']} of {result['comparisons']} comparisons of {result['users']} users: {result['wins']} won, "
        f"{result['ties']} tied, {result['losses']} lost; {result['identical']} with identical responses\n"
        f"missing verdicts: {lost or 'none'}"
    )
    return table


def _value_and_interval(estimate: Mapping[str, Any], scale: float, unit: str) -> tuple[str, str]:
    if estimate["value"] is None:
        return "–", ""
    value = f"{scale * estimate['value']:.1f}{unit and ' ' + unit}"
    if estimate["low"] is None:
        return value, ""
    return value, f"{scale * estimate['low']:.1f} to {scale * estimate['high']:.1f}"


def with_reach(estimate: Mapping[str, Any], scale: float, digits: int) -> str:
    """An estimate's value ± half the width of its interval."""
    value = f"{scale * estimate['value']:.{digits}f}"
    if estimate["low"] is None:
        return value
    return f"{value} ± {scale * (estimate['high'] - estimate['low']) / 2:.{digits}f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _caption(metrics: Mapping[str, Any]) -> str:
    lines = [
        f"{metrics['n_users']} held-out users, {metrics['n_pairs']} target pairs; ±: 95 % interval clustered by user",
        "accuracy: reward accuracy, %; margin: nats; tokens: added to the task prompt",
    ]
    if any(entry["attribute_recall"] is not None for entry in metrics["methods"].values()):
        lines.append("precision, recall: attributes that summaries name, against the true ones, %")
    for key, reason in REASONS.items():
        if metrics.get(key):
            lines.append(f"{reason}: {'; '.join(METHODS[name].label for name in metrics[key])}")
    return "\n".join(lines)
