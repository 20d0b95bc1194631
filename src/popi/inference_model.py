"""The inference model: reads one user's signals and writes a preference summary.

It does not see the task prompt, unless it is conditioned on it (`summary.conditioned_on_prompt`). What a summary may
not carry (links, code, instructions to a model: popi.screening) is left out of what it wrote: `Summary.left_out`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popi.backends.api import ApiModel
from popi.backends.batch import values
from popi.backends.chat import ChatModel, Reply, estimate_tokens
from popi.errors import DataError, PopiError
from popi.screening import screened
from popi.signals.render import Templates
from popi.signals.types import Prompt, Signal
from popi.summary import Summary

if TYPE_CHECKING:  # a model behind an API needs no torch
    from popi.backends.local import LocalModel

BATCH = 32
"""Users summarised in one forward."""


def fit_signals(
    templates: Templates, signals: Sequence[Signal], budget: int, count: Callable[[str], int]
) -> tuple[list[Signal], tuple[str, ...]]:
    """The signals that fit `budget` tokens, and the names of those that don't (see Templates.fit).

    Raises:
        DataError: there are signals, and none of them fits.
    """
    kept, dropped = templates.fit(signals, budget, count)
    if signals and not kept:
        raise DataError(f"no signal fits into signals.token_budget={budget} tokens; raise it or shorten the signals")
    return kept, dropped


def summary_of(
    templates: Templates,
    text: str,
    used: int,
    dropped: tuple[str, ...],
    model: str,
    count: Callable[[str], int],
    tokens: int | None = None,
) -> Summary:
    """What a model wrote, as a summary.

    What a summary may not carry is left out first. Where the rest names no preference, the summary says so in the
    templates' own words. Where nothing is left, its text is empty, and it has not abstained: the model did not say that
    nothing is known. The generator answers the plain prompt either way.

    Args:
        templates: know which texts name no preference.
        text: what the model wrote.
        used: how many signals it read.
        dropped: those that it did not.
        model: its name.
        count: text → tokens.
        tokens: of the whole text, where the server counted them.
    """
    fit = screened(text)
    if fit.left_out and not fit.text:
        return Summary("", 0, used, dropped, model, left_out=fit.left_out)
    if templates.names_no_preference(fit.text):
        text = templates.no_preference
        return Summary(text, count(text), used, dropped, model, abstained=True, left_out=fit.left_out)
    if tokens is None or fit.text != text:
        tokens = count(fit.text)
    return Summary(fit.text, tokens, used, dropped, model, left_out=fit.left_out)


class InferenceModel:
    """Signals in, summary out. Of a user without signals the summary says that no preference is known: no model is
    asked, since what it would write were its own taste.

    Args:
        local: the language model; training may share it between jobs.
        templates: a set of prompt templates, or its name; `auto` takes what the model was saved with.
        max_tokens: longest summary, in tokens.
        token_budget: most tokens of rendered signals; whole signals are dropped to fit.
        conditioned: it reads the task prompt too, and writes a summary for each user and prompt.
    """

    def __init__(
        self,
        local: "LocalModel",
        templates: str | Templates = "auto",
        max_tokens: int | None = None,
        token_budget: int | None = None,
        conditioned: bool | None = None,
    ) -> None:
        self.local = local
        self.templates = local.templates(templates)
        self.max_tokens: int = max_tokens or local.settings.get("max_tokens", 256)
        self.token_budget: int = token_budget or local.settings.get("token_budget", 8192)
        given = local.settings.get("conditioned_on_prompt", False) if conditioned is None else conditioned
        self.conditioned = bool(given)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        templates: str = "auto",
        max_tokens: int | None = None,
        token_budget: int | None = None,
        **load: Any,
    ) -> "InferenceModel":
        """Load by folder, GGUF file or hub id (`nano` is the shipped base). `load`: as LocalModel.load takes it."""
        from popi.backends.local import LocalModel

        return cls(LocalModel.load(name_or_path, **load), templates, max_tokens, token_budget)

    @staticmethod
    def from_api(
        url: str,
        model: str,
        protocol: str = "openai",
        *,
        templates: str | Templates = "default",
        max_tokens: int = 256,
        token_budget: int = 8192,
        count_tokens: Callable[[str], int] = estimate_tokens,
        **connect: Any,
    ) -> "ApiInferenceModel":
        """Use a model on a server, without its weights. `connect`: as ApiModel.connect takes it.

        Raises:
            ConfigError: a wrong URL, an unknown protocol, or a named variable without a key.
        """
        chat = ApiModel.connect(url, model, protocol, **connect)
        return ApiInferenceModel(chat, templates, max_tokens, token_budget, count_tokens)

    def prompt_ids(
        self, signals: Sequence[Signal], prompt: Prompt | None = None
    ) -> tuple[list[int], int, tuple[str, ...]]:
        """The templated prompt's token ids, how many signals are in it, and which were dropped.

        Raises:
            DataError: no signal fits; or a task prompt is missing, or given to a model that does not read it.
        """
        if self.conditioned != (prompt is not None):
            told = "reads the task prompt too, and none was given" if self.conditioned else "reads no task prompt"
            raise DataError(
                f"{self.local.name}: this inference model {told}; summary.conditioned_on_prompt decides it when the "
                "model is trained"
            )
        kept, dropped = fit_signals(self.templates, signals, self.token_budget, self.local.count_tokens)
        return self.local.encode_chat(self.templates.inference_messages(kept, prompt)), len(kept), dropped

    def summarize(self, signals: Sequence[Signal], temperature: float = 0.0, prompt: Prompt | None = None) -> Summary:
        """Write the preference summary of one user; greedy unless a temperature is given.

        `prompt`: the task prompt that it is for, where the model is conditioned on it.
        """
        return self.summarize_many([signals], temperature, prompts=None if prompt is None else [prompt])[0]

    def summarize_many(
        self,
        users: Sequence[Sequence[Signal]],
        temperature: float = 0.0,
        progress: Callable[[int], None] | None = None,
        prompts: Sequence[Prompt] | None = None,
    ) -> list[Summary]:
        """Summaries of many users, in their order. `progress` is told how many were added, batch by batch.

        `prompts`: one for each of `users`, where the model is conditioned on the task prompt.
        """
        asked = [None] * len(users) if prompts is None else prompts
        encoded = [self.prompt_ids(signals, prompt) for signals, prompt in zip(users, asked, strict=True)]
        count, name = self.local.count_tokens, self.local.name
        unknown = summary_of(self.templates, "", 0, (), name, count)
        written = {i: unknown for i, (_, used, _) in enumerate(encoded) if not used}
        if progress and written:
            progress(len(written))
        order = [i for i in range(len(encoded)) if i not in written]
        order.sort(key=lambda i: len(encoded[i][0]))  # little padding
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            drawn = self.local.generate(
                [encoded[i][0] for i in batch], max_new_tokens=self.max_tokens, temperature=temperature
            )
            for i, samples in zip(batch, drawn, strict=True):
                _, used, dropped = encoded[i]
                written[i] = summary_of(self.templates, self.local.decode(samples[0]), used, dropped, name, count)
            if progress:
                progress(len(batch))
        return [written[i] for i in range(len(encoded))]

    def save(self, path: str | Path) -> None:
        """Save the model with the settings that `from_pretrained` needs."""
        self.local.settings |= {"template": self.templates.name} | self.saved_settings()
        self.local.save(path)

    def saved_settings(self) -> dict[str, int]:
        """What `from_pretrained` finds beside the weights."""
        budgets = {"max_tokens": self.max_tokens, "token_budget": self.token_budget}
        return budgets | ({"conditioned_on_prompt": True} if self.conditioned else {})


class ApiInferenceModel:
    """The inference model where it is any instruction-tuned LLM behind an API. For a user without signals it is not
    asked, as with `InferenceModel`.

    Args:
        chat: the LLM; `ApiModel.connect` makes one.
        templates: a set of prompt templates, or its name.
        max_tokens: longest summary, in tokens, as the server counts.
        token_budget: most tokens of rendered signals, as `count_tokens` counts; whole signals are dropped to fit.
        count_tokens: text → tokens. By default an estimate, since there is no tokenizer (see estimate_tokens).
    """

    def __init__(
        self,
        chat: ChatModel,
        templates: str | Templates = "default",
        max_tokens: int = 256,
        token_budget: int = 8192,
        count_tokens: Callable[[str], int] = estimate_tokens,
    ) -> None:
        self.chat = chat
        self.templates = Templates.load(templates) if isinstance(templates, str) else templates
        self.max_tokens, self.token_budget, self.count_tokens = max_tokens, token_budget, count_tokens

    def summarize(self, signals: Sequence[Signal], temperature: float = 0.0) -> Summary:
        """Write the preference summary of one user.

        Raises:
            UpstreamError: the server gave none.
            DataError: no signal fits the budget.
        """
        result = self.summarize_each([signals], temperature)[0]
        if isinstance(result, PopiError):
            raise result
        return result

    def summarize_many(
        self,
        users: Sequence[Sequence[Signal]],
        temperature: float = 0.0,
        progress: Callable[[int], None] | None = None,
    ) -> list[Summary]:
        """Summaries of many users, in their order. `progress` is told how many were added.

        Raises:
            BatchError: some failed; its `results` hold the summaries of all others.
        """
        tell = (lambda _index, _result: progress(1)) if progress else None
        return values(self.summarize_each(users, temperature, tell))

    def summarize_each(
        self,
        users: Sequence[Sequence[Signal]],
        temperature: float = 0.0,
        on_result: Callable[[int, Summary | PopiError], None] | None = None,
    ) -> list[Summary | PopiError]:
        """For every user a summary, or the error in its place. `on_result` is told each as soon as it is there."""
        results: dict[int, Summary | PopiError] = {}
        read: dict[int, tuple[list[Signal], tuple[str, ...]]] = {}

        def keep(index: int, result: Summary | PopiError) -> None:
            results[index] = result
            if on_result:
                on_result(index, result)

        for index, signals in enumerate(users):
            if not signals:
                keep(index, summary_of(self.templates, "", 0, (), self.chat.name, self.count_tokens))
                continue
            try:
                read[index] = fit_signals(self.templates, signals, self.token_budget, self.count_tokens)
            except DataError as error:
                keep(index, error)
        sent = list(read)

        def on_reply(position: int, reply: Reply | PopiError) -> None:
            index = sent[position]
            if isinstance(reply, PopiError):
                keep(index, reply)
            else:
                kept, dropped = read[index]
                name, count = self.chat.name, self.count_tokens
                keep(index, summary_of(self.templates, reply.text, len(kept), dropped, name, count, reply.tokens))

        prompts = [self.templates.inference_messages(read[index][0]) for index in sent]
        self.chat.chat_many(prompts, max_tokens=self.max_tokens, temperature=temperature, on_result=on_reply)
        return [results[index] for index in range(len(users))]
