"""The pages of one profile: the summary, its history, the user's data, and "Try it"."""

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
from popi.serving.pages.profile_data import ProfileData, profile_data
from popi.serving.pages.render import Renderer
from popi.serving.pages.subject import Subject
from popi.serving.pages.tryout import MAX_PROMPT_CHARS, Tryout
from popi.serving.pages.view import clause_views, reason, version_views
from popi.serving.proxy.limits import Limits
from popi.serving.proxy.logs import log_fault
from popi.serving.proxy.refusals import Refusal
from popi.serving.store.undo import Steps

SIGNALS_PER_PAGE = 20
"""Maximum signals to list on one page."""

Page = Callable[[Request, Subject], Awaitable[Response]]


def _renewing(renewal: Renewal | None) -> str | None:
    """The key of the text about a pending renewal (see strings.toml), if any."""
    if renewal is None:
        return None
    if renewal.state == "failed":
        return "renewing_failed"
    return "renewing_later" if renewal.error is not None else "renewing"


class ProfilePages:
    """Handlers of GET requests, by the last part of the path, and of prompts to try.

    Args:
        profiles: the service.
        render: renders pages.
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
        if tryout.enabled:
            self.pages["try"] = self._try

    async def _first(self, request: Request, subject: Subject) -> Response:
        """Redirect a GET of a rejected form's path to the first page."""
        return RedirectResponse(subject.base, 303)

    async def profile(self, request: Request, subject: Subject, draft: Draft | None = None) -> Response:
        """The first page, with the rejected input if there is a draft."""
        data = await self._profile_data(subject)
        user = data.user if data is not None else None
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
                clauses=clause_views(summary, data.reasons if data is not None else ()),
                choices=CHOICES,
                controls=user.controls if user is not None else ControlsAnswer(use=True, learn=True),
                steps=data.steps if data is not None else Steps(),
                renewing=_renewing(user.renewal if user is not None else None),
            )
        )

    async def _signals(self, request: Request, subject: Subject) -> Response:
        """The user's signals, newest first, paginated."""
        search, after = request.query_params.get("q", "").strip(), request.query_params.get("after", "")
        before = int(after) if after.isascii() and after.isdigit() and len(after) < 18 else None
        try:
            rows = await self._profiles.signals(subject.tenant, subject.user_id, SIGNALS_PER_PAGE + 1, before, search)
        except NotFound:
            rows = []
        return await run_in_threadpool(
            lambda: self._render.page(
                request,
                "signals.html",
                subject=subject,
                list=[replace(reason(signal), signal=signal.id or "") for _, signal in rows[:SIGNALS_PER_PAGE]],
                wanted=search,
                more=rows[SIGNALS_PER_PAGE - 1][0] if len(rows) > SIGNALS_PER_PAGE else None,
                later=before is not None,
            )
        )

    async def _state(self, request: Request, subject: Subject) -> Response:
        """The current version, polled by the page's script."""
        data = await self._profile_data(subject)
        summary = data.user.summary if data is not None else None
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
        return self._render.page(request, "data.html", subject=subject, data=await self._profile_data(subject))

    async def _export(self, request: Request, subject: Subject) -> Response:
        headers = {"content-disposition": 'attachment; filename="about-me.json"'}
        return await streamed(self._profiles.export(subject.tenant, subject.user_id), headers)

    async def _erase(self, request: Request, subject: Subject) -> Response:
        return self._render.page(request, "erase.html", subject=subject)

    async def _try(self, request: Request, subject: Subject) -> Response:
        return await self.tried(request, subject, {})

    async def tried(self, request: Request, subject: Subject, form: dict[str, str]) -> Response:
        """The "Try it" page, with the answers if the form holds a prompt."""
        data = await self._profile_data(subject)
        user = data.user if data is not None and data.user.controls.use else None
        summary = user.summary.text if user is not None and user.summary is not None else ""
        prompt, answers, trouble = form.get("prompt", "").strip()[:MAX_PROMPT_CHARS], None, None
        if prompt:
            try:
                answers = await self._answers(subject, prompt, summary)
            except Refusal:
                trouble = "slow"
            except UpstreamError as error:
                log_fault("can't try a prompt", error)
                trouble = "upstream"
        return self._render.page(
            request,
            "try.html",
            subject=subject,
            prompt=prompt,
            answers=answers,
            personal=bool(summary),
            trouble=trouble,
        )

    async def _answers(self, subject: Subject, prompt: str, summary: str) -> tuple[str, str]:
        name = subject.session.session_hash  # count by session, so that no user id is kept in memory
        self._tries.enter(name)
        try:
            return await self._tryout.answers(subject.tenant, prompt, summary)
        finally:
            self._tries.leave(name)

    async def _profile_data(self, subject: Subject) -> ProfileData | None:
        store = self._profiles.store

        def read(connection: Connection) -> ProfileData | None:
            return profile_data(connection, subject.tenant, subject.user_id, store.database.now(connection))

        return await store.read(read)
