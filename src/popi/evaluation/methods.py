"""The methods under comparison: what goes with each user's task prompts, and which model answers.

A method is one context per user (a summary, raw signals, or nothing) and a generator. `METHODS` lists them all in
table order, under their names in metrics.json. The first one is the reference for all others.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from popi.config import Order
from popi.data.users import Person
from popi.errors import PopiError, RunError
from popi.generator import Generator
from popi.models.backend import Messages
from popi.signals.copying import copy_signals
from popi.signals.types import Signal, TargetPair, User
from popi.summary import Summary

if TYPE_CHECKING:
    from torch import Tensor

REFERENCE = "no_personalization"
FIGURES = (
    "chosen_logp",
    "rejected_logp",
    "reference_chosen_logp",
    "reference_rejected_logp",
    "margin",
    "overhead_tokens",
)
"""Row fields that are null when the row has no scores."""
Tells = Literal["nothing", "signals", "summary", "preferences"]
RowKey = tuple[int, int]
"""Indices of the window (a user, or one of several windows cut from a user's rows) and of the target in it."""


@dataclass(frozen=True)
class Context:
    """What personalises one user's task prompts. An empty context leaves them as they are."""

    summaries: tuple[Summary, ...] = ()
    """One for all of the user's targets, or one per target when summaries are conditioned on the task prompt."""
    signals: tuple[Signal, ...] | None = None
    """Raw signals, put into the prompt verbatim."""
    dropped: tuple[str, ...] = ()
    """Signals that did not fit the token budget."""
    soft: "Tensor | None" = None
    """(k, d) soft prompt in front of the prompt."""

    def summary(self, target: int) -> Summary | None:
        """The summary for the user's target at that index."""
        if not self.summaries:
            return None
        return self.summaries[target if len(self.summaries) > 1 else 0]


@dataclass(frozen=True)
class Sources:
    """What a method builds its contexts from."""

    summarize: Callable[[Sequence[Person]], list[tuple[Summary, ...]]]
    """Greedy summaries by the method's inference model: one per user, or one per target."""
    embed: "Callable[[Sequence[Person]], Tensor]"
    """(n, k, d) soft prompts by the method's user embeddings."""
    generator: Generator
    token_budget: int
    """Maximum tokens of rendered raw signals."""
    copy_budget: int
    """Maximum tokens of a summary of copied signals."""
    ask: Callable[[Sequence[Person], str | None], list[tuple[Summary, ...]]]
    """Greedy summaries by the untrained inference model under the named prompt of the template set; None is the best
    prompt (`popi.evaluation.prompts`)."""
    training: Callable[[], Sequence[User]]
    """Training users, for methods without a model that tune something on them."""
    world: str = "easy"
    """The nano world that the users are from (`data.world`)."""


def plain_prompts(sources: Sources, users: Sequence[Person]) -> list[Context]:
    """No context: everyone gets the same answer."""
    return [Context() for _ in users]


def raw_signals(sources: Sources, users: Sequence[Person]) -> list[Context]:
    """As many whole signals as fit the budget."""
    contexts = []
    for held_out in users:
        generator = sources.generator
        fitting, dropped = generator.templates.fit(held_out.user.signals, sources.token_budget, generator.count_tokens)
        contexts.append(Context(signals=tuple(fitting), dropped=tuple(dropped)))
    return contexts


def copied_signals(sources: Sources, users: Sequence[Person]) -> list[Context]:
    """What the user preferred, said or wrote, copied verbatim into a summary without any model."""
    templates, count = sources.generator.templates, sources.generator.count_tokens
    contexts = []
    for held_out in users:
        text, dropped = copy_signals(templates, held_out.user.signals, sources.copy_budget, count)
        contexts.append(Context((Summary(text, count(text), signals_dropped=dropped, model="copy"),), dropped=dropped))
    return contexts


def written_summaries(sources: Sources, users: Sequence[Person]) -> list[Context]:
    """The inference model's greedy summaries."""
    return [Context(summaries, dropped=summaries[0].signals_dropped) for summaries in sources.summarize(users)]


def best_prompted(sources: Sources, users: Sequence[Person]) -> list[Context]:
    """The untrained inference model's greedy summaries under its best prompt."""
    return [Context(summaries, dropped=summaries[0].signals_dropped) for summaries in sources.ask(users, None)]


def tallied(sources: Sources, users: Sequence[Person]) -> list[Context]:
    """The untrained nano base, prompted to go through the attributes; its answer is restated as a summary."""
    return [Context(summaries, dropped=summaries[0].signals_dropped) for summaries in sources.ask(users, "tally")]


def voted(sources: Sources, users: Sequence[Person]) -> list[Context]:
    """A vote over the values that differ within pairs and edits, without a model (`popi.nano.vote`)."""
    from popi.nano import vote

    lead = vote.best_lead(sources.training())
    return _stated(sources, [vote.summary(person.user.signals, lead) for person in users], "vote")


def exactly_read(sources: Sources, users: Sequence[Person]) -> list[Context]:
    """Values whose exact posterior probability given all signals exceeds 1/2 (`popi.nano.readers`)."""
    from popi.nano.readers import exact_summary

    return _stated(sources, [exact_summary(person.user.signals, sources.world) for person in users], "exact reader")


def _stated(sources: Sources, texts: Sequence[str], model: str) -> list[Context]:
    return [Context((Summary(text, sources.generator.count_tokens(text), model=model),)) for text in texts]


def true_preferences(sources: Sources, users: Sequence[Person]) -> list[Context]:
    """The true preferences as a summary: what a perfect inference model would write."""
    count = sources.generator.count_tokens
    return [Context((Summary(user.oracle or "", count(user.oracle or ""), model="oracle"),)) for user in users]


def user_embeddings(sources: Sources, users: Sequence[Person]) -> list[Context]:
    """Each user's soft prompt from the method's user embeddings; unknown users get the generic one."""
    return [Context(soft=soft) for soft in sources.embed(users)]


WITH_SUMMARY = (written_summaries, copied_signals, best_prompted, tallied, voted, exactly_read, true_preferences)
"""Context functions that add a summary to task prompts."""


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    label: str
    contexts: Callable[[Sources, Sequence[Person]], list[Context]]
    order: Order | None = None
    """The training order whose models it uses; None is the untrained base."""
    nano: bool = False
    """Applies only to users of the nano world."""
    per_user: bool = False
    """Trains an adapter per user during evaluation (`evaluation.per_user`), if the config enables it."""

    @property
    def has_summary(self) -> bool:
        return self.contexts in WITH_SUMMARY

    @property
    def writer(self) -> Literal["trained", "prompted"] | None:
        """Which inference model writes its summaries, if one does."""
        if self.contexts is written_summaries:
            return "trained"
        return "prompted" if self.contexts in (best_prompted, tallied) else None

    @property
    def copies(self) -> bool:
        """Whether its summaries are copies of the signals, as far as they fit (`evaluation.copied`)."""
        return self.contexts is copied_signals

    @property
    def answers(self) -> bool:
        """Whether the report shows its answers. The contexts must be in the rows, or empty."""
        return not self.per_user and (self.has_summary or self.contexts is plain_prompts)

    @property
    def tells(self) -> Tells:
        """What it tells the generator about a held-out user, through the prompt, a soft prompt or the weights."""
        if self.needs_truth:
            return "preferences"
        if self.has_summary and not self.copies:
            return "summary"
        read = self.contexts in (raw_signals, copied_signals) or self.order == "user_embedding_from_signals"
        return "signals" if read or self.per_user else "nothing"

    @property
    def needs_truth(self) -> bool:
        return self.contexts is true_preferences


METHODS: dict[str, Method] = {
    REFERENCE: Method("No personalisation", plain_prompts),
    "raw_signals": Method("Raw signals in context", raw_signals),
    "copy": Method("Signals copied", copied_signals),
    "untrained_summary": Method("Untrained summary", best_prompted),
    "tally": Method("Untrained, tally prompt", tallied, nano=True),
    "marker_vote": Method("Marker vote, no model", voted, nano=True),
    "exact_reader": Method("Exact reader", exactly_read, nano=True),
    "population_dpo": Method("Population DPO", plain_prompts, "population_dpo"),
    "fspo": Method("FSPO", raw_signals, "fspo"),
    "copy_dpo": Method("DPO on copies", copied_signals, "copy"),
    "untrained_summary_copy_dpo": Method("Untrained, DPO on copies", best_prompted, "copy"),
    "per_user_lora": Method("Per-user LoRA", plain_prompts, per_user=True),
    "user_embedding": Method("User embedding by id", user_embeddings, "user_embedding"),
    "user_embedding_from_signals": Method(
        "User embedding from signals", user_embeddings, "user_embedding_from_signals"
    ),
    "oracle": Method("Oracle (true preferences)", true_preferences),
    "popi_plug_and_play": Method("POPI plug-and-play", written_summaries, "plug_and_play"),
    "popi_alternating": Method("POPI alternating", written_summaries, "alternating"),
    "popi_simultaneous": Method("POPI simultaneous", written_summaries, "simultaneous"),
}


def personalized(generator: Generator, target: TargetPair, context: Context, index: int = 0) -> Messages:
    """A target's task prompt in that context; `index` is the target's index among the user's targets."""
    if context.signals is not None:
        return generator.templates.raw_signals_messages(target.prompt, context.signals)
    summary = context.summary(index)
    return generator.templates.generator_messages(target.prompt, summary.text if summary else None)


def score_rows(
    generator: Generator,
    users: Sequence[Person],
    contexts: Sequence[Context],
    reference: Mapping[RowKey, tuple[float, float]] | None,
    *,
    untrained: bool,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """`score_blocks`, row by row."""
    for block in score_blocks(generator, users, contexts, reference, untrained=untrained, batch_size=batch_size):
        yield from block


def score_blocks(
    generator: Generator,
    users: Sequence[Person],
    contexts: Sequence[Context],
    reference: Mapping[RowKey, tuple[float, float]] | None,
    *,
    untrained: bool,
    batch_size: int,
    done: Container[RowKey] = (),
) -> Iterator[list[dict[str, Any]]]:
    """Score every target pair of every user once. Yields blocks of rows, one per pair, ordered by user and target.

    The margin is h = (log π(y⁺|x,c) − log π_ref(y⁺|x)) − (log π(y⁻|x,c) − log π_ref(y⁻|x)), summed over response
    tokens, where c is the context. Context overhead is the prompt's length in tokens less the plain prompt's; each
    vector of a soft prompt counts as a token.

    If a generator behind an API returned no log-probs for a row or its reference, the row gives the reason under
    `missing` and has no figures, so that it does not count as a lost pair.

    Args:
        generator: π.
        users: held-out users.
        contexts: one per user.
        reference: (window, target) → (chosen, rejected) log-probs of π_ref on the plain prompt. None if this method
            is the reference itself.
        untrained: π has the reference's weights. The margin of a plain prompt (a summary may be empty) is then set to
            0 by definition, free of rounding errors.
        batch_size: rows per batch.
        done: keys to skip.
    """
    per_call = max(1, 8 * batch_size // max(1, max(len(u.user.targets) for u in users)))
    server_error: PopiError | None = None
    for start in range(0, len(users), per_call):
        windows = range(start, min(start + per_call, len(users)))
        keys = [(w, t) for w in windows for t in range(len(users[w].user.targets)) if (w, t) not in done]
        if not keys:
            continue
        targets = [users[w].user.targets[t] for w, t in keys]
        plain = [personalized(generator, target, Context()) for target in targets]
        prompts = [
            personalized(generator, target, contexts[w], t) for target, (w, t) in zip(targets, keys, strict=True)
        ]
        logps: dict[int, tuple[float, float] | PopiError] = {}
        for i, key in enumerate(keys):
            if reference is not None and key not in reference:
                logps[i] = RunError("there are no reference log-probs of this pair")
            elif reference is not None and untrained and prompts[i] == plain[i]:
                logps[i] = reference[key]
        unknown = [i for i in range(len(keys)) if i not in logps]
        lengths: Sequence[int | PopiError]
        plain_lengths: Sequence[int | PopiError]
        if server_error is None:
            pairs = [(prompts[i], targets[i]) for i in unknown]
            soft = stacked([contexts[keys[i][0]].soft for i in unknown])
            scores = generator.score_each(pairs, batch_size, soft)
            logps |= zip(unknown, scores, strict=True)
            failed = [score for score in scores if isinstance(score, PopiError)]
            server_error = failed[0] if failed and len(failed) == len(scores) else None
        if server_error is None:
            lengths, plain_lengths = generator.prompt_tokens_each(prompts), generator.prompt_tokens_each(plain)
        else:  # not a single answer: the server is down, so skip the remaining requests
            logps |= {i: server_error for i in unknown}
            lengths = plain_lengths = [server_error] * len(keys)
        rows = []
        for i, (window, target) in enumerate(keys):
            context = contexts[window]
            summary, scored, length, plain_length = context.summary(target), logps[i], lengths[i], plain_lengths[i]
            row: dict[str, Any] = {
                "user_id": users[window].user.user_id,
                "window": window,
                "target": target,
                "messages": [dict(message) for message in prompts[i]],
                "summary": summary.text if summary else None,
                "summary_tokens": summary.tokens if summary else None,
                "signals_dropped": list(context.dropped),
            }
            if isinstance(scored, PopiError) or isinstance(length, PopiError) or isinstance(plain_length, PopiError):
                failure = next(each for each in (scored, length, plain_length) if isinstance(each, PopiError))
                rows.append(row | dict.fromkeys(FIGURES) | {"missing": str(failure)})
                continue
            ref = scored if reference is None else reference[(window, target)]
            rows.append(
                row
                | {
                    "chosen_logp": scored[0],
                    "rejected_logp": scored[1],
                    "reference_chosen_logp": ref[0],
                    "reference_rejected_logp": ref[1],
                    "margin": (scored[0] - ref[0]) - (scored[1] - ref[1]),
                    "overhead_tokens": length - plain_length + (0 if context.soft is None else len(context.soft)),
                    "missing": None,
                }
            )
        yield rows


def stacked(soft: "Sequence[Tensor | None]") -> "Tensor | None":
    """(n, k, d) soft prompts of n contexts; None if they have none."""
    given = [prompt for prompt in soft if prompt is not None]
    if not given:
        return None
    import torch

    return torch.stack(given)
