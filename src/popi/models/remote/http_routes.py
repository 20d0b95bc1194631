"""The way to a server: forward proxies, certificates and client certificates."""

import os
import ssl
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from popi.config.http import HttpConfig
from popi.errors import ConfigError
from popi.models.remote.http_faults import HttpFault


def proxy_for(config: HttpConfig, scheme: str, host: str, port: int) -> URL | None:
    """The forward proxy for a server. The URL from the environment may contain a login, so it is never shown."""
    if proxy_bypass(f"{host}:{port}"):
        return None
    value = config.proxy or getproxies().get(scheme)
    if not value:
        return None
    url = proxy_url(value)
    if url is None:
        raise HttpFault("proxy", "can't be reached: HTTPS_PROXY or HTTP_PROXY is not http://host:port", lasting=True)
    return url


def proxy_url(value: str) -> URL | None:
    """A forward proxy's URL; `None` if it is not one."""
    try:
        url = URL(value if "://" in value else f"http://{value}")
    except ValueError:
        return None
    return url if url.scheme in ("http", "https") and url.host else None


def tls_context(config: HttpConfig) -> ssl.SSLContext:
    """Trusted authorities and the client certificate.

    Raises:
        ConfigError: a file has no certificates, or not in the expected form.
    """
    file = os.environ.get("SSL_CERT_FILE")
    if config.ca_bundle is None and file and not os.path.isfile(file):
        raise ConfigError(f"SSL_CERT_FILE: there is no file {file}")  # OpenSSL would silently trust no certificates
    try:
        context = ssl.create_default_context(cafile=config.ca_bundle)
    except OSError as error:
        raise ConfigError(
            f"ca_bundle: {config.ca_bundle} has no PEM certificates ({error.strerror or error})"
        ) from None
    if config.client_certificate is not None:
        try:
            # Without a password, OpenSSL would prompt for one on the terminal.
            context.load_cert_chain(config.client_certificate, config.client_key, password="")
        except OSError as error:
            raise ConfigError(
                f"client_certificate: {config.client_certificate} is not a PEM certificate with its unencrypted key "
                f"({error.strerror or error})"
            ) from None
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["http/1.1"])
    return context
