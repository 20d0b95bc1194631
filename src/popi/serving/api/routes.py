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
from popi.serving.api.requests import ANY_ID, JSONL, AnyCall, SeenVersion, UserCall, body_of, route
from popi.serving.proxy.refusals import Refusal
from popi.serving.store import users
from popi.signals.types import Signal

Text = Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")]
Limit = Annotated[int, Query(ge=1, le=1000)]
ETAG = {"headers": {"ETag": {"schema": {"type": "string"}, "description": "The version, to send in If-Match."}}}
LINE = {"content": {JSONL: {"schema": {"$ref": "#/components/schemas/User-Input"}}}}

router = APIRouter(prefix="/users")


def split_page(rows: list[Any], limit: int) -> tuple[list[Any], Any]:
    """The first `limit` rows, and the last of them if there are more. Query `limit + 1` rows to find out."""
    return rows[:limit], rows[limit - 1] if len(rows) > limit else None


@router.get("", **route(scopes=("admin", "app"), query="prefix after limit"))
async def list_users(call: AnyCall, prefix: Text = "", after: Text = "", limit: Limit = 100) -> Page[str]:
    """List the ids of a tenant's users that begin with `prefix`, sorted and paginated."""
    prefix = normalize("NFC", prefix)
    ids = await call.profiles.store.read(users.list_ids, call.tenant, after or None, limit + 1, prefix)
    call.profiles.reads.record("list", call.tenant)
    page, last = split_page(ids, limit)
    return Page(items=page, next=last)


@router.post("/import", **route(scopes=("admin", "app"), body=Import))
async def import_users(call: AnyCall, body: Annotated[Import, body_of(Import)]) -> ImportAnswer:
    """Add users, or add signals to existing users, from JSON or from JSONL with one user per line. All or nothing."""
    return await call.profiles.import_users(call.tenant, body.users, call.author, call.caller.key_id)


@router.get("/{id}", **route(404))
async def get_user(call: UserCall) -> UserAnswer:
    """Get one user."""
    return call.record_read("read", await call.profiles.user(call.tenant, call.user_id))


@router.delete("/{id}", **route())
async def erase_user(call: UserCall) -> Receipt:
    """Erase a user: signals, summaries, renewals and keys, including their bytes on disk."""
    return await call.profiles.erase(call.tenant, call.user_id)


@router.post("/{id}/merge", **route(404, scopes=("admin", "app"), body=Merge))
async def merge_users(call: UserCall, body: Annotated[Merge, body_of(Merge)]) -> MergeAnswer:
    """Merge another user's signals, summaries and keys into this one, and remove the other user for good."""
    return await call.profiles.merge(call.tenant, call.user_id, body.source, call.caller.key_id)


@router.post("/{id}/signals", **route(body=SignalsUpload))
async def add_signals(call: UserCall, body: Annotated[SignalsUpload, body_of(SignalsUpload)]) -> SignalsAnswer:
    """Add signals. Sending the same signals again changes nothing."""
    return await call.profiles.add_signals(call.tenant, call.user_id, body.signals, call.caller.key_id)


@router.get("/{id}/signals", **route(404, query="contains after limit"))
async def list_signals(
    call: UserCall,
    contains: Text = "",
    after: Annotated[int | None, Query(ge=0, le=2**62)] = None,
    limit: Limit = 100,
) -> Page[Signal]:
    """List a user's signals, newest first, paginated; `contains` filters by text, ignoring case."""
    page, last = split_page(await call.profiles.signals(call.tenant, call.user_id, limit + 1, after, contains), limit)
    return call.record_read(
        "read", Page(items=[signal for _, signal in page], next=None if last is None else str(last[0]))
    )


@router.get("/{id}/summary", **route(404, answer=ETAG))
async def get_summary(call: UserCall, response: Response) -> SummaryAnswer:
    """Get the current summary."""
    return _with_version(response, call.record_read("read", await call.profiles.summary(call.tenant, call.user_id)))


@router.put("/{id}/summary", **route(412, 428, body=SummaryEdit, answer=ETAG))
async def put_summary(
    call: UserCall, response: Response, seen: SeenVersion, body: Annotated[SummaryEdit, body_of(SummaryEdit)]
) -> SummaryAnswer:
    """Write a summary by hand. If there is one already, If-Match must name the version that you read."""
    written = await call.profiles.put_summary(call.tenant, call.user_id, body, call.author, seen)
    return _with_version(response, written)


@router.get("/{id}/summary/versions", response_model=VersionsAnswer, **route(404))
async def get_versions(call: UserCall) -> Response:
    """List a summary's versions, newest first."""
    return call.record_read("read", await streamed(call.profiles.all_versions(call.tenant, call.user_id)))


@router.post("/{id}/summary/rollback", **route(404, 412, body=Rollback, answer=ETAG))
async def rollback(
    call: UserCall, response: Response, seen: SeenVersion, body: Annotated[Rollback, body_of(Rollback)]
) -> SummaryAnswer:
    """Restore an old version's content as a new version."""
    written = await call.profiles.rollback(call.tenant, call.user_id, body.version, call.author, seen)
    return _with_version(response, written)


@router.post("/{id}/summary/rebuild", **route(404, 409))
async def rebuild(call: UserCall) -> UserAnswer:
    """Request a summary written from all signals, rather than updated with the new ones."""
    return await call.profiles.rebuild(call.tenant, call.user_id, call.caller.key_id)


@router.delete("/{id}/summary/clauses/{clause_id}", **route(404, query="signals forbid"))
async def delete_clause(call: UserCall, clause_id: ClauseId, signals: bool = False, forbid: bool = False) -> Deleted:
    """Delete a clause from every version. `signals` also deletes the signals it rests on; `forbid` bans it from future
    summaries without storing its words."""
    user = call.tenant, call.user_id
    return await call.profiles.delete_clause(*user, clause_id, call.author, signals=signals, forbid=forbid)


@router.delete("/{id}/summary/versions/{version}", **route(404))
async def delete_version(call: UserCall, version: Annotated[int, Path(ge=1, le=2**62)]) -> Deleted:
    """Delete a version. If it is the current one, the previous version becomes current under a new number."""
    return await call.profiles.delete_version(call.tenant, call.user_id, version, call.author)


@router.delete("/{id}/summary/forbidden/{forbidden_id}/words", **route(404))
async def delete_words(call: UserCall, forbidden_id: ClauseId) -> Deleted:
    """Delete the words of a forbidden clause, from every version too. A hash remains, so it stays forbidden."""
    return await call.profiles.delete_words(call.tenant, call.user_id, forbidden_id, call.author)


@router.delete("/{id}/signals/{signal_id}", **route(404))
async def delete_signal(call: UserCall, signal_id: Annotated[str, Path(json_schema_extra=dict(ANY_ID))]) -> Deleted:
    """Delete a signal, and the clauses that rest on it, from every version."""
    return await call.profiles.delete_signal(call.tenant, call.user_id, _decoded(signal_id), call.caller.key_id)


@router.get("/{id}/export", response_model=ExportAnswer, **route(404, 409, query="format", answer=LINE))
async def export(call: UserCall, format: Literal["json", "jsonl"] = "json") -> Response:
    """Export everything stored about a user as JSON or, with format=jsonl, as a line for `popi train`."""
    if format == "json":
        return call.record_read("export", await streamed(call.profiles.export(call.tenant, call.user_id)))
    line = call.record_read("export", await call.profiles.training_line(call.tenant, call.user_id))
    return Response(json.dumps(line.model_dump(exclude_none=True), ensure_ascii=False) + "\n", media_type=JSONL)


@router.get("/{id}/controls", **route())
async def get_controls(call: UserCall) -> ControlsAnswer:
    """Get the user's two switches; both are on by default."""
    return call.record_read("read", await call.profiles.controls(call.tenant, call.user_id))


@router.put("/{id}/controls", **route(body=Controls))
async def set_controls(call: UserCall, body: Annotated[Controls, body_of(Controls)]) -> ControlsAnswer:
    """Set whether the user's profile is used and whether popi learns from them. The user need not exist yet."""
    return await call.profiles.set_controls(call.tenant, call.user_id, body.use, body.learn, call.caller.key_id)


@router.put("/{id}/paused", **route(body=Pause))
async def pause(call: UserCall, body: Annotated[Pause, body_of(Pause)]) -> PauseAnswer:
    """Turn both switches off, or on again."""
    on = not body.paused
    now = await call.profiles.set_controls(call.tenant, call.user_id, on, on, call.caller.key_id)
    return PauseAnswer(paused=not now.use)


@router.post("/{id}/feedback", **route(404, 409, body=Feedback))
async def feedback(call: UserCall, body: Annotated[Feedback, body_of(Feedback)]) -> SignalsAnswer:
    """Turn a user's feedback on a proxied answer into a signal, for tenants that opted in to capture."""
    return await call.profiles.feedback(call.tenant, call.user_id, body, call.caller.key_id)


@router.post("/{id}/link", **route(scopes=("admin", "app")))
async def make_link(call: UserCall, request: Request) -> LinkAnswer:
    """Create a short-lived link to the user's page."""
    if call.services.link is None:
        raise Refusal(404, "no_pages", "this gateway serves no pages")
    return call.record_read("link", await call.services.link(call.tenant, call.user_id, dict(request.headers)))


def _decoded(name: str) -> str:
    """Decode a percent-encoded id from a path."""
    try:
        return unquote(name, errors="strict")
    except UnicodeDecodeError:
        raise Refusal(400, "signal_id", "the signal's id in the path is not percent-encoded UTF-8") from None


def _with_version(response: Response, answer: SummaryAnswer) -> SummaryAnswer:
    response.headers["etag"] = f'"{answer.version}"'
    return answer


async def streamed(pieces: AsyncIterator[str], headers: dict[str, str] | None = None) -> Response:
    """A streamed response. Reads the first piece before it begins, so that an error can still become a refusal."""
    first = await anext(pieces)

    async def whole() -> AsyncIterator[str]:
        yield first
        async for piece in pieces:
            yield piece

    return StreamingResponse(whole(), headers=headers, media_type="application/json")
