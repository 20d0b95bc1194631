"""How the worker gets a summary written. Models that follow instructions get a list of what they must not say."""

from collections.abc import Sequence
from typing import Protocol

from popi.inference_model import InferenceModel
from popi.signals.types import Signal
from popi.summary import Summary


class SummaryWriter(Protocol):
    """An inference model, local or behind an API."""

    @property
    def renews(self) -> bool:
        """Whether it can renew an old summary."""
        ...

    def renewable(self, summary: str) -> bool:
        """Whether it can renew this summary."""
        ...

    def summarize(
        self, signals: Sequence[Signal], temperature: float = 0.0, *, previous: Summary | None = None
    ) -> Summary:
        """Write one user's preference summary, from all signals or from an old summary and the signals since."""
        ...


def write(
    model: SummaryWriter, signals: Sequence[Signal], forbidden: Sequence[str], previous: Summary | None = None
) -> Summary:
    """Write a user's summary, or renew `previous` with the signals that arrived since.

    An LLM behind an API is given the `forbidden` statements. A local model only reads the prompt that it was trained
    on. In both cases, the worker removes forbidden statements from the result.

    Raises:
        UpstreamError: the server gave no answer.
        AnswerError: nothing in the answer can be used.
    """
    if isinstance(model, InferenceModel):  # the worker accepts any SummaryWriter
        return model.summarize(signals, previous=previous, forbidden=forbidden)
    return model.summarize(signals, previous=previous)
