"""Fixtures of the proxy's tests."""

from collections.abc import Iterator

import pytest
from unit.serving.proxy.recording import (
    FakeKeys,
    FakeSummaries,
    RecordingUpstream,
    RunningGateway,
    recording_upstream,
    running_gateway,
)


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningGateway]:
    with recording_upstream() as upstream, running_gateway(upstream) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: RunningGateway) -> Iterator[RunningGateway]:
    """A gateway with the default settings; what a test changes in its parts is put back."""
    shared.upstream.reply = RecordingUpstream().reply
    shared.upstream.received.clear()
    vars(shared.keys).update(vars(FakeKeys()))
    vars(shared.summaries).update(vars(FakeSummaries()))
    yield shared


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    """An upstream of this test's own, for gateways with other settings."""
    with recording_upstream() as server:
        yield server
