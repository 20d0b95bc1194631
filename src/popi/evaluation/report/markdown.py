"""The report as Markdown: tables and users. Plots are only in the HTML."""

from collections.abc import Mapping
from typing import Any

from popi.evaluation.report.table import Table, escaped


def markdown(content: Mapping[str, Any]) -> str:
    """The text of report.md, from the report's content."""
    metrics = content["metrics"]
    parts = [
        f"# {escaped(content['headline'])}",
        f"Run {escaped(content['name'])}, base {escaped(content['config']['model']['base'])}: {metrics['n_users']:,} "
        f"held-out users, {metrics['n_pairs']:,} target pairs, seed {metrics['seed']}, commit "
        f"{escaped(metrics['commit'])}. Intervals are 95 %, clustered by user.",
    ]
    for key in ("results", "differences", "calibration", "loss_terms", "transfer"):
        parts += _table(content[key])
        if key == "results":
            parts += [
                f"{_reason(key)}: {'; '.join(names)}." for key, names in content["skipped_methods"].items() if names
            ]
    for study in content["studies"]:
        parts += _table(study["table"])
    for key in ("side_by_side", "settings_that_differ"):
        parts += _table(content[key])
    if content["users"]:
        parts.append("## Users, one by one")
        for user in content["users"]:
            parts += _user(user)
    return "\n\n".join(parts) + "\n"


def _table(table: Table | None) -> list[str]:
    if table is None:
        return []
    return [f"## {escaped(table.title)}", table.markdown(), *(escaped(note) for note in table.notes)]


def _reason(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _user(user: Mapping[str, Any]) -> list[str]:
    parts = [f"### {escaped(user['user_id'])}"]
    if user["preferences"]:
        parts.append("Prefers " + ", ".join(f"{escaped(a)}: {escaped(v)}" for a, v in user["preferences"].items()))
    parts.append("\n".join(f"- {line}" for signal in user["signals"] for line in _signal(signal)))
    parts.append("\n".join(f"- {escaped(one['label'])}: {_text(one['text'])}" for one in user["summaries"]))
    for asked in user["prompts"]:
        parts.append(f"Asked: {_text(asked['prompt'])}")
        lines = []
        for answer in asked["answers"]:
            score = f" ({escaped(answer['score'])})" if answer["score"] else ""
            lines.append(f"- {escaped(answer['label'])}{score}: {_text(answer['text'])}")
        lines += [f"- {escaped(one['label'])}: {escaped(one['score'])}" for one in asked["scores"]]
        parts.append("\n".join(lines))
    return [part for part in parts if part]


def _signal(signal: Mapping[str, Any]) -> list[str]:
    kind = escaped(signal["type"])
    if signal["type"] == "pair":
        return [f"{kind}: prefers {_text(signal['chosen'])} to {_text(signal['rejected'])}"]
    if signal["type"] == "interaction":
        feedback = f", rated {signal['rating']:g}" if signal.get("rating") is not None else ""
        feedback += f", edited to {_text(signal['edit'])}" if signal.get("edit") else ""
        return [f"{kind}: got {_text(signal['response'])}{feedback}"]
    return [f"{kind}: {_text(signal['text'])}"]


def _text(text: str) -> str:
    return f"“{escaped(text)}”" if text else "(empty)"
