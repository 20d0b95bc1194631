"""`popi train --dry-run --with-weights`: the reliability of a run's first rewards, measured with the models."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import set_seed

from popi.config import RunConfig
from popi.data.store import pick
from popi.data.users import users_of
from popi.models.local.adapters import using
from popi.training.components import GENERATOR, load_components
from popi.training.planning.plan import phase_seed, plan
from popi.training.references import References
from popi.training.rehearsal import first_users, rehearsal_rows, rehearse
from popi.training.reward import LengthBudget, SummaryReward
from popi.training.rows import draw, hold_out, readable, trainable
from popi.training.templates import with_template
from popi.training.train import quiet
from popi.training.written import one_signal_each


def reliability_lines(config: RunConfig) -> list[str]:
    """The reliability of the rewards, as a run prints it before its first step. Writes nothing.

    Raises:
        DataError, ConfigError, ModelError: the users, settings or models are unsuitable for training.
    """
    config = with_template(config)
    phases = (phase for order in plan(config).values() for phase in order)
    phase = next((phase for phase in phases if phase.kind in ("inference", "joint")), None)
    if phase is None:
        return ["reliability: no order of training.orders trains an inference model, so there are no rewards"]
    if phase.generator_from is not None:
        return [
            f"{phase.name}: reliability unknown before phase {phase.generator_from} has trained the generator that "
            "rewards; step 0 of this phase prints it"
        ]
    settings, seed = config.training.inference, phase_seed(config.seed, phase.name)
    users = trainable(users_of(config, "train").users)
    if config.training.eval_steps:
        users, _ = hold_out(users, config.training.eval_users, config.seed)
    with quiet(), torch.random.fork_rng(), TemporaryDirectory() as folder:
        set_seed(seed)
        parts = load_components(config, phase.trains, None, None)
        users = readable(users, parts.inference_model, only_pairs=settings.scored_on == "signal")
        order: Sequence[int] = draw(len(users), settings.users_per_step, phase.steps(config), seed)
        if parts.inference_model.per_signal:
            users = one_signal_each(users, order, parts.inference_model, settings.scored_on, seed)
            order = range(len(users))
        references = References(Path(folder) / "references.jsonl")
        first = first_users(order, config)
        with using(parts.base.local.model, None):
            references.compute(pick(users, first), parts.reference, config.evaluation.batch_size)
        adapter, budget = parts.adapters[GENERATOR], LengthBudget.of(settings)
        reward = SummaryReward(parts.generator, adapter, settings.beta, config.training.rows_at_once, budget)
        rows = rehearsal_rows(users, first, parts, references, config, seed)
        rehearsal = rehearse(rows, parts, reward, config, seed)
    if rehearsal is None:
        return [f"{phase.name}: reliability unknown: no user has two targets on which to compare a summary's rewards"]
    return rehearsal.lines(phase.name)
