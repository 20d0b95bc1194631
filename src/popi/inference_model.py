"""The inference model: reads one user's signals and writes a preference summary. It never sees the task prompt."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from popi.backends.local import LocalModel
from popi.errors import DataError
from popi.signals.render import Templates
from popi.signals.types import Signal
from popi.summary import Summary

BATCH = 32
"""Users summarised in one forward."""


class InferenceModel:
    """Signals in, summary out.

    Args:
        local: the language model; training may share it between jobs.
        templates: a set of prompt templates, or its name; `auto` takes what the model was saved with.
        max_tokens: longest summary, in tokens.
        token_budget: most tokens of rendered signals; whole signals are dropped to fit.
    """

    def __init__(
        self,
        local: LocalModel,
        templates: str | Templates = "auto",
        max_tokens: int | None = None,
        token_budget: int | None = None,
    ) -> None:
        self.local = local
        self.templates = local.templates(templates)
        self.max_tokens: int = max_tokens or local.settings.get("max_tokens", 256)
        self.token_budget: int = token_budget or local.settings.get("token_budget", 8192)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, templates: str = "auto", **load: Any) -> "InferenceModel":
        """Load by folder or hub id (`nano` is the shipped base). `load`: as LocalModel.load takes it."""
        return cls(LocalModel.load(name_or_path, **load), templates)

    def prompt_ids(self, signals: Sequence[Signal]) -> tuple[list[int], int, tuple[str, ...]]:
        """The templated prompt's token ids, how many signals are in it, and which were dropped."""
        kept, dropped = self.templates.fit(signals, self.token_budget, self.local.count_tokens)
        if signals and not kept:
            raise DataError(
                f"no signal fits into signals.token_budget={self.token_budget} tokens; raise it or shorten the signals"
            )
        return self.local.encode_chat(self.templates.inference_messages(kept)), len(kept), dropped

    def summarize(self, signals: Sequence[Signal], temperature: float = 0.0) -> Summary:
        """Write the preference summary of one user; greedy unless a temperature is given."""
        return self.summarize_many([signals], temperature)[0]

    def summarize_many(
        self,
        users: Sequence[Sequence[Signal]],
        temperature: float = 0.0,
        progress: Callable[[int], None] | None = None,
    ) -> list[Summary]:
        """Summaries of many users, in their order. `progress` is told how many were added, batch by batch."""
        prompts = [self.prompt_ids(signals) for signals in users]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][0]))  # little padding
        written: dict[int, Summary] = {}
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            drawn = self.local.generate(
                [prompts[i][0] for i in batch], max_new_tokens=self.max_tokens, temperature=temperature
            )
            for i, samples in zip(batch, drawn, strict=True):
                text = self.local.decode(samples[0])
                _, used, dropped = prompts[i]
                written[i] = Summary(text, self.local.count_tokens(text), used, dropped, self.local.name)
            if progress:
                progress(len(batch))
        return [written[i] for i in range(len(prompts))]

    def save(self, path: str | Path) -> None:
        """Save the model with the settings that `from_pretrained` needs."""
        self.local.settings |= {
            "template": self.templates.name,
            "max_tokens": self.max_tokens,
            "token_budget": self.token_budget,
        }
        self.local.save(path)
