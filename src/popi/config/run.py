"""One run, whole: every section, and the settings that stand above them."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from popi.config.data import DataConfig
from popi.config.evaluation import EvaluationConfig
from popi.config.model import ModelConfig
from popi.config.section import Filled, FolderName, Section
from popi.config.signals import SignalsConfig
from popi.config.summary import SummaryConfig
from popi.config.training import TrainingConfig


class RunConfig(Section):
    """One run, whole."""

    name: FolderName = "nano"
    """Name of the run; its directory is `{root}/{name}`."""
    root: Filled = "runs"
    """Where run directories live."""
    seed: int = Field(default=0, ge=0)
    """Seeds the users, the sampling, the order of the data and new weights."""
    model: ModelConfig = ModelConfig()
    """The base model and how it is adapted."""
    data: DataConfig = DataConfig()
    """Users to train and to test on."""
    signals: SignalsConfig = SignalsConfig()
    """How signals become a prompt."""
    summary: SummaryConfig = SummaryConfig()
    """How summaries are sampled."""
    training: TrainingConfig = TrainingConfig()
    """What is trained, in which order."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured."""

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.root) / self.name


def with_method(config: RunConfig, setting: Literal["copied", "per_user_lora"], enabled: bool = True) -> RunConfig:
    """The config with one of the evaluation's methods enabled, or disabled; its other settings as they are."""
    section = getattr(config.evaluation, setting).model_copy(update={"enabled": enabled})
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={setting: section})})
