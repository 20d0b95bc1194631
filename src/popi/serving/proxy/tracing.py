"""A span a request, with OpenTelemetry: only where the flag is set, and only then imported."""

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from popi.errors import ConfigError
from popi.serving.proxy.headers import Raw
from popi.serving.proxy.logs import Record


class Tracing:
    """Spans of the gateway, between the client's and the upstream's.

    An operator who has set OpenTelemetry up keeps that; otherwise spans go by OTLP to where the `OTEL_…` variables say.

    Raises:
        ConfigError: the packages are missing.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import propagate, trace
        except ImportError:
            raise _missing() from None
        self._trace, self._propagate = trace, propagate
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            try:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
                from opentelemetry.sdk.trace import TracerProvider
                from opentelemetry.sdk.trace.export import BatchSpanProcessor
            except ImportError:
                raise _missing() from None
            os.environ.setdefault("OTEL_SERVICE_NAME", "popi-gateway")
            provider = TracerProvider()
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
            trace.set_tracer_provider(provider)
        self._tracer = trace.get_tracer("popi.gateway")

    @contextmanager
    def span(self, raw: list[Raw], record: Record) -> Iterator[None]:
        """Around one request. What the record says at its end is what the span says."""
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
        with self._tracer.start_as_current_span(
            f"popi {record.route}", self._propagate.extract(carrier), kind=self._trace.SpanKind.SERVER
        ) as span:
            try:
                yield
            finally:
                attributes: MutableMapping[str, Any] = {
                    "http.request.method": record.method,
                    "http.response.status_code": record.status,
                    "popi.route": record.route,
                    "popi.upstream": record.upstream,
                    "popi.personalized": record.personalized,
                    "popi.summary_version": record.version,
                    "popi.reason": record.reason,
                }
                span.set_attributes({name: value for name, value in attributes.items() if value is not None})
                if record.status >= 500:
                    span.set_status(self._trace.StatusCode.ERROR)

    def inject(self, headers: list[Raw]) -> list[Raw]:
        """Headers whose `traceparent` names the current span, so that the upstream's spans hang below it."""
        carrier: dict[str, str] = {}
        self._propagate.inject(carrier)
        ours = [(name.lower().encode(), value.encode()) for name, value in carrier.items()]
        names = {name for name, _ in ours}
        return [header for header in headers if header[0] not in names] + ours


def _missing() -> ConfigError:
    return ConfigError("tracing needs OpenTelemetry; install it with: pip install 'popi[otel]', or turn otel off")
