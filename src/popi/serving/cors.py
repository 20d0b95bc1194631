"""Let web pages of other origins call the gateway. Off unless origins are set."""

from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from popi.serving.proxy.headers import Raw
from popi.serving.proxy.refusals import Names, Refusal, answer

EXPOSED = (
    "etag",
    "request-id",
    "retry-after",
    "x-popi-answer-id",
    "x-popi-personalized",
    "x-popi-summary-version",
    "x-request-id",
)
"""Response headers that a page's script may read, besides the ones that are always allowed."""


class Cors(CORSMiddleware):
    """Starlette's CORS middleware, without cookies, and with refusals in the gateway's format.

    Args:
        app: the application that pages may call.
        origins: the pages' origins; `*` for all.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(app, allow_origins=origins, allow_methods=("*",), allow_headers=("*",), expose_headers=EXPOSED)

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        message = "pages of this origin, or with this method, may not call the gateway; see cors_origins under [server]"
        requested = request_headers.get("access-control-request-headers", "")
        _, body = answer(Refusal(403, "cors", message), "anthropic" if "anthropic-version" in requested else "openai")
        return Response(body, 403, {"vary": response.headers["vary"]}, "application/json")


def headers_below(origins: Collection[str]) -> Callable[[Names], list[Raw]]:
    """A function from request headers to CORS headers, for responses that are sent before the application is called."""

    def headers(names: Names) -> list[Raw]:
        origin = next((value for name, value in names if name == b"origin"), None)
        if origin is None or not ("*" in origins or origin.decode("latin-1") in origins):
            return []
        return [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]

    return headers
