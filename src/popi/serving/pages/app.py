"""Dispatch requests to pages and actions. Authorisation comes before reading anything."""

import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from popi.config.http import HttpConfig
from popi.errors import AuthError, ConfigError, StoreError
from popi.profiles.answers import LinkAnswer, moment
from popi.serving.api.service import Profiles
from popi.serving.api.stored import NotFound
from popi.serving.keys import KeyRing
from popi.serving.pages.actions import Actions, Form
from popi.serving.pages.forms import check_token, read_form
from popi.serving.pages.login import CALLBACK, LOGIN_SECONDS, NotAMember, SignInFailed
from popi.serving.pages.profile import ProfilePages
from popi.serving.pages.render import Renderer, headers
from popi.serving.pages.sessions import Session, Sessions
from popi.serving.pages.settings import PageSettings
from popi.serving.pages.strings import language, preferred
from popi.serving.pages.subject import NoSession, subject_of
from popi.serving.pages.team import Team
from popi.serving.pages.tryout import Tryout
from popi.serving.proxy.body import ClientGone
from popi.serving.proxy.logs import log_fault
from popi.serving.proxy.refusals import Refusal
from popi.serving.settings import GatewaySettings
from popi.serving.store.audit import ACTOR
from popi.serving.store.threads import Store
from popi.serving.throttle import Throttle

if TYPE_CHECKING:
    from popi.serving.pages.oidc import Oidc

log = logging.getLogger("popi.gateway.pages")

COOKIES = {False: "popi_me", True: "popi_admin"}
"""Cookie names; the key says whether it is the team's."""
LOGIN_COOKIE = "popi_login"
MAX_QUERY_BYTES = 4096
LOOPBACK = ("localhost", "127.0.0.1", "::1", "testserver")
"""Hosts that browsers trust without TLS, so that cookies need not be `Secure`."""


class Pages:
    """The ASGI application of everything under `/me`, `/admin` and `/pages/`.

    Args:
        store: where sessions are stored.
        profiles: the service.
        keys: checks the team's admin keys.
        throttle: slows down clients that try wrong links and cookies.
        settings: the gateway's.
    """

    def __init__(
        self, store: Store, profiles: Profiles, keys: KeyRing, throttle: Throttle, settings: GatewaySettings
    ) -> None:
        self._profiles, self._settings, self._audit = profiles, settings.page, settings.audit
        self._log_requests = settings.proxy.log_requests
        oidc = _oidc(settings.page, settings.http) if settings.page.oidc is not None else None
        self._sessions = Sessions(store, keys, throttle, settings.page, oidc)
        tryout = Tryout(settings.page, settings.proxy, settings.http)
        self._render = Renderer(settings.page, tryout.enabled)
        self._team = Team(store, self._render, settings.renewal, profiles.reads)
        profile = ProfilePages(profiles, self._render, tryout)
        self._gets, self._posts = profile.pages, Actions(profiles, self._render, profile.profile).actions
        if tryout.enabled:
            self._posts["try"] = profile.tried

    def has(self, path: str) -> bool:
        """Whether a path belongs to the pages."""
        return path in ("/me", "/admin") or path.startswith(("/me/", "/admin/", "/pages/"))

    async def link(self, tenant: str, user_id: str, headers: dict[str, str]) -> LinkAnswer:
        """A link to a user's page (for ProfileApi)."""
        token, end = await self._sessions.link(tenant, user_id)
        root = self._settings.url
        if root is None:
            scheme = "https" if headers.get("x-forwarded-proto", "").lower() == "https" else "http"
            root = f"{scheme}://{headers.get('host', 'localhost')}"
        return LinkAnswer(url=f"{root}/me?link={token}", expires_at=moment(end))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        is_admin = request.url.path.startswith("/admin")
        page_language = self._settings.language or preferred(request.headers.get("accept-language", ""))
        language.set("en" if is_admin else page_language)
        try:
            response = await self._serve(request)
        except ClientGone:
            return
        except NoSession:
            response = self._render.message(request, "signed_out", 401)
        except NotFound:
            response = self._render.message(request, "not_found", 404)
        except Refusal as refusal:
            response = self._render.message(request, "refused", refusal.status)
        except AuthError as error:
            response = self._render.message(request, "store" if error.status == 503 else "refused", error.status)
            response.headers["retry-after"] = str(error.retry_after or 1)
        except StoreError as error:
            log_fault("the store failed", error)
            response = self._render.message(request, "store", 503)
            response.headers["retry-after"] = "1"
        except Exception as error:
            log_fault("a page failed", error)
            response = self._render.message(request, "fault", 500)
        for name, value in headers(request.url.path, self._settings.frame_ancestors).items():
            response.headers.setdefault(name, value)
        await response(scope, receive, send)
        if self._log_requests:
            fields = {"route": "pages", "method": scope["method"], "status": response.status_code}
            log.info("request", extra={"fields": fields})

    async def _serve(self, request: Request) -> Response:
        path, method = request.url.path, request.method
        if method not in ("GET", "HEAD", "POST"):
            raise Refusal(405, "no_such_method", "pages accept GET and POST")
        if len(request.scope["query_string"]) > MAX_QUERY_BYTES:
            raise Refusal(414, "query", "the query is too long")
        if path.startswith("/pages/"):
            return self._file(path)
        admin = path.startswith("/admin")
        if path == "/me" and method == "GET" and "link" in request.query_params:
            return await self._enter(request, request.query_params["link"])
        form = await read_form(request, self._settings.url) if method == "POST" else {}
        request.state.typed = form.get("text") or form.get("prompt")
        if path == "/admin/sign-in" and method == "POST":
            return await self._sign_in(request, form)
        if self._sessions.oidc is not None and method == "GET" and path in ("/admin/oidc", CALLBACK):
            return await (self._to_provider(request) if path == "/admin/oidc" else self._from_provider(request))
        session = await self._sessions.of(request.cookies.get(COOKIES[admin]), admin)
        if session is None:
            if path == "/admin":
                return self._sign_in_page(request)
            raise NoSession
        kind = "admin" if session.actor.role == "viewer" else session.actor.role
        ACTOR.set(session.actor if self._audit.retention_days and kind in self._audit.roles else None)
        if method == "POST":
            check_token(form, session)
            if path in ("/me/sign-out", "/admin/sign-out"):
                return await self._sign_out(request, session)
            if session.actor.role == "viewer":
                return self._render.message(request, "read_only", 403)
        if method == "POST" and path in self._team.actions:
            return await self._team.actions[path](request, session, form)
        if method != "POST" and path in self._team.pages:
            return await self._team.pages[path](request, session)
        return await self._of_profile(request, session, form)

    async def _of_profile(self, request: Request, session: Session, form: Form) -> Response:
        subject, name = subject_of(request, session)
        if subject.admin and not await self._profiles.tenant_exists(subject.tenant):
            raise NotFound("no_tenant", "there is no such tenant")
        if request.method == "POST" and name in self._posts:
            response = await self._posts[name](request, subject, form)
            erased = name == "erase" and response.status_code == 200
            return self._with_cookie(request, response, False, "") if erased and not subject.admin else response
        if request.method != "POST" and name in self._gets:
            page = await self._gets[name](request, subject)
            if name != "state":
                self._profiles.reads.record("export" if name == "export" else "read", subject.tenant, subject.user_id)
            return page
        raise NotFound("no_page", "there is no such page")

    def _file(self, path: str) -> Response:
        response = self._render.file(path.removeprefix("/pages/"))
        if response is None:
            raise NotFound("no_page", "there is no such file")
        return response

    # -- signing in and out ----------------------------------------------------------------------------------------

    async def _enter(self, request: Request, token: str) -> Response:
        cookie = await self._sessions.open_link(token, request.cookies.get(COOKIES[False]))
        if cookie is None:
            return self._render.message(request, "link_over", 403)
        return self._with_cookie(request, RedirectResponse("/me", 303), False, cookie)

    async def _sign_in(self, request: Request, form: Form) -> Response:
        try:
            cookie = await self._sessions.open_admin(form.get("key", ""))
        except AuthError as error:
            if error.status in (429, 503):
                raise
            return self._sign_in_page(request, wrong=True)
        return self._with_cookie(request, RedirectResponse("/admin", 303), True, cookie)

    def _sign_in_page(self, request: Request, wrong: bool = False) -> Response:
        by_provider = self._sessions.oidc is not None
        return self._render.page(request, "sign_in.html", 403 if wrong else 200, wrong=wrong, by_provider=by_provider)

    async def _to_provider(self, request: Request) -> Response:
        try:
            url, cookie = await self._sessions.begin_login()
        except SignInFailed as failed:
            return self._not_signed_in(request, failed)
        response = RedirectResponse(url, 303)
        # Not strict: the provider's site redirects back to us.
        response.set_cookie(
            LOGIN_COOKIE,
            cookie,
            max_age=int(LOGIN_SECONDS),
            path=CALLBACK,
            secure=self._secure(request),
            httponly=True,
            samesite="lax",
        )
        return response

    async def _from_provider(self, request: Request) -> Response:
        query = request.scope["query_string"].decode("latin-1")
        try:
            cookie = await self._sessions.open_member(query, request.cookies.get(LOGIN_COOKIE))
        except SignInFailed as failed:
            return self._not_signed_in(request, failed)
        except NotAMember:
            return self._render.message(request, "not_a_member", 403)
        if cookie is None:
            return self._render.message(request, "sign_in_failed", 403)
        # A page, not a redirect: browsers don't send a strict cookie while following another site's redirect.
        response = self._with_cookie(request, self._render.page(request, "continue.html"), True, cookie)
        response.delete_cookie(LOGIN_COOKIE, path=CALLBACK)
        return response

    def _not_signed_in(self, request: Request, failed: SignInFailed) -> Response:
        log.warning("a sign-in at the identity provider failed", extra={"fields": {"reason": str(failed)}})
        return self._render.message(request, "sign_in_failed", 403)

    async def _sign_out(self, request: Request, session: Session) -> Response:
        await self._sessions.end(session)
        goodbye = self._render.message(request, "goodbye", 200)
        return self._with_cookie(request, goodbye, session.user_id is None, "")

    def _with_cookie(self, request: Request, response: Response, admin: bool, cookie: str) -> Response:
        embedded = bool(self._settings.frame_ancestors) and not admin
        response.set_cookie(
            COOKIES[admin],
            cookie,
            max_age=int(self._settings.session_minutes * 60) if cookie else 0,
            path="/admin" if admin else "/me",
            secure=embedded or self._secure(request),
            httponly=True,
            # Not strict: a user who follows a link from the app must stay signed in.
            samesite="strict" if admin else "none" if embedded else "lax",
        )
        if embedded:  # one cookie per embedding site, for browsers that block third-party cookies
            name, value = response.raw_headers[-1]
            response.raw_headers[-1] = name, value + b"; Partitioned"
        return response

    def _secure(self, request: Request) -> bool:
        """Whether to mark cookies `Secure`."""
        remote = (urlsplit(f"//{request.headers.get('host', '')}").hostname or "") not in LOOPBACK
        forwarded = request.headers.get("x-forwarded-proto", "").lower() == "https"
        return remote or forwarded or (self._settings.url or "").startswith("https:")


def _oidc(page: PageSettings, http: HttpConfig) -> "Oidc":
    """The team's identity provider. Imported here so that Authlib is only needed with `[page.oidc]`.

    Raises:
        ConfigError: Authlib is not installed, or the client secret is not set.
    """
    try:
        from popi.serving.pages.oidc import Oidc
    except ModuleNotFoundError as error:
        raise ConfigError(f"[page.oidc] needs {error.name}; install it with: pip install 'popi[serve]'") from None
    assert page.oidc is not None and page.url is not None, "checked by the settings"
    return Oidc(page.oidc, page.url, http)
