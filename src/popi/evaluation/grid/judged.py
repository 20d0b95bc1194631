"""Judges of a grid's cells: every comparison that the grid asks for, kept verdict by verdict."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from popi.config import RunConfig
from popi.errors import RunError
from popi.evaluation.grid.cells import Cell
from popi.evaluation.grid.settings import REFERENCE, GridJudge
from popi.evaluation.judge.question import SEEN, Judge, Progress
from popi.evaluation.judge.run import Arena, judge_pair
from popi.evaluation.methods import Context
from popi.evaluation.progress import evaluation_progress
from popi.models.remote.api import ApiModel
from popi.runs.provenance import stamp_of
from popi.runs.run_directory import write_text

ADVICE = "give the grid another name=…"
AGAIN = ("failed", "no response")
"""Kinds of missing verdicts that the next call asks for again."""


def applies(judge: GridJudge, cell: Cell) -> bool:
    """Whether a judge is asked about a cell."""
    named = judge.generators is None or cell.name in judge.generators
    return named and (judge.benchmarks is None or cell.benchmark.name in judge.benchmarks)


def pairs_of(judge: GridJudge, methods: Sequence[str]) -> list[tuple[str, str]]:
    """The comparisons among these methods that a judge is asked for."""
    if judge.pairs is None:
        return [(name, REFERENCE) for name in methods if name != REFERENCE]
    return [(first, second) for first, second in judge.pairs if first in methods and second in methods]


def connect(judge: GridJudge) -> ApiModel | None:
    """The model of a judge behind an API; nothing is sent yet.

    Raises:
        ConfigError: a wrong URL, or a named variable without a key.
    """
    return None if judge.url is None or judge.model is None else judge.described(judge.model).connect()


def make_judge(settings: GridJudge, config: RunConfig, chat: ApiModel | None) -> Judge:
    """The judge that a grid describes, for the users of a run.

    Raises:
        ConfigError, ModelError: its prompt or its model can't be loaded.
    """
    if chat is not None:
        from popi.evaluation.judge.model import ModelJudge
        from popi.evaluation.judge.prompt import JudgePrompt

        prompt = JudgePrompt(settings.prompt)
        return ModelJudge(chat, settings.told, prompt, settings.judge_tokens, config.signals.token_budget)
    if settings.kind == "truth":
        from popi.evaluation.judge.truth import TruthJudge

        return TruthJudge()
    from popi.evaluation.judge.log_probs import LogProbJudge

    return LogProbJudge.of(config, settings.model, settings.told)


def judge_cell(cell: Cell, settings: GridJudge, judge: Judge, progress: Progress) -> None:
    """Have a judge compare a cell's responses, pair by pair; what is done stays as it is.

    Raises:
        RunError: comparisons are there that were made under other settings (the message says which).
        ModelError: a model can't be loaded.
    """
    config = cell.benchmark.config
    most = settings.max_tokens or config.evaluation.answer_tokens
    contexts: dict[str, list[Context]] = {}
    for pair in pairs_of(settings, cell.answering):
        folder = folder_of(cell.folder, pair, settings.name)
        stamp = stamp_of(
            [judge.settings(), pair, settings.prompts, most, *(cell.job.method_settings(name) for name in pair)]
        )
        if _complete(folder / "judge.json", stamp):
            continue
        with evaluation_progress(None) as silent:
            for name in pair:
                if name not in contexts:
                    contexts[name] = cell.job.contexts(name, silent, silent.add_task(name))
        chosen = {name: contexts[name] for name in pair}
        arena = Arena(cell.benchmark.people, cell.models, chosen, cell.folder / "responses", most, settings.prompts)
        result = judge_pair(arena, *pair, judge, folder, resume=True, progress=progress, advice=ADVICE)
        write_text(folder / "judge.json", json.dumps(result | {"stamp": stamp}, indent=2, ensure_ascii=False) + "\n")


def folder_of(cell: Path, pair: tuple[str, str], judge: str) -> Path:
    """Where a comparison of a cell is kept."""
    return cell / "judge" / f"{pair[0]}-vs-{pair[1]}-by-{judge}"


def _complete(path: Path, stamp: str) -> bool:
    """Whether a comparison was judged under these settings with nothing left to ask again."""
    found = read_judged(path)
    return found is not None and found.get("stamp") == stamp and not missing(found)


def missing(found: Mapping[str, Any]) -> int:
    """How many verdicts of a judge.json the next call asks for again."""
    parts = [found, *([found[SEEN]] if SEEN in found else [])]
    return sum(part["missing_verdicts"].get(kind, 0) for part in parts for kind in AGAIN)


def read_judged(path: Path) -> dict[str, Any] | None:
    """A judge.json; None where there is none.

    Raises:
        RunError: it is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); delete it and evaluate the grid again") from None
    return found
