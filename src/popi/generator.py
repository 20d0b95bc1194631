"""The generator: answers a task prompt, given a user's preference summary."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popi.errors import PopiError
from popi.models.backend import Backend, Messages, Scorer, values
from popi.models.spec import ModelSpec
from popi.signals.render import Templates
from popi.signals.types import Prompt, TargetPair
from popi.summary import Summary

if TYPE_CHECKING:  # a model behind an API needs no torch
    from torch import Tensor

    from popi.engine.scoring import ScoringItem
    from popi.models.local.model import LocalModel
    from popi.models.local.user_embedding import UserEmbedding


class Generator:
    """(task prompt, summary) in, response out; and log-probs of given responses.

    Behind an API it is frozen, and the summary is text in its prompt. It can answer on any server, and score responses
    on a server that returns prompt log-probs (vLLM). With local weights it also has token ids for scoring and training
    (`prompt_ids`, `item`); without weights these raise an error.

    Args:
        backend: the model: a `LocalModel`, which jobs of a training run may share, or an `ApiModel`.
        templates: a set of prompt templates, or its name; `auto` is the set that the model was saved with, else
            `default`.
        embedding: the user embeddings that it was trained with (the baseline `user_embedding`). Every prompt then
            starts with a soft prompt, by default the generic user's.
        scorer: scores responses instead of the model itself.
    """

    def __init__(
        self,
        backend: Backend,
        templates: str | Templates = "auto",
        embedding: "UserEmbedding | None" = None,
        scorer: Scorer | None = None,
    ) -> None:
        self.backend, self.embedding, self._scorer = backend, embedding, scorer
        self.templates = backend.templates(templates)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, templates: str = "auto", **load: Any) -> "Generator":
        """Load a folder, GGUF file or hub id (`nano` is the shipped base). `load`: further fields of `ModelSpec`."""
        return cls.from_spec(ModelSpec(str(name_or_path), templates, **load))

    @classmethod
    def from_api(
        cls, url: str, model: str, protocol: str = "openai", templates: str | Templates = "auto", **connect: Any
    ) -> "Generator":
        """Use a model on a server. `connect`: further fields of `ModelSpec`.

        Raises:
            ConfigError: an invalid URL, an unknown protocol, or a named variable without a key.
        """
        return cls(ModelSpec(model, url=url, protocol=protocol, **connect).connect(), templates)

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> "Generator":
        """The generator described by a spec, with the user embeddings saved with it; see `ModelSpec.load`."""
        backend = spec.load()
        if not backend.trainable:
            return cls(backend, spec.templates)
        from popi.models.local.user_embedding import UserEmbedding

        return cls(backend, spec.templates, UserEmbedding.load(spec.name))

    @property
    def name(self) -> str:
        """The model's name."""
        return self.backend.name

    @property
    def trainable(self) -> bool:
        """Whether its weights are local. Behind an API it is frozen and its own reference."""
        return self.backend.trainable

    @property
    def local(self) -> "LocalModel":
        """The model with its weights and tokenizer. Raises ModelError if it is behind an API."""
        return self.backend.local

    @property
    def scorer(self) -> Scorer:
        """What scores its responses. Raises ConfigError if nothing can."""
        return self.backend.scorer if self._scorer is None else self._scorer

    # -- responses --------------------------------------------------------------------------------------------

    def messages(self, prompt: Prompt, summary: str | Summary | None) -> list[dict[str, str]]:
        """The task prompt with the summary, or the plain prompt without one."""
        return self.templates.generator_messages(prompt, None if summary is None else str(summary))

    def generate(
        self, prompt: Prompt, summary: str | Summary | None = None, max_new_tokens: int = 512, temperature: float = 0.0
    ) -> str:
        """Answer one prompt, with greedy decoding unless a temperature is given.

        Raises:
            ModelError: the prompt exceeds the model's context.
            UpstreamError: the server returned no answer.
        """
        [reply] = self._reply_each([self.messages(prompt, summary)], max_new_tokens, temperature)
        if isinstance(reply, PopiError):
            raise reply
        return reply

    def generate_many(
        self,
        requests: Sequence[tuple[Prompt, str | Summary | None]],
        max_new_tokens: int = 512,
        temperature: float = 0.0,
    ) -> list[str]:
        """Answer many (task prompt, summary) pairs at once, in order; see `reply_many`."""
        return self.reply_many([self.messages(*request) for request in requests], max_new_tokens, temperature)

    def reply_many(
        self,
        conversations: Sequence[Messages],
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        soft: "Tensor | None" = None,
    ) -> list[str]:
        """Answer many conversations at once, in order. `soft`: as in `score`.

        Raises:
            ModelError: a prompt exceeds the context, or soft prompts are given without local weights.
            BatchError: some failed on the server; its `results` hold the answers of all others.
        """
        return values(self._reply_each(conversations, max_new_tokens, temperature, soft))

    def _reply_each(
        self,
        conversations: Sequence[Messages],
        max_new_tokens: int,
        temperature: float,
        soft: "Tensor | None" = None,
    ) -> list[str | PopiError]:
        limits: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": temperature}
        soft = self._soft(len(conversations), soft)
        if soft is None:
            replies = self.backend.chat_many(conversations, **limits)
        else:
            replies = self.local.chat_many(conversations, **limits, soft=soft)
        return [reply if isinstance(reply, PopiError) else reply.text for reply in replies]

    def _soft(self, n: int, soft: "Tensor | None") -> "Tensor | None":
        if soft is None and self.embedding is not None:
            soft = self.embedding.generic.detach().expand(n, -1, -1)
        return soft

    # -- log-probs --------------------------------------------------------------------------------------------

    def score(
        self, pairs: Sequence[tuple[Messages, TargetPair]], batch_size: int = 64, soft: "Tensor | None" = None
    ) -> tuple[list[float], list[float]]:
        """Summed log-probs of chosen and of rejected responses, each target given its conversation.

        Args:
            pairs: n (conversation, target pair).
            batch_size: rows per batch; a server makes its own batches.
            soft: (n, k, d) soft prompts; None is none, or the generic user's with an `embedding`.

        Raises:
            ModelError: a prompt with its response exceeds the context.
            ConfigError: nothing can score this model's responses.
            BatchError: some could not be scored on the server.
        """
        both = values(self.score_each(pairs, batch_size, soft))
        return [chosen for chosen, _ in both], [rejected for _, rejected in both]

    def score_each(
        self, pairs: Sequence[tuple[Messages, TargetPair]], batch_size: int = 64, soft: "Tensor | None" = None
    ) -> list[tuple[float, float] | PopiError]:
        """Like `score`, with a pair of log-probs per target, or the server's error if it failed."""
        soft = self._soft(len(pairs), soft)
        if soft is None:
            return self.scorer.score_each(pairs, batch_size)
        return self.local.score_each(pairs, batch_size, soft)

    def pair_logps(
        self, targets: Sequence[TargetPair], summaries: Sequence[str | Summary | None], batch_size: int = 64
    ) -> tuple[list[float], list[float]]:
        """`score` of targets, each with its summary (None is the plain prompt)."""
        under = [(self.messages(t.prompt, text), t) for t, text in zip(targets, summaries, strict=True)]
        return self.score(under, batch_size)

    def margins(self, targets: Sequence[TargetPair], summaries: Sequence[str | Summary | None]) -> list[float]:
        """h(z) of each target with its summary (docs/method.md), for a frozen generator, which is its own reference.
        Each call also scores the plain prompts.
        """
        n = len(targets)
        chosen, rejected = self.pair_logps([*targets, *targets], [*summaries, *[None] * n])
        return [(chosen[i] - chosen[n + i]) - (rejected[i] - rejected[n + i]) for i in range(n)]

    def rewards(
        self, targets: Sequence[TargetPair], summaries: Sequence[str | Summary | None], beta: float
    ) -> list[float]:
        """log σ(β·h)/β of each target with its summary; see `margins`."""
        return [-_softplus(-beta * h) / beta for h in self.margins(targets, summaries)]

    def prompt_tokens(self, conversations: Sequence[Messages]) -> list[int]:
        """Number of tokens of each conversation as a prompt, as the model counts.

        Raises:
            BatchError: the server failed on some.
        """
        return values(self.prompt_tokens_each(conversations))

    def prompt_tokens_each(self, conversations: Sequence[Messages]) -> list[int | PopiError]:
        """Like `prompt_tokens`, with the error in place of a count that failed."""
        return self.scorer.prompt_tokens_each(conversations)

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text; behind an API, an estimate (see `estimate_tokens`)."""
        return self.backend.count_tokens(text)

    # -- token ids: local weights -----------------------------------------------------------------------------

    def prompt_ids(self, prompt: Prompt, summary: str | Summary | None) -> list[int]:
        """Token ids of the task prompt with the summary, or of the plain prompt without one."""
        return self.local.encode_chat(self.messages(prompt, summary))

    def item(self, prefix: Iterable[int], target: TargetPair) -> "ScoringItem":
        """A target pair with a given prefix; see `LocalModel.item`."""
        return self.local.item(prefix, target)

    def items(self, targets: Sequence[TargetPair], summary: str | Summary | None) -> "list[ScoringItem]":
        """One scoring item per target, with this summary."""
        return [self.item(self.prompt_ids(target.prompt, summary), target) for target in targets]

    def reference_items(self, targets: Sequence[TargetPair]) -> "list[ScoringItem]":
        """The same responses to the plain prompt, as the reference model sees them."""
        return self.items(targets, None)

    def save(self, path: str | Path, weights: Any = None) -> None:
        """Save the model with the settings that `from_pretrained` needs."""
        self.local.settings |= {"template": self.templates.name}
        self.local.save(path, weights)
        if self.embedding is not None:
            self.embedding.save(Path(path))


def _softplus(x: float) -> float:
    """log(1 + eˣ), without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
