"""`GET /v1/models` with several upstreams: merge their lists, in the client's API format."""

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from popi.models.remote.http import HttpFault
from popi.serving.proxy.headers import Raw
from popi.serving.proxy.logs import LOGGER
from popi.serving.proxy.refusals import Dialect, Refusal
from popi.serving.proxy.upstream import Upstream

TIMEOUT_S = 10.0
"""Maximum seconds for an upstream to list its models."""
MAX_LIST_BYTES = 2**24
"""Maximum bytes of an upstream's list."""

Entry = dict[str, Any]


async def merged_models(upstreams: Sequence[Upstream], dialect: Dialect, failed: Callable[[str], None]) -> bytes:
    """The models of all upstreams as a JSON response, without duplicates: if two list a model, the first serves it.

    Upstreams are asked with the gateway's own keys. If one fails or has no list, the models that its settings name are
    listed.

    Args:
        upstreams: those that the tenant may use.
        dialect: the response's format.
        failed: called with the name of each upstream that failed.

    Raises:
        Refusal: 502, all upstreams failed and no settings name a model.
    """
    lists = await asyncio.gather(*(_list(one, failed) for one in upstreams))
    models: dict[str, Entry] = {}
    for upstream, entries in zip(upstreams, lists, strict=True):
        listed = {name: (entries or {}).get(name, {"id": name}) for name in upstream.names}
        listed |= {name: entry for name, entry in (entries or {}).items() if upstream.settings.serves(name)}
        for name, entry in listed.items():
            if name not in models:
                models[name] = _as_openai(entry, upstream.name) if dialect == "openai" else _as_anthropic(entry)
    if not models and upstreams and all(entries is None for entries in lists):
        raise Refusal(502, "upstream_models", "no upstream listed its models; the gateway's log says why")
    data = list(models.values())
    if dialect == "openai":
        return json.dumps({"object": "list", "data": data}).encode()
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return json.dumps({"data": data, "has_more": False, **ends}).encode()


def model_in(path: str) -> str | None:
    """The model in a path of the form `/v1/models/{model}`, if it is one."""
    return unquote(path.removeprefix("/v1/models/")) or None if path.startswith("/v1/models/") else None


async def _list(upstream: Upstream, failed: Callable[[str], None]) -> dict[str, Entry] | None:
    """The models that an upstream lists, by id; None, with a log entry, if it failed."""
    headers: list[Raw] = [(b"accept", b"application/json"), (b"accept-encoding", b"identity")]
    if (key := upstream.keys.get(upstream.lists_as)) is not None:
        headers.append(key)
    anthropic = upstream.lists_as == "anthropic"
    if anthropic:
        headers.append((b"anthropic-version", b"2023-06-01"))
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reply = await upstream.send("GET", "/models", "limit=1000" if anthropic else "", headers, None)
            try:
                content = await reply.whole(MAX_LIST_BYTES)
            finally:
                reply.close()
        if reply.status in (404, 405) and upstream.names:
            return {}  # no list, but the settings name its models, as for Azure's deployments
        if reply.status != 200:
            raise HttpFault("broken", f"answered {reply.status}")
        entries = json.loads(content)["data"]
        return {one["id"]: one for one in entries if isinstance(one["id"], str)}
    except (Refusal, HttpFault, TimeoutError, ValueError, LookupError, TypeError, RecursionError) as error:
        reason = str(error) if isinstance(error, (Refusal, HttpFault)) else type(error).__name__
        fields = {"upstream": upstream.name, "reason": reason}
        LOGGER.warning("an upstream failed to list its models", extra={"fields": fields})
        failed(upstream.name)
        return None


def _as_openai(entry: Entry, owner: str) -> Entry:
    if entry.get("object") == "model":
        return entry
    created = 0
    try:
        created = int(datetime.fromisoformat(entry["created_at"]).timestamp())
    except (LookupError, TypeError, ValueError):
        pass
    return {"id": entry["id"], "object": "model", "created": created, "owned_by": owner}


def _as_anthropic(entry: Entry) -> Entry:
    if entry.get("type") == "model":
        return entry
    created = entry.get("created")
    moment = datetime.fromtimestamp(created if isinstance(created, int) and 0 <= created < 2**33 else 0, UTC)
    shown = next((name for key in ("display_name", "name") if isinstance(name := entry.get(key), str)), entry["id"])
    return {
        "type": "model",
        "id": entry["id"],
        "display_name": shown,
        "created_at": moment.isoformat().replace("+00:00", "Z"),
    }
