"""The routes under `/users`."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from unicodedata import normalize
from urllib.parse import unquote

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from popi.profiles.answers import (
    ControlsAnswer,
    Deleted,
    ExportAnswer,
    ImportAnswer,
    LinkAnswer,
    MergeAnswer,
    Page,
    PauseAnswer,
    Receipt,
    SignalsAnswer,
    SummaryAnswer,
    UserAnswer,
    VersionsAnswer,
)
from popi.profiles.fields import ClauseId
from popi.profiles.requests import Controls, Feedback, Import, Merge, Pause, Rollback, SignalsUpload, SummaryEdit
from popi.serving.api.requests import ANY_ID, JSONL, Anybody, OfUser, Seen, body_of, route
from popi.serving.proxy.refusals import Refusal
from popi.serving.store import users
from popi.signals.types import Signal

Text = Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")]
Limit = Annotated[int, Query(ge=1, le=1000)]
ETAG = {"headers": {"ETag": {"schema": {"type": "string"}, "description": "The version, for If-Match."}}}
LINE = {"content": {JSONL: {"schema": {"$ref": "#/components/schemas/User-Input"}}}}

router = APIRouter(prefix="/users")


def paged(found: list[Any], limit: int) -> tuple[list[Any], Any]:
    """The first `limit` of what was asked one more for; and the last of these, where that one is there."""
    return found[:limit], found[limit - 1] if len(found) > limit else None


@router.get("", **route(scopes=("admin", "app"), query="prefix after limit"))
async def list_users(call: Anybody, prefix: Text = "", after: Text = "", limit: Limit = 100) -> Page[str]:
    """The ids of a tenant's users that begin with `prefix`, in order, page by page."""
    prefix = normalize("NFC", prefix)
    found = await call.profiles.store.read(users.list_ids, call.tenant, after or None, limit + 1, prefix)
    call.profiles.reads.saw("list", call.tenant)
    page, last = paged(found, limit)
    return Page(items=page, next=last)


@router.post("/import", **route(scopes=("admin", "app"), body=Import))
async def import_users(call: Anybody, body: Annotated[Import, body_of(Import)]) -> ImportAnswer:
    """Add users, or signals to users: JSON, or JSONL with one user per line. All of them or none."""
    return await call.profiles.import_users(call.tenant, body.users, call.author, call.caller.key_id)


@router.get("/{id}", **route(404))
async def get_user(call: OfUser) -> UserAnswer:
    """One user."""
    return call.saw("read", await call.profiles.user(call.tenant, call.user_id))


@router.delete("/{id}", **route())
async def erase_user(call: OfUser) -> Receipt:
    """Erase a user: signals, summaries, renewals, their keys, and the bytes."""
    return await call.profiles.erase(call.tenant, call.user_id)


@router.post("/{id}/merge", **route(404, scopes=("admin", "app"), body=Merge))
async def merge_users(call: OfUser, body: Annotated[Merge, body_of(Merge)]) -> MergeAnswer:
    """Make another user part of this one: their signals, summaries, keys. The other is gone; there is no way back."""
    return await call.profiles.merge(call.tenant, call.user_id, body.source, call.caller.key_id)


@router.post("/{id}/signals", **route(body=SignalsUpload))
async def add_signals(call: OfUser, body: Annotated[SignalsUpload, body_of(SignalsUpload)]) -> SignalsAnswer:
    """Add signals. Sending the same again changes nothing."""
    return await call.profiles.add_signals(call.tenant, call.user_id, body.signals, call.caller.key_id)


@router.get("/{id}/signals", **route(404, query="contains after limit"))
async def list_signals(
    call: OfUser,
    contains: Text = "",
    after: Annotated[int | None, Query(ge=0, le=2**62)] = None,
    limit: Limit = 100,
) -> Page[Signal]:
    """A user's signals, newest first, page by page; `contains`: those with these words, in any case."""
    page, last = paged(await call.profiles.signals(call.tenant, call.user_id, limit + 1, after, contains), limit)
    return call.saw("read", Page(items=[signal for _, signal in page], next=None if last is None else str(last[0])))


@router.get("/{id}/summary", **route(404, answer=ETAG))
async def get_summary(call: OfUser, response: Response) -> SummaryAnswer:
    """The current summary."""
    return _with_version(response, call.saw("read", await call.profiles.summary(call.tenant, call.user_id)))


@router.put("/{id}/summary", **route(412, 428, body=SummaryEdit, answer=ETAG))
async def put_summary(
    call: OfUser, response: Response, seen: Seen, body: Annotated[SummaryEdit, body_of(SummaryEdit)]
) -> SummaryAnswer:
    """Write a summary by hand. Where there is one, If-Match must name the version that was seen."""
    written = await call.profiles.put_summary(call.tenant, call.user_id, body, call.author, seen)
    return _with_version(response, written)


@router.get("/{id}/summary/versions", response_model=VersionsAnswer, **route(404))
async def get_versions(call: OfUser) -> Response:
    """The versions of a summary, newest first."""
    return call.saw("read", await streamed(call.profiles.all_versions(call.tenant, call.user_id)))


@router.post("/{id}/summary/rollback", **route(404, 412, body=Rollback, answer=ETAG))
async def rollback(
    call: OfUser, response: Response, seen: Seen, body: Annotated[Rollback, body_of(Rollback)]
) -> SummaryAnswer:
    """Make an old version's content the newest version."""
    written = await call.profiles.rollback(call.tenant, call.user_id, body.version, call.author, seen)
    return _with_version(response, written)


@router.post("/{id}/summary/rebuild", **route(404, 409))
async def rebuild(call: OfUser) -> UserAnswer:
    """Have the summary written from all signals, instead of renewed from those that came since."""
    return await call.profiles.rebuild(call.tenant, call.user_id, call.caller.key_id)


@router.delete("/{id}/summary/clauses/{clause_id}", **route(404, query="signals forbid"))
async def delete_clause(call: OfUser, clause_id: ClauseId, signals: bool = False, forbid: bool = False) -> Deleted:
    """Delete a statement from every version. `signals`: what it rests on, too. `forbid`: it must not be said again, and
    no words of it are kept."""
    who = call.tenant, call.user_id
    return await call.profiles.delete_clause(*who, clause_id, call.author, signals=signals, forbid=forbid)


@router.delete("/{id}/summary/versions/{version}", **route(404))
async def delete_version(call: OfUser, version: Annotated[int, Path(ge=1, le=2**62)]) -> Deleted:
    """Delete a version. Instead of the current one the one before it is current, under the next number."""
    return await call.profiles.delete_version(call.tenant, call.user_id, version, call.author)


@router.delete("/{id}/summary/forbidden/{forbidden_id}/words", **route(404))
async def delete_words(call: OfUser, forbidden_id: ClauseId) -> Deleted:
    """Delete the words of what is forbidden, from every version, too. It stays forbidden: a hash is kept."""
    return await call.profiles.delete_words(call.tenant, call.user_id, forbidden_id, call.author)


@router.delete("/{id}/signals/{signal_id}", **route(404))
async def delete_signal(call: OfUser, signal_id: Annotated[str, Path(json_schema_extra=dict(ANY_ID))]) -> Deleted:
    """Delete a signal, and the statements that rest on it, from every version."""
    return await call.profiles.delete_signal(call.tenant, call.user_id, _plain(signal_id), call.caller.key_id)


@router.get("/{id}/export", response_model=ExportAnswer, **route(404, 409, query="format", answer=LINE))
async def export(call: OfUser, format: Literal["json", "jsonl"] = "json") -> Response:
    """Everything stored of a user as JSON; or (format=jsonl) as the line that `popi train` reads."""
    if format == "json":
        return call.saw("export", await streamed(call.profiles.export(call.tenant, call.user_id)))
    line = call.saw("export", await call.profiles.training_line(call.tenant, call.user_id))
    return Response(json.dumps(line.model_dump(exclude_none=True), ensure_ascii=False) + "\n", media_type=JSONL)


@router.get("/{id}/controls", **route())
async def get_controls(call: OfUser) -> ControlsAnswer:
    """How the user's two switches stand; both are on until somebody sets them."""
    return call.saw("read", await call.profiles.controls(call.tenant, call.user_id))


@router.put("/{id}/controls", **route(body=Controls))
async def set_controls(call: OfUser, body: Annotated[Controls, body_of(Controls)]) -> ControlsAnswer:
    """Whether what is known of a user is used, and whether they are learned from; also of one of whom nothing is known
    yet."""
    return await call.profiles.set_controls(call.tenant, call.user_id, body.use, body.learn, call.caller.key_id)


@router.put("/{id}/paused", **route(body=Pause))
async def pause(call: OfUser, body: Annotated[Pause, body_of(Pause)]) -> PauseAnswer:
    """Both switches at once: off, or on again."""
    on = not body.paused
    now = await call.profiles.set_controls(call.tenant, call.user_id, on, on, call.caller.key_id)
    return PauseAnswer(paused=not now.use)


@router.post("/{id}/feedback", **route(404, 409, body=Feedback))
async def feedback(call: OfUser, body: Annotated[Feedback, body_of(Feedback)]) -> SignalsAnswer:
    """What the user did with a proxied answer becomes a signal. For tenants that opted in to capture."""
    return await call.profiles.feedback(call.tenant, call.user_id, body, call.caller.key_id)


@router.post("/{id}/link", **route(scopes=("admin", "app")))
async def make_link(call: OfUser, request: Request) -> LinkAnswer:
    """Make a link that opens the user's page for a short time."""
    if call.services.link is None:
        raise Refusal(404, "no_pages", "this gateway serves no pages")
    return call.saw("link", await call.services.link(call.tenant, call.user_id, dict(request.headers)))


def _plain(name: str) -> str:
    """An id in a path, which is percent-encoded."""
    try:
        return unquote(name, errors="strict")
    except UnicodeDecodeError:
        raise Refusal(400, "signal_id", "the signal's id in the path is not UTF-8 text, percent-encoded") from None


def _with_version(response: Response, answer: SummaryAnswer) -> SummaryAnswer:
    response.headers["etag"] = f'"{answer.version}"'
    return answer


async def streamed(pieces: AsyncIterator[str], headers: dict[str, str] | None = None) -> Response:
    """An answer piece by piece. The first is read before it begins: then there is still time to refuse."""
    first = await anext(pieces)

    async def whole() -> AsyncIterator[str]:
        yield first
        async for piece in pieces:
            yield piece

    return StreamingResponse(whole(), headers=headers, media_type="application/json")
