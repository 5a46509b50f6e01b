"""From usage windows to rated lines, journal and drafts, in the real database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from billing.commands.show_invoices import invoice_document, invoice_list
from billing.commands.trial_balance import trial_balance
from billing.errors import PeriodNotEnded, UnknownInvoice
from billing.money import total
from billing.usage.usage_digest import TenantCount, usage_digest
from tests.billing_builders import NOVEMBER, OCTOBER, PLAN
from tests.integration.billing.conftest import World, all_done

HOUR = timedelta(hours=1)


def billed(world: World) -> dict[str, tuple[Decimal, int]]:
    """Exact total and cents per account, from the drafts."""
    return {
        row[0]: (row[1], row[2])
        for row in world.rows("select billing_account, exact_total, total_minor from ledger.invoices")
    }


def balance(world: World) -> dict[int, Decimal]:
    return {row.code: row.debit - row.credit for row in trial_balance(world.engine).rows}


def test_usage_is_rated_posted_and_drawn_up(world: World) -> None:
    world.customers("acme", "bolt", "idle")
    world.use("acme", input_tokens=1000, cache_hit_tokens=400, output_tokens=250)
    world.use("acme", at=OCTOBER.end - HOUR, model="qwen", output_tokens=3)
    world.use("bolt", output_tokens=1)
    found = world.rate()
    assert {t.tenant_id: t.amount for t in found.tenants} == {
        "acme": Decimal("1.306"),  # 600 × 0.001 + 400 × 0.0005 + 253 × 0.002
        "bolt": Decimal("0.002"),
        "idle": 0,
    }
    assert found.ok
    assert found.lines_posted == 4
    drafted = world.draft()
    assert [i.identity.billing_account for i in drafted.changed] == ["acme", "bolt"]
    assert billed(world) == {"acme": (Decimal("1.306"), 131), "bolt": (Decimal("0.002"), 0)}
    assert balance(world) == {1150: Decimal("1.308"), 4000: Decimal("-1.308")}


def test_running_it_again_changes_nothing(world: World) -> None:
    world.customers("acme", "bolt")
    world.use("acme", output_tokens=1)
    tables = ("rated_lines", "journal_entries", "postings", "invoices", "invoice_lines", "invoice_transitions")
    for run in range(3):
        rated, drafted = world.rate(), world.draft()
        assert (rated.lines_posted, len(drafted.changed), len(drafted.unchanged)) == ((1, 1, 0), (0, 0, 1))[run > 0]
        counts = [world.count(f"ledger.{table}") for table in tables]
        assert counts == [1, 1, 2, 1, 1, 1]


def test_only_the_difference_is_posted_and_the_draft_follows(world: World) -> None:
    world.customers("acme")
    world.use("acme", output_tokens=100)
    world.rate()
    world.draft()
    world.use("acme", output_tokens=50)
    world.use("acme", at=OCTOBER.start + HOUR, input_tokens=7)
    (tenant,) = world.rate().tenants
    assert [(x.identity.charge_key, x.quantity, x.amount, x.reason) for x in tenant.posted] == [
        ("in", 7, Decimal("0.007"), "usage"),
        ("out", 50, Decimal("0.1"), "more usage"),
    ]
    assert len(world.draft().changed) == 1
    assert billed(world) == {"acme": (Decimal("0.307"), 31)}
    assert balance(world) == {1150: Decimal("0.307"), 4000: Decimal("-0.307")}
    assert world.rows("select rating_no, count(*) from ledger.rated_lines group by 1 order by 1") == [(1, 1), (2, 2)]


def test_a_corrected_price_posts_the_difference(world: World) -> None:
    world.customers("acme")
    world.use("acme", input_tokens=100, output_tokens=100)
    world.rate()
    world.draft()
    assert world.plan(PLAN.replace("v1", "v1-fixed").replace('"0.002"', '"0.003"')).corrected == ("v1",)
    (tenant,) = world.rate().tenants
    assert {(x.identity.version, x.identity.charge_key): x.amount for x in tenant.posted} == {
        ("v1", "in"): Decimal("-0.1"), ("v1", "out"): Decimal("-0.2"),
        ("v1-fixed", "in"): Decimal("0.1"), ("v1-fixed", "out"): Decimal("0.3"),
    }  # fmt: skip
    # One entry over the difference; what was posted stays.
    booked = "select amount from ledger.postings join ledger.accounts using (account_id) where code = 1150 order by 1"
    assert world.rows(booked) == [(Decimal("0.1"),), (Decimal("0.3"),)]
    assert world.rate().lines_posted == 0
    assert len(world.draft().changed) == 1
    assert billed(world) == {"acme": (Decimal("0.4"), 40)}


def test_usage_that_was_rebuilt_away_is_reversed_while_nothing_is_frozen(world: World) -> None:
    world.customers("acme")
    world.use("acme", output_tokens=100)
    world.rate()
    world.draft()
    world.as_owner("delete from usage.windows_1h")
    (tenant,) = world.rate().tenants
    assert [(x.quantity, x.amount) for x in tenant.posted] == [(-100, Decimal("-0.2"))]
    assert len(world.draft().changed) == 1
    assert billed(world) == {"acme": (0, 0)}
    assert balance(world) == {1150: 0, 4000: 0}
    assert world.rate().lines_posted == 0


def test_an_event_is_billed_in_the_month_of_its_hour_half_open(world: World) -> None:
    world.customers("acme")
    world.use("acme", at=OCTOBER.start - HOUR, output_tokens=1)
    world.use("acme", at=OCTOBER.start, output_tokens=10)
    world.use("acme", at=OCTOBER.end - HOUR, output_tokens=100)
    world.use("acme", at=OCTOBER.end, output_tokens=1000)
    assert [line.quantity for t in world.rate().tenants for line in t.lines] == [110]
    assert [line.quantity for t in world.rate(NOVEMBER).tenants for line in t.lines] == [1000]


def test_what_is_never_billed(world: World) -> None:
    world.customers("acme")
    world.use("acme", purpose="probe", output_tokens=1)
    world.use("acme", fault="platform", output_tokens=2)
    world.use("acme", status="error", output_tokens=4)
    world.use("acme", usage_source="estimate", status="lost", output_tokens=8)
    world.use("_platform", output_tokens=16)
    world.use("acme", status="aborted", output_tokens=32)
    found = world.rate()
    assert [line.quantity for t in found.tenants for line in t.lines] == [32]
    assert found.ok


def test_a_contract_may_bill_other_statuses(world: World) -> None:
    world.tenant("acme")
    world.plan()
    world.subscribe("acme", bill_statuses=("ok", "error"))
    world.use("acme", status="error", output_tokens=4)
    world.use("acme", status="aborted", output_tokens=32)
    assert [line.quantity for t in world.rate().tenants for line in t.lines] == [4]


def test_a_new_price_in_mid_month_prices_the_usage_completed_from_then_on(world: World) -> None:
    world.tenant("acme")
    middle = datetime(2026, 10, 16, tzinfo=UTC)
    v2 = (
        PLAN.split("versions:\n")[1]
        .replace("v1", "v2")
        .replace("2026-01-01", "2026-10-16")
        .replace('"0.002"', '"0.003"')
    )
    world.plan(PLAN + v2)
    world.subscribe("acme")
    world.use("acme", at=middle - HOUR, output_tokens=1000)
    world.use("acme", at=middle, output_tokens=2000)
    assert world.rate().ok
    world.draft()
    (document,) = invoice_list(world.engine)
    assert [(x["line_key"], x["quantity"], x["amount"], x["price_version"]) for x in document["lines"]] == [
        ("out.v1", "1000", 200, "v1"),
        ("out.v2", "2000", 600, "v2"),
    ]


def test_a_subscription_that_starts_in_mid_month_is_billed_from_then_and_what_came_before_is_told(world: World) -> None:
    world.tenant("acme", "nobody")
    world.plan()
    start = datetime(2026, 10, 16, 6, tzinfo=UTC)
    world.subscribe("acme", starts_at=start)
    world.use("acme", at=start - HOUR, output_tokens=1, requests=3)
    world.use("acme", at=start, output_tokens=10)
    world.use("nobody", output_tokens=100, requests=7)
    found = world.rate()
    assert [line.quantity for t in found.tenants for line in t.lines] == [10]
    assert [(u.tenant_id, u.requests) for u in found.unsubscribed] == [("acme", 3), ("nobody", 7)]
    assert not found.ok


def test_unpriced_usage_keeps_the_tenant_out_and_stops_nobody_else(world: World) -> None:
    world.tenant("acme", "bolt")
    world.plan(PLAN.replace("metric: output,", "metric: output, where: {model: llama},"))
    world.subscribe("acme")
    world.subscribe("bolt")
    world.use("acme", input_tokens=1, output_tokens=5, model="qwen")
    world.use("bolt", output_tokens=1)
    found = world.rate()
    assert [str(u) for u in found.unpriced] == [
        "tenant acme: 5 output of model qwen have no price in plan p version v1"
    ]
    assert not found.ok
    drafted = world.draft()
    assert [i.identity.billing_account for i in drafted.changed] == ["bolt"]
    assert drafted.blocked == (("acme", f"tenant acme: {found.unpriced[0]}"),)
    # Mended by a further version; the same run then bills what was left out.
    world.as_owner("delete from usage.windows_1h where model = 'qwen'")
    assert world.rate().ok
    assert all_done(world.draft())


def test_an_account_with_unpriced_usage_is_not_drawn_up_over_the_part_that_has_a_price(world: World) -> None:
    world.tenant("acme")
    world.plan(PLAN.replace("metric: output,", "metric: output, where: {model: llama},"))
    world.subscribe("acme")
    world.use("acme", output_tokens=100)
    world.rate()
    world.use("acme", output_tokens=5, model="qwen")
    world.rate()
    assert world.count("ledger.rated_lines") == 1
    drafted = world.draft()
    assert (drafted.changed, [account for account, _ in drafted.blocked]) == ((), ["acme"])
    assert not all_done(drafted)
    assert world.count("ledger.invoices") == 0


def test_negative_sums_keep_the_tenant_out(world: World) -> None:
    world.customers("acme", "bolt")
    world.use("acme", output_tokens=-5)
    world.use("bolt", output_tokens=1)
    found = world.rate()
    assert found.unratable == ("tenant acme, model llama: -5 output: rebuild the windows",)
    assert world.draft().blocked == (("acme", "tenant acme: tenant acme, model llama: -5 output: rebuild the windows"),)


def test_usage_after_the_invoice_was_frozen_is_told_and_posted_and_waits_for_the_next_one(world: World) -> None:
    world.customers("acme", "bolt")
    world.use("acme", output_tokens=100)
    world.use("bolt", output_tokens=100)
    world.rate()
    world.draft()
    world.execute("update ledger.invoices set frozen_at = now() where billing_account = 'acme'")
    world.use("acme", output_tokens=50)
    world.use("bolt", output_tokens=50)
    found = world.rate()
    (late,) = found.late
    assert (late.tenant_id, late.amount, late.currency) == ("acme", Decimal("0.1"), "USD")
    assert [(t.tenant_id, total(line.amount for line in t.posted)) for t in found.tenants] == [
        ("acme", Decimal("0.1")),
        ("bolt", Decimal("0.1")),
    ]
    drafted = world.draft()
    assert [i.identity.billing_account for i in drafted.frozen] == ["acme"]
    assert billed(world) == {"acme": (Decimal("0.2"), 20), "bolt": (Decimal("0.3"), 30)}


def test_a_dry_run_rates_and_drafts_the_same_and_stores_nothing(world: World) -> None:
    world.customers("acme")
    world.use("acme", output_tokens=100)
    assert world.rate(dry_run=True).lines_posted == 1
    assert world.count("ledger.rated_lines") == 0
    assert world.rate().lines_posted == 1
    assert len(world.draft(dry_run=True).changed) == 1
    assert world.count("ledger.invoices") == 0


def test_several_tenants_of_one_account_share_one_invoice(world: World) -> None:
    world.tenant("a", "b")
    world.plan()
    for tenant in ("a", "b"):
        world.subscribe(tenant, billing_account="group")
        world.use(tenant, output_tokens=5)
    world.rate()
    world.draft()
    (document,) = invoice_list(world.engine)
    assert (document["billing_account"], document["tenant_id"], document["total"]) == ("group", None, 2)
    assert [(x["line_key"], x["tenant_id"], x["amount"]) for x in document["lines"]] == [
        ("out@a", "a", 1),
        ("out@b", "b", 1),
    ]


def test_a_period_that_still_runs_is_rated_but_not_drawn_up(world: World) -> None:
    world.customers("acme")
    world.use("acme", output_tokens=100)
    middle = OCTOBER.start + timedelta(days=10)
    assert world.rate(now=middle).lines_posted == 1
    with pytest.raises(PeriodNotEnded, match="2026-10 ends 2026-11-01"):
        world.draft(now=OCTOBER.end - timedelta(microseconds=1))
    assert all_done(world.draft(now=OCTOBER.end))


def test_tenants_that_were_never_rated_are_named_when_invoices_are_drawn_up(world: World) -> None:
    world.customers("acme")
    assert world.draft().not_rated == ("acme",)
    world.rate()
    assert all_done(world.draft())


def test_ratings_at_once_post_everything_once(world: World) -> None:
    world.customers(*(f"t{n}" for n in range(8)))
    for n in range(8):
        world.use(f"t{n}", output_tokens=n + 1)
    with ThreadPoolExecutor(6) as pool:
        posted = [rated.lines_posted for rated in pool.map(lambda _: world.rate(), range(6))]
    assert sorted(posted) == [0, 0, 0, 0, 0, 8]
    with ThreadPoolExecutor(6) as pool:
        drawn = [len(drafted.changed) for drafted in pool.map(lambda _: world.draft(), range(6))]
    assert sorted(drawn) == [0, 0, 0, 0, 0, 8]
    assert balance(world)[1150] == Decimal("0.072")


def test_progress_counts_tenants_to_the_end(world: World) -> None:
    world.customers("a", "b", "c")
    seen: list[tuple[int, int]] = []
    world.rate(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_an_invoice_is_shown_in_the_agreed_shape(world: World) -> None:
    world.customers("acme")
    world.use("acme", input_tokens=1000, cache_hit_tokens=400, output_tokens=250)
    world.rate()
    world.draft()
    (listed,) = invoice_list(world.engine, period=OCTOBER, billing_account="acme", today=OCTOBER.end.date())
    found = invoice_document(world.engine, listed["invoice_id"], today=OCTOBER.end.date())
    assert found == listed
    lines = found.pop("lines")
    assert found.pop("usage_digest") == usage_digest([TenantCount("acme").usage])
    assert [usage["events"] for usage in found.pop("usage")] == [0]  # there are windows only
    assert (found.pop("seller")["name"], found.pop("buyer")["name"]) == ("Default", "acme")
    assert found == {
        "invoice_id": listed["invoice_id"], "number": None, "legal_entity": "default", "billing_account": "acme",
        "tenant_id": "acme", "kind": "usage", "period": "2026-10", "service_start": "2026-10-01T00:00:00Z",
        "service_end": "2026-11-01T00:00:00Z", "revision": 0, "currency": "USD", "state": "draft",
        "tax_mode": "none", "received": 0, "carried": [], "carried_in": 0, "credits_invoice": None,
        "issue_date": None, "due_date": None, "payment_terms_days": 30, "purchase_order": None,
        "net": 130, "tax": [], "credits": [], "total": 130, "amount_due": 130,
        "exact_total": "1.3", "rounding": "0", "stripe_invoice_id": None, "stripe_customer_id": None,
        "hosted_invoice_url": None, "reason_not_in_stripe": None, "parked_because": None,
        "dunning": None, "paid": None, "remaining": None, "payment_failed_at": None,
    }  # fmt: skip
    assert [line["line_key"] for line in lines] == ["cached", "in", "out"]
    assert lines[0] == {
        "line_key": "cached", "kind": "usage", "tenant_id": "acme", "model": "", "adapter": "", "region": "",
        "tier": "", "token_class": "cached_input", "plan": "p", "charge": "cached", "segment": 1, "tier_no": 0,
        "price_version": "v1", "service_period": "2026-10", "original_period": "2026-10", "counted": "400",
        "quantity": "400", "unit_price": "0.0005", "amount_exact": "0.2", "amount": 20,
        "tax_group": "std",
    }  # fmt: skip
    with pytest.raises(UnknownInvoice):
        invoice_document(world.engine, "INV-999999")
    assert invoice_list(world.engine, period=NOVEMBER) == []


def test_the_database_keeps_a_frozen_invoice_as_it_is(world: World) -> None:
    world.customers("acme")
    world.use("acme", output_tokens=250)
    world.rate()
    world.draft()
    world.execute("update ledger.invoices set service_start = service_start")  # changes nothing
    world.execute("update ledger.invoices set frozen_at = now()")
    for statement in (
        "update ledger.invoices set total_minor = 1, net_minor = 1",
        "update ledger.invoices set frozen_at = null",
        "update ledger.invoices set lines_hash = ''",
        "update ledger.invoice_lines set amount_minor = 1",
        "delete from ledger.invoice_lines",
        "insert into ledger.invoice_lines select (jsonb_populate_record(l, jsonb_build_object('line_key', 'x'))).*"
        " from ledger.invoice_lines l",
        "delete from ledger.invoices",
        "truncate ledger.invoices cascade",
        "update ledger.invoices set revision = 1",
        "update ledger.rated_lines set amount = 0",
        "delete from ledger.rated_lines",
    ):  # fmt: skip
        with pytest.raises(DBAPIError, match=r"frozen|never deleted|append-only|identity|permission denied"):
            world.execute(statement)
        with pytest.raises(psycopg.Error, match=r"frozen|never deleted|append-only|identity"):
            world.as_owner(statement)
    assert billed(world) == {"acme": (Decimal("0.5"), 50)}


def test_one_invoice_per_identity_ever(world: World) -> None:
    world.customers("acme")
    world.use("acme", output_tokens=250)
    world.rate()
    world.draft()
    with pytest.raises(DBAPIError, match="unique"):
        world.execute(
            "insert into ledger.invoices select (jsonb_populate_record(i,"
            " jsonb_build_object('invoice_id', gen_random_uuid()))).* from ledger.invoices i"
        )


def test_a_tenant_with_an_absurd_price_is_named_and_the_others_go_on(world: World) -> None:
    world.customers("acme", "bolt")
    world.plan(PLAN.replace("plan: p", "plan: dear").replace('"0.002"', '"900000000000000000"'), file="dear.yaml")
    world.tenant("dear")
    world.subscribe("dear", plan="dear")
    for tenant in ("acme", "bolt", "dear"):
        world.use(tenant, output_tokens=100)
    found = world.rate()
    assert [t.tenant_id for t in found.tenants] == ["acme", "bolt"]
    assert (len(found.unratable), "tenant dear: " in found.unratable[0]) == (1, True)
    assert not found.ok
    drafted = world.draft()
    assert billed(world).keys() == {"acme", "bolt"}
    assert [account for account, _ in drafted.blocked] == ["dear"]
