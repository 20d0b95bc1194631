"""One OpenTelemetry span per request. OpenTelemetry is imported only if tracing is turned on."""

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from popi.errors import ConfigError
from popi.serving.proxy.headers import Raw
from popi.serving.proxy.logs import Record


class Tracing:
    """The gateway's spans: children of the client's, parents of the upstream's.

    Uses the tracer provider if one is configured; otherwise exports over OTLP as the `OTEL_…` variables say.

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
        """Trace one request; the span's attributes come from the record as it is at the end."""
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
        """Headers whose `traceparent` names the current span, so that the upstream's spans become its children."""
        carrier: dict[str, str] = {}
        self._propagate.inject(carrier)
        trace_headers = [(name.lower().encode(), value.encode()) for name, value in carrier.items()]
        names = {name for name, _ in trace_headers}
        return [header for header in headers if header[0] not in names] + trace_headers


def _missing() -> ConfigError:
    return ConfigError("tracing needs OpenTelemetry; install it with: pip install 'popi[otel]', or turn otel off")
