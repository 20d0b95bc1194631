"""No text, id or key of a user reaches a log of the profile API, of the worker or of the store, also on errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from all_logs import all_logs
from serving_client import ADMIN, empty_store, without_postgres
from sqlalchemy import Connection, text
from starlette.testclient import TestClient

from popi.errors import UpstreamError
from popi.serving.app import Gateway
from popi.serving.proxy.logs import to_stderr
from popi.serving.settings import GatewaySettings, ProxySettings, RenewalSettings
from popi.serving.store import keys
from popi.serving.store.database import Database
from popi.serving.worker.renewal import Worker
from popi.signals.types import Signal
from popi.summary import Summary

MARK = "hush-hush"
USER = f"ann-{MARK}"
SIGNALS = {"signals": [{"type": "statement", "text": f"I like {MARK}.", "id": MARK}]}


class Model:
    """Writes what it read; `fault` is raised instead."""

    def __init__(self) -> None:
        self.fault: Exception | None = None

    renews = False

    def renewable(self, summary: str) -> bool:
        return False

    def summarize(
        self, signals: Sequence[Signal], temperature: float = 0.0, previous: Summary | None = None
    ) -> Summary:
        if self.fault is not None:
            raise self.fault
        return Summary(f"Likes {MARK}.", 3, model="fake")


def test_of_profiles_and_renewals(store_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    database, model = Database.open(store_url), Model()
    database.write(keys.ensure_tenant, "default", 0.0)
    worker = Worker(database, model, RenewalSettings(poll_interval_s=60.0, backoff_s=0.0))
    settings = GatewaySettings(
        proxy=ProxySettings(upstream="http://127.0.0.1:9"), renewal=RenewalSettings(quiet_s=0, max_wait_s=0)
    )
    gateway = Gateway(database, settings, None, ADMIN)
    statuses = []
    with all_logs() as lines, TestClient(gateway, headers={"authorization": f"Bearer {ADMIN}"}) as client:

        def ask(method: str, path: str = "", **more: Any) -> None:
            statuses.append(client.request(method, f"/users/{USER}{path}", **more).status_code)

        ask("POST", "/signals", json=SIGNALS)
        for fault in (RuntimeError(MARK), UpstreamError(MARK), None):
            model.fault = fault
            assert worker.run_one() == ("failed" if fault else "renewed")
        ask("GET")
        ask("GET", "/summary/versions")
        ask("PUT", "/summary", json={"text": MARK}, headers={"if-match": '"7"'})
        ask("PUT", "/summary", json={"text": MARK})
        ask("PUT", "/summary", json={"text": MARK}, headers={"if-match": '"1"'})
        ask("POST", "/summary/rollback", json={"version": 9})
        ask("POST", "/signals", json={"signals": [{"type": MARK}]})
        ask("POST", "/signals", content=MARK)
        ask("GET", f"/{MARK}")
        ask("GET", f"?{MARK}={MARK}")
        ask("GET", "/export?format=jsonl")
        ask("GET", "", headers={"authorization": f"Bearer popi_{MARK}"})
        ask("DELETE")

        def drop(connection: Connection) -> None:
            connection.execute(text("DROP TABLE signals"))

        database.write(drop)
        ask("POST", "/signals", json=SIGNALS)
        ask("GET")
    assert {200, 401, 404, 412, 428, 422, 503} <= set(statuses), statuses
    logged = "\n".join(lines)
    assert '"event": "renewal"' in logged and "the store failed" in logged and '"event": "erased"' in logged
    assert [line for line in lines if MARK in line] == []
    streams = capfd.readouterr()
    assert MARK not in streams.out + streams.err


@without_postgres
def test_of_connections_that_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """SQLAlchemy's pool would log a traceback, and no JSON, each time that PostgreSQL ends a connection in use."""
    to_stderr()
    with empty_store("postgresql", tmp_path) as url:
        database = Database.open(url)
        with pytest.raises(Exception, match="terminating|closed"), database._engine.connect() as plain:
            own: Any = plain.connection.driver_connection
            pid = own.info.backend_pid
            with psycopg.connect(url) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            plain.execution_options(popi_write=True).begin()
        assert database.read(keys.tenant_exists, "default") is False
        database.close()
    assert "Traceback" not in capfd.readouterr().err
