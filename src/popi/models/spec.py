"""`ModelSpec`: the one description of a model, wherever one is named. Imports nothing heavy.

Run configs, grids, judges, the gateway's `[inference]` and the command line's options each build one; `load` makes the
backend of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popi.config import ApiGeneratorConfig, RunConfig
from popi.errors import ConfigError
from popi.models.backend import Backend

if TYPE_CHECKING:
    from popi.config.http import HttpConfig
    from popi.models.remote.api import ApiModel
    from popi.models.remote.api_url import Auth
    from popi.models.remote.retries import Retries
    from popi.models.remote.usage import Prices

NANO = Path(__file__).parent.parent / "nano" / "base"
"""Where `nano` lies, the base model that ships."""
SMOLLM2 = "smollm2"
SMOLLM2_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def model_path(name: str | Path) -> str:
    """A name as other libraries take it: `nano` is the folder shipped with popi, `smollm2` its hub id."""
    return {"nano": str(NANO), SMOLLM2: SMOLLM2_ID}.get(str(name), str(name))


@dataclass(frozen=True)
class ModelSpec:
    """Which model, where it computes, and how it is loaded or asked.

    Without `url` it is loaded here, as the fields from `dtype` to `quantization` say.
    With `url` it is on that server, and asked as the fields from `url` on say.

    Attributes:
        name: `nano`, `smollm2`, a folder (of a model or of an adapter), a GGUF file, or a hub id (owner/name,
            owner/name/file.gguf); with `url` the model as its server calls it.
        templates: its set of prompt templates; `auto` is the one that it was saved with, else `default`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        attn_implementation: attention by transformers' name; `auto` is its choice.
        chat_template: Jinja text or a file, in place of the tokenizer's own.
        adapter: the folder of an adapter to put over the model.
        quantization: of the base: `none`, `8bit` or `4bit`, by bitsandbytes on a GPU.
        url: the server, as far as the part before /chat/completions or, for `anthropic`, before /v1/messages.
        protocol: what it speaks, `openai` or `anthropic`; vLLM speaks `openai`, and scores responses, too.
        key_env: the environment variable that holds the key; else OPENAI_API_KEY or ANTHROPIC_API_KEY, and no key where
            that is not set.
        auth: how the key is sent; see `ApiUrl.key_header`.
        concurrency: maximum requests under way at once.
        extra: fields to put into every request; None takes one out.
        prices: per million tokens, to reckon the cost.
        http: proxies, certificates, time limits; by default as POPI_HTTP says.
        retries: when to ask again.
        total_s: time limit of one try of one request, in seconds.
    """

    name: str
    templates: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    attn_implementation: str = "auto"
    chat_template: str | None = None
    adapter: str | Path | None = None
    quantization: str = "none"
    url: str | None = None
    protocol: str = "openai"
    key_env: str | None = None
    auth: "Auth" = "auto"
    concurrency: int = 8
    extra: Mapping[str, Any] = field(default_factory=dict)
    prices: "Prices | None" = None
    http: "HttpConfig | None" = None
    retries: "Retries | None" = None
    total_s: float | None = None

    @classmethod
    def of(cls, config: RunConfig, name: str | Path | None = None) -> "ModelSpec":
        """A local model of a run: its base, or that in a folder that the run saved."""
        model = config.model
        return cls(
            str(name or model.base),
            config.signals.template,
            dtype=model.dtype,
            device=model.device,
            attn_implementation=model.attn_implementation,
            chat_template=model.chat_template,
            quantization=model.quantization,
        )

    @classmethod
    def of_api(cls, api: ApiGeneratorConfig, templates: str = "auto") -> "ModelSpec":
        """The generator that `[model.api_generator]` names.

        Raises:
            ConfigError: its server or its name is missing.
        """
        if api.url is None or api.name is None:
            raise ConfigError("model.api_generator needs both url and name: the server, and the model as it calls it")
        return cls(api.name, templates, url=api.url, key_env=api.key_env, concurrency=api.concurrency)

    @property
    def label(self) -> str:
        """What results call the model: its name, and behind an API its server."""
        return self.name if self.url is None else f"{self.name} at {self.url}"

    def load(self) -> Backend:
        """The model: loaded, or connected to.

        Raises:
            ModelError: nothing can be loaded under that name, or it has no chat template that popi can use.
            ConfigError: see `connect`.
        """
        if self.url is not None:
            return self.connect()
        from popi.models.local.model import LocalModel

        return LocalModel.load(
            self.name,
            dtype=self.dtype,
            device=self.device,
            chat_template=self.chat_template,
            attn_implementation=self.attn_implementation,
            adapter=self.adapter,
            quantization=self.quantization,
        )

    def connect(self) -> "ApiModel":
        """The model on its server; nothing is sent yet.

        Raises:
            ConfigError: it is behind no API, a wrong URL, an unknown protocol, or a named variable without a key.
        """
        if self.url is None:
            raise ConfigError(f"{self.name}: is behind no API; name its url")
        from popi.models.remote.api import ApiModel
        from popi.models.remote.upstream import TOTAL_S

        return ApiModel.connect(
            self.url,
            self.name,
            self.protocol,
            key_env=self.key_env,
            auth=self.auth,
            concurrency=self.concurrency,
            http=self.http,
            total_s=TOTAL_S if self.total_s is None else self.total_s,
            retries=self.retries,
            prices=self.prices,
            extra=self.extra,
        )
