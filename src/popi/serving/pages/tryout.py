"""A prompt answered with the user's summary and without, side by side. Nothing of it is kept or learned from."""

import asyncio

from popi.config.http import HttpConfig
from popi.errors import UpstreamError
from popi.models.remote.api import PROTOCOLS, ApiModel
from popi.models.remote.chat import Messages
from popi.models.remote.retries import Retries
from popi.models.remote.upstream import Upstream
from popi.serving.proxy.block import Blocks
from popi.serving.proxy.settings import ProxySettings, UpstreamSettings
from popi.serving.settings import PageSettings

LONGEST_PROMPT = 2_000
MOST_TOKENS = 400
SECONDS = 60.0


class Tryout:
    """Asks the model behind the gateway, at the upstream that the user's own chats would go to.

    Args:
        page: which model.
        proxy: where it is, and the block that a summary goes in.
        http: how it is reached.

    Raises:
        ConfigError: an upstream's key is not there.
    """

    def __init__(self, page: PageSettings, proxy: ProxySettings, http: HttpConfig) -> None:
        self._blocks, self._http, self._protocol = Blocks(proxy.block), http, page.protocol
        self._models: list[tuple[UpstreamSettings, ApiModel]] = []
        if page.model is not None:
            serving = [one for one in proxy.listed if one.serves(page.model)]
            self._models = [(one, self._model(one, page.model)) for one in serving]
        self.there = page.model is not None
        """Whether a model is named."""

    def _model(self, behind: UpstreamSettings, name: str) -> ApiModel:
        wire, api = PROTOCOLS[self._protocol], behind.api
        upstream = Upstream(
            api,
            key=behind.secret(),
            key_header=api.key_header(behind.auth, wire.protocol),
            headers=wire.headers,
            http=self._http,
            total_s=SECONDS,
            retries=Retries(0),
        )
        return ApiModel(upstream, name, wire)

    async def answers(self, tenant: str, prompt: str, summary: str) -> tuple[str, str]:
        """The answer with the summary in view, and the one without.

        Raises:
            UpstreamError: the model gave none, or no upstream serves it to this tenant.
        """
        model = next((model for one, model in self._models if one.is_for(tenant, self._protocol)), None)
        if model is None:
            raise UpstreamError("no upstream serves the page's model to this tenant")
        user = {"role": "user", "content": prompt}
        with_it: Messages = [{"role": "system", "content": self._blocks.text(summary)}, user] if summary else [user]
        async with model.upstream.session() as session:
            replies = await asyncio.gather(
                model.chat(session, with_it, MOST_TOKENS), model.chat(session, [user], MOST_TOKENS)
            )
        return replies[0].text, replies[1].text
