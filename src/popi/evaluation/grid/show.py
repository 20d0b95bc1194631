"""A grid's figures as tables, from grid.json, for the terminal and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from popi.evaluation.grid.result import first_judged
from popi.evaluation.judge.question import CHECKED, SEEN

HEADS = ("benchmark", "generator", "method", "accuracy", "margin", "tokens", "win rate", "missing")
NOTE = (
    "±: half of the 95 % interval, clustered by user. accuracy: reward accuracy, %; margin: nats; tokens: added to the "
    "task prompt; win rate: %, the first judge's, against no personalisation unless stated; missing: target pairs and "
    "verdicts that could not be obtained and are excluded from the figures. –: not measured."
)

WORLD_NOTE = (
    "All in %. Held-out users' own prompts are on topics unseen in training; next to their win rate is the win rate on "
    "training topics. valid: the grammar could have written the response; on topic: it is about the prompt's topic "
    "and no other. A win needs both."
)


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row of grid.json as the cells of a table row."""
    judged = first_judged(row)
    win = "–" if judged is None else with_reach(judged["win_rate"], 100, 1)
    if judged is not None and judged["against"] != "no_personalization":
        win += f" against {judged['against']}"
    overhead = row["context_overhead_tokens"]
    return (
        row["benchmark"],
        row["generator"],
        row["label"].split(" (")[0],
        with_reach(row["reward_accuracy"], 100, 1),
        with_reach(row["margin"], 1, 2),
        "–" if overhead is None else f"{overhead:.1f}",
        win,
        str(row["missing"] + row["missing_verdicts"] or ""),
    )


def with_reach(estimate: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    """A value ± half the width of its interval."""
    if estimate is None or estimate["value"] is None:
        return "–"
    value = f"{scale * estimate['value']:.{digits}f}"
    if estimate["low"] is None:
        return value
    return f"{value} ± {scale * (estimate['high'] - estimate['low']) / 2:.{digits}f}"


def grid_table(result: Mapping[str, Any]) -> Table:
    """A grid's table for the terminal, with a section per benchmark and generator."""
    table = Table(caption=NOTE, caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for head in HEADS[2:]:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    before: tuple[str, ...] = ()
    for row in result["rows"]:
        shown = cells(row)
        if shown[:2] != before:
            if before:
                table.add_section()
            table.add_row(f"{shown[0]}, {shown[1]}", style="italic")
        table.add_row(*shown[2:], style="bold" if row["method"].startswith("popi_") else None)
        before = shown[:2]
    return table


def markdown(result: Mapping[str, Any]) -> str:
    """A grid's tables as a Markdown page."""
    lines = [
        f"# {result['name']}",
        "",
        f"Commit {result['commit'][:12]}{'-dirty' if result['commit'].endswith('-dirty') else ''}. {NOTE}",
        "",
        *_table(HEADS, [cells(row) for row in result["rows"]]),
        "",
    ]
    others = [row for row in result["rows"] if row.get("gain_kept") is not None]
    if others:
        note = "Share of the own generator's gain over no personalisation that other generators retain."
        lines += ["## Transfer", "", note, ""]
        rows = [(*cells(row)[:3], f"{row['gain_kept']:.2f}") for row in others]
        lines += [*_table((*HEADS[:3], "gain kept"), rows), ""]
    judged = [
        (*cells(row)[:3], one["against"], *(with_reach(of, 100, 1) for of in _of_the_world(one)))
        for row in result["rows"]
        for one in row["judged"]
        if SEEN in one
    ]
    if judged:
        lines += ["## Responses by the nano world's truth", "", WORLD_NOTE, ""]
        lines += [*_table((*HEADS[:3], "against", "win rate", "training topics", "valid", "on topic"), judged), ""]
    if result["failed"]:
        lines += ["## Failed", ""]
        lines += [f"- {one['benchmark']}, {one['generator']}: {one['reason']}" for one in result["failed"]]
        lines.append("")
    return "\n".join(lines)


def _of_the_world(judged: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, ...]:
    return judged["win_rate"], judged[SEEN]["win_rate"], *(judged.get(name) for name in CHECKED)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    line = "| {} |".format
    texts = [[text.replace("|", "\\|") for text in row] for row in rows]
    return [line(" | ".join(heads)), "|" + "---|" * len(heads), *(line(" | ".join(row)) for row in texts)]
