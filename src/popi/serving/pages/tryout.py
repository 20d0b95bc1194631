"""Answer a prompt with and without the user's summary, side by side. Nothing is stored or learned from it."""

import asyncio

from popi.config.http import HttpConfig
from popi.errors import UpstreamError
from popi.models.backend import Messages
from popi.models.remote.api import PROTOCOLS, ApiModel
from popi.models.remote.retries import Retries
from popi.models.remote.upstream import Upstream
from popi.serving.pages.settings import PageSettings
from popi.serving.proxy.block import Blocks
from popi.serving.proxy.settings import ProxySettings, UpstreamSettings

MAX_PROMPT_CHARS = 2_000
MAX_TOKENS = 400
TIMEOUT_S = 60.0


class Tryout:
    """Asks the model behind the gateway, at the upstream that serves the user's own chats.

    Args:
        page: names the model.
        proxy: the upstreams, and the block for summaries.
        http: settings for outgoing connections.

    Raises:
        ConfigError: an upstream's key is missing.
    """

    def __init__(self, page: PageSettings, proxy: ProxySettings, http: HttpConfig) -> None:
        self._blocks, self._http, self._protocol = Blocks(proxy.block), http, page.protocol
        self._models: list[tuple[UpstreamSettings, ApiModel]] = []
        if page.model is not None:
            serving = [one for one in proxy.all_upstreams if one.serves(page.model)]
            self._models = [(one, self._model(one, page.model)) for one in serving]
        self.enabled = page.model is not None
        """Whether the settings name a model."""

    def _model(self, settings: UpstreamSettings, name: str) -> ApiModel:
        wire, api = PROTOCOLS[self._protocol], settings.api
        upstream = Upstream(
            api,
            key=settings.secret(),
            key_header=api.key_header(settings.auth, wire.protocol),
            headers=wire.headers,
            http=self._http,
            total_s=TIMEOUT_S,
            retries=Retries(0),
        )
        return ApiModel(upstream, name, wire)

    async def answers(self, tenant: str, prompt: str, summary: str) -> tuple[str, str]:
        """The answers with and without the summary.

        Raises:
            UpstreamError: the model failed, or no upstream serves it to this tenant.
        """
        model = next((model for one, model in self._models if one.is_for(tenant, self._protocol)), None)
        if model is None:
            raise UpstreamError("no upstream serves the page's model to this tenant")
        user = {"role": "user", "content": prompt}
        personalised: Messages = (
            [{"role": "system", "content": self._blocks.text(summary)}, user] if summary else [user]
        )
        async with model.upstream.session() as session:
            replies = await asyncio.gather(
                model.chat(session, personalised, MAX_TOKENS), model.chat(session, [user], MAX_TOKENS)
            )
        return replies[0].text, replies[1].text
