"""The base of all phases, on `transformers.Trainer`: checkpoints for resuming, the run's log, the order of rows.

Only public methods are overridden. A phase adds its loss (`compute_loss`) and, if a step is more than one forward and
backward, its `training_step`.

In several processes (`popi.training.processes`) every process sees each batch whole and trains its share of it; DDP
averages the gradients. Metrics are gathered before they are logged, so all processes stop at the same step. The first
process writes.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import Parameter
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import safe_globals

from popi.config import GeneratorPhaseConfig, InferencePhaseConfig, RunConfig
from popi.errors import RunError
from popi.models.local.adapters import has_adapters
from popi.runs.disk import writing
from popi.runs.phase_directory import PhaseDirectory, damaged
from popi.runs.run_directory import RunDirectory
from popi.training.phases.drift import recent_loss
from popi.training.phases.scorer import TreeScorer
from popi.training.processes import ALONE, Processes, fingerprint, on_cpu
from popi.training.sharding import OptimizerStates, full, local, sharded

WEIGHTS = "model.safetensors"
"""A checkpoint's parameters, under the name that `Trainer.train` expects."""
FINITE = ("loss", "grad_norm", "generator_loss", "generator_grad_norm")
"""Metrics that end training if they are not finite: no later step recovers, and no checkpoint is usable."""
NORMS = {"generator": "generator_grad_norm"}
"""Component → key of its gradient norm in the log, if not `grad_norm`."""
Report = Callable[[int, dict[str, Any]], None]
"""Called with a step and its metrics; draws the progress bar."""


def prepare(scorer: TreeScorer, checkpointing: bool) -> None:
    """Disable dropout, since forwards for scoring and training must agree, and enable gradient checkpointing."""
    for module in scorer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model: Any
    for model in scorer.children():
        if checkpointing and hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
            if has_adapters(model):
                model.enable_input_require_grads()


def _fingerprint(parameters: dict[str, Parameter]) -> list[tuple[float, float]]:
    """Two sums per parameter, which nearly any update changes."""
    every = [local(p.detach()) for p in parameters.values()]
    return [(float(p.sum(dtype=torch.float64)), float(p.norm(dtype=torch.float64))) for p in every]


class _Log(TrainerCallback):
    """Writes the log, and stops training that diverged: in all processes, as they log the same metrics."""

    def __init__(self, run: RunDirectory, phase: str, report: Report, first: bool) -> None:
        self.run, self.phase, self.report, self.first = run, phase, report, first
        self.began = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and any(key.startswith("eval_") for key in logs):
            row = {key: logs[key] for key in sorted(logs) if key.startswith("eval_")}
            if self.first:
                self.run.log({"phase": self.phase, "step": state.global_step, **row})
        if not logs or "loss" not in logs:  # an evaluation, or the summary at the end of training
            return
        row = {name: value for name, value in logs.items() if name != "epoch"}
        broken = [f"{name} {row[name]}" for name in FINITE if not math.isfinite(row.get(name) or 0.0)]
        if broken:
            raise RunError(
                f"{self.phase}, step {state.global_step}: training diverged ({', '.join(broken)}); start another run "
                "with a lower learning_rate, or with model.dtype=float32 instead of float16"
            )
        row["seconds"] = round(time.perf_counter() - self.began, 4)
        if self.first:
            self.run.log({"phase": self.phase, "step": state.global_step, **row})
            self.report(state.global_step, row)


class _Checkpoints(TrainerCallback):
    """Saves a checkpoint after every evaluation, and seals it once it is complete. Stops training after enough
    evaluations without improvement, or at a checkpoint where the chosen responses have lost too much."""

    def __init__(
        self, phase: PhaseDirectory, limit: int | None, patience: int | None, max_loss: float, processes: Processes
    ) -> None:
        self.phase, self.limit, self.patience, self.max_loss = phase, limit, patience, max_loss
        self.processes = processes

    @property
    def start(self) -> Path:
        """The phase's initial weights, until there is a checkpoint to fall back to."""
        return self.phase.checkpoints / "start.safetensors"

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        lost = self.lost(state)
        limit = max(2, self.limit or 1) if lost else self.limit  # the phase falls back to the previous one
        self.processes.wait()  # until each has written the state of its random numbers
        if self.processes.first:
            self.phase.seal(state.global_step, state.best_global_step, limit)
            if not lost:
                self.start.unlink(missing_ok=True)
        self.processes.wait()
        if lost or self.out_of_patience(state):
            control.should_training_stop = True

    def ended(self, state: Any) -> bool:
        """Whether training ended before its last step. Depends only on the log, so that a run resumed here also ends
        here."""
        return self.out_of_patience(state) or self.lost(state)

    def lost(self, state: Any) -> bool:
        """Whether the chosen responses have lost more than allowed, by the latest measurements."""
        loss = recent_loss(state.log_history)
        return bool(self.max_loss) and loss is not None and loss > self.max_loss

    def fallback(self, state: Any) -> tuple[int, Path] | None:
        """The step whose weights the phase saves, if it is not the last, and their file."""
        best = state.best_global_step
        if self.lost(state) and not (best and best < state.global_step):
            steps = self.processes.decide(self.phase.steps)
            before = max((step for step in steps if step < state.global_step), default=0)
            return (before, self.phase.at(before) / WEIGHTS) if before else (0, self.start)
        return (best, self.phase.at(best) / WEIGHTS) if best else None

    def out_of_patience(self, state: Any) -> bool:
        """Whether as many evaluations as the patience have followed the best one."""
        evaluated = [row["step"] for row in state.log_history if any(key.startswith("eval_") for key in row)]
        since_best = sum(step > (state.best_global_step or 0) for step in evaluated)
        return self.patience is not None and since_best >= self.patience


def share_random_state(checkpoint: Path, processes: int) -> None:
    """Write the state of the random numbers, which is the same in all processes, for another number of them.

    A checkpoint of one process has `rng_state.pth`, one of several has `rng_state_0.pth` and so on.
    """
    one = checkpoint / "rng_state.pth"
    files = [one] if processes == 1 else [checkpoint / f"rng_state_{rank}.pth" for rank in range(processes)]
    if all(file.is_file() for file in files):
        return
    source = one if one.is_file() else checkpoint / "rng_state_0.pth"
    if not source.is_file():
        return
    with safe_globals():  # numpy's state is in it
        state = torch.load(source, weights_only=True)
    if "cuda" in state:  # of one process the state of its GPU, of several the states of all GPUs that one of them sees
        own = state["cuda"] if isinstance(state["cuda"], torch.Tensor) else state["cuda"][0]
        state["cuda"] = own if processes == 1 else [own] * torch.cuda.device_count()
    for file in files:
        if not file.is_file():
            partial = file.with_name(f"{file.name}.tmp")
            torch.save(state, partial)
            os.replace(partial, file)


class PhaseTrainer(Trainer):
    """Trains a scorer on rows, one pass in their order.

    Args:
        scorer: the trained models.
        rows: in training order.
        held_out: rows for evaluations during the phase.
        collate: batch of rows → inputs of `training_step`.
        settings: the phase's settings.
        steps: number of optimizer steps.
        report: see `Report`.
        processes: those that train together.
        arguments: more of transformers' own. `per_device_train_batch_size` is one process's share of a batch.
    """

    trains_generator = False

    def __init__(
        self,
        scorer: TreeScorer,
        rows: Sequence[Any],
        held_out: Sequence[Any],
        collate: Callable[[list[Any]], Any],
        settings: InferencePhaseConfig | GeneratorPhaseConfig,
        *,
        config: RunConfig,
        run: RunDirectory,
        phase: PhaseDirectory,
        seed: int,
        steps: int,
        report: Report,
        processes: Processes = ALONE,
        **arguments: Any,
    ) -> None:
        self.scorer, self.rows, self.held_out, self.run, self.phase = scorer, rows, held_out, run, phase
        self.processes = processes
        self.metrics: dict[str, list[tuple[float, float]]] = {}
        training = config.training
        prepare(scorer, training.gradient_checkpointing)
        if training.eval_steps:
            arguments |= {"eval_strategy": "steps", "eval_steps": training.eval_steps, "greater_is_better": True}
            arguments["metric_for_best_model"] = training.metric_for_best_model
        transformers_own: dict[str, Any] = {
            "output_dir": str(phase.checkpoints),
            "max_steps": steps,
            "seed": seed,
            "save_strategy": "steps",
            "save_steps": training.save_steps,
            "logging_steps": 1,
            "learning_rate": settings.learning_rate,
            "warmup_steps": settings.warmup_steps,
            "lr_scheduler_type": settings.lr_scheduler_type,
            "lr_scheduler_kwargs": settings.lr_scheduler_kwargs,
            "optim": settings.optim,
            "weight_decay": settings.weight_decay,
            "max_grad_norm": settings.max_grad_norm,
            "use_cpu": on_cpu(config),
            # The rows come in training order. A shuffle would not be restored beyond its first pass.
            "train_sampling_strategy": "sequential",
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            "logging_nan_inf_filter": False,  # NaNs must be visible
            "ddp_find_unused_parameters": True,  # a joint step goes backward once for each component
            "ddp_broadcast_buffers": False,
            "report_to": [],
            "disable_tqdm": True,
        }
        args = TrainingArguments(**transformers_own | arguments)
        self.models = [model for model in scorer.children() if sharded(model)]
        self.states: OptimizerStates | None = None
        super().__init__(scorer, args, collate, train_dataset=rows, eval_dataset=held_out or None)
        if self.models:  # `train` would wrap the scorer in DDP otherwise; accelerate passes on what it has prepared
            self.accelerator.prepare_model(scorer, device_placement=False, evaluation_mode=True)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Log(run, phase.name, report, processes.first))
        self.max_chosen_loss = training.generator.max_chosen_loss if self.trains_generator else 0.0
        self.checkpoints = _Checkpoints(
            phase, training.save_total_limit, training.early_stopping_patience, self.max_chosen_loss, processes
        )
        self.add_callback(self.checkpoints)

    def run_phase(self) -> None:
        """Train to the last step, from the newest complete checkpoint if there is one. Then load the weights of the
        best evaluation, if there were any, or of the last checkpoint where the chosen responses had not lost too much.

        Raises:
            RunError: a component has no trainable parameters, or gradients did not change them; or the checkpoint of
                the best evaluation is damaged.
        """
        checkpoint = self.processes.decide(self._checkpoint)
        before = self._fingerprints()
        if empty := [component for component, parameters in self.scorer.components().items() if not parameters]:
            raise RunError(f"{self.phase.path.name}: {', '.join(empty)} has no trainable parameters")
        if checkpoint:
            self.state = TrainerState.load_from_json(str(checkpoint[0] / "trainer_state.json"))
        elif self.max_chosen_loss:
            if self.processes.first:
                self.phase.checkpoints.mkdir(parents=True, exist_ok=True)
            self.save_weights(self.checkpoints.start)
        if not checkpoint or not self.checkpoints.ended(self.state):
            self.train(resume_from_checkpoint=str(checkpoint[0]) if checkpoint else None)
            for component, after in self._fingerprints().items():
                if after == before[component]:
                    self._explain_unchanged(component)
            self.refuse_divergence()
        if earlier := self.checkpoints.fallback(self.state):
            step, weights = earlier
            if step and (changed := damaged(weights.parent)):
                raise RunError(f"{weights.parent}: {changed}; it holds this phase's best weights: train the run again")
            self.scorer.load_state_dict(load_file(weights))

    def _fingerprints(self) -> dict[str, Any]:
        """By component: every process's sums of its parameters, or of its shards of them."""
        own = {component: _fingerprint(parameters) for component, parameters in self.scorer.components().items()}
        each = self.processes.gather(own) if self.models else [own]
        return {component: [one[component] for one in each] for component in own}

    def _checkpoint(self) -> tuple[Path, int] | None:
        """The checkpoint to resume from, with the state of the random numbers for as many processes as there are."""
        if checkpoint := self.phase.checkpoint():
            share_random_state(checkpoint[0], self.processes.size)
        return checkpoint

    def refuse_divergence(self) -> None:
        """Raise RunError unless all processes have the same weights, bit by bit; of sharded weights there is one copy,
        and the processes' random numbers must be the same."""
        if self.models:
            random = self.processes.gather(int(torch.random.get_rng_state().to(torch.int64).sum()))
            if others := [rank for rank, state in enumerate(random) if state != random[0]]:
                raise RunError(
                    f"{self.phase.path.name}, step {self.state.global_step}: the random numbers of processes "
                    f"{', '.join(map(str, others))} differ from those of process 0: nothing that was trained since the "
                    "last checkpoint is saved; please report this"
                )
            return
        own = fingerprint(list(self.scorer.trained_parameters().values()))
        each = self.processes.gather(own)
        if others := [rank for rank, theirs in enumerate(each) if theirs != each[0]]:
            pairs = zip(self.scorer.trained_parameters(), each[0], each[others[0]], strict=True)
            names = [name for name, a, b in pairs if a != b]
            raise RunError(
                f"{self.phase.path.name}, step {self.state.global_step}: the weights of processes "
                f"{', '.join(map(str, others))} differ from those of process 0, in {len(names)} of {len(own)} tensors "
                f"({names[0]} first). Their gradients were not averaged, or one process computed something else: "
                "nothing that was trained since the last checkpoint is saved; please report this"
            )

    def get_train_dataloader(self) -> DataLoader:
        """In several processes, each reads all batches, and takes its share of them (`batch`)."""
        if self.processes.alone:
            return super().get_train_dataloader()
        size = self.args.per_device_train_batch_size * self.processes.size
        return DataLoader(self.rows, size, shuffle=False, collate_fn=self.batch)  # type: ignore[arg-type]

    def batch(self, rows: list[Any]) -> Any:
        """What this process computes with of a batch's rows."""
        return self.data_collator(list(self.processes.share(rows)))

    def facts(self) -> dict[str, Any]:
        """Facts about training for done.json."""
        best, earlier = self.state.best_global_step, self.checkpoints.fallback(self.state)
        facts: dict[str, Any] = {"steps": self.state.global_step}
        if best:
            facts |= {"best_step": best, "best_metric": self.state.best_metric}
        if self.checkpoints.lost(self.state) and earlier:
            facts |= {"saved_step": earlier[0], "chosen_loss": recent_loss(self.state.log_history)}
        return facts

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Evaluate on the held-out users, without affecting the random state of training."""
        was_training = self.scorer.training
        self.scorer.eval()
        with torch.random.fork_rng(), torch.no_grad():
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.measure().items()}
        self.scorer.train(was_training)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self) -> dict[str, float]:
        """`reward` and `reward_accuracy` of the held-out users. The model is in evaluation mode."""
        raise NotImplementedError

    def _explain_unchanged(self, component: str) -> None:
        """Warn if no step had a learning rate and a gradient, so that no change is expected; else raise RunError."""
        every = self.state.log_history  # of all steps, including those before an interruption
        steps = [row for row in every if row.get("learning_rate")]
        problem = f"{self.phase.path.name}: no parameter of {component} has changed"
        if not steps:
            warnings.warn(f"{problem}: the learning rate was 0, as in the first of warmup_steps", stacklevel=3)
        elif not any(row.get(NORMS.get(component, "grad_norm")) for row in steps):
            warnings.warn(
                f"{problem}: all gradients were 0; check whether each group's summaries had equal rewards (reward_std "
                "in log.jsonl)",
                stacklevel=3,
            )
        else:
            raise RunError(
                f"{problem} in {len(steps)} steps with gradients: updates are too small for the weights' dtype; raise "
                "the learning_rate, or set model.dtype=float32"
            )

    def note(self, weight: float = 1.0, **values: float) -> None:
        """Metrics of this step, or of a part of it: the log has their means, over processes, too.

        `weight`: of this part in the mean, such as its number of tokens.
        """
        for name, value in values.items():
            self.metrics.setdefault(name, []).append((value, weight))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's own metrics."""
        if "loss" in logs:
            noted = self.processes.gather(self.metrics)
            for name in dict.fromkeys(name for own in noted for name in own):
                parts = [part for own in noted for part in own.get(name, ())]
                logs[name] = sum(value * weight for value, weight in parts) / sum(weight for _, weight in parts)
            self.metrics = {}
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, *_: Any, **__: Any) -> None:
        """Write a checkpoint's weights, after checking that they are the same in all processes."""
        self.refuse_divergence()
        folder = Path(output_dir or str(self.args.output_dir))
        if self.processes.first:
            folder.mkdir(parents=True, exist_ok=True)
        self.save_weights(folder / WEIGHTS)
        if self.states is not None:
            self.states.gather(self.processes.first)  # the trainer saves them next

    def save_weights(self, path: Path) -> None:
        """Have the first process write the trainable parameters; all must call it, to gather shards."""
        first, tensors = self.processes.first, {}
        for name, p in self.scorer.trained_parameters().items():
            complete = full(p.detach())
            if first:
                tensors[name] = complete.cpu().contiguous()
        if first:
            with writing(path):
                save_file(tensors, path)

    def groups(self) -> list[tuple[dict[str, Parameter], float, float]]:
        """Parameters with a learning rate and weight decay of their own; empty if all have the same."""
        return []

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer, whose states are saved whole if parameters are sharded."""
        new, groups = self.optimizer is None, self.groups()
        optimizer = self.optimizer_of(*groups) if groups else super().create_optimizer(model)
        if new and self.models:
            self.states = OptimizerStates(optimizer)
        return optimizer

    def optimizer_of(self, *groups: tuple[dict[str, Parameter], float, float]) -> torch.optim.Optimizer:
        """The optimizer for groups of (parameters, learning rate, weight decay); norms and biases do not decay."""
        if self.optimizer is None:
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args)
            names = set(self.get_decay_parameter_names(self.scorer))
            decaying = {id(p) for name, p in self.scorer.named_parameters() if name in names}
            split = []
            for parameters, rate, decay in groups:
                spared = [p for p in parameters.values() if not decay or id(p) not in decaying]
                rest = [p for p in parameters.values() if decay and id(p) in decaying]
                # weight_decay=0 must be explicit, because torch's default differs
                split += [{"params": p, "lr": rate, "weight_decay": d} for p, d in ((rest, decay), (spared, 0.0)) if p]
            self.optimizer = kind(split, **arguments)
        return self.optimizer
