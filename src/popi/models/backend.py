"""What popi asks of a model, wherever it computes. Imports no HTTP and no torch: a stand-in needs only these types."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from popi.errors import BatchError, ConfigError, ModelError, PopiError
from popi.models.remote.usage import Usage
from popi.signals.render import Templates
from popi.signals.types import TargetPair

if TYPE_CHECKING:
    from popi.models.local.model import LocalModel

Value = TypeVar("Value")
BATCH = 32
"""Conversations that a local model answers in one forward."""
Messages = Sequence[Mapping[str, Any]]
"""A conversation: mappings with `role` and `content`."""


@dataclass(frozen=True)
class Reply:
    """What a model wrote.

    Attributes:
        text: the text, without white space around it.
        tokens: its length as the server counted it, hidden reasoning left out; None where it did not say.
        cut: it hit the token limit.
    """

    text: str
    tokens: int | None = None
    cut: bool = False


OnReply = Callable[[int, Reply | PopiError], None]
"""Receives the index of a conversation and its result, as soon as that is there."""


class Scorer(Protocol):
    """Gives log-probs of responses. `LocalModel` is one; `VllmScorer` asks a server."""

    def score_each(
        self, pairs: Sequence[tuple[Messages, TargetPair]], batch_size: int = 64
    ) -> list[tuple[float, float] | PopiError]:
        """Summed log-probs of the chosen and the rejected response of each target under the conversation beside it, the
        end-of-turn token included; or the error in their place.
        """
        ...

    def prompt_tokens_each(self, conversations: Sequence[Messages]) -> list[int | PopiError]:
        """How many tokens each conversation takes as a prompt; or the error in its place."""
        ...


class Backend(ABC):
    """A model that answers conversations. `LocalModel` has its weights here, `ApiModel` asks a server; a subclass of
    your own needs a name and `chat_many`. What a backend can do beyond that it overrides; what it can't says so.

    Attributes:
        name: what summaries say they were written by.
        trainable: the weights are here: token ids, gradients and soft prompts are to be had (`local`).
        prompted: it follows instructions that it was not trained on, such as a request for a list of statements.
        takes_schema: `chat_many` takes a JSON `schema` that answers follow.
        window: how many conversations are worth having in memory at once; unlimited if None.
        settings: what popi saved beside the weights: template set, budgets.
        usage: what was asked of a server; None where there is none.
        revision: the commit of a model from the hub.
    """

    name: str
    trainable: bool = False
    prompted: bool = True
    takes_schema: bool = False
    window: int | None = None
    settings: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def chat_many(
        self,
        conversations: Sequence[Messages],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        on_result: OnReply | None = None,
    ) -> list[Reply | PopiError]:
        """Answer every conversation: aligned with them, a reply or the error in its place."""

    @property
    def usage(self) -> Usage | None:
        return None

    @property
    def revision(self) -> str | None:
        return None

    @property
    def local(self) -> "LocalModel":
        """The model with its weights and tokenizer.

        Raises:
            ModelError: there are none here.
        """
        raise ModelError(f"{self.name}: is behind an API, and this needs a model's weights; name a local model")

    @property
    def scorer(self) -> Scorer:
        """What scores responses with this model.

        Raises:
            ConfigError: nothing does.
        """
        raise ConfigError(f"{self.name}: responses are scored by a model on a server; give a scorer")

    def templates(self, name: str | Templates = "auto") -> Templates:
        """The prompt templates of that name; `auto`: those that the model was saved with, else `default`."""
        return Templates.load("default" if name == "auto" else name) if isinstance(name, str) else name

    def count_tokens(self, text: str) -> int:
        """Tokens of a text; an estimate where there is no tokenizer."""
        return estimate_tokens(text)


def estimate_tokens(text: str) -> int:
    """Tokens of a text where there is no tokenizer to ask: its UTF-8 bytes / 3, rounded up.

    On the high side for today's LLMs: their large vocabularies take 4 bytes and more of most languages to a token,
    and about 3 of Chinese, Japanese or Korean. Digits, base64, rare scripts and older vocabularies can take more
    tokens than estimated: leave room in the budget for those, or count with a tokenizer.
    """
    return -(-len(text.encode("utf-8", "replace")) // 3)


def values(results: Sequence[Value | PopiError]) -> list[Value]:
    """The values of a batch.

    Raises:
        ModelError: a local model refused an item; nothing was paid for the others.
        BatchError: some are errors; it holds all results.
    """
    for result in results:
        if isinstance(result, ModelError):
            raise result
    good = [result for result in results if not isinstance(result, PopiError)]
    if len(good) < len(results):
        raise BatchError(list(results))
    return good
