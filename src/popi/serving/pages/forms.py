"""Read forms, and check that one of our own pages sent them."""

import hmac
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request

from popi.serving.pages.sessions import Session
from popi.serving.pages.subject import NoSession
from popi.serving.proxy.body import read_whole
from popi.serving.proxy.refusals import Refusal

MAX_FORM_BYTES = 2**16
FORM_SECONDS = 30.0
MAX_FIELDS = 50


async def read_form(request: Request, url: str | None) -> dict[str, str]:
    """Read the fields of a form.

    Args:
        request: a POST.
        url: the gateway's public URL, if set.

    Raises:
        NoSession: a page of another site sent it.
        Refusal: it is not a form, too long or too slow.
        ClientGone: the client hung up.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        if site not in ("same-origin", "none"):
            raise NoSession
    elif origin not in (None, "null"):  # an old browser without sec-fetch-site; the token is still checked
        own_hosts = (request.headers.get("host"), urlsplit(url or "").netloc)
        if urlsplit(origin).netloc not in own_hosts:
            raise NoSession
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Refusal(415, "content_type", "send a form")
    length = request.headers.get("content-length", "")
    raw = await read_whole(request.receive, int(length) if length.isdigit() else None, MAX_FORM_BYTES, FORM_SECONDS)
    try:
        fields = parse_qsl(raw.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError:
        raise Refusal(400, "form", "the form can't be read") from None
    return dict(fields)


def check_token(form: dict[str, str], session: Session) -> None:
    """Check that a form has its session's token.

    Raises:
        NoSession: the token is missing or wrong.
    """
    if not hmac.compare_digest(form.get("csrf", "").encode(), session.csrf.encode()):
        raise NoSession
