"""Send a run's metrics to tensorboard, Weights & Biases or trackio, in addition to log.jsonl (`training.report_to`).

Each phase is a separate run there, in a group named after popi's run, so that its steps count from 1. A resumed phase
keeps its id and reports the steps since its checkpoint again, with the same values, which W&B drops.
"""

import importlib.util
import io
import os
import secrets
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from popi.config import RunConfig
from popi.errors import ConfigError
from popi.runs.files import write_text


class Reporter(Protocol):
    """Reports one phase of a run to one service."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Report a step's metrics."""

    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Report a step's sampled summaries, if the service has tables."""

    def close(self) -> None:
        """Send any remaining data."""


def reporters_of(config: RunConfig) -> list[str]:
    """The services that a config reports to.

    Raises:
        ConfigError: if a package is not installed.
    """
    names = config.training.report_to
    if names is None:
        return ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"training.report_to includes {name!r}, but the package {name} is not installed; pip install {name}, "
                "or remove it from the list"
            )
    return list(dict.fromkeys(names))


def open_reporters(config: RunConfig, folder: Path, phase: str, step: int) -> list[Reporter]:
    """The reporters of a phase whose next step is `step`.

    Raises:
        ConfigError: if a package is not installed, or a service can't be used, for instance without a login.
    """
    kinds: dict[str, Any] = {"tensorboard": _Tensorboard, "wandb": _Wandb, "trackio": _Trackio}
    opened: list[Reporter] = []
    for name in reporters_of(config):
        try:
            opened.append(kinds[name](config, folder, phase, step))
        except Exception as error:  # each service has its own exceptions, and W&B has many
            raise ConfigError(
                f"training.report_to: {name} can't be used ({type(error).__name__}: {error}); W&B works without a "
                "login under WANDB_MODE=offline"
            ) from None
    return opened


def _run_id(folder: Path) -> str:
    """An id of this run directory, which differs from other directories of the same name."""
    file = folder / "report_id"
    if not file.is_file():
        write_text(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8").strip()


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}


class _Tensorboard:
    def __init__(self, config: RunConfig, folder: Path, phase: str, step: int) -> None:
        self.folder, self.step = folder / "tensorboard" / phase, step
        self.writer: Any = None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.writer is None:  # opened lazily, so that a refused run leaves the folder untouched
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides what a killed process logged past its last checkpoint
            self.writer = SummaryWriter(str(self.folder), purge_step=self.step)
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        pass  # tensorboard has no tables; the rows are in samples.jsonl

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class _Wandb:
    def __init__(self, config: RunConfig, folder: Path, phase: str, step: int) -> None:
        import wandb

        self.run = wandb.init(
            project=config.training.report_project,
            group=config.name,
            name=f"{config.name}/{phase}",
            id=f"{_run_id(folder)}-{phase}",
            resume="allow",
            config=config.model_dump(mode="json"),
            dir=str(folder),
            settings=wandb.Settings(silent=True),
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        import wandb

        self.run.log({"summaries": wandb.Table(**_columns(rows))}, step=step)

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    def __init__(self, config: RunConfig, folder: Path, phase: str, step: int) -> None:
        import trackio

        with redirect_stdout(sys.stderr if os.environ.get("TRACKIO_SPACE_ID") else io.StringIO()):
            self.run = trackio.init(
                project=config.training.report_project,
                group=config.name,
                name=f"{config.name}-{_run_id(folder)}-{phase}",
                resume="allow",
                config=config.model_dump(mode="json"),
                embed=False,
            )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        import trackio

        self.run.log({"summaries": trackio.Table(**_columns(rows))}, step=step)

    def close(self) -> None:
        import trackio

        with redirect_stdout(io.StringIO()):
            trackio.finish()
