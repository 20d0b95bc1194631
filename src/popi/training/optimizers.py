"""Checks optimizer and scheduler settings, which are passed to transformers, before training starts."""

import tempfile

import torch
from transformers import Trainer, TrainingArguments, get_scheduler

from popi.config import RunConfig
from popi.errors import ConfigError


def refuse_optimizers(config: RunConfig) -> None:
    """Raise ConfigError for an optimizer or scheduler that transformers can't build from the settings."""
    for phase in ("inference", "generator"):
        settings = getattr(config.training, phase)
        weight = torch.nn.Parameter(torch.zeros(1, 1))
        setting = f"training.{phase}.optim = {settings.optim!r}"
        try:
            with tempfile.TemporaryDirectory() as folder:
                arguments = TrainingArguments(folder, optim=settings.optim, use_cpu=True)
            kind, more = Trainer.get_optimizer_cls_and_kwargs(arguments)
            optimizer = kind([weight], **more)
            setting = f"training.{phase}.lr_scheduler_type = {settings.lr_scheduler_type!r}, lr_scheduler_kwargs = "
            setting += repr(settings.lr_scheduler_kwargs)
            kwargs = settings.lr_scheduler_kwargs
            get_scheduler(settings.lr_scheduler_type, optimizer, settings.warmup_steps, settings.steps, kwargs)
        except Exception as error:  # missing packages, unknown names and invalid arguments raise different errors
            raise ConfigError(f"{setting}: {error}") from None
        if settings.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            raise ConfigError(
                f"{setting}: needs an evaluation's loss, but popi's schedulers advance with every step; choose another"
            )
