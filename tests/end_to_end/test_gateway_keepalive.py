import http.client
import time
from pathlib import Path

import pytest
from end_to_end.gateway_process import running

pytestmark = pytest.mark.timed


def test_an_idle_connection_of_a_client_is_kept_as_long_as_was_set(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text("[proxy]\nclient_keepalive_s = 2\n")  # uvicorn's own are 5
    with running(f"sqlite:///{tmp_path}/popi.db", "--config", str(config)) as gateway:
        client = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=10)
        for _ in range(2):
            client.request("GET", "/healthz")
            assert client.getresponse().read()
            began, connection = time.monotonic(), client.sock
            time.sleep(1.0)
        assert client.sock is connection
        assert connection.recv(1) == b""  # closed by the gateway
        assert 1.5 < time.monotonic() - began < 4.0
        client.close()
