"""An invoice's document checked by itself: what adds up passes, each kind of tampering is found."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from billing.commands.show_invoices import document_of
from billing.errors import DocumentRefused, EventsRefused
from billing.invoicing.invoice_check import check_document, check_events
from billing.invoicing.invoice_file import read_invoice_file
from billing.plans.price_plans import Metric
from billing.usage.usage_digest import BilledEvent
from billing.usage.usage_digest_store import UsageCounted
from tests.billing_builders import SIDES, bill, charge, stored, usage, version
from tests.unit.billing.test_usage_digest import billed, counted

PLAN = version(charge("in", Metric.INPUT, "0.0011"), charge("out", Metric.OUTPUT, "0.0017"))
EVENTS = sorted(
    [billed(tenant_id="tenant_1", request_id=f"r-{n}", input_tokens=1000 + n, cache_hit_tokens=0) for n in range(5)],
    key=lambda event: event.order,
)
LINES = [event.line for event in EVENTS]


def of_events(events: list[BilledEvent]) -> dict[str, Any]:
    """The document of an invoice over events."""
    sums = usage(
        requests=len(events),
        input_tokens=sum(e.input_tokens for e in events),
        output_tokens=sum(e.output_tokens for e in events),
    )
    invoice = bill(PLAN, [sums])
    counts = UsageCounted((counted(*events, tenant_id="tenant_1"),))
    document: dict[str, Any] = json.loads(json.dumps(document_of(stored(invoice), SIDES, counts)))
    return document


DOCUMENT = of_events(EVENTS)


def differences(document: dict[str, Any]) -> list[str]:
    return [found.what for found in check_document(read_invoice_file(json.dumps(document).encode()))]


def test_what_was_drawn_up_adds_up() -> None:
    assert differences(DOCUMENT) == []
    assert check_events(read_invoice_file(json.dumps(DOCUMENT).encode()), LINES) == []


def edit(path: str, value: Callable[[Any], Any]) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    *way, last = path.split(".")
    held: Any = document
    for step in way:
        held = held[int(step)] if step.isdigit() else held[step]
    held[last] = value(held[last])
    return document


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("lines.0.amount", lambda a: a + 1, ["net, by lines", "rounding"]),
        ("lines.0.amount_exact", lambda a: "5.6" + a[3:], ["exact_total, by lines", "line in: amount_exact"]),
        ("lines.0.quantity", lambda q: "4010", ["line in: amount_exact"]),
        ("lines.0.unit_price", lambda p: "0.0012", ["line in: amount_exact"]),
        ("lines.0.counted", lambda q: "5011", ["tenant_1: input on its lines"]),
        ("net", lambda n: n - 1, ["total, by net and tax", "net, by lines"]),
        ("total", lambda n: n - 1, ["total, by net and tax", "amount_due, by total and payments"]),
        ("amount_due", lambda n: n - 1, ["amount_due, by total and payments"]),
        ("received", lambda n: n + 1, ["received, by its kind", "amount_due, by total and payments"]),
        ("exact_total", lambda n: "6", ["exact_total, by lines", "rounding"]),
        ("rounding", lambda n: "0", ["rounding"]),
        ("revision", lambda n: 1, ["invoice_id, by its identity"]),
        ("billing_account", lambda n: "other", ["invoice_id, by its identity"]),
        ("usage_digest", lambda d: "00" * 32, ["usage_digest, by usage"]),
        ("usage.0.root", lambda d: "00" * 32, ["usage_digest, by usage"]),
        ("usage.0.requests", lambda n: n + 1, ["usage_digest, by usage"]),
        ("usage.0.input_tokens", lambda n: n + 1, ["usage_digest, by usage", "tenant_1: input on its lines"]),
    ],
)
def test_a_changed_figure_is_found(path: str, value: Callable[[Any], Any], found: list[str]) -> None:
    reported = differences(edit(path, value))
    assert set(found) <= set(reported), reported


def test_a_tax_mode_that_is_not_that_of_the_rows_is_found() -> None:
    row = {"tax_group": "std", "mode": "exclusive", "rate": "0", "base": DOCUMENT["net"], "amount": 0}
    assert differences(DOCUMENT | {"tax_mode": "exclusive", "tax": [row]}) == []
    assert differences(DOCUMENT | {"tax": [row]}) == ["tax group std: mode, by tax_mode"]


def test_two_lines_that_exchange_a_cent_are_found() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["lines"][0]["amount"] += 1
    document["lines"][1]["amount"] -= 1
    assert differences(document) == ["line in: amount", "line out: amount"]


def test_a_line_left_out_with_its_sums_is_found_by_its_usage() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["lines"][0]["counted"] = document["lines"][0]["quantity"] = "5009"
    document["lines"][0]["amount_exact"] = "5.5099"
    assert "tenant_1: input on its lines" in differences(document)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (LINES[:-1], ["events", "requests", "input_tokens", "output_tokens", "gpu_us", "root"]),
        ([*LINES[:-1], LINES[-1].replace(b'"model":"llama"', b'"model":"lama"')], ["root"]),
        ([*LINES[:-1], LINES[-1].replace(b'"input_tokens":1004', b'"input_tokens":1005')], ["input_tokens", "root"]),
        ([], ["events", "requests", "input_tokens", "output_tokens", "gpu_us", "root"]),
    ],
)
def test_other_events_are_found(lines: list[bytes], found: list[str]) -> None:
    document = read_invoice_file(json.dumps(DOCUMENT).encode())
    assert [d.what for d in check_events(document, lines)] == [f"tenant_1: {name}" for name in found]


def test_events_of_a_tenant_that_is_not_billed_are_found() -> None:
    document = read_invoice_file(json.dumps(DOCUMENT).encode())
    strange = billed(tenant_id="other").line
    assert [d.what for d in check_events(document, [*LINES, strange])] == ["other: events"]


def test_events_out_of_order_or_twice_are_refused_by_line() -> None:
    document = read_invoice_file(json.dumps(DOCUMENT).encode())
    with pytest.raises(EventsRefused, match=r"line 6: .* out of order"):
        check_events(document, [*LINES, LINES[0]])
    with pytest.raises(EventsRefused, match=r"line 2: .* there twice"):
        check_events(document, [LINES[0], LINES[0]])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("net", lambda n: str(n)),
        ("total", lambda n: n + 0.5),
        ("lines.0.amount_exact", lambda n: "much"),
        ("lines.0.quantity", lambda n: "1e5000"),
        ("service_end", lambda t: "2026-10-01T00:00:00"),
        ("service_end", lambda t: "2026-09-01T00:00:00Z"),
        ("currency", lambda c: "XXX"),
        ("kind", lambda k: "gift"),
        ("state", lambda s: "gift"),
        ("tax_mode", lambda m: "gift"),
        ("lines.0.kind", lambda k: "usagex"),
        ("lines.0.original_period", lambda p: "2026-13"),
        ("usage.0.root", lambda r: "zz"),
        ("invoice_id", lambda i: "1"),
    ],
)
def test_what_is_no_invoice_is_refused(path: str, value: Callable[[Any], Any]) -> None:
    with pytest.raises(DocumentRefused):
        read_invoice_file(json.dumps(edit(path, value)).encode())
