"""Handle the forms of a profile's pages. Each redirects to a page that reports the result."""

from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from popi.errors import DataError
from popi.profiles.answers import Deleted
from popi.profiles.screening import Unfit
from popi.serving.api.service import Profiles
from popi.serving.api.stored import NotFound
from popi.serving.pages.changes import CHANGES, BadForm
from popi.serving.pages.drafts import TYPED, Draft, draft_of
from popi.serving.pages.render import Renderer
from popi.serving.pages.subject import Subject
from popi.serving.store.summaries import VersionConflict

Form = dict[str, str]
Again = Callable[[Request, Subject, Draft], Awaitable[Response]]
Action = Callable[[Request, Subject, Form], Awaitable[Response]]


class Actions:
    """Handlers of POST requests, by the last part of the path.

    Args:
        profiles: the service.
        render: renders pages.
        again: renders the first page again, with the rejected input.
    """

    def __init__(self, profiles: Profiles, render: Renderer, again: Again) -> None:
        self._profiles, self._render, self._again = profiles, render, again
        self.actions: dict[str, Action] = {
            **{name: self._change for name in CHANGES},
            "undo": self._step,
            "redo": self._step,
            "restore": self._restore,
            "delete": self._delete_clause,
            "delete-signal": self._delete_signal,
            "delete-version": self._delete_version,
            "delete-words": self._delete_words,
            "use": self._switch,
            "learn": self._switch,
            "erase": self._erase,
        }

    async def _change(self, request: Request, subject: Subject, form: Form) -> Response:
        name = _last(request)
        trouble, unfit = await self._changed(subject, name, form)
        if trouble is None:
            return back(subject, "", name)
        if name in TYPED:
            return await self._again(request, subject, draft_of(name, form, trouble, unfit))
        return back(subject, "", trouble)

    async def _changed(self, subject: Subject, name: str, form: Form) -> tuple[str | None, Unfit | None]:
        """Make a change; returns the problem (one of render.TROUBLES), if any."""
        try:
            user = await self._profiles.user(subject.tenant, subject.user_id)
            summary = user.summary
        except NotFound:
            summary = None
        version = summary.version if summary is not None else 0
        if form.get("version") != str(version):
            return "conflict", None
        try:
            edit = CHANGES[name](summary, form)
            await self._profiles.put_summary(subject.tenant, subject.user_id, edit, subject.author, version)
        except BadForm as bad:
            return bad.saying, None
        except VersionConflict:
            return "conflict", None
        except ValidationError:  # the texts' lengths are valid, so there are too many
            return "too_many", None
        except Unfit as unfit:
            return "not_fit", unfit
        except DataError:  # the text has no visible characters
            return "empty", None
        return None, None

    async def _delete_clause(self, request: Request, subject: Subject, form: Form) -> Response:
        options = {"signals": form.get("signals") == "yes", "forbid": form.get("forbid") == "yes"}
        name = form.get("clause", "")
        done = self._profiles.delete_clause(subject.tenant, subject.user_id, name, subject.author, **options)
        return await self._deleted(subject, "", "delete", done)

    async def _delete_signal(self, request: Request, subject: Subject, form: Form) -> Response:
        done = self._profiles.delete_signal(subject.tenant, subject.user_id, form.get("signal", ""))
        page = "signals" if form.get("listed") == "yes" else ""
        return await self._deleted(subject, page, "delete_signal", done, form.get("q", ""))

    async def _delete_version(self, request: Request, subject: Subject, form: Form) -> Response:
        version = _number(form, "to") or 0
        done = self._profiles.delete_version(subject.tenant, subject.user_id, version, subject.author)
        return await self._deleted(subject, "history", "delete_version", done)

    async def _delete_words(self, request: Request, subject: Subject, form: Form) -> Response:
        name = form.get("clause", "")
        done = self._profiles.delete_words(subject.tenant, subject.user_id, name, subject.author)
        return await self._deleted(subject, "", "delete_words", done)

    async def _deleted(
        self, subject: Subject, page: str, saying: str, done: Awaitable[Deleted], q: str = ""
    ) -> Response:
        try:
            await done
        except NotFound:
            return back(subject, page, "conflict")
        except DataError:
            return back(subject, page, "too_many")
        return back(subject, page, saying, q)

    async def _step(self, request: Request, subject: Subject, form: Form) -> Response:
        name = _last(request)
        steps = await self._profiles.steps(subject.tenant, subject.user_id)
        to = steps.undo if name == "undo" else steps.redo
        return await self._go_back(subject, to, _number(form, "version"), "", name, step=True)

    async def _restore(self, request: Request, subject: Subject, form: Form) -> Response:
        return await self._go_back(subject, _number(form, "to"), _number(form, "version"), "history", "restore")

    async def _go_back(
        self, subject: Subject, version: int | None, expected: int | None, page: str, saying: str, step: bool = False
    ) -> Response:
        if version is None or expected is None:
            return back(subject, page, "conflict")
        try:
            await self._profiles.rollback(subject.tenant, subject.user_id, version, subject.author, expected, step)
        except (VersionConflict, NotFound):
            return back(subject, page, "conflict")
        except DataError:
            return back(subject, page, "not_fit")
        return back(subject, page, saying)

    async def _switch(self, request: Request, subject: Subject, form: Form) -> Response:
        name, value = _last(request), form.get("on")
        if value not in ("yes", "no"):
            return back(subject, "", "conflict")
        on = value == "yes"
        use, learn = (on, None) if name == "use" else (None, on)
        await self._profiles.set_controls(subject.tenant, subject.user_id, use, learn)
        return back(subject, "", f"{name}_{'on' if on else 'off'}")

    async def _erase(self, request: Request, subject: Subject, form: Form) -> Response:
        if form.get("sure") != "yes":
            return self._render.page(request, "erase.html", 422, subject=subject)
        receipt = await self._profiles.erase(subject.tenant, subject.user_id)
        return self._render.page(request, "erased.html", receipt=receipt, admin=subject.admin)


def back(subject: Subject, page: str, saying: str, q: str = "") -> Response:
    """Redirect to a page of the profile that reports the result (one of render.SAYINGS); `q`: its search text."""
    path = f"{subject.base}/{page}" if page else subject.base
    return RedirectResponse(f"{path}?said={saying}{'&' + urlencode({'q': q}) if q else ''}", 303)


def _last(request: Request) -> str:
    return request.url.path.rpartition("/")[2]


def _number(form: Form, name: str) -> int | None:
    text = form.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else None
