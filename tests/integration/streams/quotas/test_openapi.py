"""The quota service is what its OpenAPI document says: schemathesis makes calls from it and judges the answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg

from tests.fixtures_quota_server import QuotaServerProcess
from tests.integration.streams.quotas.driver import add_tenants, define

EXAMPLES = "8"


def test_answers_are_those_of_the_openapi_document(
    quota_server: Callable[..., QuotaServerProcess], connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Without one check: JSON Schema takes 1.0 for a whole number, and the service wants it written as 1."""
    add_tenants(connection, "t1")
    define(connection)
    server = quota_server()
    judged = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", f"http://127.0.0.1:{server.port}/openapi.json",
         "--header", f"Authorization: Bearer {server.secret}", "--max-examples", EXAMPLES, "--seed", "20261121",
         "--no-color", "--phases", "examples,coverage,fuzzing", "--exclude-checks", "positive_data_acceptance"],
        capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stdout[-5000:]
    assert server.process.poll() is None
