"""What finance sees of a month: its state, its invoices, and what does not agree; on the command line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from billing.settings import StripeSettings
from billing.stripe.stripe_gateway import StripeGateway
from tests.billing_builders import NOW, OCTOBER
from tests.closing import bill_month
from tests.fixtures_stripe_twin import StripeTwin
from tests.integration.billing.conftest import World, world
from tests.integration.console.conftest import Done, Run

__all__ = ["world"]


@pytest.fixture
def billed(world: World, run: Run, stripe_twin: StripeTwin) -> Run:
    """The command line on an October of one tenant, billed; its windows have no events behind them."""
    world.customers("acme")
    world.use("acme", output_tokens=1000)

    def billed(*arguments: str) -> Done:
        return run(*arguments, TOLLBOOK_STRIPE_API=stripe_twin.url, TOLLBOOK_STRIPE_KEY=stripe_twin.key)

    gateway = StripeGateway(StripeSettings(stripe_twin.key, stripe_twin.url))
    assert bill_month(world.engine, period=OCTOBER, gateway=gateway, now=NOW, actor="ada").problems == []
    return billed


def rows(done: Done) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(done.stdout)))


def test_a_quarter_lists_the_invoices_of_its_months(billed: Run) -> None:
    (invoice,) = rows(billed("invoice", "list", "--period", "2026-Q4", "--csv"))
    assert (invoice["billing_account"], invoice["period"]) == ("acme", "2026-10")
    assert rows(billed("invoice", "list", "--period", "2026-Q3", "--csv")) == []


def test_the_state_of_a_month_can_be_had_as_csv(billed: Run) -> None:
    assert rows(billed("close", "status", "2026-10", "--csv")) == [
        {"state": "finalized", "currency": "USD", "invoices": "1", "total_minor": "200"}
    ]


def test_differences_can_be_had_as_csv_and_end_with_one(billed: Run, tmp_path: Path) -> None:
    done = billed("reconcile", "run", "2026-10", "--csv")
    assert done.returncode == 1
    assert {"check": "usage is rated", "key": "acme/output", "left": "", "right": "1000"} in rows(done)
    assert_a_gateways_log_is_compared_by_hour(billed, tmp_path)


def assert_a_gateways_log_is_compared_by_hour(billed: Run, folder: Path) -> None:
    (folder / "log").write_text('{"t": "acme", "id": "q1", "m": "llama", "n": 7, "at": "2026-10-01T00:30:00Z"}\n')
    (folder / "mapping.yaml").write_text(
        "{log: gw, fields: {tenant_id: t, request_id: id, model: m, input_tokens: n, output_tokens: n, timestamp: at}}"
    )
    by_the_log = ("reconcile", "run", "--admission-log", str(folder / "log"), "--mapping", str(folder / "mapping.yaml"))
    done = billed(*by_the_log, "--from", "2026-10-01", "--to", "2026-10-02", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert [each["kind"] for each in found["findings"]] == ["unmetered_requests"]
    (hour,) = found["by_hour"]["hours"]
    assert {name: hour[name] for name in ("hour", "admitted", "counted", "missing", "beyond", "counted_output")} == {
        "hour": "2026-10-01T00:00:00Z", "admitted": 1, "counted": 1, "missing": 1, "beyond": 1, "counted_output": 1000
    }  # fmt: skip
    assert "0 agree, 1 do not" in billed(*by_the_log, "--from", "2026-10-01", "--to", "2026-10-02").stdout
    number = str(found["findings"][0]["finding_no"])
    assert "2026-10-01T00:00:00" in billed("reconcile", "show", number).stdout
    refused = billed("replay", "plan", "--take-back", number)
    assert (refused.returncode, "is of kind unmetered_requests" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    "arguments", [("invoice", "list"), ("close", "run", "2026-10", "--test", "--now", "2026-12-02T00:00:00Z")]
)
def test_a_changed_invoice_line_is_told_without_a_traceback(
    world: World, billed: Run, arguments: tuple[str, ...]
) -> None:
    world.as_owner(
        "alter table ledger.invoice_lines disable trigger user",
        "update ledger.invoice_lines set amount_minor = amount_minor + 1",
    )
    done = billed(*arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "`tollbook reconcile run 2026-10`" in done.stderr
    assert "as drawn up" in billed("reconcile", "run", "2026-10").stderr
