"""Counts and spreads in Prometheus' form."""

from prometheus_client import generate_latest

from popi.serving.proxy.metrics import Metrics


def test_a_spread_by_hand() -> None:
    """1 ms is within its bound; 2 s are beyond all of them."""
    metrics = Metrics()
    for seconds in (0.001, 0.0011, 2.0):
        metrics.before_upstream.labels("chat").observe(seconds)
    value = metrics.registry.get_sample_value
    name = "popi_before_upstream_seconds"
    assert value(f"{name}_bucket", {"route": "chat", "le": "0.0005"}) == 0
    assert value(f"{name}_bucket", {"route": "chat", "le": "0.001"}) == 1
    assert value(f"{name}_bucket", {"route": "chat", "le": "0.0025"}) == 2
    assert value(f"{name}_bucket", {"route": "chat", "le": "1.0"}) == 2
    assert value(f"{name}_bucket", {"route": "chat", "le": "+Inf"}) == 3
    assert value(f"{name}_count", {"route": "chat"}) == 3
    assert value(f"{name}_sum", {"route": "chat"}) == 0.001 + 0.0011 + 2.0


def test_counts_and_the_page() -> None:
    metrics = Metrics()
    metrics.refusals.labels("rate").inc()
    metrics.refusals.labels("rate").inc()
    metrics.lookup.observe(0.01)
    metrics.in_flight.set(3)
    page = generate_latest(metrics.registry).decode()
    assert 'popi_refusals_total{reason="rate"} 2.0' in page
    assert "# TYPE popi_refusals_total counter" in page or "# TYPE popi_refusals counter" in page
    assert "popi_client_disconnects_total 0.0" in page
    assert "popi_requests_in_flight 3.0" in page
    assert 'popi_summary_lookup_seconds_bucket{le="0.01"} 1.0' in page
