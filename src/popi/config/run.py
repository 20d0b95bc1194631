"""The configuration of a run: all sections and the top-level settings."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from popi.config.data import DataConfig
from popi.config.evaluation import EvaluationConfig
from popi.config.model import ModelConfig
from popi.config.section import Filled, FolderName, Section
from popi.config.signals import SignalsConfig
from popi.config.summary import SummaryConfig
from popi.config.training import TrainingConfig

OPERATION: dict[str, Any] = {"model": {"api_generator": {"retries": True}}}
"""Settings that affect no result: they may change when a run is resumed (`exclude` of `model_dump`)."""


class RunConfig(Section):
    """The complete configuration of a run."""

    name: FolderName = "nano"
    """Name of the run; its directory is `{root}/{name}`."""
    root: Filled = "runs"
    """Parent folder of run directories."""
    seed: int = Field(default=0, ge=0)
    """Seed for the users, the sampling, the order of the data and newly initialised weights."""
    model: ModelConfig = ModelConfig()
    """The base model and how it is adapted."""
    data: DataConfig = DataConfig()
    """Users to train and to test on."""
    signals: SignalsConfig = SignalsConfig()
    """How signals become a prompt."""
    summary: SummaryConfig = SummaryConfig()
    """How summaries are sampled."""
    training: TrainingConfig = TrainingConfig()
    """What is trained, and in which order."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured."""

    def settings(self, *sections: str) -> dict[str, Any]:
        """What results depend on in these sections, as JSON: how often requests are repeated is not part of it."""
        return self.model_dump(mode="json", include=set(sections), exclude=OPERATION)

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.root) / self.name


def with_method(config: RunConfig, setting: Literal["copied", "per_user_lora"], enabled: bool = True) -> RunConfig:
    """A copy of the config with an optional evaluation method enabled or disabled."""
    section = getattr(config.evaluation, setting).model_copy(update={"enabled": enabled})
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={setting: section})})
