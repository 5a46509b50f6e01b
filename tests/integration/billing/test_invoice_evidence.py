"""What an invoice bills, from its lines down to the events: digest, explanation, export, preview; on real events."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from billing.commands.explain_invoice import InvoiceExplained, explain_invoice, export_billed_events
from billing.commands.preview_invoice import preview_invoice
from billing.commands.show_invoices import invoice_document, invoice_list
from billing.errors import InvoiceFrozen, PreviewRefused
from billing.invoicing.explained import Share
from billing.invoicing.invoice_check import check_document, check_events
from billing.invoicing.invoice_file import invoice_file
from streams.database import connect
from streams.ingest.apply import ChunkApplier
from streams.retention import archive
from streams.retention.archive_files import Archive
from tests.billing_builders import NOVEMBER, OCTOBER
from tests.builders import EVENT, SOURCE, make_chunk, make_record
from tests.integration.billing.conftest import World
from tests.integration.streams.conftest import register_source
from tests.integration.streams.test_archive import LATER, close_and_drop

TIERED = """\
plan: p
currency: USD
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - key: in
        model: graduated
        metric: input
        tiers: [{up_to: 100, price: "0.01"}, {price: "0.001"}]
      - {key: out, model: per_unit, metric: output, price: "0.002"}
  - version: v2
    from: 2026-10-20
    charges:
      - {key: in, model: per_unit, metric: input, price: "0.002"}
      - {key: out, model: per_unit, metric: output, price: "0.003"}
"""


class Arrivals:
    """Events that arrive one after the other at one source."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.position = 0
        with connect(url) as connection:
            register_source(connection, SOURCE, "usage")

    def apply(self, *events: dict[str, Any]) -> None:
        with connect(self.url) as connection:
            records = [
                make_record(self.position + n, json.dumps(EVENT | event).encode()) for n, event in enumerate(events)
            ]
            ChunkApplier(connection).apply(make_chunk(*records))
        self.position += len(events)


@pytest.fixture
def arrive(own_database_url: str) -> Arrivals:
    return Arrivals(own_database_url)


def event(request_id: str, at: str, tenant_id: str = "acme", **changed: Any) -> dict[str, Any]:
    values = {"input_tokens": 90, "cache_hit_tokens": 0, "output_tokens": 7}
    return {"tenant_id": tenant_id, "request_id": request_id, "timestamp": f"2026-{at}Z", **values, **changed}


TRAFFIC = (
    event("r1", "10-01T00:00:00"),
    event("r2", "10-01T00:59:59.999999", status="aborted"),
    event("free", "10-02T00:00:00", status="error"),
    event("ours", "10-02T00:00:00", fault="platform"),
    event("probe", "10-02T00:00:00", purpose="probe"),
    event("guess", "10-02T00:00:00", usage_source="estimate"),
    event("better", "10-05T00:00:00", usage_source="gateway", output_tokens=1),
    event("better", "10-05T00:00:01", output_tokens=2),
    event("twice", "10-10T00:00:00", status="aborted"),
    event("twice", "10-10T00:00:09", attempt=2),
    event("r3", "10-19T23:59:59.999999"),
    event("r4", "10-20T00:00:00"),
    event("over", "10-31T23:59:59", status="aborted"),
    event("over", "11-01T00:00:01", attempt=2),
    event("r5", "10-20T00:00:00", tenant_id="bolt"),
)
BILLED = ["r1", "r2", "better", "twice", "r3", "r4"]


@pytest.fixture
def drawn(world: World, arrive: Arrivals) -> World:
    """Two tenants whose October is drawn up."""
    world.tenant("acme", "bolt")
    world.plan(TIERED)
    world.subscribe("acme")
    world.subscribe("bolt")
    arrive.apply(*TRAFFIC)
    assert world.rate().ok
    world.draft()
    return world


def reference(world: World, account: str = "acme") -> str:
    return str(invoice_list(world.engine, period=OCTOBER, billing_account=account)[0]["invoice_id"])


def no_archive() -> Archive:
    raise AssertionError("nothing is in an archive")


def explained(world: World, line_no: int | None = None) -> tuple[InvoiceExplained, list[Share]]:
    shares: list[Share] = []
    return explain_invoice(world.engine, no_archive, reference(world), shares.append, line_no), shares


def export(world: World) -> list[bytes]:
    lines: list[bytes] = []
    assert export_billed_events(world.engine, no_archive, reference(world), lines.append) == len(lines)
    return lines


def test_the_digest_is_over_the_billed_events_and_an_outsider_can_count_them(drawn: World) -> None:
    lines = export(drawn)
    assert [json.loads(line)["request_id"] for line in lines] == BILLED
    document = invoice_document(drawn.engine, reference(drawn))
    (usage,) = document["usage"]
    assert (usage["events"], usage["requests"], usage["input_tokens"], usage["output_tokens"]) == (6, 6, 540, 37)
    assert check_document(invoice_file(document)) == []
    assert check_events(invoice_file(document), lines) == []
    assert [d.what for d in check_events(invoice_file(document), lines[1:])][-1] == "acme: root"


def test_events_in_another_order_and_twice_make_the_same_digest(
    drawn: World, world: World, arrive: Arrivals, own_database_url: str
) -> None:
    before = invoice_document(drawn.engine, reference(drawn))["usage_digest"]
    arrive.apply(*reversed(TRAFFIC))
    drawn.draft()
    assert invoice_document(drawn.engine, reference(drawn))["usage_digest"] == before


def test_a_draft_s_digest_follows_its_usage_and_a_frozen_one_stays(drawn: World, arrive: Arrivals) -> None:
    before = invoice_document(drawn.engine, reference(drawn))["usage_digest"]
    arrive.apply(event("late", "10-03T00:00:00"))
    drawn.rate()
    drawn.draft()
    after = invoice_document(drawn.engine, reference(drawn))
    assert after["usage_digest"] != before
    assert check_document(invoice_file(after)) == []
    drawn.execute("update ledger.invoices set frozen_at = now()")
    lines = export(drawn)
    arrive.apply(event("later", "10-03T00:00:00"), event("r1", "10-09T00:00:00", usage_source="engine"))
    drawn.rate()
    drawn.draft()
    assert invoice_document(drawn.engine, reference(drawn)) == after
    assert export(drawn) == lines
    assert explained(drawn)[0].agrees


def test_a_stronger_event_that_came_later_does_not_take_a_frozen_one_s_place(world: World, arrive: Arrivals) -> None:
    world.customers("acme")
    arrive.apply(event("weak", "10-03T00:00:00", usage_source="gateway"))
    world.rate()
    world.draft()
    world.execute("update ledger.invoices set frozen_at = now()")
    arrive.apply(event("weak", "10-03T00:00:00", output_tokens=9))
    assert [json.loads(line)["usage_source"] for line in export(world)] == ["gateway"]
    found, _ = explained(world)
    assert found.agrees


def test_each_line_is_explained_by_its_hours_and_requests(drawn: World) -> None:
    found, shares = explained(drawn)
    assert found.agrees
    by_charge = {(c.counter.charge, c.counter.version): c for c in found.counters}
    assert {key: (c.counted, c.lines) for key, c in by_charge.items()} == {
        ("in", "v1"): (450, ("in.v1.t1", "in.v1.t2")),
        ("in", "v2"): (90, ("in.v2",)),
        ("out", "v1"): (30, ("out.v1",)),
        ("out", "v2"): (7, ("out.v2",)),
    }
    first = datetime(2026, 10, 1, tzinfo=UTC)
    hours = by_charge["in", "v1"].hours
    assert (hours[first].events, hours[first].quantity) == (2, 180)
    assert [s.event.request_id for s in shares if (s.counter.charge, s.counter.version) == ("in", "v2")] == ["r4"]


def test_one_line_is_explained_alone(drawn: World) -> None:
    found, shares = explained(drawn, 3)
    assert [line["line_key"] for line in found.lines] == ["in.v2"]
    assert [(c.counter.charge, c.counter.version) for c in found.counters] == [("in", "v2")]
    assert [share.event.request_id for share in shares] == ["r4"]


def test_usage_that_is_missing_is_seen(drawn: World) -> None:
    guards = drawn.rows("select tgname from pg_trigger where tgrelid = 'usage.events'::regclass and not tgisinternal")
    drawn.as_owner(*(f"drop trigger {guard} on usage.events" for (guard,) in guards))
    drawn.as_owner("delete from usage.events where request_id = 'r4'")
    found, _ = explained(drawn)
    assert [(c.counter.charge, c.counter.version) for c in found.counters if not c.agrees] == [
        ("in", "v2"),
        ("out", "v2"),
    ]
    document = invoice_document(drawn.engine, reference(drawn))
    assert check_events(invoice_file(document), export(drawn))


def test_what_is_in_the_archive_is_explained_too(drawn: World, own_database_url: str, tmp_path: Path) -> None:
    before, lines = explained(drawn), export(drawn)
    files = Archive(str(tmp_path / "archive"))
    with connect(own_database_url, as_login=True) as owner:
        archive.archive_days(owner, files, OCTOBER.start, OCTOBER.end, actor="ada")
        assert date(2026, 10, 1) in close_and_drop(owner, files)
    shares: list[Share] = []
    found = explain_invoice(drawn.engine, lambda: files, reference(drawn), shares.append)
    assert (found.counters, shares) == (before[0].counters, before[1])
    again: list[bytes] = []
    export_billed_events(drawn.engine, lambda: files, reference(drawn), again.append)
    assert again == lines


def test_the_digest_of_a_frozen_invoice_cannot_be_changed(drawn: World) -> None:
    drawn.execute("update ledger.invoices set frozen_at = now()")
    for table in ("usage_digests", "usage_counts"):
        with pytest.raises(Exception, match="frozen"):
            drawn.execute(f"delete from ledger.{table}")
        with pytest.raises(Exception, match=r"permission denied|frozen"):
            drawn.execute(f"update ledger.{table} set invoice_id = invoice_id")


def tables(world: World) -> list[int]:
    names = (
        "rated_lines",
        "journal_entries",
        "postings",
        "invoices",
        "invoice_lines",
        "usage_digests",
        "tenant_periods",
    )
    return [world.count(f"ledger.{name}") for name in names]


def test_a_preview_is_what_the_close_draws_up_and_leaves_nothing(world: World, arrive: Arrivals) -> None:
    world.tenant("acme", "bolt")
    world.plan(TIERED)
    world.subscribe("acme")
    world.subscribe("bolt", billing_account="acme")
    arrive.apply(*TRAFFIC)
    now = OCTOBER.end - timedelta(days=1)
    found = preview_invoice(world.engine, tenant_id="acme", period=OCTOBER, now=now)
    assert tables(world) == [0] * 7
    assert found is not None
    assert {line["tenant_id"] for line in found["lines"]} == {"acme", "bolt"}
    world.rate()
    world.draft()
    assert found == invoice_document(world.engine, reference(world), today=now.date()) | {"state": "preview"}
    counts = tables(world)
    assert preview_invoice(world.engine, tenant_id="bolt", period=OCTOBER, now=now) == found
    assert tables(world) == counts


def test_what_cannot_be_previewed_is_said(drawn: World, arrive: Arrivals) -> None:
    def preview(tenant: str, **changed: Any) -> dict[str, Any] | None:
        return preview_invoice(drawn.engine, tenant_id=tenant, **({"period": OCTOBER, "now": LATER} | changed))

    assert preview("acme", period=NOVEMBER)
    assert preview("bolt", period=NOVEMBER) is None
    with pytest.raises(PreviewRefused, match="no subscription"):
        preview("nobody")
    with pytest.raises(PreviewRefused, match="does not pay"):
        preview("acme", billing_account="bolt")
    drawn.execute("update ledger.invoices set frozen_at = now()")
    with pytest.raises(InvoiceFrozen, match="invoice show"):
        preview("acme")
