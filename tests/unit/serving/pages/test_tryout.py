"""What "Try it" asks: the upstream that the user's own chats go to."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from providers import KEY, Providers, serving

from popi.config.http import HttpConfig
from popi.errors import UpstreamError
from popi.serving.pages.settings import PageSettings
from popi.serving.pages.tryout import Tryout
from popi.serving.proxy.settings import ProxySettings, UpstreamSettings


@pytest.fixture(scope="module")
def providers() -> Iterator[Providers]:
    with serving() as server:
        yield server


def tryout(providers: Providers, **page: Any) -> Tryout:
    def one(name: str, path: str, *models: str, **more: Any) -> UpstreamSettings:
        return UpstreamSettings(name=name, url=providers.url + path, models=models, **more)

    upstreams = (
        one("azure", "/openai/deployments/gpt-4o?api-version=2024-10-21", "gpt-4o", key=KEY, auth="api-key"),
        one("zai", "/api/paas/v4", "glm-*", key=KEY, tenants=("shop",), protocol="openai"),
        one("zai-anthropic", "/api/anthropic", "glm-*", key=KEY, protocol="anthropic"),
    )
    return Tryout(PageSettings(**page), ProxySettings(upstreams=upstreams), HttpConfig())


@pytest.mark.parametrize(
    ("page", "target"),
    [
        ({"model": "gpt-4o"}, "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"),
        ({"model": "glm-4.6"}, "/api/paas/v4/chat/completions"),
        ({"model": "glm-4.6", "protocol": "anthropic"}, "/api/anthropic/v1/messages"),
    ],
)
def test_it_asks_where_chats_go(providers: Providers, page: dict[str, str], target: str) -> None:
    providers.arrived.clear()
    answers = asyncio.run(tryout(providers, **page).answers("shop", "hi", "Likes tea."))
    assert answers == ("Likes short answers.",) * 2 and {one.target for one in providers.arrived} == {target}


def test_a_tenant_that_may_not(providers: Providers) -> None:
    for model, tenant in (("glm-4.6", "other"), ("unheard-of", "shop")):
        trying = tryout(providers, model=model)
        assert trying.enabled
        with pytest.raises(UpstreamError, match="no upstream serves"):
            asyncio.run(trying.answers(tenant, "hi", ""))
    assert not tryout(providers).enabled
