"""A page of another origin, in a real browser, chats with a user key and reads answers, streams and errors."""

from pathlib import Path
from typing import Any

from chromium import chromium, needs_chromium, new_page
from page_stack import served
from starlette.responses import HTMLResponse
from unit.serving.proxy.recording import fixed, recording_upstream

from popi.serving.app import Gateway
from popi.serving.keys import create
from popi.serving.proxy.settings import ProxySettings
from popi.serving.settings import GatewaySettings, ServerSettings
from popi.serving.store.database import Database

ASK = """async ([url, key]) => {
  const headers = {authorization: `Bearer ${key}`, "content-type": "application/json", "x-stainless-os": "MacOS"}
  const body = JSON.stringify({model: "m", stream: true, messages: [{role: "user", content: "hi"}]})
  try {
    const reply = await fetch(url, {method: "POST", headers, body})
    return [reply.status, reply.headers.get("x-popi-personalized"), await reply.text()]
  } catch (error) { return [error.name] }
}"""


async def page_app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await HTMLResponse("<title>an app</title><link rel=icon href=data:,>")(scope, receive, send)


@needs_chromium
def test_a_browser_app_with_a_user_key(tmp_path: Path) -> None:
    with recording_upstream() as upstream, served(page_app) as page_url:
        upstream.reply = fixed(b"data: [DONE]\n\n", "200 OK", "Content-Type: text/event-stream")
        database = Database.open(f"sqlite:///{tmp_path}/popi.db")
        key = create(database, "user", "shop", "ada")[0]
        settings = GatewaySettings(
            proxy=ProxySettings(upstream=upstream.url, summary_timeout_ms=20_000.0),
            server=ServerSettings(cors_origins=(page_url,)),
        )
        with served(Gateway(database, settings)) as url, chromium() as browser:
            chat = f"{url}/v1/chat/completions"
            page = new_page(browser)
            page.goto(page_url)
            assert page.evaluate(ASK, [chat, key]) == [200, "none", "data: [DONE]\n\n"]
            status, _, body = page.evaluate(ASK, [chat, "popi_wrong"])
            assert status == 401 and '"not_authenticated"' in body
            page.goto(page_url.replace("127.0.0.1", "localhost"))  # another origin
            assert page.evaluate(ASK, [chat, key]) == ["TypeError"]
        assert len(upstream.received) == 1
