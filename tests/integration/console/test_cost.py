"""`tollbook cost`: from usage and a pool's price to who costs what and what is left."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from pathlib import Path

from billing.database import engine_for
from tests.integration.billing.conftest import World
from tests.integration.console.conftest import Run

POOL = """
pool: h100
currency: USD
versions:
  - from: 2026-10-01
    gpus: 1
    gpu_hour: "3.60"
    overhead_hour: "0.10"
"""


def test_a_pools_bill_is_divided_and_stands_beside_what_tenants_pay(
    run: Run, own_database_url: str, tmp_path: Path
) -> None:
    engine = engine_for(own_database_url)
    world = World(engine)
    world.customers("acme", "busy")
    world.use("acme", output_tokens=5000, gpu_us=10_000_000, pool="h100")
    world.use("busy", output_tokens=1, gpu_us=990_000_000, pool="h100")
    world.rate()
    engine.dispose()
    file = tmp_path / "h100.yaml"
    file.write_text(POOL)
    assert run("cost", "allocate", "2026-10").returncode == 1
    assert "1 versions would be" in run("cost", "pools", "apply", str(file), "--as", "ada", "--dry-run").stdout
    for told in ("1 versions recorded", "nothing new"):
        assert told in run("cost", "pools", "apply", str(file), "--as", "ada").stdout
    assert run("cost", "pools", "apply", str(file), "--as", "ada", "--dry-run").returncode == 0
    file.write_text(POOL.replace("USD", "EUR"))
    assert "another name" in run("cost", "pools", "apply", str(file), "--as", "ada").stderr
    (pool,) = json.loads(run("cost", "pools", "list", "--json").stdout)
    assert (pool["pool"], pool["gpus"], pool["gpu_hour"]) == ("h100", 1, "3.6")
    divided = run("cost", "allocate", "2026-10", "--csv")
    assert divided.returncode == 0, divided.stderr
    rows = list(csv.DictReader(io.StringIO(divided.stdout)))
    assert sum(Decimal(row["amount"]) for row in rows) == 744 * (Decimal("3.60") + Decimal("0.10"))
    assert {row["tenant_id"]: row["amount"] for row in rows if row["kind"] == "usage"} == {
        "acme": "0.01",
        "busy": "0.99",
    }
    told = json.loads(run("cost", "margin", "2026-10", "--losing", "--json").stdout)
    (busy,) = told["rows"]
    assert (busy["tenant"], busy["cost"]) == ("busy", "0.99")
    assert "GPU-microseconds a token" in busy["why"]
    by_model = json.loads(run("cost", "margin", "2026-10", "--by", "model,adapter", "--json").stdout)
    assert sum(Decimal(row["cost"]) for row in by_model["rows"]) == 1
    assert run("cost", "margin", "2026-10", "--by", "colour").returncode == 2
    assert "exchange set" in run("cost", "margin", "2026-10", "--currency", "EUR").stderr
    assert "cost.pool" in {act["action"] for act in json.loads(run("audit", "list", "--json").stdout)}
