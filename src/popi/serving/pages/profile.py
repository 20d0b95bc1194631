"""The pages of one profile: what is known, history, data, trying it."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from popi.errors import UpstreamError
from popi.profiles.answers import ControlsAnswer, Renewal
from popi.serving.api.routes import streamed
from popi.serving.api.service import Profiles
from popi.serving.api.stored import NotFound
from popi.serving.pages.changes import CHOICES
from popi.serving.pages.drafts import Draft
from popi.serving.pages.known import Known, known
from popi.serving.pages.render import Renderer
from popi.serving.pages.subject import Subject
from popi.serving.pages.tryout import LONGEST_PROMPT, Tryout
from popi.serving.pages.view import clause_views, reason, version_views
from popi.serving.proxy.limits import Limits
from popi.serving.proxy.logs import log_fault
from popi.serving.proxy.refusals import Refusal
from popi.serving.store.undo import Steps

SIGNALS = 20
"""Of one page."""

Page = Callable[[Request, Subject], Awaitable[Response]]


def _renewing(renewal: Renewal | None) -> str | None:
    """What is said of a renewal under way."""
    if renewal is None:
        return None
    if renewal.state == "failed":
        return "renewing_failed"
    return "renewing_later" if renewal.error is not None else "renewing"


class ProfilePages:
    """Answers to GET, by the last part of the path; and to a prompt that is tried.

    Args:
        profiles: the service.
        render: makes pages.
        tryout: asks the model.
    """

    def __init__(self, profiles: Profiles, render: Renderer, tryout: Tryout) -> None:
        self._profiles, self._render, self._tryout = profiles, render, tryout
        self._tries = Limits(0.5, 6, 2)
        self.pages: dict[str, Page] = {
            "": self.profile,
            "add": self._first,
            "edit": self._first,
            "signals": self._signals,
            "history": self._history,
            "data": self._data,
            "export": self._export,
            "erase": self._erase,
            "state": self._state,
        }
        if tryout.there:
            self.pages["try"] = self._try

    async def _first(self, request: Request, subject: Subject) -> Response:
        """From the address of a form that was not taken, to the first page."""
        return RedirectResponse(subject.base, 303)

    async def profile(self, request: Request, subject: Subject, draft: Draft | None = None) -> Response:
        """The first page; with what was typed and not taken, if there is a draft."""
        there = await self._known(subject)
        user = there.user if there is not None else None
        summary = user.summary if user is not None else None
        return await run_in_threadpool(
            lambda: self._render.page(
                request,
                "profile.html",
                200 if draft is None else 409 if draft.trouble == "conflict" else 422,
                draft=draft.on(summary) if draft is not None else None,
                subject=subject,
                user=user,
                summary=summary,
                version=summary.version if summary is not None else 0,
                clauses=clause_views(summary, there.reasons if there is not None else ()),
                choices=CHOICES,
                controls=user.controls if user is not None else ControlsAnswer(use=True, learn=True),
                steps=there.steps if there is not None else Steps(),
                renewing=_renewing(user.renewal if user is not None else None),
            )
        )

    async def _signals(self, request: Request, subject: Subject) -> Response:
        """What the user did, newest first, page by page."""
        wanted, after = request.query_params.get("q", "").strip(), request.query_params.get("after", "")
        before = int(after) if after.isascii() and after.isdigit() and len(after) < 18 else None
        try:
            found = await self._profiles.signals(subject.tenant, subject.user_id, SIGNALS + 1, before, wanted)
        except NotFound:
            found = []
        return await run_in_threadpool(
            lambda: self._render.page(
                request,
                "signals.html",
                subject=subject,
                list=[replace(reason(signal), signal=signal.id or "") for _, signal in found[:SIGNALS]],
                wanted=wanted,
                more=found[SIGNALS - 1][0] if len(found) > SIGNALS else None,
                later=before is not None,
            )
        )

    async def _state(self, request: Request, subject: Subject) -> Response:
        """The current version, for the script that tells of a newer one."""
        there = await self._known(subject)
        summary = there.user.summary if there is not None else None
        return Response(str(summary.version if summary is not None else 0), media_type="text/plain")

    async def _history(self, request: Request, subject: Subject) -> Response:
        try:
            versions = (await self._profiles.versions(subject.tenant, subject.user_id)).versions
        except NotFound:
            versions = []
        current = versions[0].version if versions else 0
        return await run_in_threadpool(
            lambda: self._render.page(
                request, "history.html", subject=subject, versions=version_views(versions), version=current
            )
        )

    async def _data(self, request: Request, subject: Subject) -> Response:
        return self._render.page(request, "data.html", subject=subject, known=await self._known(subject))

    async def _export(self, request: Request, subject: Subject) -> Response:
        headers = {"content-disposition": 'attachment; filename="about-me.json"'}
        return await streamed(self._profiles.export(subject.tenant, subject.user_id), headers)

    async def _erase(self, request: Request, subject: Subject) -> Response:
        return self._render.page(request, "erase.html", subject=subject)

    async def _try(self, request: Request, subject: Subject) -> Response:
        return await self.tried(request, subject, {})

    async def tried(self, request: Request, subject: Subject, form: dict[str, str]) -> Response:
        """The page with the answers to a prompt, if the form brings one."""
        there = await self._known(subject)
        user = there.user if there is not None and there.user.controls.use else None
        summary = user.summary.text if user is not None and user.summary is not None else ""
        prompt, answers, told = form.get("prompt", "").strip()[:LONGEST_PROMPT], None, None
        if prompt:
            try:
                answers = await self._answers(subject, prompt, summary)
            except Refusal:
                told = "slow"
            except UpstreamError as error:
                log_fault("a prompt could not be tried", error)
                told = "upstream"
        return self._render.page(
            request, "try.html", subject=subject, prompt=prompt, answers=answers, personal=bool(summary), told=told
        )

    async def _answers(self, subject: Subject, prompt: str, summary: str) -> tuple[str, str]:
        name = subject.session.session_hash  # no user id is kept to count with
        self._tries.enter(name)
        try:
            return await self._tryout.answers(subject.tenant, prompt, summary)
        finally:
            self._tries.leave(name)

    async def _known(self, subject: Subject) -> Known | None:
        store = self._profiles.store

        def read(connection: Connection) -> Known | None:
            return known(connection, subject.tenant, subject.user_id, store.database.now(connection))

        return await store.read(read)
