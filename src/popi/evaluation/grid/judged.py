"""Judges a grid's cells: every comparison that the grid asks for, with each verdict saved as it arrives."""

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
from popi.runs.files import write_text
from popi.runs.provenance import stamp_of

ADVICE = "give the grid another name=…"
AGAIN = ("failed", "no response")
"""Kinds of missing verdicts that the next call retries."""


def applies(judge: GridJudge, cell: Cell) -> bool:
    """Whether a judge judges a cell."""
    named = judge.generators is None or cell.name in judge.generators
    return named and (judge.benchmarks is None or cell.benchmark.name in judge.benchmarks)


def pairs_of(judge: GridJudge, methods: Sequence[str]) -> list[tuple[str, str]]:
    """The comparisons among these methods that a judge makes."""
    if judge.pairs is None:
        return [(name, REFERENCE) for name in methods if name != REFERENCE]
    return [(first, second) for first, second in judge.pairs if first in methods and second in methods]


def connect(judge: GridJudge) -> ApiModel | None:
    """The model of a judge behind an API. Sends nothing.

    Raises:
        ConfigError: the URL is invalid, or the named variable holds no key.
    """
    return None if judge.url is None or judge.model is None else judge.spec_of(judge.model).connect()


def make_judge(settings: GridJudge, config: RunConfig, chat: ApiModel | None) -> Judge:
    """The judge that a grid describes, for the users of a run.

    Raises:
        ConfigError, ModelError: its prompt or its model can't be loaded.
    """
    if chat is not None:
        from popi.evaluation.judge.model import ModelJudge
        from popi.evaluation.judge.prompt import JudgePrompt

        prompt = JudgePrompt(settings.prompt)
        return ModelJudge(chat, settings.evidence, prompt, settings.judge_tokens, config.signals.token_budget)
    if settings.kind == "truth":
        from popi.evaluation.judge.truth import TruthJudge

        return TruthJudge()
    from popi.evaluation.judge.log_probs import LogProbJudge

    return LogProbJudge.of(config, settings.model, settings.evidence)


def judge_cell(cell: Cell, settings: GridJudge, judge: Judge, progress: Progress) -> None:
    """Have a judge compare a cell's responses, pair by pair, skipping finished comparisons.

    Raises:
        RunError: existing comparisons were made under other settings (the message lists them).
        ModelError: a model can't be loaded.
    """
    config = cell.benchmark.config
    max_tokens = settings.max_tokens or config.evaluation.answer_tokens
    contexts: dict[str, list[Context]] = {}
    for pair in pairs_of(settings, cell.answering):
        folder = folder_of(cell.folder, pair, settings.name)
        stamp = stamp_of(
            [judge.settings(), pair, settings.prompts, max_tokens, *(cell.job.method_settings(name) for name in pair)]
        )
        if _complete(folder / "judge.json", stamp):
            continue
        with evaluation_progress(None) as silent:
            for name in pair:
                if name not in contexts:
                    contexts[name] = cell.job.contexts(name, silent, silent.add_task(name))
        chosen = {name: contexts[name] for name in pair}
        responses = cell.folder / "responses"
        arena = Arena(cell.benchmark.people, cell.models, chosen, responses, max_tokens, settings.prompts)
        result = judge_pair(arena, *pair, judge, folder, resume=True, progress=progress, advice=ADVICE)
        write_text(folder / "judge.json", json.dumps(result | {"stamp": stamp}, indent=2, ensure_ascii=False) + "\n")


def folder_of(cell: Path, pair: tuple[str, str], judge: str) -> Path:
    """The folder of one of a cell's comparisons."""
    return cell / "judge" / f"{pair[0]}-vs-{pair[1]}-by-{judge}"


def _complete(path: Path, stamp: str) -> bool:
    """Whether a comparison was judged under these settings with nothing left to retry."""
    result = read_judged(path)
    return result is not None and result.get("stamp") == stamp and not missing(result)


def missing(result: Mapping[str, Any]) -> int:
    """Number of a judge.json's missing verdicts that the next call retries."""
    parts = [result, *([result[SEEN]] if SEEN in result else [])]
    return sum(part["missing_verdicts"].get(kind, 0) for part in parts for kind in AGAIN)


def read_judged(path: Path) -> dict[str, Any] | None:
    """Read a judge.json; None if there is no file.

    Raises:
        RunError: the file is damaged.
    """
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); delete it and evaluate the grid again") from None
    return result
