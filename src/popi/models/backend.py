"""The interface of a model, local or remote. Imports no HTTP client and no torch, so other implementations need only
these types.
"""

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
"""Conversations that a local model answers in one forward pass."""
Messages = Sequence[Mapping[str, Any]]
"""A conversation: mappings with `role` and `content`."""


@dataclass(frozen=True)
class Reply:
    """A model's answer.

    Attributes:
        text: the text, without surrounding white space.
        tokens: its length as counted by the server, without hidden reasoning; None if not reported.
        cut: whether it hit the token limit.
    """

    text: str
    tokens: int | None = None
    cut: bool = False


OnReply = Callable[[int, Reply | PopiError], None]
"""Called with a conversation's index and its result as soon as that is available."""


class Scorer(Protocol):
    """Computes log-probs of responses. `LocalModel` does so itself; `VllmScorer` asks a server."""

    def score_each(
        self, pairs: Sequence[tuple[Messages, TargetPair]], batch_size: int = 64
    ) -> list[tuple[float, float] | PopiError]:
        """For each (conversation, target): the summed log-probs of the chosen and the rejected response, including the
        end-of-turn token, or an error.
        """
        ...

    def prompt_tokens_each(self, conversations: Sequence[Messages]) -> list[int | PopiError]:
        """The number of prompt tokens of each conversation, or an error."""
        ...


class Backend(ABC):
    """A model that answers conversations. `LocalModel` runs in this process, `ApiModel` calls a server. Other
    subclasses need a name and `chat_many`; they override what else they support, and the defaults raise an error.

    Attributes:
        name: the name that summaries record as their author.
        trainable: whether the weights are local, with token ids, gradients and soft prompts (`local`).
        prompted: whether it follows instructions it was not trained on, such as a request for a list of statements.
        takes_schema: whether `chat_many` accepts a JSON `schema` for the answers.
        window: maximum conversations worth having in memory at once; unlimited if None.
        settings: what popi saved with the weights: template set, budgets.
        usage: requests and tokens sent to a server; None without a server.
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
        """Answer every conversation. Returns a reply or an error for each, in order."""

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
            ModelError: if the weights are not local.
        """
        raise ModelError(f"{self.name}: is behind an API, but this needs the model's weights; use a local model")

    @property
    def scorer(self) -> Scorer:
        """The scorer that computes log-probs with this model.

        Raises:
            ConfigError: if this model has none.
        """
        raise ConfigError(f"{self.name}: this model can't score responses; pass a scorer")

    def templates(self, name: str | Templates = "auto") -> Templates:
        """The named prompt templates; `auto`: those the model was saved with, or `default`."""
        return Templates.load("default" if name == "auto" else name) if isinstance(name, str) else name

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text; an estimate without a tokenizer."""
        return estimate_tokens(text)


def estimate_tokens(text: str) -> int:
    """Estimate the number of tokens of a text without a tokenizer: UTF-8 bytes / 3, rounded up.

    This is on the high side for today's LLMs, whose large vocabularies average 4 or more bytes per token in most
    languages, and about 3 in Chinese, Japanese or Korean. Digits, base64, rare scripts and older vocabularies can need
    more tokens than estimated: leave room in the budget, or count with a tokenizer.
    """
    return -(-len(text.encode("utf-8", "replace")) // 3)


def values(results: Sequence[Value | PopiError]) -> list[Value]:
    """The values of a batch.

    Raises:
        ModelError: if a local model refused an item, since the other results cost nothing.
        BatchError: if there are other errors; it holds all results.
    """
    for result in results:
        if isinstance(result, ModelError):
            raise result
    good = [result for result in results if not isinstance(result, PopiError)]
    if len(good) < len(results):
        raise BatchError(list(results))
    return good
