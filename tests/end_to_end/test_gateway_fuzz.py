"""Requests generated from our own OpenAPI document never cause a 5xx, and responses match the document."""

import subprocess
import sys
from pathlib import Path

import pytest
from end_to_end.gateway_process import ADMIN, running

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = 40


@pytest.mark.slow
def test_no_request_of_the_document_breaks_the_gateway(tmp_path: Path) -> None:
    with running(f"sqlite:///{tmp_path}/popi.db") as gateway:
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{gateway.url}/openapi.json",
            "--header",
            f"Authorization: Bearer {ADMIN}",
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
            "--max-examples",
            str(EXAMPLES),
            "--seed",
            "1",
            "--workers",
            "1",
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=1200)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
