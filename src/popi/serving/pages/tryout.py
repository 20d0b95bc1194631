"""A prompt answered with the user's summary and without, side by side. Nothing of it is kept or learned from."""

import asyncio

from popi.backends.api import PROTOCOLS, ApiModel
from popi.backends.chat import Messages
from popi.backends.retries import Retries
from popi.backends.upstream import Upstream
from popi.config.http import HttpConfig
from popi.serving.proxy.block import Blocks
from popi.serving.proxy.settings import ProxySettings
from popi.serving.settings import PageSettings

LONGEST_PROMPT = 2_000
MOST_TOKENS = 400
SECONDS = 60.0


class Tryout:
    """Asks the model behind the gateway.

    Args:
        page: which model.
        proxy: where it is, and the block that a summary goes in.
        http: how it is reached.
    """

    def __init__(self, page: PageSettings, proxy: ProxySettings, http: HttpConfig) -> None:
        self._model: ApiModel | None = None
        self._blocks = Blocks(proxy.block)
        if page.model is not None:
            wire = PROTOCOLS[page.protocol]
            root = proxy.upstream + ("/v1" if page.protocol == "openai" else "")
            upstream = Upstream(
                wire.base(root),
                key=proxy.upstream_key,
                key_header=wire.key_header,
                headers=wire.headers,
                http=http,
                total_s=SECONDS,
                retries=Retries(0),
            )
            self._model = ApiModel(upstream, page.model, wire)

    @property
    def there(self) -> bool:
        """Whether a model is named."""
        return self._model is not None

    async def answers(self, prompt: str, summary: str) -> tuple[str, str]:
        """The answer with the summary in view, and the one without.

        Raises:
            UpstreamError: the model gave none.
        """
        assert self._model is not None
        user = {"role": "user", "content": prompt}
        with_it: Messages = [{"role": "system", "content": self._blocks.text(summary)}, user] if summary else [user]
        async with self._model.upstream.session() as session:
            replies = await asyncio.gather(
                self._model.chat(session, with_it, MOST_TOKENS), self._model.chat(session, [user], MOST_TOKENS)
            )
        return replies[0].text, replies[1].text
