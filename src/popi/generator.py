"""The generator: answers a task prompt with a user's preference summary in view."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from popi.backends.local import LocalModel
from popi.scoring import ScoringItem
from popi.signals.render import Templates
from popi.signals.types import Prompt, Signal, TargetPair
from popi.summary import Summary


class Generator:
    """(task prompt, summary) in, response out; and the token ids under which responses are scored.

    Args:
        local: the language model; training may share it between jobs.
        templates: a set of prompt templates, or its name; `auto` takes what the model was saved with.
    """

    def __init__(self, local: LocalModel, templates: str | Templates = "auto") -> None:
        self.local = local
        self.templates = local.templates(templates)
        self._response = lru_cache(maxsize=100_000)(lambda text: tuple(local.encode_response(text)))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, templates: str = "auto", **load: Any) -> "Generator":
        """Load by folder or hub id (`nano` is the shipped base). `load`: as LocalModel.load takes it."""
        return cls(LocalModel.load(name_or_path, **load), templates)

    def prompt_ids(self, prompt: Prompt, summary: str | Summary | None) -> list[int]:
        """Token ids of the task prompt with the summary in view; without one, of the plain prompt."""
        text = None if summary is None else str(summary)
        return self.local.encode_chat(self.templates.generator_messages(prompt, text))

    def raw_signals_ids(self, prompt: Prompt, signals: Sequence[Signal]) -> list[int]:
        """Token ids of the task prompt with the raw signals in view (the baseline)."""
        return self.local.encode_chat(self.templates.raw_signals_messages(prompt, signals))

    def generate(
        self, prompt: Prompt, summary: str | Summary | None = None, max_new_tokens: int = 512, temperature: float = 0.0
    ) -> str:
        """Answer one prompt; greedy unless a temperature is given."""
        ids = self.prompt_ids(prompt, summary)
        drawn = self.local.generate([ids], max_new_tokens=max_new_tokens, temperature=temperature)
        return self.local.decode(drawn[0][0])

    def item(self, prefix: Iterable[int], target: TargetPair) -> ScoringItem:
        """A target pair under a prefix that was made elsewhere."""
        return ScoringItem(tuple(prefix), self._response(target.chosen), self._response(target.rejected))

    def items(self, targets: Sequence[TargetPair], summary: str | Summary | None) -> list[ScoringItem]:
        """One scoring item per target, with this summary in view."""
        return [self.item(self.prompt_ids(target.prompt, summary), target) for target in targets]

    def reference_items(self, targets: Sequence[TargetPair]) -> list[ScoringItem]:
        """The same responses on the plain prompt: what the reference model sees."""
        return self.items(targets, None)

    def save(self, path: str | Path) -> None:
        """Save the model with the settings that `from_pretrained` needs."""
        self.local.settings |= {"template": self.templates.name}
        self.local.save(path)
