"""What popi changes in a TRL trainer, whichever it is: checkpoints that survive a kill, logs of the run, data order.

TRL is pinned: the methods overridden here and in the phases are private to it, and each has a test that compares it
with TRL's own.
"""

import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback, TrainerState

from popi.config import GeneratorPhaseConfig, InferencePhaseConfig, RunConfig
from popi.errors import RunError
from popi.training.run_directory import PhaseDirectory, RunDirectory

WEIGHTS = "weights.safetensors"
METRICS = {  # TRL's names -> the run's
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "groups_without_spread",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "summary_tokens",
    "completions/clipped_ratio": "summaries_cut",
    "length_penalty": "length_penalty",
    "rollout_difference": "rollout_difference",
    "margin": "margin",
    "reward_accuracy": "reward_accuracy",
    "generator_loss": "generator_loss",
    "generator_grad_norm": "generator_grad_norm",
}
FINITE = ("loss", "grad_norm", "generator_loss", "generator_grad_norm")
"""Metrics that end training where they are no numbers: no later step recovers, and no checkpoint is worth keeping."""
NORMS = {"generator": "generator_grad_norm"}
"""Where the gradient's norm of a component is logged, if not as `grad_norm`."""
Report = Callable[[int, dict[str, Any]], None]
"""Called with a step and its metrics; draws the progress bar."""


def common_arguments(
    config: RunConfig,
    settings: InferencePhaseConfig | GeneratorPhaseConfig,
    phase: PhaseDirectory,
    seed: int,
    steps: int,
) -> dict[str, Any]:
    """Arguments that both trainers get; those that override a TRL default say so."""
    training = config.training
    evaluation: dict[str, Any] = {}
    if training.eval_steps:
        evaluation = {"eval_strategy": "steps", "eval_steps": training.eval_steps, "greater_is_better": True}
        evaluation["metric_for_best_model"] = training.metric_for_best_model
    return {
        "output_dir": str(phase.checkpoints),
        "max_steps": steps,
        "seed": seed,
        "save_strategy": "steps",
        "save_steps": config.training.save_steps,
        "logging_steps": 1,
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup_steps,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "lr_scheduler_kwargs": settings.lr_scheduler_kwargs,
        "optim": settings.optim,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": config.training.gradient_checkpointing,  # TRL: True
        "bf16": False,  # TRL: True, even on a CPU; weights train in the type they were loaded in
        "use_cpu": on_cpu(config),
        "disable_dropout": True,  # one forward scores, another trains: they have to agree
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "logging_nan_inf_filter": False,  # a NaN is to be seen
        "report_to": [],
        "disable_tqdm": True,
    } | evaluation


def on_cpu(config: RunConfig) -> bool:
    """Whether the trainers work on the CPU."""
    return config.model.device == "cpu" or not torch.cuda.is_available()


def drop_fused_head(model: Any) -> None:
    """Take TRL's fused LM head off again.

    It is patched onto the base, where two adapters (and the next phase) would share it; the last trainer built
    would decide the temperature of all. `popi.tree` reads hidden states and never needs it.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    vars(base).pop("forward", None)


def _fingerprint(parameters: dict[str, torch.nn.Parameter]) -> list[tuple[float, float]]:
    """Two sums of each parameter, which nearly any update changes."""
    every = [p.detach() for p in parameters.values()]
    return [(float(p.sum(dtype=torch.float64)), float(p.norm(dtype=torch.float64))) for p in every]


class _Log(TrainerCallback):
    def __init__(self, run: RunDirectory, phase: str, report: Report) -> None:
        self.run, self.phase, self.report = run, phase, report
        self.began = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and any(key.startswith("eval_") for key in logs):
            row = {key: logs[key] for key in sorted(logs) if key.startswith("eval_")}
            self.run.log({"phase": self.phase, "step": state.global_step, **row})
        if not logs or "loss" not in logs:  # an evaluation, or the summary at the end of training
            return
        row = {name: logs[key] for key, name in METRICS.items() if key in logs}
        broken = [f"{name} {row[name]}" for name in FINITE if not math.isfinite(row.get(name) or 0.0)]
        if broken:
            raise RunError(
                f"{self.phase}, step {state.global_step}: training diverged ({', '.join(broken)}); start another run "
                "with a lower learning_rate, or with model.dtype=float32 where it is float16"
            )
        row["seconds"] = round(time.perf_counter() - self.began, 4)
        self.run.log({"phase": self.phase, "step": state.global_step, **row})
        self.report(state.global_step, row)


class _Best(TrainerCallback):
    """Every evaluation is followed by a checkpoint, and enough of them without a better one by the end."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.given_up(state):
            control.should_training_stop = True

    def given_up(self, state: Any) -> bool:
        """Whether the evaluations behind the best one are as many as the patience: a matter of the log alone, so that
        a run which is resumed here ends here, too."""
        evaluated = [row["step"] for row in state.log_history if any(key.startswith("eval_") for key in row)]
        behind = sum(step > (state.best_global_step or 0) for step in evaluated)
        return self.patience is not None and behind >= self.patience


class PhaseTrainer:
    """Mixed into a TRL trainer, before it in the bases."""

    run: RunDirectory
    phase: PhaseDirectory
    limit: int | None = None
    """Checkpoints to keep."""

    def attach(self, run: RunDirectory, phase: PhaseDirectory, report: Report) -> None:
        """After construction: TRL's extras off, the run's logs on."""
        from transformers import PrinterCallback

        self.run, self.phase, self.limit = run, phase, run.config.training.save_total_limit
        drop_fused_head(self.model)  # type: ignore[attr-defined]
        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]
        self.add_callback(_Log(run, phase.name, report))  # type: ignore[attr-defined]
        self.best = _Best(run.config.training.early_stopping_patience)
        self.add_callback(self.best)  # type: ignore[attr-defined]

    def run_phase(self) -> None:
        """Train to the last step, from the newest complete checkpoint if there is one; then back to the best
        evaluation, if there were any.

        Raises:
            RunError: a component has nothing to train, or gradients changed nothing of it.
        """
        found = self.phase.checkpoint()
        before = {component: _fingerprint(parameters) for component, parameters in self.components().items()}
        if empty := [component for component, parameters in before.items() if not parameters]:
            raise RunError(f"{self.phase.path.name}: {', '.join(empty)} has no trainable parameters")
        if found:
            self.state = TrainerState.load_from_json(str(found[0] / "trainer_state.json"))
        if not found or not self.best.given_up(self.state):
            self.train(resume_from_checkpoint=str(found[0]) if found else None)  # type: ignore[attr-defined]
            for component, parameters in self.components().items():
                if _fingerprint(parameters) == before[component]:
                    self._explain_unchanged(component)
        if self.state.best_global_step:
            self._load_from_checkpoint(str(self.phase.at(self.state.best_global_step)))

    def facts(self) -> dict[str, Any]:
        """What done.json says of how training went."""
        best = self.state.best_global_step
        found = {"steps": self.state.global_step}
        return found | ({"best_step": best, "best_metric": self.state.best_metric} if best else {})

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Measure the held-out users; the randomness of training goes on as if nothing had been measured."""
        model: Any = self.model  # type: ignore[attr-defined]
        was_training = model.training
        model.eval()
        with torch.random.fork_rng(), torch.no_grad():
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.measure().items()}
        model.train(was_training)
        trainer: Any = self
        trainer.log(metrics)
        handler = trainer.callback_handler
        trainer.control = handler.on_evaluate(trainer.args, self.state, trainer.control, metrics)
        return metrics

    def measure(self) -> dict[str, float]:
        """`reward` and `reward_accuracy` of the held-out users, the model being in evaluation mode."""
        raise NotImplementedError

    def _explain_unchanged(self, component: str) -> None:
        """Of steps without a learning rate or a gradient nothing else is to be expected: a warning; else an error."""
        every = self.state.log_history  # of all steps, those before a kill included
        steps = [row for row in every if row.get("learning_rate")]
        what = f"{self.phase.path.name}: no parameter of {component} has changed"
        if not steps:
            warnings.warn(f"{what}: the learning rate was 0, as it is in the first of warmup_steps", stacklevel=3)
        elif not any(row.get(NORMS.get(component, "grad_norm")) for row in steps):
            warnings.warn(
                f"{what}: all gradients were 0; had each group's summaries equal rewards (reward_std in log.jsonl)?",
                stacklevel=3,
            )
        else:
            raise RunError(
                f"{what} in {len(steps)} steps with gradients: updates are too small for the weights' type; raise the "
                "learning_rate, or set model.dtype=float32"
            )

    def components(self) -> dict[str, dict[str, torch.nn.Parameter]]:
        """What trains, by component and name."""
        return {"the model": self.trained_parameters()}

    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        """What a checkpoint holds: the parameters that train, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}  # type: ignore[attr-defined]

    def groups(
        self, model: Any, parameters: dict[str, torch.nn.Parameter], rate: float, decay: float
    ) -> list[dict[str, Any]]:
        """Parameters of a model, by name, as an optimizer takes them; norms and biases do not decay."""
        decays = set(self.get_decay_parameter_names(model)) if decay else set()  # type: ignore[attr-defined]
        spared = [p for name, p in parameters.items() if name not in decays]
        rest = [p for name, p in parameters.items() if name in decays]
        split = ((rest, decay), (spared, 0.0))  # 0 is named, too: torch's default is another
        return [{"params": p, "lr": rate, "weight_decay": of} for p, of in split if p]

    # hooks

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        # The rows come in training order. A sampler's own shuffling is not restored beyond its first pass.
        return SequentialSampler(self.train_dataset if dataset is None else dataset)  # type: ignore[attr-defined]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        save_file({n: p.detach().cpu().contiguous() for n, p in self.trained_parameters().items()}, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        parameters = self.trained_parameters()
        if saved.keys() != parameters.keys():
            different = sorted(saved.keys() ^ parameters.keys())
            raise RuntimeError(f"{resume_from_checkpoint}: parameters {different} differ")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.before_save()
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self.phase.seal(self.state.global_step, self.state.best_global_step, self.limit)

    def before_save(self) -> None:
        """For checks of what is about to be saved."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card for each checkpoint."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0
