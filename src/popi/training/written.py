"""Sampled summaries for training a generator, and the input of an inference model that reads one signal at a time."""

import random
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Literal

from popi.inference_model import InferenceModel
from popi.profiles.written import joined, nothing_new, summary_of
from popi.signals.types import PairSignal, Signal, TargetPair, User
from popi.training.processes import ALONE, Processes
from popi.training.renewals import Renewal
from popi.training.rows import in_groups
from popi.training.sampling import generate_together

ScoredOn = Literal["targets", "signal"]


def one_signal_each(
    users: Sequence[User], order: Sequence[int], inference_model: InferenceModel, scored_on: ScoredOn, seed: int
) -> list[User]:
    """For an inference model that reads one signal at a time: for each entry of `order`, its user with one randomly
    drawn signal. The targets are unchanged (`targets`), or replaced by the signal's own pair (`signal`).
    """
    picker, pairs, singled = random.Random(f"signals/{seed}"), scored_on == "signal", []
    for i in order:
        signal = picker.choice(_fitting(users[i].signals, inference_model, pairs))
        update: dict[str, Any] = {"signals": [signal]}
        if isinstance(signal, PairSignal) and pairs:
            update["targets"] = [TargetPair(prompt=signal.prompt, chosen=signal.chosen, rejected=signal.rejected)]
        singled.append(users[i].model_copy(update=update))
    return singled


def sample_summaries(
    users: Sequence[User],
    inference_model: InferenceModel,
    temperature: float,
    top_p: float,
    report: Callable[[int], None],
    batch_size: int = 32,
    renewals: Sequence[Renewal | None] | None = None,
    targets_per_summary: int = 1,
    processes: Processes = ALONE,
) -> list[list[str]]:
    """One sampled summary for each group of at most `targets_per_summary` targets of every user: the z ~ π_φ(·|s) that
    the generator is trained on. An inference model that reads the task prompt writes one per target.

    Args:
        batch_size: users per batch, over all processes.
        renewals: for each user what is read instead of all signals, or None.
        processes: share each batch; all receive all summaries.
    """
    groups = [len(in_groups(len(user.targets), targets_per_summary)) for user in users]
    seen: list[tuple[Any, ...]] = [(user.signals, None, None) for user in users]
    for n, renewal in enumerate(renewals or ()):
        if renewal is not None:
            seen[n] = (renewal.signals, None, renewal.previous)
    local, templates = inference_model.local, inference_model.templates
    limits: dict[str, Any] = {"max_new_tokens": inference_model.max_tokens, "temperature": temperature, "top_p": top_p}
    written: list[list[str]] = []
    for start in range(0, len(users), batch_size):
        part, shown = users[start : start + batch_size], seen[start : start + batch_size]
        counts = groups[start : start + batch_size]
        if inference_model.conditioned:  # one prompt per target, with one sample each
            asked = [inference_model.prompt_ids(user.signals, t.prompt)[0] for user in part for t in user.targets]
            singles = [
                samples[0]
                for first in range(0, len(asked), batch_size)
                for samples in generate_together(processes, local, asked[first : first + batch_size], **limits)
            ]
            flat = iter(singles)
            drawn = [list(islice(flat, len(user.targets))) for user in part]
        elif inference_model.per_signal:
            written += _sample_clauses(part, counts, inference_model, limits, batch_size, processes)
            report(len(written))
            continue
        else:
            asked = [inference_model.prompt_ids(*one)[0] for one in shown]
            drawn = generate_together(processes, local, asked, n=max(counts), **limits)
        for n, samples, (signals, _, old) in zip(counts, drawn, shown, strict=True):
            texts = [local.decode(ids) for ids in samples[:n]]
            if not templates.any_fits(signals, inference_model.token_budget, local.count_tokens):
                # Without signals a sample would be arbitrary; train on the plain prompt, or on the old summary.
                texts = [nothing_new(templates, old, local.name, local.count_tokens).text] * len(texts)
            written.append(texts)
        report(len(written))
    return written


def _sample_clauses(
    users: Sequence[User],
    counts: Sequence[int],
    inference_model: InferenceModel,
    limits: dict[str, Any],
    batch_size: int,
    processes: Processes,
) -> list[list[str]]:
    """Sampled summaries of users whose signals are read one by one. The j-th joins the j-th clause of each signal."""
    local, templates = inference_model.local, inference_model.templates
    fitting = [_fitting(user.signals, inference_model) for user in users]
    asked = [inference_model.prompt_ids([signal])[0] for signals in fitting for signal in signals]
    n = max(counts)
    drawn = iter(
        samples
        for start in range(0, len(asked), batch_size)
        for samples in generate_together(processes, local, asked[start : start + batch_size], n=n, **limits)
    )
    written = []
    for signals, count in zip(fitting, counts, strict=True):
        of_signals = [next(drawn) for _ in signals]
        summaries = []
        for j in range(count):
            texts = [local.decode(samples[j]) for samples in of_signals]
            clauses = [summary_of(templates, text, 1, (), local.name, local.count_tokens) for text in texts]
            summaries.append(joined(templates, clauses, local.name, local.count_tokens).text)
        written.append(summaries)
    return written


def _fitting(signals: Sequence[Signal], inference_model: InferenceModel, pairs: bool = False) -> list[Signal]:
    """The signals that individually fit the inference model's token budget; with `pairs`, only preference pairs."""
    budget, count = inference_model.token_budget, inference_model.local.count_tokens
    some = [signal for signal in signals if not pairs or isinstance(signal, PairSignal)]
    return [signal for signal in some if inference_model.templates.any_fits([signal], budget, count)]
