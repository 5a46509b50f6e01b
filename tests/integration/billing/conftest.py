"""A database of the test's own, and short ways to fill it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine, text

from billing.commands import make_reports
from billing.commands.apply_plan import PlanApplied, apply_plan
from billing.commands.draft_invoices import InvoicesDrafted, draft_invoices
from billing.commands.keep_accounts import add_account
from billing.commands.make_reports import Asked
from billing.commands.rate_period import PeriodRated, rate_period
from billing.commands.send_invoices import InvoicesSent, Outcome, send_invoices
from billing.commands.start_subscription import SubscriptionStarted, start_subscription
from billing.database import engine_for, raw, transaction
from billing.periods import BillingPeriod
from billing.reports.erp import OWN_CHART
from billing.reports.report import Report
from billing.settings import StripeSettings
from billing.stripe.stripe_accounts import Stripe
from billing.stripe.stripe_gateway import StripeGateway
from streams import tenants
from streams.database import connect
from tests.billing_builders import EMAIL, NOW, OCTOBER, PLAN, SINCE
from tests.fixtures_stripe_twin import StripeTwin


def all_done(found: InvoicesDrafted | InvoicesSent) -> bool:
    """Whether a run of drafting or sending left nothing for a person or a later run."""
    if isinstance(found, InvoicesDrafted):
        return not (found.blocked or found.not_rated)
    return not (found.having(Outcome.PARKED) or found.having(Outcome.LATER))


@dataclass
class World:
    """A database with tenants, usage and a plan; commands with the test's defaults."""

    engine: Engine

    def tenant(self, *names: str) -> None:
        """Register tenants."""
        with transaction(self.engine) as connection:
            tenants.register(raw(connection), [(name, name) for name in names], actor="test")

    def use(self, tenant: str, *, at: datetime = OCTOBER.start, model: str = "llama", **changed: Any) -> None:
        """Add usage to the hourly window that begins at `at`."""
        row: dict[str, Any] = {
            "tenant_id": tenant, "bucket": at, "model": model, "adapter": "", "region": "", "tier": "", "pool": "",
            "status": "ok", "fault": "none", "purpose": "tenant", "usage_source": "engine", "rating_band": "",
            "events": 1, "requests": 1, "input_tokens": 0, "cache_hit_tokens": 0, "output_tokens": 0, "gpu_us": 0,
        } | changed  # fmt: skip
        sums = ("events", "requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")
        keys = ", ".join(key for key in row if key not in sums)
        added = ", ".join(f"{name} = windows_1h.{name} + excluded.{name}" for name in sums)
        with transaction(self.engine) as connection:
            connection.execute(
                text(
                    f"insert into usage.windows_1h ({', '.join(row)}) values ({', '.join(':' + k for k in row)})"
                    f" on conflict ({keys}) do update set {added}"
                ),
                row,
            )

    def plan(self, content: str = PLAN, **changed: Any) -> PlanApplied:
        """Apply a plan."""
        return apply_plan(self.engine, content, **({"file": "plan.yaml", "actor": "test", "now": NOW} | changed))

    def account(self, name: str) -> None:
        """A billing account in dollars, with an e-mail address."""
        add_account(self.engine, name=name, currency="USD", actor="test", values={"email": EMAIL})

    def subscribe(self, tenant: str, **changed: Any) -> SubscriptionStarted:
        """Put a tenant on plan `p` from January."""
        values: dict[str, Any] = {"plan": "p", "starts_at": SINCE, "actor": "test", "email": EMAIL}
        return start_subscription(self.engine, tenant_id=tenant, **(values | changed))

    def rate(self, period: BillingPeriod = OCTOBER, now: datetime = NOW, **changed: Any) -> PeriodRated:
        """Rate a period."""
        return rate_period(self.engine, period=period, now=now, **changed)

    def draft(self, period: BillingPeriod = OCTOBER, now: datetime = NOW, **changed: Any) -> InvoicesDrafted:
        """Draw up the invoices of a period."""
        return draft_invoices(self.engine, period=period, now=now, **changed)

    def send(self, gateway: Stripe, period: BillingPeriod = OCTOBER, **changed: Any) -> InvoicesSent:
        """Send the invoices of a period."""
        values: dict[str, Any] = {"now": NOW, "actor": "ada", "pause_s": 0.01}
        return send_invoices(self.engine, period=period, gateway=gateway, **(values | changed))

    def customers(self, *names: str) -> None:
        """Tenants on plan `p`."""
        self.tenant(*names)
        self.plan()
        for name in names:
            self.subscribe(name)

    def reports(self, month: BillingPeriod) -> dict[str, Report]:
        """Every report of a month, by name."""
        asked = Asked(month)
        found = [
            make_reports.report_revenue(self.engine, asked, by=["tenant", "model"]),
            *(make(self.engine, asked) for make in (
                make_reports.report_deferred, make_reports.report_credits, make_reports.report_ageing,
                make_reports.report_tax, make_reports.report_commitments, make_reports.report_focus,
            )),
            make_reports.report_erp(self.engine, asked, OWN_CHART),
        ]  # fmt: skip
        return {report.name: report for report in found}

    def reports_tie(self, *months: BillingPeriod) -> bool:
        """Whether the reports of some months tie to the books. They have rows."""
        found = [report for month in months for report in self.reports(month).values()]
        untied = [(report.name, tie) for report in found for tie in report.ties if not tie.holds]
        assert not untied, untied
        return any(report.rows for report in found)

    def rows(self, query: str, **values: object) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with transaction(self.engine) as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]

    def execute(self, statement: str, **values: object) -> None:
        """Run a statement and commit."""
        with transaction(self.engine) as connection:
            connection.execute(text(statement), values)

    def as_owner(self, *statements: str) -> None:
        """Run statements as the owner of the tables, who may do more than the application."""
        url = self.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with connect(url, as_login=True) as owner:
            for statement in statements:
                owner.execute(statement)  # type: ignore[call-overload]

    def age_requests(self, *, hours: float) -> None:
        """Let every request to Stripe have been frozen, and sent last, so long ago."""
        self.as_owner(
            "alter table ledger.stripe_requests disable trigger guard_stripe_request",
            f"update ledger.stripe_requests set frozen_at = frozen_at - interval '{hours} hours',"
            f" sent_at = sent_at - interval '{hours} hours'",
            "alter table ledger.stripe_requests enable trigger guard_stripe_request",
        )

    def count(self, table: str) -> int:
        """How many rows a table has."""
        return int(self.rows(f"select count(*) from {table}")[0][0])


@pytest.fixture
def world(own_database_url: str) -> Iterator[World]:
    """A world of the test's own."""
    engine = engine_for(own_database_url)
    yield World(engine)
    engine.dispose()


@pytest.fixture
def gateway(stripe_twin: StripeTwin) -> StripeGateway:
    """Stripe, empty."""
    return StripeGateway(StripeSettings(stripe_twin.key, stripe_twin.url))


class Crash(BaseException):
    """What a kill does, as far as one process can do it to itself: nothing after it runs."""


def crash_at(name: str, times: int = 1) -> Callable[[uuid.UUID, str], None]:
    """A checkpoint that crashes when it is passed so often under this name."""
    left = [times]

    def checkpoint(_: uuid.UUID, reached: str) -> None:
        if reached == name:
            left[0] -= 1
            if left[0] == 0:
                raise Crash(name)

    return checkpoint
