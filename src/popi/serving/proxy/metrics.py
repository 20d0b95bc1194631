"""Numbers for Prometheus. No key, tenant or user is in them.

Counted in plain dictionaries, all in the event loop's thread, and put into Prometheus' form when somebody looks: its
own counters take a lock each time, and a chat passes a dozen of them.
"""

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Count:
    """How often something happened, by the values of its labels."""

    def __init__(self, name: str, about: str, labels: tuple[str, ...] = ()) -> None:
        self._name, self._about, self._labels = name, about, labels
        self._counts: dict[tuple[str, ...], int] = {} if labels else {(): 0}

    def add(self, *labels: str) -> None:
        """Once more."""
        self._counts[labels] = self._counts.get(labels, 0) + 1

    def collect(self) -> Metric:
        family = CounterMetricFamily(self._name, self._about, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        return family


class Spread:
    """How long something took, by the value of its one label, where it has one."""

    def __init__(self, name: str, about: str, bounds: tuple[float, ...], label: str | None = None) -> None:
        self._name, self._about, self._bounds, self._label = name, about, bounds, label
        self._seen: dict[str, tuple[list[int], list[float]]] = {}

    def add(self, seconds: float, label: str = "") -> None:
        """One more of so many seconds."""
        seen = self._seen.get(label)
        if seen is None:
            seen = self._seen[label] = ([0] * (len(self._bounds) + 1), [0.0])
        seen[0][bisect_left(self._bounds, seconds)] += 1  # a bound belongs to what is below it
        seen[1][0] += seconds

    def collect(self) -> Metric:
        family = HistogramMetricFamily(self._name, self._about, labels=(self._label,) if self._label else ())
        for label, (counts, total) in self._seen.items():
            upto, buckets = 0, []
            for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
                upto += count
                buckets.append((bound, float(upto)))
            family.add_metric((label,) if self._label else (), buckets, total[0])
        return family


class Metrics(Collector):
    """What the proxy counts.

    Attributes:
        registry: what `/metrics` shows; others may add to it.
        under_way: requests that have come and are not answered to their end.
    """

    def __init__(self) -> None:
        self.under_way = 0
        self.requests = Count("popi_requests", "Requests that were answered", ("route", "status", "personalized"))
        self.failures = Count(
            "popi_personalization_failures", "Requests that went on without their user's summary", ("reason",)
        )
        self.refusals = Count("popi_refusals", "Requests that the gateway refused", ("reason",))
        self.upstream_faults = Count(
            "popi_upstream_faults", "Upstream calls without an answer, or cut amid it", ("kind",)
        )
        self.clients_gone = Count("popi_clients_gone", "Requests whose client hung up before the end")
        self.before_upstream = Spread(
            "popi_before_upstream_seconds",
            "From a request's headers until it goes upstream, its body's arrival included",
            SHORT,
            "route",
        )
        self.upstream = Spread(
            "popi_upstream_seconds", "From there until the upstream's headers are here", LONG, "route"
        )
        self.lookup = Spread("popi_summary_lookup_seconds", "Looking a summary up", SHORT)
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("popi_requests_under_way", "Requests under way", self.under_way)
        for one in (self.requests, self.failures, self.refusals, self.upstream_faults, self.clients_gone):
            yield one.collect()
        for spread in (self.before_upstream, self.upstream, self.lookup):
            yield spread.collect()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
