"""How the worker has a summary written: a model that listens is told what it must not say again."""

from collections.abc import Sequence
from typing import Protocol

from popi.inference_model import ApiInferenceModel
from popi.signals.types import Signal
from popi.summary import Summary


class Writes(Protocol):
    """An inference model, local or behind an API."""

    @property
    def renews(self) -> bool:
        """Whether it knows what to do with an old summary."""
        ...

    def renewable(self, summary: str) -> bool:
        """Whether it can renew this one."""
        ...

    def summarize(
        self, signals: Sequence[Signal], temperature: float = 0.0, *, previous: Summary | None = None
    ) -> Summary:
        """Write the preference summary of one user, from all signals or from an old summary and those since."""
        ...


def write(
    model: Writes, signals: Sequence[Signal], forbidden: Sequence[str], previous: Summary | None = None
) -> Summary:
    """A user's summary; with `previous` that one, renewed by the signals that came since.

    An LLM behind an API is told in words what the user allows it to be told. A model of our own reads the prompt that
    it was trained on and no other. What either says again is taken out of what it wrote (Worker).

    Raises:
        UpstreamError: the server gave none.
        AnswerError: nothing in the answer can be used.
    """
    if isinstance(model, ApiInferenceModel):
        return model.summarize(signals, previous=previous, forbidden=forbidden)
    return model.summarize(signals, previous=previous)
