"""Render pages: templates, static files and response headers."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import Response

from popi.errors import ConfigError
from popi.profiles.answers import moment
from popi.serving.pages.colour import style
from popi.serving.pages.settings import LOGOS, PageSettings
from popi.serving.pages.strings import say, when

HERE = Path(__file__).parent
STATIC = {
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


def headers(path: str, ancestors: Sequence[str]) -> dict[str, str]:
    """The headers of a response. `ancestors` may embed users' pages; the team's pages can't be embedded."""
    if not ancestors or not (path == "/me" or path.startswith("/me/")):
        return HEADERS
    policy = HEADERS["content-security-policy"].replace(
        "frame-ancestors 'none'", f"frame-ancestors {' '.join(ancestors)}"
    )
    return {name: value for name, value in HEADERS.items() if name != "x-frame-options"} | {
        "content-security-policy": policy
    }


TROUBLES = ("conflict", "empty", "none_chosen", "too_long", "too_many", "not_fit", "slow", "upstream")
DONE = (
    "edit",
    "add",
    "choose",
    "lock",
    "unlock",
    "forbid",
    "allow",
    "undo",
    "redo",
    "restore",
    "tell",
    "untell",
    "delete",
    "delete_signal",
    "delete_version",
    "delete_words",
    "use_on",
    "use_off",
    "learn_on",
    "learn_off",
)
TEAM_TROUBLES = ("nothing_to_retry",)
TEAM_DONE = ("retried",)
SAYINGS = TROUBLES + DONE + TEAM_TROUBLES + TEAM_DONE
"""Allowed values of `?said=`: a page never shows text from its URL."""


class Renderer:
    """Renders pages.

    Args:
        page: the product's name, its app's URL and so on.
        can_try: whether to show "Try it".
    """

    def __init__(self, page: PageSettings, can_try: bool) -> None:
        self._files = {name: ((HERE / "static" / name).read_bytes(), kind) for name, kind in STATIC.items()}
        if page.colour is not None:
            self._files["colour.css"] = style(page.colour).encode(), STATIC["style.css"]
        if page.logo is not None:
            self._files["logo"] = _read(page.logo), LOGOS[page.logo.suffix.lower()]
        stamp = sha256(b"".join(content for content, _ in self._files.values())).hexdigest()[:12]
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.globals.update(
            t=say,
            product=page.name,
            stamp=stamp,
            can_try=can_try,
            troubles=TROUBLES + TEAM_TROUBLES,
            app_url=page.app,
            colour=page.colour,
            logo=page.logo,
        )
        self._templates.filters.update(when=when, iso=lambda at: at.isoformat())
        self._templates.filters.update(at=moment, number=lambda value: f"{value:,}")

    def page(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """Render a template; its values are escaped."""
        saying = request.query_params.get("said", "")
        defaults: dict[str, Any] = {
            "subject": None,
            "said": saying if saying in SAYINGS else None,
            "template": template,
        }
        text = self._templates.get_template(template).render(defaults | values)
        return Response(text, status, media_type="text/html")

    def message(self, request: Request, name: str, status: int) -> Response:
        """A page with a message and, so that it can be copied, the text that the person had typed."""
        typed = getattr(request.state, "typed", None)
        return self.page(request, "message.html", status, what=name, typed=typed)

    def file(self, name: str) -> Response | None:
        """A style sheet, script or image; None if there is no such file."""
        if name not in self._files:
            return None
        content, kind = self._files[name]
        file_headers = {"cache-control": "public, max-age=31536000, immutable", "content-type": kind}
        return Response(content, headers=file_headers)


def _read(logo: Path) -> bytes:
    try:
        return logo.read_bytes()
    except OSError as error:
        raise ConfigError(f"page.logo {str(logo)!r} can't be read: {error.strerror}") from None
