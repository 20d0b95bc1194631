"""Users one by one: signals, summaries, and each method's answers and margins on the user's targets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from popi.evaluation.methods import METHODS
from popi.evaluation.report.files import read_json, read_lines
from popi.evaluation.report.table import number

Margins = Mapping[str, Mapping[tuple[int, int], float]]
"""Method → (window, target) → margin."""


def shown_users(run_dir: Path, others: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """The users of examples.json, with the margins of their targets from the methods' rows.

    The POPI methods' summaries of the runs `others` for the same users and signals are added.
    """
    folder = run_dir / "evaluation"
    users = _examples(folder)
    margins = {name: _margins(folder / f"{name}.jsonl", len(users)) for name in METHODS}
    beside = [(path.name, {user["user_id"]: user for user in _examples(path / "evaluation")}) for path in others]
    shown = []
    for window, user in enumerate(users):
        entry = _user(user, window, margins)
        for run, examples in beside:
            same = examples.get(user["user_id"])
            if same is not None and same["signals"] == user["signals"]:
                entry["summaries"] += [
                    one for one in _summaries(same, f" · run {run}") if one["kind"] == "popi" and one["text"]
                ]
        shown.append(entry)
    return shown


def _examples(folder: Path) -> list[dict[str, Any]]:
    return list((read_json(folder / "examples.json") or {"users": []})["users"])


def _margins(path: Path, users: int) -> dict[tuple[int, int], float]:
    """Margins of the first users' targets: examples.json holds the first users, in the rows' order."""
    rows = (row for row in read_lines(path) if row.get("window", users) < users and row.get("margin") is not None)
    return {(row["window"], row["target"]): row["margin"] for row in rows}


def _user(user: Mapping[str, Any], window: int, margins: Margins) -> dict[str, Any]:
    return {
        "user_id": user["user_id"],
        "preferences": user["preferences"],
        "signals": [_signal(signal) for signal in user["signals"]],
        "summaries": _summaries(user),
        "prompts": [
            {
                "prompt": prompt_text(asked["prompt"]),
                "chosen": asked["chosen"],
                "rejected": asked["rejected"],
                "answers": [
                    labelled(name, asked["answers"][name]) | {"score": _score(margins[name].get((window, target)))}
                    for name in order()
                    if name in asked["answers"]
                ],
                "scores": [
                    {"label": METHODS[name].label, "score": _score(margins[name].get((window, target)))}
                    for name in order()
                    if (window, target) in margins[name] and name not in asked["answers"]
                ],
            }
            for target, asked in enumerate(user["prompts"])
        ],
    }


def order() -> list[str]:
    """The methods in the order shown for a user: the truth last."""
    return sorted(METHODS, key=lambda name: METHODS[name].needs_truth)


def _summaries(user: Mapping[str, Any], of_run: str = "") -> list[dict[str, Any]]:
    true = {tuple(pair) for pair in (user["preferences"] or {}).items()}
    shown = []
    for name in filter(user["summaries"].__contains__, order()):
        label = f"{METHODS[name].label}, best prompt" if name == "untrained_summary" else METHODS[name].label
        named = {tuple(pair) for pair in user.get("named", {}).get(name, [])}
        chips = [{"kind": "hit", "text": f"✓ {a}: {v}"} for a, v in sorted(named & true)]
        chips += [{"kind": "wrong", "text": f"✗ {a}: {v}"} for a, v in sorted(named - true)]
        chips += [{"kind": "missed", "text": f"missed {a}: {v}"} for a, v in sorted(true - named)]
        known = name in user.get("named", {}) and not METHODS[name].needs_truth
        shown.append(labelled(name, user["summaries"][name], label + of_run) | {"chips": chips if known else []})
    return shown


def labelled(name: str, text: str, label: str | None = None) -> dict[str, Any]:
    """A method's text with its label and kind."""
    kind = "popi" if name.startswith("popi_") else "truth" if METHODS[name].needs_truth else ""
    return {"kind": kind, "label": label or METHODS[name].label, "text": text}


def _score(margin: float | None) -> str:
    """A margin and what it means, in words."""
    if margin is None:
        return ""
    verdict = "right" if margin > 0 else "wrong" if margin < 0 else "no opinion"
    return f"margin {number(margin, 1, sign=True)}, {verdict}"


def _signal(signal: Mapping[str, Any]) -> dict[str, Any]:
    return {**signal, "prompt": prompt_text(signal["prompt"])} if "prompt" in signal else dict(signal)


def prompt_text(prompt: Any) -> str:
    """A task prompt as text: chat messages one per line, with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
