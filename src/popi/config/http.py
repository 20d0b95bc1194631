"""HTTP settings of every request that popi sends: proxy, certificates, limits."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from popi.config.read import explain, read_tree
from popi.config.section import Section

VARIABLE = "POPI_HTTP"
"""Environment variable that names a TOML file with these settings, for commands that call model APIs."""


class HttpConfig(Section):
    """How popi connects to the model API, the inference model and the token issuer."""

    renamed: ClassVar[Mapping[str, str]] = {
        "connect_s": "connect_timeout_s",
        "first_byte_s": "first_byte_timeout_s",
        "silence_s": "read_timeout_s",
    }

    proxy: str | None = None
    """Forward proxy for all requests (`http://host:3128`). Unset: HTTPS_PROXY and HTTP_PROXY from the environment;
    put a login there, not here (`http://user:password@host:3128`). Hosts in NO_PROXY are always reached directly."""
    ca_bundle: str | None = Field(default=None, min_length=1)
    """PEM file with the only certificate authorities to trust. Unset: the system's, or SSL_CERT_FILE and
    SSL_CERT_DIR."""
    client_certificate: str | None = Field(default=None, min_length=1)
    """PEM file with a client certificate, for servers that require one; includes its key unless `client_key` is set."""
    client_key: str | None = Field(default=None, min_length=1)
    """PEM file with the unencrypted key of `client_certificate`."""
    connect_timeout_s: PositiveFloat = 10.0
    """Timeout in seconds for connecting, including TLS and the wait for a free connection (`connections`)."""
    first_byte_timeout_s: PositiveFloat = 600.0
    """Timeout in seconds from the end of a request to the start of its response."""
    read_timeout_s: PositiveFloat = 600.0
    """Maximum seconds without a byte while a response arrives or a request's body is sent."""
    connections: PositiveInt = 1000
    """Maximum connections in use at once to each server, per process."""
    keepalive_s: float = Field(default=4.0, ge=0)
    """Seconds to keep an idle connection. Choose less than the server's own limit (often 5), or a request may hit a
    connection that is being closed."""

    @model_validator(mode="after")
    def _key_of_a_certificate(self) -> Self:
        if self.client_key is not None and self.client_certificate is None:
            raise ValueError("client_key needs client_certificate")
        return self


def http_of_environment() -> HttpConfig:
    """Settings for calling model APIs, with shorter timeouts than a gateway's.

    Raises:
        ConfigError: the file in POPI_HTTP can't be read, or a setting in it is wrong.
    """
    file = os.environ.get(VARIABLE)
    settings: dict[str, Any] = {"first_byte_timeout_s": 120.0, "read_timeout_s": 120.0} | (
        read_tree(file) if file else {}
    )
    try:
        return HttpConfig(**settings)
    except ValidationError as error:
        raise explain(error, f"{VARIABLE}={file}", HttpConfig) from None
