"""Months that are closed one after the other while usage comes late: by the commands, and by the pure core."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from billing.bills.billing_cycle import Bills, History, LateUsage, bill
from billing.bills.credits import Grant
from billing.bills.documents import Payer
from billing.bills.tax import NO_TAX, TaxMode, TaxRules
from billing.commands.close_month import MonthClosed
from billing.commands.show_invoices import invoice_list
from billing.commands.trial_balance import trial_balance
from billing.invoicing.credit_store import GivenCredit
from billing.money import currency, plain
from billing.periods import BillingPeriod, parse_period
from billing.plans.plan_file import parse_plan
from billing.plans.subscriptions import Subscription
from billing.rating.usage_events import UsageEvent
from billing.stripe.stripe_gateway import StripeGateway
from reconciliation.period import reconcile_period
from serving_adapter.identity import Identity, event_id_of
from tests.billing_builders import NOVEMBER, OCTOBER, PLAN, subscription
from tests.closing import bill_month
from tests.integration.billing.conftest import World
from tests.integration.billing.histories import ingest

DECEMBER = parse_period("2026-12")
MONTHS = (OCTOBER, NOVEMBER, DECEMBER)
Wire = dict[str, Any]


def used(request_id: str, at: datetime, output: int, tenant_id: str = "acme", **changed: Any) -> Wire:
    """A request of so many output tokens."""
    values: Wire = {"input_tokens": 0, "cache_hit_tokens": 0, "output_tokens": output, "model": "llama"}
    return {"tenant_id": tenant_id, "request_id": request_id, "timestamp": written(at), **values, **changed}


def correction(of: Wire, output: int, number: int = 1) -> Wire:
    """A correction of a request by so many output tokens."""
    identity = Identity(of["tenant_id"], of["request_id"], 1, "usage", 0)
    values: Wire = {"kind": "correction", "correction_no": number, "corrects": str(event_id_of(identity))}
    return of | values | {"input_tokens": 0, "cache_hit_tokens": 0, "output_tokens": output}


def written(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


class Arrivals:
    """Events that arrive one after the other, all of them after the months that they are of."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.position = 0

    def apply(self, *events: Wire) -> None:
        ingest(self.url, events, first=self.position, at=DECEMBER.end)
        self.position += len(events)


@dataclass
class Months:
    """An account acme whose months are closed by the commands. What arrives is kept for the core."""

    world: World
    gateway: StripeGateway
    arrive: Arrivals
    plan: str = PLAN
    tax: TaxRules = NO_TAX
    subscriptions: tuple[Subscription, ...] = (subscription("acme"),)
    grants: tuple[Grant, ...] = ()
    in_time: list[Wire] = field(default_factory=list)
    late: list[tuple[int, list[Wire]]] = field(default_factory=list)
    closed: int = 0

    def comes(self, *events: Wire) -> None:
        """Let usage arrive: in time for what is not closed, else late."""
        self.arrive.apply(*events)
        if self.closed:
            self.late.append((self.closed - 1, list(events)))
        else:
            self.in_time += events

    def close(self, period: BillingPeriod) -> MonthClosed:
        """Close a month a day and some after its end. Nothing may wait for a person."""
        found = self.run(period)
        assert found.problems == [], found.problems
        self.closed = max(self.closed, MONTHS.index(period) + 1)
        return found

    def run(self, period: BillingPeriod, **changed: Any) -> MonthClosed:
        """The same, whatever comes of it."""
        at = period.end + timedelta(days=2)
        values: dict[str, Any] = {"gateway": self.gateway, "now": at, "actor": "ada", "test": True}
        return bill_month(self.world.engine, period=period, **(values | changed))

    def core(self, periods: Sequence[BillingPeriod]) -> Bills:
        """What the pure core bills for all that arrived."""
        versions = {"p": parse_plan(self.plan, file="plan.yaml").versions}
        late = tuple(LateUsage(of, tuple(map(event_of, listed))) for of, listed in self.late)
        payer = Payer(currency("USD", periods[-1].end.date()), self.tax)
        # What comes late to a month that is open yet is usage of that month like all other.
        return bill(
            History(payer, self.subscriptions[-1].terms, tuple(periods), self.subscriptions, versions,
                    tuple(map(event_of, self.in_time)), late, self.grants)
        )  # fmt: skip

    def stored(self) -> list[dict[str, Any]]:
        """Every document of the account as its amounts, by kind and period."""
        found = [_stored(d) for d in invoice_list(self.world.engine, billing_account="acme")]
        return sorted(found, key=_order)

    def balance(self) -> dict[int, Decimal]:
        found = trial_balance(self.world.engine)
        assert found.balanced
        return {row.code: row.debit - row.credit for row in found.rows if row.debit != row.credit}

    def differences(self, *periods: BillingPeriod) -> dict[str, list[str]]:
        """What reconciliation finds in months, by check; but for Kafka, which is not asked."""
        found: dict[str, list[str]] = {}
        for period in periods:
            at = period.end + timedelta(days=2)
            report = reconcile_period(self.world.engine, period=period, now=at, gateway=self.gateway, log=None)
            for check in report.checks:
                if check.differences and check.name != "events are in their minute":
                    found[f"{period.name} {check.name}"] = [each.key for each in check.differences]
        return found


def said(bills: Bills, tax: TaxRules = NO_TAX) -> list[dict[str, Any]]:
    """The core's documents in the form of `Months.stored`."""
    found = [
        {
            "kind": document.kind.value,
            "period": document.service.name,
            "lines": {line.key: (line.amount_minor, plain(line.rated.amount)) for line in document.lines},
            "tax": {r.group: (r.base_minor, r.tax_minor) for r in document.taxes if tax.mode is not TaxMode.NONE},
            "paid": {each.grant_id: each.used_minor for each in document.paid},
            "exact": plain(document.exact_total),
            "rounding": plain(document.residue),
            "total": document.total_minor,
            "due": document.due_minor,
        }
        for document in bills.documents
    ]
    return sorted(found, key=_order)


def event_of(wire: Wire) -> UsageEvent:
    """The event as the core takes it."""
    own = Identity(wire["tenant_id"], wire["request_id"], 1, wire.get("kind", "usage"), wire.get("correction_no", 0))
    quantities = {
        "output": Decimal(wire["output_tokens"]),
        "input": Decimal(wire["input_tokens"] - wire["cache_hit_tokens"]),
        "cached_input": Decimal(wire["cache_hit_tokens"]),
    }
    return UsageEvent(
        str(event_id_of(own)),
        datetime.fromisoformat(wire["timestamp"]),
        quantities,
        request_id=wire["request_id"],
        model=wire["model"],
        corrects=wire.get("corrects"),
    )


def _stored(document: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": document["kind"],
        "period": document["period"],
        "lines": {line["line_key"]: (line["amount"], line["amount_exact"]) for line in document["lines"]},
        "tax": {row["tax_group"]: (row["base"], row["amount"]) for row in document["tax"]},
        "paid": {row["credit_id"]: row["amount"] for row in document["credits"] if row["pays"]},
        "exact": document["exact_total"],
        "rounding": document["rounding"],
        "total": document["total"],
        "due": document["amount_due"],
    }


def _order(document: dict[str, Any]) -> tuple[str, str]:
    return document["kind"], document["period"]


def given(grants: Iterable[Grant]) -> list[GivenCredit]:
    """Grants as they are given to account acme."""
    return [GivenCredit(grant, "acme", "because") for grant in grants]
