"""Optimizers and schedulers are transformers' own: a name or an argument that it can't use is refused at the start."""

import tempfile

import torch
from transformers import Trainer, TrainingArguments, get_scheduler

from popi.config import RunConfig
from popi.errors import ConfigError


def refuse_optimizers(config: RunConfig) -> None:
    """Raise ConfigError for an optimizer or a scheduler that transformers can't build here from the settings."""
    for phase in ("inference", "generator"):
        settings = getattr(config.training, phase)
        weight = torch.nn.Parameter(torch.zeros(1, 1))
        asked = f"training.{phase}.optim = {settings.optim!r}"
        try:
            with tempfile.TemporaryDirectory() as folder:
                arguments = TrainingArguments(folder, optim=settings.optim, use_cpu=True)
            kind, more = Trainer.get_optimizer_cls_and_kwargs(arguments)
            optimizer = kind([weight], **more)
            asked = f"training.{phase}.lr_scheduler_type = {settings.lr_scheduler_type!r}, lr_scheduler_kwargs = "
            asked += repr(settings.lr_scheduler_kwargs)
            kwargs = settings.lr_scheduler_kwargs
            get_scheduler(settings.lr_scheduler_type, optimizer, settings.warmup_steps, settings.steps, kwargs)
        except Exception as error:  # a package that is absent, a name or an argument that is none: each its own
            raise ConfigError(f"{asked}: {error}") from None
        if settings.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            raise ConfigError(f"{asked}: follows an evaluation's loss, and popi steps by the step: name another")
