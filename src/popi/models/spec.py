"""`ModelSpec`: the description of a model, used everywhere. Imports nothing heavy.

Run configs, grids, judges, the gateway's `[inference]` and the command line's options each build one; `load` turns it
into a backend.
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
"""Folder of `nano`, the base model shipped with popi."""
SMOLLM2 = "smollm2"
SMOLLM2_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def model_path(name: str | Path) -> str:
    """A model name for other libraries: `nano` becomes the folder shipped with popi, `smollm2` its hub id."""
    return {"nano": str(NANO), SMOLLM2: SMOLLM2_ID}.get(str(name), str(name))


@dataclass(frozen=True)
class ModelSpec:
    """A model, where it runs, and how to load or call it.

    Without `url` it is loaded locally, using the fields from `dtype` to `quantization`.
    With `url` it is on that server, called with the fields from `url` on.

    Attributes:
        name: `nano`, `smollm2`, a folder (of a model or of an adapter), a GGUF file, or a hub id (owner/name,
            owner/name/file.gguf); with `url`, the model's name on its server.
        templates: its set of prompt templates; `auto` is the one that it was saved with, or `default`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        attn_implementation: attention by transformers' name; `auto` lets transformers choose.
        chat_template: Jinja text or a file, replacing the tokenizer's own.
        adapter: the folder of an adapter to apply to the model.
        quantization: of the base: `none`, `8bit` or `4bit`, by bitsandbytes on a GPU.
        url: the server's base URL, without /chat/completions or, for `anthropic`, without /v1/messages.
        protocol: `openai` or `anthropic`. vLLM uses `openai` and can also score responses.
        key_env: the environment variable that holds the key; by default OPENAI_API_KEY or ANTHROPIC_API_KEY, and no key
            if that is not set.
        auth: how the key is sent; see `ApiUrl.key_header`.
        concurrency: maximum concurrent requests.
        extra: fields to add to every request; None removes one.
        prices: per million tokens, to compute the cost.
        http: proxies, certificates, time limits; by default those configured by POPI_HTTP.
        retries: when to retry.
        total_s: timeout of one attempt of a request, in seconds.
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
        """A local model of a run: its base, or a model that the run saved to a folder."""
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
        """The generator configured by `[model.api_generator]`.

        Raises:
            ConfigError: if its server or its name is missing.
        """
        if api.url is None or api.name is None:
            raise ConfigError("model.api_generator needs both url and name: the server, and the model's name on it")
        from popi.models.remote.retries import Retries

        retries = Retries(api.retries)
        return cls(api.name, templates, url=api.url, key_env=api.key_env, concurrency=api.concurrency, retries=retries)

    @property
    def label(self) -> str:
        """The model's name in results, including its server if it is behind an API."""
        return self.name if self.url is None else f"{self.name} at {self.url}"

    def load(self) -> Backend:
        """Load the model, or connect to its server.

        Raises:
            ModelError: if the model can't be loaded, or has no chat template that popi can use.
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
        """The model on its server. Sends nothing yet.

        Raises:
            ConfigError: if there is no URL or an invalid one, the protocol is unknown, or `key_env` has no key.
        """
        if self.url is None:
            raise ConfigError(f"{self.name}: is not behind an API; set its url")
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
