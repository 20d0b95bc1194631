"""Numbers for Prometheus. Labels hold no key, tenant or user."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
disable_created_metrics()  # a second series per counter, which nobody reads


class RenewalMetrics:
    """What a worker counts.

    Attributes:
        registry: of these alone; another one may include it.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.renewals = Counter("popi_renewals", "Renewals by this process", ("outcome",), registry=registry)
        self.calls = Counter("popi_renewal_calls", "Calls of the inference model", registry=registry)
        self.tokens = Counter(
            "popi_renewal_tokens", "Tokens of these calls, input or output", ("direction",), registry=registry
        )
        self.inference = Gauge(
            "popi_inference_up", "0 while the latest call of the inference model has failed", registry=registry
        )
        self.inference.set(1)
        self.cost = Counter("popi_renewal_cost", "Cost of these tokens, by the prices set", registry=registry)


class Metrics:
    """What the proxy counts.

    Attributes:
        registry: what `/metrics` shows; others may add to it.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def count(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=registry)

        def spread(name: str, about: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, about, labels, buckets=bounds, registry=registry)

        self.under_way = Gauge("popi_requests_under_way", "Requests under way", registry=registry)
        self.requests = count(
            "popi_requests", "Requests that were answered", "route", "status", "personalized", "upstream"
        )
        self.failures = count(
            "popi_personalization_failures", "Requests that went on without their user's summary", "reason"
        )
        self.refusals = count("popi_refusals", "Requests that the gateway refused", "reason")
        self.upstream_faults = count(
            "popi_upstream_faults",
            "Upstream calls without an answer, or with an answer that was cut",
            "kind",
            "upstream",
        )
        self.clients_gone = count("popi_clients_gone", "Requests whose client hung up before the end")
        self.before_upstream = spread(
            "popi_before_upstream_seconds",
            "From a request's headers until it goes upstream, the arrival of its body included",
            SHORT,
            "route",
        )
        self.upstream = spread(
            "popi_upstream_seconds", "From there until the upstream's headers have arrived", LONG, "route", "upstream"
        )
        self.lookup = spread("popi_summary_lookup_seconds", "Looking up a summary", SHORT)
