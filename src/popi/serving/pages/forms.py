"""A form that one of our own pages sent, as its fields."""

import hmac
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request

from popi.serving.pages.sessions import Session
from popi.serving.pages.subject import NoSession
from popi.serving.proxy.body import read_whole
from popi.serving.proxy.refusals import Refusal

LONGEST_FORM = 2**16
FORM_SECONDS = 30.0
MOST_FIELDS = 50


async def read_form(request: Request, url: str | None) -> dict[str, str]:
    """The fields of a form.

    Args:
        request: a POST.
        url: where users reach the gateway, where that is set.

    Raises:
        NoSession: another site's page sent it.
        Refusal: it is no form, too long, or too slow.
        ClientGone: the client hung up.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        if site not in ("same-origin", "none"):
            raise NoSession
    elif origin not in (None, "null"):  # a browser too old to say more; the token still has to fit
        known = (request.headers.get("host"), urlsplit(url or "").netloc)
        if urlsplit(origin).netloc not in known:
            raise NoSession
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Refusal(415, "content_type", "send a form")
    length = request.headers.get("content-length", "")
    raw = await read_whole(request.receive, int(length) if length.isdigit() else None, LONGEST_FORM, FORM_SECONDS)
    try:
        fields = parse_qsl(raw.decode(), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError:
        raise Refusal(400, "form", "the form can't be read") from None
    return dict(fields)


def check_token(form: dict[str, str], session: Session) -> None:
    """That a form bears the token of the session that it came in.

    Raises:
        NoSession: it does not.
    """
    if not hmac.compare_digest(form.get("csrf", "").encode(), session.csrf.encode()):
        raise NoSession
