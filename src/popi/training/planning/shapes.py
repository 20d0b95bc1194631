"""Number of users and lengths of texts for a plan, measured if the data and the tokenizer are available."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

from popi.config import BENCHMARKS, RunConfig
from popi.data.places import hub_files
from popi.errors import ConfigError, DataError
from popi.models.backend import estimate_tokens
from popi.signals.copying import copy_signals
from popi.signals.fading import Previous, worth
from popi.signals.render import Templates
from popi.signals.types import Signal
from popi.training.planning.plan import PromptContext
from popi.training.renewals import new_signals, split_in_time
from popi.training.templates import template_of

LOOKED_AT = 200
"""Maximum users to measure, evenly spread over all."""
PER_MESSAGE = 8
"""Tokens that a chat template adds to a message; Llama's add 4 to 5, ChatML's 5."""
ASSUMED_PROMPT, ASSUMED_RESPONSE = 128, 512
"""Tokens of a task prompt and of a response if the data is not available."""
Count = Callable[[str], int]
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Shapes:
    """Counts, and lengths in tokens. Lengths are maxima; `*_mean` are means.

    Attributes:
        users: training users, without those set aside; each window of a user counts as a user.
        held_out: users set aside for evaluations during a phase (`training.eval_users`).
        signals, targets: maximum per user.
        prompt: the inference model's prompt: the maximum over ordinary rows and renewals, and the mean weighted by
            `training.renewal.share`.
        earlier_mean: the prompt for writing an old summary, with the earlier signals; 0 without renewals.
        summary: `summary.max_tokens`.
        clauses: number of clauses per summary: with `summary.per_signal` one per signal, else 1.
        plain: task prompt and both responses, as the reference model reads them.
        guide: tokens that the generator's template and a summary add.
        raw, raw_mean: tokens that raw signals add to the generator's prompt.
        copied, copied_mean: tokens that copied signals add as a summary.
        responses: both responses of a target.
        reach: task prompt and the longer response, the positions that they take without a summary.
        dropped: number of measured users whose signals did not all fit the budget.
        unread: number of measured users without a signal that fits.
        opening: tokens before every task prompt, from the start of the chat template.
        notes: where these numbers come from, in lines.
    """

    users: int
    signals: int
    targets: int
    prompt: int
    prompt_mean: float
    summary: int
    plain: int
    plain_mean: float
    guide: int
    raw: int
    raw_mean: float
    responses: int
    reach: int
    dropped: int
    notes: tuple[str, ...]
    earlier_mean: float = 0.0
    unread: int = 0
    held_out: int = 0
    opening: int = 0
    copied: int = 0
    copied_mean: float = 0.0
    clauses: int = 1

    @property
    def clause_row_mean(self) -> float:
        """Mean length of a target with one sample of an inference phase: a summary, or one clause of it."""
        return self.row_mean() - (self.clauses - 1) * self.summary

    def row(self, context: PromptContext = "summary", soft: int = 0, targets: int = 1) -> int:
        """Length of a target in its context after `soft` vectors, as the generator reads it. Several `targets` of a
        user share the context."""
        added = {"none": 0, "summary": self.guide, "raw_signals": self.raw, "copy": self.copied}[context]
        one = self.plain + added + soft
        return one + (targets - 1) * (self.plain - self.opening)

    def row_mean(self, context: PromptContext = "summary", soft: int = 0, targets: float = 1.0) -> float:
        added = {"none": 0, "summary": self.guide, "raw_signals": self.raw_mean, "copy": self.copied_mean}[context]
        one = self.plain_mean + added + soft
        return one + (targets - 1) * (self.plain_mean - self.opening)

    def group(self, most: int) -> tuple[int, float]:
        """A user's targets that share a context, at most `most`: maximum and mean of the groups."""
        groups = max(1, -(-self.targets // most))
        return min(most, max(self.targets, 1)), max(self.targets, 1) / groups


class Counter(NamedTuple):
    """How tokens are counted.

    Attributes:
        count: text → tokens.
        tokens: conversation → tokens.
        opening: tokens before the text of a conversation with one turn.
        note: the method of counting.
    """

    count: Count
    tokens: Callable[[Messages], int]
    opening: int
    note: str


def counter(config: RunConfig) -> Counter:
    """Count with the model's tokenizer and chat template if they are on this machine, else with a rule of thumb.

    Raises:
        ModelError: popi can't use the chat template.
    """
    try:
        from popi.models.local.loading import load_tokenizer, locate

        tokenizer: Any = load_tokenizer(locate(config.model.base), local_files_only=True)
    except Exception:  # not installed, not available, or not a tokenizer
        note = "tokens estimated at 3 bytes each: the model's tokenizer is not available"
        return Counter(estimate_tokens, _estimate, PER_MESSAGE // 2, note)
    from popi.models.local.chat_template import ChatFormat, read_template

    if config.model.chat_template is not None:
        tokenizer.chat_template = read_template(config.model.chat_template)
    chat = ChatFormat(tokenizer, config.model.base)
    encode = partial(tokenizer, add_special_tokens=False, verbose=False)  # no warning about long texts

    def count(text: str) -> int:
        return len(encode(text)["input_ids"])

    first, second = (chat.render([{"role": "user", "content": text}]) for text in ("x", "y"))
    note = "tokens by the model's tokenizer and chat template"
    return Counter(count, lambda turns: count(chat.render(turns)), count(commonprefix([first, second])), note)


def _estimate(messages: Messages) -> int:
    return sum(estimate_tokens(message["content"]) + PER_MESSAGE for message in messages) + PER_MESSAGE


def copy_budget(config: RunConfig) -> int:
    """Maximum tokens of a summary of copied signals."""
    return config.evaluation.copied.token_budget or config.signals.token_budget


def unavailable(config: RunConfig) -> str | None:
    """Why the training users can't be read without a network; None if they can."""
    data = config.data
    if data.source == "nano":
        return None
    if data.source not in BENCHMARKS:
        return None if Path(data.source).exists() or _downloaded(data.source) else f"{data.source} is not here"
    if data.benchmark.path is None:
        return f"{data.source} is on the hub"
    return None if Path(data.benchmark.path).exists() else f"{data.benchmark.path} is not here"


def _downloaded(source: str) -> bool:
    try:
        return bool(hub_files(source, cached=True))
    except DataError:
        return False


def shapes_of(config: RunConfig) -> Shapes:
    """Shapes of the training users, or the maximum that the settings allow if they can't be read offline.

    Raises:
        DataError: the data is available and has problems.
        ConfigError: unknown template set, or no users left to train on.
        ModelError: popi can't use the model's chat template.
    """
    templates = Templates.load(template_of(config))
    count, tokens, opening, note = counter(config)
    bare = tokens(templates.generator_messages("x", None))
    guide = tokens(templates.generator_messages("x", "x")) - bare
    asked, task = ("x", ASSUMED_PROMPT) if config.summary.conditioned_on_prompt else (None, 0)
    raw = config.signals.token_budget + tokens(templates.raw_signals_messages("x", [])) - bare
    held_out = config.training.eval_users if config.training.eval_steps else 0
    empty = Shapes(
        users=config.data.train_users - held_out,
        held_out=held_out,
        signals=config.data.signals_per_user,
        targets=config.data.targets_per_user,
        prompt=(bound := config.signals.token_budget + tokens(templates.inference_messages([], asked)) + task),
        prompt_mean=bound,
        summary=(longest := config.summary.max_tokens),
        plain=(plain := ASSUMED_PROMPT + 2 * ASSUMED_RESPONSE),
        plain_mean=plain,
        guide=guide + (clauses := config.data.signals_per_user if config.summary.per_signal else 1) * longest,
        clauses=clauses,
        raw=raw,
        raw_mean=raw,
        copied=(copied := guide + copy_budget(config)),
        copied_mean=copied,
        responses=2 * ASSUMED_RESPONSE,
        reach=ASSUMED_PROMPT + ASSUMED_RESPONSE,
        dropped=0,
        notes=(note,),
        opening=opening,
    )
    missing = unavailable(config)
    if missing is None:
        return _measured(config, empty, templates, count, tokens)
    if empty.users < 1:
        raise ConfigError(
            f"training.eval_users={held_out} leaves none of data.train_users={config.data.train_users} users to train "
            "on; lower it"
        )
    if share := config.training.renewal.share:  # half of the signals at most, and an old summary of full length
        old = _old_summary(config, templates, count)
        half, rest = config.signals.token_budget / 2, bound - config.signals.token_budget
        mean = (1 - share) * bound + share * (half + rest + old)
        empty = replace(empty, prompt=bound + old, prompt_mean=mean, earlier_mean=half + rest)
    notes = (
        f"{missing}, so this assumes data.train_users users, prompts as long as signals.token_budget allows, task "
        f"prompts of {ASSUMED_PROMPT} and responses of {ASSUMED_RESPONSE} tokens",
        note,
    )
    return replace(empty, notes=notes)


def _old_summary(config: RunConfig, templates: Templates, count: Count) -> int:
    """Maximum tokens that an old summary adds to the inference model's prompt."""
    plain, with_old = (
        sum(count(message["content"]) for message in templates.inference_messages([], previous=previous))
        for previous in (None, Previous("", int(worth(None, 1))))
    )
    return with_old - plain + config.summary.max_tokens


def _typical_split(signals: Sequence[Signal]) -> tuple[list[Signal], list[Signal]]:
    """The earlier and the new signals of a median renewal."""
    return split_in_time(signals, len(signals) - new_signals(len(signals), 0.5) if len(signals) > 1 else 0)


def _measured(
    config: RunConfig,
    empty: Shapes,
    templates: Templates,
    count: Count,
    tokens: Callable[[Messages], int],
) -> Shapes:
    from popi.data.store import keep, sizes
    from popi.data.users import users_of
    from popi.training.rows import hold_out

    users = users_of(config, "train").users
    users = keep(users, (targets > 0 for _, targets in sizes(users)))
    if not users:  # training raises an error
        return replace(empty, users=0, held_out=0)
    held_out = hold_out(users, empty.held_out, config.seed)[1] if empty.held_out else []
    looked_at = users[:: -(-len(users) // LOOKED_AT)]
    conditioned = config.summary.conditioned_on_prompt
    prompts, raw, copied, plain, responses, reach, dropped, unread = [], [], [], [], [], 0, 0, 0
    share = config.training.renewal.share
    earlier: list[int] = []
    later: list[int] = []
    bare = tokens(templates.generator_messages("x", None))
    for user in looked_at:
        fitting, not_fitting = templates.fit(user.signals, config.signals.token_budget, count)
        dropped += bool(not_fitting)
        unread += not fitting
        read = [target.prompt for target in user.targets] if conditioned else [None]
        parts = [[signal] for signal in fitting] if config.summary.per_signal else [fitting]
        prompts += [tokens(templates.inference_messages(part, prompt)) for part in parts for prompt in read]
        if share:
            for side, part in zip((earlier, later), _typical_split(fitting), strict=True):
                side.append(tokens(templates.inference_messages(part)))
        raw.append(tokens(templates.raw_signals_messages("x", fitting)) - bare)
        if templates.copies:
            text, _ = copy_signals(templates, user.signals, copy_budget(config), count)
            copied.append(tokens(templates.generator_messages("x", text)) - bare)
        for target in user.targets:
            chosen, rejected = count(target.chosen) + 1, count(target.rejected) + 1
            asked = tokens(templates.generator_messages(target.prompt, None))
            responses.append(chosen + rejected)
            plain.append(asked + chosen + rejected)
            reach = max(reach, asked + max(chosen, rejected))
    longest, mean, earlier_mean = max(prompts), sum(prompts) / len(prompts), 0.0
    if share:  # at worst a row is split after the first signal
        old = _old_summary(config, templates, count)
        longest, earlier_mean = longest + old, sum(earlier) / len(earlier)
        mean = (1 - share) * mean + share * (sum(later) / len(later) + old)
    return replace(
        empty,
        users=len(users) - len(held_out),
        held_out=len(held_out),
        signals=max(signals for signals, _ in sizes(users)),
        targets=max(targets for _, targets in sizes(users)),
        prompt=longest,
        prompt_mean=mean,
        earlier_mean=earlier_mean,
        raw=max(raw),
        raw_mean=sum(raw) / len(raw),
        copied=max(copied, default=empty.copied),
        copied_mean=sum(copied) / len(copied) if copied else empty.copied_mean,
        plain=max(plain),
        plain_mean=sum(plain) / len(plain),
        responses=max(responses),
        reach=reach,
        dropped=dropped,
        unread=unread,
        notes=(f"lengths of {len(looked_at)} users", *empty.notes),
    )
