"""How servers are reached over HTTP: proxy, certificates, limits. The same for every request that popi sends."""

import os
from typing import Any, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from popi.config.read import explain, read_tree
from popi.config.section import Section

VARIABLE = "POPI_HTTP"
"""Environment variable that names a TOML file of these settings, for commands that ask model APIs."""


class HttpConfig(Section):
    """How the model API, the inference model and the issuer of tokens are reached, each of them."""

    proxy: str | None = None
    """Forward proxy for all requests (`http://host:3128`). A login belongs into the environment, whose HTTPS_PROXY and
    HTTP_PROXY count where this is unset (`http://user:password@host:3128`). Hosts in NO_PROXY are reached directly
    either way."""
    ca_bundle: str | None = Field(default=None, min_length=1)
    """PEM file with the certificate authorities to trust, and no others. Unset: the system's, or SSL_CERT_FILE and
    SSL_CERT_DIR."""
    client_certificate: str | None = Field(default=None, min_length=1)
    """PEM file with a client certificate, and its key unless `client_key` has that, for servers that ask for one."""
    client_key: str | None = Field(default=None, min_length=1)
    """PEM file with the key of `client_certificate`, not encrypted."""
    connect_s: PositiveFloat = 10.0
    """Seconds to connect, including TLS and the wait for one of the `connections`."""
    first_byte_s: PositiveFloat = 600.0
    """Seconds from the end of a request to the start of its answer."""
    silence_s: PositiveFloat = 600.0
    """Seconds without a byte while an answer arrives, or while the server should be taking a request's body."""
    connections: PositiveInt = 1000
    """Maximum connections in use at once, per process."""
    keepalive_s: float = Field(default=4.0, ge=0)
    """Seconds to keep an idle connection. Choose less than the server does (5 for many), or a request may meet a
    connection that is just being closed."""

    @model_validator(mode="after")
    def _key_of_a_certificate(self) -> Self:
        if self.client_key is not None and self.client_certificate is None:
            raise ValueError("client_key needs client_certificate")
        return self


def http_of_environment() -> HttpConfig:
    """Settings for model APIs, with less patience than a gateway has.

    Raises:
        ConfigError: the file in POPI_HTTP can't be read, or a setting in it is wrong.
    """
    file = os.environ.get(VARIABLE)
    given: dict[str, Any] = {"first_byte_s": 120.0, "silence_s": 120.0} | (read_tree(file) if file else {})
    try:
        return HttpConfig(**given)
    except ValidationError as error:
        raise explain(error, f"{VARIABLE}={file}", HttpConfig) from None
