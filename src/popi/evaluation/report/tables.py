"""The report's tables, from metrics.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from popi.evaluation.figures import COMPARED_WITH
from popi.evaluation.methods import METHODS
from popi.evaluation.report.table import NOTHING, Cell, Row, Table, estimated, number

Methods = Mapping[str, Any]
OPPONENTS = {  # in column heads
    "no_personalization": "no personalisation",
    "untrained_summary": "the untrained summary",
    "raw_signals": "raw signals",
    "population_dpo": "population DPO",
    "popi_plug_and_play": "plug-and-play",
}


def rows_for(methods: Methods, cells: Any) -> list[Row]:
    """One row per method; `cells` makes an entry's cells."""
    return [Row(METHODS[name].label, cells(entry), name.startswith("popi_")) for name, entry in methods.items()]


def results(methods: Methods) -> Table:
    """Accuracy, margin, tokens, and if available: drift, attributes, cost, length of answers."""
    heads = ["Method", "Reward accuracy, %", "Margin, nats", "Context overhead, tokens"]
    truth = any(entry["attribute_recall"] is not None for entry in methods.values())
    cost = any(entry.get("prompt_cost") for entry in methods.values())
    length = any(entry.get("response_length") for entry in methods.values())
    drift = any(entry.get("chosen_drift") for entry in methods.values())
    heads += ["Drift of chosen responses, nats"] if drift else []
    heads += ["Attribute precision, %", "Attribute recall, %"] if truth else []
    heads += ["Cost per thousand prompts"] if cost else []
    heads += ["Answer, characters"] if length else []

    def cells(entry: Mapping[str, Any]) -> list[Cell]:
        intervals = entry["intervals"]
        row = [
            estimated(entry["reward_accuracy"], 100),
            estimated(entry["margin"], digits=2),
            estimated(intervals["context_overhead_tokens"]),
        ]
        if drift:
            row.append(estimated(entry.get("chosen_drift"), digits=2))
        for key in ("attribute_precision", "attribute_recall") if truth else ():
            row.append(estimated(intervals.get(key), 100))
        if cost:
            row.append(estimated(entry.get("prompt_cost"), 1000, 4))
        if length:
            row.append(estimated(entry.get("response_length"), digits=0))
        return row

    return Table(heads, rows_for(methods, cells), "Every method")


def differences(methods: Methods) -> Table | None:
    """Paired differences in reward accuracy, in points; None if metrics.json has none."""
    others = [name for name in COMPARED_WITH if any(name in e.get("differences", {}) for e in methods.values())]
    if not others:
        return None

    def cells(entry: Mapping[str, Any]) -> list[Cell]:
        pairs = [entry.get("differences", {}).get(name, {}) for name in others]
        return [estimated(pair.get("reward_accuracy"), 100, sign=True) for pair in pairs]

    notes = [
        "Reward accuracy of the method minus that of the other, in points, on the same target pairs. If the interval "
        "excludes 0, chance alone is unlikely to explain the difference."
    ]
    heads = ["Method", *(f"Against {OPPONENTS[name]}" for name in others)]
    return Table(heads, rows_for(methods, cells), "Differences, pair by pair", notes)


def calibration(methods: Methods) -> Table | None:
    """Calibration of σ(β·h); None if metrics.json has none."""
    known = {name: entry for name, entry in methods.items() if entry.get("calibration")}
    if not known:
        return None

    def cells(entry: Mapping[str, Any]) -> list[Cell]:
        scores = entry["calibration"]
        return [
            Cell(f"{scores['beta']:g}"),
            estimated(scores["expected_calibration_error"], 100),
            estimated(scores["brier_score"], digits=3),
            estimated(scores["log_loss"], digits=3),
        ]

    notes = [
        "Lower is better; guessing has a Brier score of 0.250 and a log loss of 0.693. β scales the margin, and so the "
        "confidence; it is the same for all methods (evaluation.beta)."
    ]
    heads = ["Method", "β", "Expected calibration error, points", "Brier score", "Log loss, nats"]
    return Table(heads, rows_for(known, cells), "Calibration of σ(βh)", notes)


def loss_terms(metrics: Mapping[str, Any]) -> Table | None:
    """The loss's two terms: exact if the world's truth is known, and estimated; None without either."""
    known = {name: entry for name, entry in metrics["methods"].items() if entry.get("loss_terms")}
    if not known:
        return None
    ways = [way for way in ("world", "fitted") if any(way in entry["loss_terms"] for entry in known.values())]
    suffixes = {"world": "", "fitted": " (estimate)" if len(ways) > 1 else ""}

    def cells(entry: Mapping[str, Any]) -> list[Cell]:
        by_way = entry["loss_terms"]
        first = next(by_way[way] for way in ways if way in by_way)
        pairs = [by_way.get(way, {}) for way in ways]
        terms = [estimated(pair.get(key), digits=3) for pair in pairs for key in ("generator_error", "left_unsaid")]
        return [estimated(first["loss"], digits=3), *terms]

    heads = ["Method", "Loss, nats per choice"]
    heads += [f"{term}{suffixes[way]}" for way in ways for term in ("Generator error", "Left unsaid")]
    notes = ["Loss = generator error + what the generator was not told about the user's preference (docs/method.md)."]
    if "world" in ways:
        best = metrics.get("loss_of_the_best", {})
        notes.append(
            "From the world's exact probabilities; for a summary, from the best reader of the attributes that it "
            "names, which is an upper bound. The best prediction has a loss of "
            + " and ".join(f"{number(of['value'], 3)} given {given}" for given, of in best.items())
            + "."
        )
    notes.append(
        "Estimates come from a predictor fitted on other users' pairs, which is worse than the best possible one: left "
        "unsaid is overestimated and the generator error underestimated."
    )
    return Table(heads, rows_for(known, cells), "Where the loss comes from", notes)


def transfer(transfers: Sequence[Mapping[str, Any]]) -> Table | None:
    """Other generators that read the run's summaries, one per row; None if there are none."""
    if not transfers:
        return None
    names = [name for name in METHODS if any(name in metrics["methods"] for metrics in transfers)]
    rows = []
    for metrics in transfers:
        cells = []
        for name in names:
            cell = estimated(metrics["methods"].get(name, {}).get("reward_accuracy"), 100)
            gain = metrics.get("gain_kept", {}).get(name)
            cells.append(cell if gain is None else Cell(cell.text, f"{cell.range}\n{number(100 * gain, 0)} % kept"))
        rows.append(Row(Path(str(metrics["generator"]).split(" at ")[0]).name, cells))
    notes = [
        "Reward accuracy, %, of another, untrained generator that reads this run's summaries. Kept: its gain over no "
        "personalisation, as a share of the gain with the run's own generator."
    ]
    heads = ["Read by", *(METHODS[name].label for name in names)]
    return Table(heads, rows, "Read by other generators", notes)


def generic(content: Mapping[str, Any]) -> Table:
    """Table of a result file {"title", "columns", "rows", "notes"} from any other evaluation.

    `columns` names entries of the rows; `NAME_low` and `NAME_high` (`low` and `high` for `value`) are the interval of
    NAME and not separate columns. Optional: `labels` of columns, and `percent`, the columns that hold shares.
    """
    labels, percent = content.get("labels", {}), content.get("percent", ())
    ends = {end for name in content["columns"] for end in _ends(name)}
    columns = [name for name in content["columns"] if name not in ends]
    if "value" not in columns and any("value" in row for row in content["rows"]):
        columns.append("value")

    def cell(row: Mapping[str, Any], name: str) -> Cell:
        value = row.get(name)
        low, high = (row.get(end) for end in _ends(name))
        if isinstance(value, bool | str) or value is None:
            return Cell(NOTHING if value is None else METHODS[value].label if value in METHODS else str(value))
        if isinstance(value, int) and low is None and name not in percent:
            return Cell(f"{value:,}")
        scale, digits = (100, 1) if name in percent else (1, 3 if name == "value" else 2)
        return estimated({"value": value, "low": low, "high": high}, scale, digits)

    rows = []
    for row in content["rows"]:
        cells = [cell(row, name) for name in columns]
        rows.append(Row(cells[0].whole if cells else "", cells[1:], str(row.get("method", "")).startswith("popi_")))
    heads = [labels.get(name, name.replace("_", " ")) + (", %" if name in percent else "") for name in columns]
    text = [any(isinstance(row.get(name), str) for row in content["rows"]) for name in columns]
    notes = content.get("notes") or []
    notes = [notes] if isinstance(notes, str) else list(notes)
    return Table(heads, rows, str(content.get("title", "")), notes, max(1, (text + [False]).index(False)))


def is_generic(content: Any) -> bool:
    """Whether `generic` can show the content."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("columns"), list)
        and isinstance(content.get("rows"), list)
        and all(isinstance(row, dict) for row in content["rows"])
    )


def _ends(name: str) -> tuple[str, str]:
    return ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
