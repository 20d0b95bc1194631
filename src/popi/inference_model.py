"""The inference model: reads one user's signals and writes a preference summary.

It does not see the task prompt unless it is conditioned on it (`summary.conditioned_on_prompt`). Content that a summary
must not contain (links, code, instructions to a model: popi.profiles.screening) is removed from what it wrote; see
`Summary.removed_content`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popi.errors import AnswerError, DataError, ModelError, PopiError
from popi.models.backend import Backend, Messages, Reply, values
from popi.models.spec import ModelSpec
from popi.profiles.statements import SCHEMA, Bounds
from popi.profiles.statements.asked import statements_of, with_instructions
from popi.profiles.written import OldSummary, evidence_count, joined, nothing_new, shown_previous, summary_of
from popi.signals.fading import Previous
from popi.signals.render import NANO, Templates
from popi.signals.types import Prompt, Signal
from popi.summary import Summary

if TYPE_CHECKING:  # a model behind an API needs no torch
    from popi.models.local.model import LocalModel

MAX_TOKENS = 512
"""Default maximum tokens per answer of a model behind an API: room for eight statements in any language, as JSON."""
MAX_TOKENS_LOCAL = 256
"""Maximum tokens per summary of a local model that was saved without a limit."""


@dataclass(frozen=True)
class _Read:
    """What the model reads about one user: signals that fit the budget, ids of those that don't, an old summary."""

    signals: list[Signal]
    dropped: tuple[str, ...]
    prompt: Prompt | None
    previous: Previous | None
    previous_signals: int | None


class InferenceModel:
    """Signals in, summary out. If a user has no signals, or none that fits the budget, the summary says that no
    preference is known (see `nothing_new`). With an old summary, the signals are those since, and the result renews it.

    A local model reads the prompt that it was trained on and answers with the summary. An instruction-tuned LLM behind
    an API is asked for statements, one per line, or as JSON if the server supports a schema. `popi.profiles.statements`
    parses the answer, and the summary is those statements, one per line. A model behind an API that popi trained (set
    `prose`; with the `nano` templates it is the default) is asked as a local one.

    Args:
        backend: the model: a `LocalModel`, which training may share between jobs, or an `ApiModel`.
        templates: a set of prompt templates, or its name; `auto` takes those the model was saved with, or `default`.
        max_tokens: maximum tokens per answer.
        token_budget: maximum tokens of rendered signals, by `count_tokens`; whole signals are dropped to fit.
        conditioned: whether it also reads the task prompt, and writes a summary per user and prompt.
        per_signal: whether it reads one signal at a time and writes a clause for each, which form the summary
            (`popi.profiles.written.joined`). Then `max_tokens` is per clause, and it does not renew.
        renews: whether it can renew an old summary. By default, a model trained by popi can if it was trained to, and
            any other (an LLM that follows instructions) can. `previous` is shown to the model in either case.
        count_tokens: text → tokens. By default the model's tokenizer; behind an API an estimate.
        bounds: number and length of the statements requested from an LLM behind an API.
        structured: whether to ask its server for JSON, as long as it accepts the request.
        prose: whether it reads the templates' prompt as it is and answers with the summary, as models trained by popi
            do. By default local models do, and all models with the `nano` templates.
    """

    def __init__(
        self,
        backend: Backend,
        templates: str | Templates = "auto",
        max_tokens: int | None = None,
        token_budget: int | None = None,
        conditioned: bool | None = None,
        renews: bool | None = None,
        *,
        per_signal: bool | None = None,
        count_tokens: Callable[[str], int] | None = None,
        bounds: Bounds | None = None,
        structured: bool = True,
        prose: bool | None = None,
    ) -> None:
        saved = backend.settings
        self.backend, self.templates = backend, backend.templates(templates)
        longest = MAX_TOKENS if backend.prompted else MAX_TOKENS_LOCAL
        self.max_tokens: int = max_tokens or saved.get("max_tokens", longest)
        self.token_budget: int = token_budget or saved.get("token_budget", 8192)
        self.conditioned = bool(saved.get("conditioned_on_prompt", False) if conditioned is None else conditioned)
        self.per_signal = bool(saved.get("per_signal", False) if per_signal is None else per_signal)
        self.renews: bool = saved.get("renews", not saved) if renews is None else renews
        self.renews &= not self.per_signal
        self.count_tokens = count_tokens or backend.count_tokens
        self.bounds, self._structured = bounds or Bounds(), structured
        as_trained = not backend.prompted or self.templates.name == NANO
        self._prose = as_trained if prose is None else prose

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        templates: str = "auto",
        max_tokens: int | None = None,
        token_budget: int | None = None,
        **load: Any,
    ) -> "InferenceModel":
        """Load a folder, GGUF file or hub id (`nano` is the shipped base). `load`: more fields of `ModelSpec`."""
        return cls(ModelSpec(str(name_or_path), **load).load(), templates, max_tokens, token_budget)

    @classmethod
    def from_api(
        cls,
        url: str,
        model: str,
        protocol: str = "openai",
        *,
        templates: str | Templates = "auto",
        max_tokens: int | None = None,
        token_budget: int | None = None,
        count_tokens: Callable[[str], int] | None = None,
        bounds: Bounds | None = None,
        structured: bool = True,
        prose: bool | None = None,
        **connect: Any,
    ) -> "InferenceModel":
        """Use a model on a server, without its weights. `connect`: more fields of `ModelSpec`.

        Raises:
            ConfigError: invalid URL, unknown protocol, or a key variable that is not set.
        """
        backend = ModelSpec(model, url=url, protocol=protocol, **connect).connect()
        options: dict[str, Any] = {"count_tokens": count_tokens, "bounds": bounds, "structured": structured}
        options["prose"] = prose
        return cls(backend, templates, max_tokens, token_budget, **options)

    @classmethod
    def from_spec(cls, spec: ModelSpec, **options: Any) -> "InferenceModel":
        """The inference model from a spec; see `ModelSpec.load`. `options`: keyword arguments of this class."""
        return cls(spec.load(), spec.templates, **options)

    def asking(self, templates: Templates) -> "InferenceModel":
        """The same model with other templates."""
        options: dict[str, Any] = {
            "per_signal": self.per_signal,
            "count_tokens": self.count_tokens,
            "bounds": self.bounds,
            "structured": self._structured,
            "prose": self._prose,
        }
        return InferenceModel(
            self.backend, templates, self.max_tokens, self.token_budget, self.conditioned, self.renews, **options
        )

    @property
    def name(self) -> str:
        """The model's name, as recorded in its summaries."""
        return self.backend.name

    @property
    def local(self) -> "LocalModel":
        """The model with its weights and tokenizer. Raises ModelError if it is behind an API."""
        return self.backend.local

    def renewable(self, summary: str) -> bool:
        """Whether this summary can be renewed: the model and templates support it, and it names a preference."""
        return self.renews and self.templates.renews and not self.templates.names_no_preference(summary)

    def prompt_ids(
        self, signals: Sequence[Signal], prompt: Prompt | None = None, previous: OldSummary = None
    ) -> tuple[list[int], int, tuple[str, ...]]:
        """The templated prompt's token ids, how many signals are in it, and which were dropped.

        `previous`: an old summary; the signals are those since.

        Raises:
            DataError: a task prompt is missing, or given to a model that does not read one.
            ConfigError: the templates have no place for a task prompt, or for an old summary.
            ModelError: the model is behind an API.
        """
        read = self._read(signals, prompt, previous)
        return self.local.encode_chat(self._messages(read)), len(read.signals), read.dropped

    # -- summaries --------------------------------------------------------------------------------------------

    def summarize(
        self,
        signals: Sequence[Signal],
        temperature: float = 0.0,
        prompt: Prompt | None = None,
        previous: OldSummary = None,
        forbidden: Sequence[str] = (),
    ) -> Summary:
        """Write the preference summary of one user; greedy unless a temperature is given.

        Args:
            signals: the user's signals; with `previous`, those since.
            temperature: sampling temperature.
            prompt: the task prompt to write for, if the model is conditioned on it.
            previous: an old summary to renew; ignored if it names no preference.
            forbidden: statements that the user does not want used; included in the prompt of an API model.

        Raises:
            ModelError: the prompt exceeds the model's context.
            UpstreamError: the server gave no answer.
            AnswerError: nothing in its answer can be used.
            ConfigError: the templates have no place for an old summary.
        """
        prompts = None if prompt is None else [prompt]
        [result] = self.summarize_each([signals], temperature, None, [previous], forbidden, prompts)
        if isinstance(result, PopiError):
            raise result
        return result

    def summarize_many(
        self,
        users: Sequence[Sequence[Signal]],
        temperature: float = 0.0,
        progress: Callable[[int], None] | None = None,
        prompts: Sequence[Prompt] | None = None,
        previous: Sequence[OldSummary] | None = None,
    ) -> list[Summary]:
        """Summaries of many users, in order. `progress` receives how many were added.

        `prompts`: one task prompt per user, if the model is conditioned on it. `previous`: one old summary to renew, or
        `None`, per user.

        Raises:
            ModelError: a prompt exceeds the context of a local model.
            BatchError: some failed on the server; its `results` contain the other summaries.
            ConfigError: the templates have no place for an old summary.
        """
        report = (lambda _index, _result: progress(1)) if progress else None
        return values(self.summarize_each(users, temperature, report, previous, prompts=prompts))

    def summarize_each(
        self,
        users: Sequence[Sequence[Signal]],
        temperature: float = 0.0,
        on_result: Callable[[int, Summary | PopiError], None] | None = None,
        previous: Sequence[OldSummary] | None = None,
        forbidden: Sequence[str] = (),
        prompts: Sequence[Prompt] | None = None,
    ) -> list[Summary | PopiError]:
        """For every user, a summary or the error in its place (a prompt that exceeds the model's context, for example).

        `on_result` receives each result as it arrives.
        """
        if self.per_signal:
            if prompts is not None or any(old is not None for old in previous or ()):
                raise DataError(f"{self.name}: this inference model reads one signal at a time and nothing else")
            return self._summarize_signals(users, temperature, on_result, forbidden)
        return self._summarize(users, temperature, on_result, previous, forbidden, prompts)

    def _summarize_signals(
        self,
        users: Sequence[Sequence[Signal]],
        temperature: float,
        on_result: Callable[[int, Summary | PopiError], None] | None,
        forbidden: Sequence[str],
    ) -> list[Summary | PopiError]:
        """Write a clause for every signal, and join each user's clauses into a summary."""
        owners = [i for i, signals in enumerate(users) for _ in signals]
        written: dict[int, list[tuple[int, Summary | PopiError]]] = {i: [] for i in range(len(users))}
        results: dict[int, Summary | PopiError] = {}

        def keep(owner: int) -> None:
            clauses = [clause for _, clause in sorted(written[owner], key=lambda one: one[0])]
            failed = next((clause for clause in clauses if isinstance(clause, PopiError)), None)
            summaries = [clause for clause in clauses if isinstance(clause, Summary)]
            results[owner] = failed or joined(self.templates, summaries, self.name, self.count_tokens)
            if on_result:
                on_result(owner, results[owner])

        def on_clause(position: int, clause: Summary | PopiError) -> None:
            written[owners[position]].append((position, clause))
            if len(written[owners[position]]) == len(users[owners[position]]):
                keep(owners[position])

        for owner, signals in enumerate(users):
            if not signals:
                keep(owner)
        single = [[signal] for signals in users for signal in signals]
        self._summarize(single, temperature, on_clause, None, forbidden, None)
        return [results[i] for i in range(len(users))]

    def _summarize(
        self,
        users: Sequence[Sequence[Signal]],
        temperature: float,
        on_result: Callable[[int, Summary | PopiError], None] | None,
        previous: Sequence[OldSummary] | None,
        forbidden: Sequence[str],
        prompts: Sequence[Prompt] | None,
    ) -> list[Summary | PopiError]:
        old_summaries: Sequence[OldSummary] = [None] * len(users) if previous is None else previous
        task_prompts: Sequence[Prompt | None] = [None] * len(users) if prompts is None else prompts
        results: dict[int, Summary | PopiError] = {}

        def keep(index: int, result: Summary | PopiError) -> None:
            results[index] = result
            if on_result:
                on_result(index, result)

        step = self.backend.window or max(1, len(users))
        for start in range(0, len(users), step):
            reads: dict[int, _Read] = {}
            for i in range(start, min(start + step, len(users))):
                try:
                    read = self._read(users[i], task_prompts[i], old_summaries[i])
                except ModelError as error:  # its tokenizer rejects a signal
                    keep(i, error)
                    continue
                if read.signals:
                    reads[i] = read
                else:
                    old = old_summaries[i]
                    keep(i, nothing_new(self.templates, old, self.name, self.count_tokens, read.dropped))
            self._ask(reads, temperature, forbidden, keep)
        return [results[i] for i in range(len(users))]

    def _ask(
        self,
        reads: dict[int, _Read],
        temperature: float,
        forbidden: Sequence[str],
        keep: Callable[[int, Summary | PopiError], None],
    ) -> None:
        order = list(reads)

        def on_reply(position: int, reply: Reply | PopiError) -> None:
            result: Summary | PopiError
            try:
                result = reply if isinstance(reply, PopiError) else self._summary(reply, reads[order[position]])
            except AnswerError as error:
                result = error
            keep(order[position], result)

        conversations = [self._messages(read, forbidden) for read in reads.values()]
        schema = self.backend.takes_schema and self._structured and not self._prose
        form: dict[str, Any] = {"schema": SCHEMA} if schema else {}
        if conversations:
            self.backend.chat_many(
                conversations, max_tokens=self.max_tokens, temperature=temperature, on_result=on_reply, **form
            )

    def _read(self, signals: Sequence[Signal], prompt: Prompt | None, old: OldSummary) -> _Read:
        if self.conditioned != (prompt is not None):
            problem = "needs a task prompt, and none was given" if self.conditioned else "reads no task prompt"
            raise DataError(
                f"{self.name}: this inference model {problem}; summary.conditioned_on_prompt determines this when the "
                "model is trained"
            )
        fitting, dropped = self.templates.fit(signals, self.token_budget, self.count_tokens)
        shown = shown_previous(self.templates, old, signals)
        return _Read(fitting, dropped, prompt, shown, evidence_count(old) if shown else 0)

    def _messages(self, read: _Read, forbidden: Sequence[str] = ()) -> Messages:
        messages = self.templates.inference_messages(read.signals, read.prompt, read.previous)
        if not self.backend.prompted:
            return messages
        bounds = None if self._prose else self.bounds
        return with_instructions(messages, bounds, forbidden, self.templates.no_preference)

    @cached_property
    def _own(self) -> str:
        """The prompt without any user data."""
        old = Previous("", 1) if self.templates.renews else None
        return "\n".join(message["content"] for message in self._messages(_Read([], (), None, old, None), [""]))

    def _summary(self, reply: Reply, read: _Read) -> Summary:
        templates, used, count = self.templates, len(read.signals), self.count_tokens
        fit, parts = None, tuple[str, ...]()
        if not self._prose:
            fit, parts = statements_of(reply.text, reply.cut, self._own, read.signals, self.bounds, templates)
        summary = summary_of(
            templates, reply.text, used, read.dropped, self.name, count, reply.tokens, read.previous_signals, fit
        )
        return summary if summary.abstained else replace(summary, statements=parts)

    def save(self, path: str | Path, weights: Any = None) -> None:
        """Save the model with the settings that `from_pretrained` needs."""
        self.local.settings |= {"template": self.templates.name} | self.saved_settings()
        self.local.save(path, weights)

    def saved_settings(self) -> dict[str, int]:
        """Settings to save with the weights, for `from_pretrained`."""
        budgets = {"max_tokens": self.max_tokens, "token_budget": self.token_budget}
        modes = {"conditioned_on_prompt": self.conditioned, "per_signal": self.per_signal, "renews": self.renews}
        return budgets | {name: True for name, value in modes.items() if value}
