"""The calls of the profile API as generators without I/O: requests, parsing and retries.

A flow yields a `Request` and receives its `Reply` (or has `NotReached` thrown in), or yields a `Wait`. Its return value
is the call's result. `Client` and `AsyncClient` run the same flows, so they can't diverge.

**Every call except one can be retried.** Reads and erasures are idempotent; signals and feedback are by id or content,
an import by both, and a merge because nothing is left to move after the first. Edits and rollbacks name the version
that they replace. If a connection breaks, the same request is sent again; if the gateway then reports a newer version,
comparing its content shows whether it is our own edit. Only the creation of a key is never retried if the first request
may have succeeded: that key would exist without anyone knowing it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from unicodedata import normalize
from urllib.parse import quote, urlencode

from popi.client.exchange import Flow, Request, call, checked, exchange, read
from popi.errors import GatewayError
from popi.models.remote.retries import Retries
from popi.profiles.answers import (
    AuditEntry,
    ControlsAnswer,
    Deleted,
    ExportAnswer,
    ImportAnswer,
    KeyAnswer,
    LinkAnswer,
    MergeAnswer,
    NewKeyAnswer,
    Page,
    PauseAnswer,
    Receipt,
    SignalsAnswer,
    SummaryAnswer,
    UserAnswer,
    VersionsAnswer,
)
from popi.profiles.fields import MAX_SIGNALS, Scope
from popi.profiles.requests import (
    ClauseEdit,
    Controls,
    Feedback,
    Import,
    ImportedUser,
    Merge,
    NewKey,
    Pause,
    SummaryEdit,
)
from popi.profiles.screening import visible
from popi.profiles.user_id import normal_user_id
from popi.signals.types import Signal, User

CONFLICTS = (412, 428)
"""Another version of the summary is current, or there is one although the caller saw none."""
UPLOAD_BYTES = 3 * 2**20
"""Above this size, signals are split into several uploads; the gateway accepts 4 MiB."""
PAGE = 1000
"""Entries per page of a list; the gateway's maximum."""
EDITS = 5
"""Maximum attempts of an edit when others come first."""

Change = Callable[[SummaryAnswer | None], SummaryEdit | str]


# -- calls ----------------------------------------------------------------------------------------------------------


def user(retries: Retries, user_id: str) -> Flow[UserAnswer]:
    """Counts, summary and renewal of a user."""
    return (yield from call(retries, Request("GET", _path(user_id)), UserAnswer))


def add_signals(retries: Retries, user_id: str, signals: Sequence[Signal]) -> Flow[SignalsAnswer]:
    """Upload signals, in as many requests as they need."""
    total = SignalsAnswer(ids=[], added=0, duplicates=0, ignored=0)
    for upload in _uploads(signals):
        sent = Request("POST", _path(user_id, "signals"), content=upload)
        answer = yield from call(retries, sent, SignalsAnswer)
        total.ids += answer.ids
        total.added += answer.added
        total.duplicates += answer.duplicates
        total.ignored += answer.ignored
    return total


def summary(retries: Retries, user_id: str) -> Flow[SummaryAnswer | None]:
    """The current summary; `None` if there is no summary."""
    try:
        return (yield from call(retries, Request("GET", _path(user_id, "summary")), SummaryAnswer))
    except GatewayError as error:
        if error.code in ("no_summary", "no_user"):
            return None
        raise


def put_summary(retries: Retries, user_id: str, edit: SummaryEdit, version: int | None) -> Flow[SummaryAnswer]:
    """Write a summary in place of `version`; `None` replaces any version."""
    if version is None:
        return (yield from edit_summary(retries, user_id, lambda _: edit))
    content = edit.model_dump_json(exclude_none=True).encode()
    request = Request("PUT", _path(user_id, "summary"), _if_match(version), content)
    reply, unsure = yield from exchange(retries, request)
    if unsure and reply.status in CONFLICTS:
        now = yield from summary(retries, user_id)
        if now is not None and now.version == version + 1 and _says(now, edit):
            return now
    return read(request, reply, SummaryAnswer)


def edit_summary(retries: Retries, user_id: str, change: Change) -> Flow[SummaryAnswer]:
    """Read, change and write; start over if another edit comes in between."""

    def write(current: SummaryAnswer | None) -> Flow[SummaryAnswer]:
        changed = change(current)
        edit = summary_edit(changed, None) if isinstance(changed, str) else changed
        return put_summary(retries, user_id, edit, 0 if current is None else current.version)

    return (yield from _on_current(retries, user_id, write))


def versions(retries: Retries, user_id: str) -> Flow[list[SummaryAnswer]]:
    """The stored versions, newest first."""
    answer = yield from call(retries, Request("GET", _path(user_id, "summary", "versions")), VersionsAnswer)
    return answer.versions


def rollback(retries: Retries, user_id: str, to: int, version: int | None) -> Flow[SummaryAnswer]:
    """Restore version `to` in place of `version`; `None` replaces any version."""
    if version is None:
        return (
            yield from _on_current(
                retries, user_id, lambda now: rollback(retries, user_id, to, 0 if now is None else now.version)
            )
        )
    body = json.dumps({"version": to}).encode()
    request = Request("POST", _path(user_id, "summary", "rollback"), _if_match(version), body)
    reply, unsure = yield from exchange(retries, request)
    if unsure and reply.status in CONFLICTS:
        stored = yield from versions(retries, user_id)
        target_text = next((one.text for one in stored if one.version == to), None)
        if stored and stored[0].version == version + 1 and stored[0].text == target_text:
            return stored[0]
    return read(request, reply, SummaryAnswer)


def rebuild(retries: Retries, user_id: str) -> Flow[UserAnswer]:
    """Have a summary rewritten from all signals."""
    return (yield from call(retries, Request("POST", _path(user_id, "summary", "rebuild")), UserAnswer))


def controls(retries: Retries, user_id: str) -> Flow[ControlsAnswer]:
    """A user's switches."""
    return (yield from call(retries, Request("GET", _path(user_id, "controls")), ControlsAnswer))


def set_controls(retries: Retries, user_id: str, use: bool | None, learn: bool | None) -> Flow[ControlsAnswer]:
    """Set a user's switches."""
    content = checked(Controls, use=use, learn=learn).model_dump_json(exclude_none=True).encode()
    request = Request("PUT", _path(user_id, "controls"), content=content)
    return (yield from call(retries, request, ControlsAnswer))


def feedback_fields(
    thumbs: str | None, edit: str | None, replaced_by: str | None, preferred_over: Sequence[str] | None
) -> dict[str, object]:
    """The user's action as fields of `Feedback`."""
    several = None if preferred_over is None else list(preferred_over)
    return {"thumbs": thumbs, "edit": edit, "replaced_by": replaced_by, "preferred_over": several}


def feedback(retries: Retries, user_id: str, answer: str, action: Mapping[str, object]) -> Flow[SignalsAnswer]:
    """Send what a user did with a proxied answer."""
    content = checked(Feedback, answer=answer, **action).model_dump_json(exclude_none=True).encode()
    request = Request("POST", _path(user_id, "feedback"), content=content)
    return (yield from call(retries, request, SignalsAnswer))


def delete(retries: Retries, user_id: str, *parts: str, **flags: bool) -> Flow[Deleted]:
    """Delete part of a user's data, by the parts of its path after the user's, with query flags."""
    query = "&".join(f"{name}=true" for name, value in flags.items() if value)
    path = _path(user_id, *map(_quoted, parts)) + (f"?{query}" if query else "")
    return (yield from call(retries, Request("DELETE", path), Deleted))


def export(retries: Retries, user_id: str) -> Flow[ExportAnswer]:
    """Everything that is stored about a user."""
    return (yield from call(retries, Request("GET", _path(user_id, "export")), ExportAnswer))


def training_line(retries: Retries, user_id: str) -> Flow[User]:
    """A user in the form that `popi train` reads."""
    return (yield from call(retries, Request("GET", _path(user_id, "export") + "?format=jsonl"), User))


def import_users(retries: Retries, users: Sequence[User | ImportedUser]) -> Flow[ImportAnswer]:
    """Add users, all of them or none."""
    body = checked(Import, users=[one.model_dump(exclude_none=True) for one in users])
    content = body.model_dump_json(exclude_none=True).encode()
    return (yield from call(retries, Request("POST", "/users/import", content=content), ImportAnswer))


def erase(retries: Retries, user_id: str) -> Flow[Receipt]:
    """Erase a user."""
    return (yield from call(retries, Request("DELETE", _path(user_id)), Receipt))


def merge(retries: Retries, source: str, into: str) -> Flow[MergeAnswer]:
    """Merge one user into another."""
    content = checked(Merge, source=source).model_dump_json().encode()
    request = Request("POST", _path(into, "merge"), content=content)
    reply, unsure = yield from exchange(retries, request)
    if unsure and reply.status == 404:  # merged by an earlier try, or never existed
        merged = yield from user(retries, into)
        return MergeAnswer(signals=0, duplicates=0, summary_versions=0, answers=0, keys=0, user=merged)
    return read(request, reply, MergeAnswer)


def pause(retries: Retries, user_id: str, paused: bool) -> Flow[PauseAnswer]:
    """Pause a user's personalisation, or resume it."""
    content = Pause(paused=paused).model_dump_json().encode()
    return (yield from call(retries, Request("PUT", _path(user_id, "paused"), content=content), PauseAnswer))


def link(retries: Retries, user_id: str) -> Flow[LinkAnswer]:
    """A link to the user's own page."""
    return (yield from call(retries, Request("POST", _path(user_id, "link")), LinkAnswer))


def users(retries: Retries, prefix: str, after: str) -> Flow[Page[str]]:
    """A page of a tenant's user ids."""
    path = _listing("/users", prefix=normalize("NFC", prefix), after=after)
    return (yield from call(retries, Request("GET", path), Page[str]))


def signals(retries: Retries, user_id: str, contains: str, after: str) -> Flow[Page[Signal]]:
    """A page of a user's signals."""
    path = _listing(_path(user_id, "signals"), contains=contains, after=after)
    return (yield from call(retries, Request("GET", path), Page[Signal]))


def tenants(retries: Retries, after: str) -> Flow[Page[str]]:
    """A page of the tenants' names."""
    return (yield from call(retries, Request("GET", _listing("/tenants", after=after)), Page[str]))


def keys(retries: Retries, tenant: str | None, after: str) -> Flow[Page[KeyAnswer]]:
    """A page of keys."""
    path = _listing("/keys", tenant=tenant or "", after=after)
    return (yield from call(retries, Request("GET", path), Page[KeyAnswer]))


def audit(retries: Retries, tenant: str | None, user_id: str | None, after: str) -> Flow[Page[AuditEntry]]:
    """A page of the audit log."""
    user = "" if user_id is None else normal_user_id(user_id)
    path = _listing("/audit", tenant=tenant or "", user=user, after=after)
    return (yield from call(retries, Request("GET", path), Page[AuditEntry]))


def create_key(retries: Retries, scope: Scope, tenant: str | None, user_id: str | None) -> Flow[NewKeyAnswer]:
    """Create a key; retried only if the gateway says that it did not process the request."""
    content = checked(NewKey, scope=scope, tenant=tenant, user_id=user_id).model_dump_json(exclude_none=True).encode()
    request = Request("POST", "/keys", content=content)
    reply, _ = yield from exchange(retries, request, repeatable=False)
    return read(request, reply, NewKeyAnswer)


def revoke_key(retries: Retries, key_id: str) -> Flow[KeyAnswer]:
    """Revoke a key."""
    return (yield from call(retries, Request("DELETE", "/keys/" + _quoted(key_id)), KeyAnswer))


# -- shared ---------------------------------------------------------------------------------------------------------


def _on_current(
    retries: Retries, user_id: str, write: Callable[[SummaryAnswer | None], Flow[SummaryAnswer]]
) -> Flow[SummaryAnswer]:
    """Read the current version and write in its place; start over if another version came in between."""
    for last in (*[False] * (EDITS - 1), True):
        current = yield from summary(retries, user_id)
        try:
            return (yield from write(current))
        except GatewayError as error:
            if last or error.status not in CONFLICTS:
                raise
    raise AssertionError("unreachable")


def summary_edit(text: str | None, clauses: Sequence[ClauseEdit] | None) -> SummaryEdit:
    """The body of an edit.

    Raises:
        DataError: both or neither are given, or one of them is too long.
    """
    return checked(SummaryEdit, text=text, clauses=None if clauses is None else list(clauses))


def _path(user_id: str, *more: str) -> str:
    return "/".join(("/users", _quoted(normal_user_id(user_id)), *more))


def _quoted(name: str) -> str:
    # "." and ".." would be resolved as path segments, and the path would be another user's.
    return name.replace(".", "%2E") if name in (".", "..") else quote(name, safe="")


def _listing(path: str, **query: str) -> str:
    given = urlencode({name: value for name, value in {**query, "limit": str(PAGE)}.items() if value})
    return f"{path}?{given}"


def _if_match(version: int) -> dict[str, str]:
    return {"if-match": f'"{version}"'} if version else {}


def _says(answer: SummaryAnswer, edit: SummaryEdit) -> bool:
    """Whether an answer is the result of an edit, from which the gateway removes invisible characters."""
    if edit.clauses is None:
        return answer.text == visible(edit.text or "").strip()
    expected = [(visible(clause.text).strip(), clause.locked) for clause in edit.clauses]
    return [(clause.text, clause.locked) for clause in answer.clauses] == expected


def _uploads(signals: Sequence[Signal]) -> list[bytes]:
    uploads: list[list[bytes]] = [[]]
    size = 0
    for signal in signals:
        one = signal.model_dump_json(exclude_none=True).encode()
        if uploads[-1] and (len(uploads[-1]) == MAX_SIGNALS or size + len(one) > UPLOAD_BYTES):
            uploads.append([])
            size = 0
        uploads[-1].append(one)
        size += len(one) + 1
    return [b'{"signals":[' + b",".join(upload) + b"]}" for upload in uploads if upload]
