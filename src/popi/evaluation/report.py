"""One self-contained HTML report of a run, from the run's files alone: no models, no network, no script."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console

from popi.errors import RunError
from popi.evaluation import plots
from popi.evaluation.methods import METHODS
from popi.evaluation.tables import REASONS, methods_table

CURVES = (
    ("reward", "Summary reward", "Mean over the step's sampled summaries; higher is better."),
    ("kl", "KL to the initial inference model", "How far the summaries' writer has moved; nats a summary or token."),
    ("loss", "Loss", "What the phase's optimizer minimises. Losses of different phases are not comparable."),
)


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run directory that has been evaluated, replacing an older one.

    Raises:
        RunError: there is no metrics.json, or a file of the run can't be read.
    """
    run_dir = Path(run_dir)
    metrics = _json(run_dir / "metrics.json")
    if metrics is None:
        what = "" if (run_dir / "config.json").is_file() else "not a run directory, and "
        raise RunError(f"{run_dir}: {what}no metrics.json to report on; first: popi evaluate --run {run_dir}")
    _check(run_dir / "metrics.json", metrics)
    environment = Environment(
        loader=PackageLoader("popi.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(report_content(run_dir, metrics))
    path = run_dir / "report.html"
    temporary = path.with_name("report.html.part")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(path)
    return path


def print_table(metrics: Mapping[str, Any], console: Console) -> None:
    """The table of methods in the terminal."""
    console.print(methods_table(metrics))


def report_content(run_dir: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template shows, as plain values and SVG."""
    methods, config = metrics["methods"], metrics["config"]
    log = _lines(run_dir / "log.jsonl")
    examples = _json(run_dir / "evaluation" / "examples.json") or {"users": []}
    phases = sorted(run_dir.glob("phases/*/samples.jsonl"))
    left_out = {reason: [METHODS[name].label for name in metrics.get(reason, [])] for reason in REASONS}
    return {
        "name": config["name"],
        "directory": str(run_dir),
        "headline": _headline(methods),
        "metrics": metrics,
        "config": config,
        "labels": {name: method.label for name, method in METHODS.items()},
        "tiles": _tiles(methods),
        "left_out": left_out,
        "plots": _plots(methods),
        "transfers": [
            _transfer(content) for content in map(_json, sorted(run_dir.glob("evaluation/with-*/metrics.json")))
        ],
        "curves": _curves(log),
        "users": [_user(user) for user in examples["users"]],
        "samples": [shown for shown in (_samples(path) for path in phases) if shown],
        "versions": metrics["versions"],
        "seconds": {f"{_name(key)}": value for key, value in metrics["seconds"].items()},
        "settings": {key: json.dumps(value, ensure_ascii=False) for key, value in _flat(config).items()},
    }


def best_popi(methods: Mapping[str, Any]) -> str | None:
    """The POPI method that a run stands for: the last of plug-and-play, alternating, simultaneous that it trained."""
    return next((name for name in reversed(list(METHODS)) if name.startswith("popi_") and name in methods), None)


def _accuracy(methods: Mapping[str, Any], name: str) -> float:
    return float(methods[name]["reward_accuracy"]["value"])


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _headline(methods: Mapping[str, Any]) -> str:
    best = best_popi(methods)
    if best is None:
        return "Held-out users, without a trained POPI method"
    tokens = methods[best]["context_overhead_tokens"]
    return f"{_percent(_accuracy(methods, best))} of held-out preferences, for {tokens:.0f} tokens a prompt"


def _tiles(methods: Mapping[str, Any]) -> list[dict[str, str]]:
    best = best_popi(methods)
    if best is None:
        return []
    entry, label = methods[best], METHODS[best].label
    beside = [
        f"{METHODS[name].label.split(' (')[0]} {_percent(_accuracy(methods, name))}"
        for name in ("no_personalization", "untrained_summary")
        if name in methods
    ]
    tiles = [
        {"what": f"Reward accuracy, {label}", "big": _percent(_accuracy(methods, best)), "beside": "; ".join(beside)}
    ]
    if "oracle" in methods:
        share = _accuracy(methods, best) / _accuracy(methods, "oracle")
        told = f"Oracle: {_percent(_accuracy(methods, 'oracle'))}, told the true preferences"
        tiles.append({"what": "Share of the oracle's", "big": _percent(share), "beside": told})
    raw = methods.get("raw_signals")
    if raw:
        tokens, whole = entry["context_overhead_tokens"], raw["context_overhead_tokens"]
        told = f"Raw signals: {whole:,.0f} tokens, {_percent(_accuracy(methods, 'raw_signals'))} accurate"
        fewer = f"{whole / tokens:.0f}× fewer" if tokens else "none"
        tiles.append({"what": "Tokens, against raw signals", "big": fewer, "beside": told})
    if entry["attribute_recall"] is not None:
        told = f"Precision {_percent(entry['attribute_precision'])}" if entry["attribute_precision"] is not None else ""
        before = methods.get("untrained_summary", {}).get("attribute_recall")
        told += f"; untrained recall {_percent(before)}" if before is not None else ""
        tiles.append({"what": "Attribute recall", "big": _percent(entry["attribute_recall"]), "beside": told})
    return tiles


def _plots(methods: Mapping[str, Any]) -> dict[str, Any]:
    told = "; ".join(f"{METHODS[name].label} {_percent(_accuracy(methods, name))}" for name in methods)
    tokens = "; ".join(f"{METHODS[n].label} {m['context_overhead_tokens']:.0f} tokens" for n, m in methods.items())
    shown: dict[str, Any] = {
        "accuracy": _plot(
            "Reward accuracy by method",
            "Mark: value; band: 95 % interval. POPI circles, the oracle a diamond, all others squares.",
            told,
            plots.reward_accuracy(methods),
        ),
        "overhead": _plot(
            "Accuracy against context tokens",
            "Upper left is best: right answers for few tokens.",
            tokens,
            plots.accuracy_by_overhead(methods),
        ),
        "attributes": None,
    }
    with_truth = {name: entry for name, entry in methods.items() if entry["attribute_recall"] is not None}
    if with_truth:
        told = "; ".join(f"{METHODS[n].label}: recall {_percent(m['attribute_recall'])}" for n, m in with_truth.items())
        shown["attributes"] = _plot(
            "Named against true preferences",
            "Precision (filled circle): how much of what is named is true. Recall (open diamond): the reverse.",
            told,
            plots.attribute_scores(with_truth),
        )
    return shown


def _plot(title: str, note: str, told: str, svg: str) -> dict[str, Any]:
    return {"title": title, "note": note, "told": told, "svg": Markup(svg)}


def _curves(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for key, title, note in CURVES:
        svg = plots.learning_curves(log, key)
        if svg:
            found.append(_plot(title, note, "curves over the steps of each phase", svg))
    return found


def _user(user: Mapping[str, Any]) -> dict[str, Any]:
    summaries = user["summaries"]
    order = sorted(METHODS, key=lambda name: METHODS[name].needs_truth)  # the truth last
    true = {tuple(pair) for pair in (user["preferences"] or {}).items()}
    shown = []
    for name in filter(summaries.__contains__, order):
        label = f"Before: {METHODS[name].label.lower()}" if name == "untrained_summary" else METHODS[name].label
        named = {tuple(pair) for pair in user.get("named", {}).get(name, [])}
        chips = [{"kind": "hit", "text": f"✓ {a}: {v}"} for a, v in sorted(named & true)]
        chips += [{"kind": "wrong", "text": f"✗ {a}: {v}"} for a, v in sorted(named - true)]
        chips += [{"kind": "missed", "text": f"missed {a}: {v}"} for a, v in sorted(true - named)]
        known = name in user.get("named", {}) and not METHODS[name].needs_truth
        shown.append(_said(name, summaries[name], label) | {"chips": chips if known else []})
    return {
        "user_id": user["user_id"],
        "preferences": user["preferences"],
        "signals": [_signal(signal) for signal in user["signals"]],
        "summaries": shown,
        "prompts": [
            {
                "prompt": prompt_text(asked["prompt"]),
                "chosen": asked["chosen"],
                "rejected": asked["rejected"],
                "answers": [_said(name, asked["answers"][name]) for name in order if name in asked["answers"]],
            }
            for asked in user["prompts"]
        ],
    }


def _said(name: str, text: str, label: str | None = None) -> dict[str, Any]:
    kind = "popi" if name.startswith("popi_") else "truth" if METHODS[name].needs_truth else ""
    return {"kind": kind, "label": label or METHODS[name].label, "text": text}


def _signal(signal: Mapping[str, Any]) -> dict[str, Any]:
    return {**signal, "prompt": prompt_text(signal["prompt"])} if "prompt" in signal else dict(signal)


def prompt_text(prompt: Any) -> str:
    """A task prompt as text: chat messages one a line, with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _samples(path: Path) -> dict[str, Any] | None:
    """One user's group at the first and at the last step of a phase."""
    rows = [row for row in _lines(path) if row.get("reward") is not None]
    if not rows:
        return None
    low, high = min(row["reward"] for row in rows), max(row["reward"] for row in rows)
    groups = []
    for step in dict.fromkeys((min(row["step"] for row in rows), max(row["step"] for row in rows))):
        at = [row for row in rows if row["step"] == step]
        mine = sorted((r for r in at if r["user_id"] == at[0]["user_id"]), key=lambda r: -r["reward"])
        share = [{**row, "share": (row["reward"] - low) / ((high - low) or 1)} for row in mine]
        mean = sum(row["reward"] for row in mine) / len(mine)
        groups.append({"step": step, "user_id": at[0]["user_id"], "rows": share, "mean": mean})
    return {"phase": path.parent.name, "groups": groups}


def _transfer(metrics: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        {"key": name, "accuracy": entry["reward_accuracy"], "kept": metrics["gain_kept"].get(name)}
        for name, entry in metrics["methods"].items()
    ]
    note = (
        "Another, untrained generator reads this run's summaries. Gain kept: its gain in reward accuracy over "
        "no personalisation, as a share of the gain with the run's own generator."
    )
    return {"reader": Path(metrics["generator"].split(" at ")[0]).name, "note": note, "rows": rows}


def _name(key: str) -> str:
    return METHODS[key].label if key in METHODS else key.replace("_", " ")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: can't be read ({error}); evaluate the run again") from None


def _check(path: Path, metrics: Any) -> None:
    needed = ("methods", "config", "versions", "seconds", "n_users", "n_pairs")
    missing = [key for key in needed if key not in metrics] if isinstance(metrics, dict) else ["a JSON object"]
    if missing:
        raise RunError(f"{path}: not what popi evaluate writes (no {', '.join(missing)}); evaluate the run again")


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none where there is no file. A last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    rows = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows
