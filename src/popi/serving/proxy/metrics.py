"""Prometheus metrics. Labels never hold a key, tenant or user."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
disable_created_metrics()  # they add a second, unused series per counter


class RenewalMetrics:
    """A worker's metrics.

    Attributes:
        registry: holds only these metrics; another registry may include it.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.renewals = Counter("popi_renewals", "Renewals run by this process", ("outcome",), registry=registry)
        self.calls = Counter("popi_renewal_calls", "Calls to the inference model", registry=registry)
        self.tokens = Counter(
            "popi_renewal_tokens", "Input and output tokens of these calls", ("direction",), registry=registry
        )
        self.inference = Gauge(
            "popi_inference_up", "0 if the latest call to the inference model failed, else 1", registry=registry
        )
        self.inference.set(1)
        self.cost = Counter("popi_renewal_cost", "Cost of these tokens at the configured prices", registry=registry)


class Metrics:
    """The proxy's metrics.

    Attributes:
        registry: shown at `/metrics`; other parts may add to it.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=registry)

        def histogram(name: str, about: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, about, labels, buckets=bounds, registry=registry)

        self.in_flight = Gauge("popi_requests_in_flight", "Requests in flight", registry=registry)
        self.requests = counter("popi_requests", "Answered requests", "route", "status", "personalized", "upstream")
        self.failures = counter(
            "popi_personalization_failures",
            "Requests sent upstream without their user's summary because of a fault",
            "reason",
        )
        self.refusals = counter("popi_refusals", "Requests refused by the gateway", "reason")
        self.upstream_failures = counter(
            "popi_upstream_failures",
            "Upstream calls with no answer or a truncated one",
            "kind",
            "upstream",
        )
        self.client_disconnects = counter("popi_client_disconnects", "Requests whose client hung up before the end")
        self.before_upstream = histogram(
            "popi_before_upstream_seconds",
            "Time from a request's headers until it is sent upstream, including the arrival of its body",
            SHORT,
            "route",
        )
        self.upstream = histogram(
            "popi_upstream_seconds",
            "Time from sending a request upstream until the response headers arrive",
            LONG,
            "route",
            "upstream",
        )
        self.lookup = histogram("popi_summary_lookup_seconds", "Time to look up a summary", SHORT)
