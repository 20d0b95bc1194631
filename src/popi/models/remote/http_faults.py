"""What can go wrong with an outgoing request, and how it is reported."""

import re
import ssl
from typing import Literal

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from popi.config.http import HttpConfig
from popi.models.remote.http_upload import Upload

Kind = Literal["timeout", "unreachable", "certificate", "proxy", "broken"]
# aiohttp's own exceptions, and those that it does not wrap.
ERRORS = (aiohttp.ClientError, HttpProcessingError, OSError)
_AUTHORITY = "is from an authority that is not trusted here (set ca_bundle or SSL_CERT_FILE)"
_NAME = "is not for this host, or has no subjectAltName (other names are ignored)"
# By OpenSSL's verify codes (x509_vfy.h).
_CERTIFICATE = {9: "is not valid yet", 10: "has expired", 62: _NAME, 64: _NAME}
_CERTIFICATE |= dict.fromkeys(range(18, 22), _AUTHORITY)


class HttpFault(Exception):
    """There is no response, or only part of one. The message completes a sentence that starts with "the upstream".

    Attributes:
        kind: machine-readable cause.
        lasting: whether a retry would fail in the same way.
    """

    def __init__(self, kind: Kind, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.kind, self.lasting = kind, lasting


def cause(error: Exception, config: HttpConfig, upload: Upload | None, head: bool = True) -> Exception:
    """The exception to raise for an error of aiohttp, before or after the response's head."""
    if upload is not None and upload.error is not None:
        return upload.error
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return HttpFault("timeout", f"could not be reached within {config.connect_timeout_s:g} seconds")
    if isinstance(error, aiohttp.ServerTimeoutError):
        seconds = config.first_byte_timeout_s if head else config.read_timeout_s
        return HttpFault("timeout", f"sent nothing within {seconds:g} seconds")
    if isinstance(error, TimeoutError):
        sent = upload is None or upload.ended
        return HttpFault("timeout", "sent no response in time" if sent else "stopped reading the request")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return refused_by_proxy(error.status)
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return HttpFault("proxy", "can't be reached: the forward proxy does not respond")
    if (certificate := _certificate(error)) is not None:
        return HttpFault("certificate", certificate, lasting=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return HttpFault("unreachable", "can't be reached: its host name can't be resolved")
    if isinstance(error, aiohttp.ClientConnectorError):
        return HttpFault("unreachable", "can't be reached")
    return HttpFault("broken", f"closed the connection, or sent invalid HTTP ({type(error).__name__})")


def refused_by_proxy(status: int) -> HttpFault:
    """The fault if the forward proxy answers instead of the server."""
    reason = {403: "it does not allow this host", 407: "it requires a valid login"}.get(status, "")
    message = f"can't be reached: the forward proxy answered {status}{' (' + reason + ')' if reason else ''}"
    return HttpFault("proxy", message, lasting=status < 500)


def _certificate(error: BaseException | None) -> str | None:
    """What is wrong with a certificate, if the error is about one."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) and not isinstance(error, aiohttp.ClientError):
            reason = _CERTIFICATE.get(error.verify_code, "is not valid")
            return f"presents a certificate that {reason} ({error.verify_message})"
        if (
            isinstance(error, ssl.SSLError)
            and "ALERT" in str(error)
            and re.search("CERTIFICATE|UNKNOWN_CA", str(error))
        ):
            return "requires a valid client certificate (client_certificate, client_key)"
        error = error.__cause__ or error.__context__
    return None
