"""The generator: answers a task prompt with a user's preference summary in view."""

import json
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popi.errors import ConfigError, PopiError
from popi.models.remote.api import ApiModel
from popi.models.remote.batch import values
from popi.models.remote.chat import ChatModel, Messages, estimate_tokens
from popi.signals.render import Templates, flat
from popi.signals.types import Prompt, TargetPair
from popi.summary import Summary

if TYPE_CHECKING:  # a model behind an API needs no torch
    from torch import Tensor

    from popi.config import ApiGeneratorConfig
    from popi.engine.scoring import ScoringItem
    from popi.models.local.model import LocalModel
    from popi.models.local.user_embedding import UserEmbedding
    from popi.models.remote.vllm import VllmScorer


PROMPTS = 1024
"""Most conversations whose token ids are remembered: those of one batch of an evaluation, scored and then counted."""


class Generator:
    """(task prompt, summary) in, response out; and the token ids under which responses are scored.

    Args:
        local: the language model; training may share it between jobs.
        templates: a set of prompt templates, or its name; `auto` takes what the model was saved with.
        embedding: the user embeddings that it was trained with (the baseline `user_embedding`): a soft prompt then
            stands in front of every prompt, the generic user's where none is given.
    """

    def __init__(
        self, local: "LocalModel", templates: str | Templates = "auto", embedding: "UserEmbedding | None" = None
    ) -> None:
        self.local, self.embedding = local, embedding
        self.templates = local.templates(templates)
        self._response = lru_cache(maxsize=100_000)(lambda text: tuple(local.encode_response(text)))
        self._prompt = lru_cache(maxsize=PROMPTS)(lambda turns: tuple(local.encode_chat(json.loads(turns))))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, templates: str = "auto", **load: Any) -> "Generator":
        """Load by folder, GGUF file or hub id (`nano` is the shipped base). `load`: as LocalModel.load takes it."""
        from popi.models.local.model import LocalModel
        from popi.models.local.user_embedding import UserEmbedding

        return cls(LocalModel.load(name_or_path, **load), templates, UserEmbedding.load(name_or_path))

    @staticmethod
    def from_api(
        url: str, model: str, protocol: str = "openai", templates: str | Templates = "default", **connect: Any
    ) -> "ApiGenerator":
        """Use a model on a server, without its weights. `connect`: as ApiModel.connect takes it.

        Raises:
            ConfigError: a wrong URL, an unknown protocol, or a named variable without a key.
        """
        return ApiGenerator(ApiModel.connect(url, model, protocol, **connect), templates)

    def prompt_ids(self, prompt: Prompt, summary: str | Summary | None) -> list[int]:
        """Token ids of the task prompt with the summary in view; without one, of the plain prompt."""
        return self.local.encode_chat(_messages(self.templates, prompt, summary))

    def prompt_tokens(self, conversations: Sequence[Messages]) -> list[int]:
        """How many tokens each conversation takes as a prompt."""
        return [len(self._encode(messages)) for messages in conversations]

    def count_tokens(self, text: str) -> int:
        return self.local.count_tokens(text)

    def generate(
        self, prompt: Prompt, summary: str | Summary | None = None, max_new_tokens: int = 512, temperature: float = 0.0
    ) -> str:
        """Answer one prompt; greedy unless a temperature is given."""
        return self.generate_many([(prompt, summary)], max_new_tokens, temperature)[0]

    def generate_many(
        self,
        requests: Sequence[tuple[Prompt, str | Summary | None]],
        max_new_tokens: int = 512,
        temperature: float = 0.0,
    ) -> list[str]:
        """Answer many (task prompt, summary) at once, in their order."""
        conversations = [_messages(self.templates, prompt, summary) for prompt, summary in requests]
        return self.reply_many(conversations, max_new_tokens, temperature)

    def reply_many(
        self,
        conversations: Sequence[Messages],
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        soft: "Tensor | None" = None,
    ) -> list[str]:
        """Answer many conversations at once, in their order. `soft`: as `score` takes it."""
        if not conversations:
            return []
        prompts = [list(self._encode(messages)) for messages in conversations]
        soft = self._soft(len(prompts), soft)
        drawn = self.local.generate(prompts, max_new_tokens=max_new_tokens, temperature=temperature, soft=soft)
        return [self.local.decode(samples[0]) for samples in drawn]

    def score(
        self, pairs: Sequence[tuple[Messages, TargetPair]], batch_size: int = 64, soft: "Tensor | None" = None
    ) -> tuple[list[float], list[float]]:
        """Summed log-probs of chosen and of rejected responses: each target under the conversation beside it.

        Args:
            pairs: n (conversation, target pair).
            batch_size: rows scored at once.
            soft: (n, k, d) soft prompts to stand in front; None: none, or the generic user's of `embedding`.
        """
        from popi.engine.scoring import pair_logps, soft_pair_logps

        items = [self.item(self._encode(messages), target) for messages, target in pairs]
        soft = self._soft(len(items), soft)
        model, pad_id = self.local.model, self.local.pad_id
        if soft is None:
            chosen, rejected = pair_logps(model, items, pad_id, batch_size)
        else:
            chosen, rejected = soft_pair_logps(model, items, soft, pad_id, batch_size)
        return chosen.tolist(), rejected.tolist()

    def _soft(self, n: int, soft: "Tensor | None") -> "Tensor | None":
        if soft is None and self.embedding is not None:
            soft = self.embedding.generic.detach().expand(n, -1, -1)
        return soft

    def pair_logps(
        self, targets: Sequence[TargetPair], summaries: Sequence[str | Summary | None], batch_size: int = 64
    ) -> tuple[list[float], list[float]]:
        """`score` of targets, each under the summary beside it (None: the plain prompt)."""
        return self.score(_under(self.templates, targets, summaries), batch_size)

    def item(self, prefix: Iterable[int], target: TargetPair) -> "ScoringItem":
        """A target pair under a prefix that was made elsewhere.

        Raises:
            ModelError: prefix and response exceed the model's context.
        """
        from popi.engine.scoring import ScoringItem

        item = ScoringItem(tuple(prefix), self._response(target.chosen), self._response(target.rejected))
        longer = max(len(item.chosen), len(item.rejected))
        self.local.refuse_beyond(
            len(item.prefix) + longer,
            f"{len(item.prefix)} tokens of prompt and {longer} of a response (to {flat(target.prompt)[:60]!r})",
            "leave that target out, or lower summary.max_tokens (raw signals: signals.token_budget)",
        )
        return item

    def items(self, targets: Sequence[TargetPair], summary: str | Summary | None) -> "list[ScoringItem]":
        """One scoring item per target, with this summary in view."""
        return [self.item(self.prompt_ids(target.prompt, summary), target) for target in targets]

    def reference_items(self, targets: Sequence[TargetPair]) -> "list[ScoringItem]":
        """The same responses on the plain prompt: what the reference model sees."""
        return self.items(targets, None)

    def _encode(self, messages: Messages) -> tuple[int, ...]:
        """Token ids of a conversation; a group repeats summaries, and what is scored is counted too."""
        encoded: tuple[int, ...] = self._prompt(json.dumps(messages))
        return encoded

    def save(self, path: str | Path) -> None:
        """Save the model with the settings that `from_pretrained` needs."""
        self.local.settings |= {"template": self.templates.name}
        self.local.save(path)
        if self.embedding is not None:
            self.embedding.save(Path(path))


class ApiGenerator:
    """A frozen generator behind an API: the summary reaches it as text in its prompt.

    It answers on any server, and scores responses on one that returns the log-probs of its prompt (vLLM). Being
    frozen, it is its own reference: h(z) compares the prompt with the summary to the plain prompt, on the same server.

    Args:
        chat: the LLM; `ApiModel.connect` makes one.
        templates: a set of prompt templates, or its name.
        scorer: scores responses; by default `chat`'s own server does, and makes the token ids.
    """

    def __init__(
        self, chat: ChatModel, templates: str | Templates = "default", scorer: "VllmScorer | None" = None
    ) -> None:
        self.chat = chat
        self.templates = Templates.load(templates) if isinstance(templates, str) else templates
        self._scorer = scorer

    @classmethod
    def from_config(cls, config: "ApiGeneratorConfig", templates: str) -> "ApiGenerator":
        """The generator that `[model.api_generator]` names, asked in the run's own template set.

        Raises:
            ConfigError: no model is named, a wrong URL, or a named variable without a key.
        """
        if config.url is None or config.name is None:
            raise ConfigError("model.api_generator needs both url and name: the server, and the model as it calls it")
        chat = ApiModel.connect(config.url, config.name, key_env=config.key_env, concurrency=config.concurrency)
        return cls(chat, templates)

    @property
    def scorer(self) -> "VllmScorer":
        """Raises ConfigError for a model that no OpenAI-compatible server runs."""
        if self._scorer is None:
            from popi.models.remote.vllm import VllmScorer

            if not isinstance(self.chat, ApiModel):
                raise ConfigError(f"{self.chat.name}: responses are scored by a model on a server; give a scorer")
            self._scorer = VllmScorer(self.chat)
        return self._scorer

    def messages(self, prompt: Prompt, summary: str | Summary | None) -> list[dict[str, str]]:
        """The task prompt with the summary in view; without one, the plain prompt."""
        return _messages(self.templates, prompt, summary)

    def prompt_tokens(self, conversations: Sequence[Messages]) -> list[int]:
        """How many tokens each conversation takes as a prompt, as the server counts.

        Raises:
            BatchError: some could not be counted.
        """
        return self.scorer.prompt_tokens(conversations)

    def count_tokens(self, text: str) -> int:
        """An estimate: there is no tokenizer here (see `estimate_tokens`)."""
        return estimate_tokens(text)

    def score(
        self, pairs: Sequence[tuple[Messages, TargetPair]], batch_size: int = 64
    ) -> tuple[list[float], list[float]]:
        """Summed log-probs of chosen and of rejected responses: each target under the conversation beside it.

        Args:
            pairs: n (conversation, target pair).
            batch_size: has no effect: the server makes its own batches.

        Raises:
            BatchError: some could not be scored.
        """
        requests = [(messages, text) for messages, target in pairs for text in (target.chosen, target.rejected)]
        logps = self.scorer.logps(requests)
        return logps[::2], logps[1::2]

    def score_each(self, pairs: Sequence[tuple[Messages, TargetPair]]) -> list[tuple[float, float] | PopiError]:
        """As `score`, a pair of log-probs for each target, with the error in the place of one that failed."""
        requests = [(messages, text) for messages, target in pairs for text in (target.chosen, target.rejected)]
        logps = self.scorer.logps_each(requests)
        return [_both(chosen, rejected) for chosen, rejected in zip(logps[::2], logps[1::2], strict=True)]

    def prompt_tokens_each(self, conversations: Sequence[Messages]) -> list[int | PopiError]:
        """As `prompt_tokens`, with the error in the place of a conversation that could not be counted."""
        return self.scorer.prompt_tokens_each(conversations)

    def pair_logps(
        self, targets: Sequence[TargetPair], summaries: Sequence[str | Summary | None], batch_size: int = 64
    ) -> tuple[list[float], list[float]]:
        """`score` of targets, each under the summary beside it (None: the plain prompt).

        Raises:
            BatchError: some could not be scored.
        """
        return self.score(_under(self.templates, targets, summaries), batch_size)

    def margins(self, targets: Sequence[TargetPair], summaries: Sequence[str | Summary | None]) -> list[float]:
        """h(z) of each target under the summary beside it (docs/method.md). Plain prompts are scored once a call.

        Raises:
            BatchError: some could not be scored.
        """
        n = len(targets)
        chosen, rejected = self.pair_logps([*targets, *targets], [*summaries, *[None] * n])
        return [(chosen[i] - chosen[n + i]) - (rejected[i] - rejected[n + i]) for i in range(n)]

    def rewards(
        self, targets: Sequence[TargetPair], summaries: Sequence[str | Summary | None], beta: float
    ) -> list[float]:
        """log σ(β·h)/β of each target under the summary beside it.

        Raises:
            BatchError: some could not be scored.
        """
        return [-_softplus(-beta * h) / beta for h in self.margins(targets, summaries)]

    def generate(
        self, prompt: Prompt, summary: str | Summary | None = None, max_new_tokens: int = 512, temperature: float = 0.0
    ) -> str:
        """Answer one prompt.

        Raises:
            UpstreamError: the server gave no answer.
        """
        results = self._replies([self.messages(prompt, summary)], max_new_tokens, temperature)
        if isinstance(results[0], PopiError):
            raise results[0]
        return results[0]

    def generate_many(
        self,
        requests: Sequence[tuple[Prompt, str | Summary | None]],
        max_new_tokens: int = 512,
        temperature: float = 0.0,
    ) -> list[str]:
        """Answer many (task prompt, summary), in their order.

        Raises:
            BatchError: some failed; its `results` hold the answers of all others.
        """
        conversations = [self.messages(prompt, summary) for prompt, summary in requests]
        return self.reply_many(conversations, max_new_tokens, temperature)

    def reply_many(
        self, conversations: Sequence[Messages], max_new_tokens: int = 512, temperature: float = 0.0
    ) -> list[str]:
        """Answer many conversations, in their order.

        Raises:
            BatchError: some failed; its `results` hold the answers of all others.
        """
        return values(self._replies(conversations, max_new_tokens, temperature))

    def _replies(
        self, conversations: Sequence[Messages], max_new_tokens: int, temperature: float
    ) -> list[str | PopiError]:
        replies = self.chat.chat_many(conversations, max_tokens=max_new_tokens, temperature=temperature)
        return [reply if isinstance(reply, PopiError) else reply.text for reply in replies]


AnyGenerator = Generator | ApiGenerator
"""What training takes its rewards from, and evaluation its log-probs and answers."""


def _messages(templates: Templates, prompt: Prompt, summary: str | Summary | None) -> list[dict[str, str]]:
    return templates.generator_messages(prompt, None if summary is None else str(summary))


def _under(
    templates: Templates, targets: Sequence[TargetPair], summaries: Sequence[str | Summary | None]
) -> list[tuple[Messages, TargetPair]]:
    return [(_messages(templates, t.prompt, text), t) for t, text in zip(targets, summaries, strict=True)]


def _both(chosen: float | PopiError, rejected: float | PopiError) -> tuple[float, float] | PopiError:
    if isinstance(chosen, PopiError):
        return chosen
    return rejected if isinstance(rejected, PopiError) else (chosen, rejected)


def _softplus(x: float) -> float:
    """log(1 + eˣ), without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
