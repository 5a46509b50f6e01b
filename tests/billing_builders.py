"""Values of billing for tests: defaults, and what the test is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.invoices import Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.invoicing.parties import Party
from billing.invoicing.party_store import Sides
from billing.invoicing.sending import SendingStep
from billing.money import Rounding
from billing.periods import BillingPeriod, parse_period
from billing.plans.price_plans import Charge, Filters, Metric, PerUnit, PlanVersion, Terms
from billing.plans.subscriptions import Piece, Subscription, pieces, subscription_id
from billing.rating import RatedLine, Rating, rate
from streams.rules.windows import UsageQuantity

OCTOBER = parse_period("2026-10")
NOVEMBER = parse_period("2026-11")
SINCE = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 12, 2, tzinfo=UTC)
EMAIL = "billing@payer.example"
PLAN = """\
plan: p
currency: USD
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - {key: in, model: per_unit, metric: input, price: "0.001"}
      - {key: cached, model: per_unit, metric: cached_input, price: "0.0005"}
      - {key: out, model: per_unit, metric: output, price: "0.002"}
"""


def usage(tenant_id: str = "tenant_1", model: str = "llama", **changed: Any) -> UsageQuantity:
    """Usage of one request; `input_tokens` includes `cache_hit_tokens`."""
    values: dict[str, Any] = {
        "adapter": "", "region": "", "tier": "", "status": "ok", "fault": "none", "usage_source": "engine",
        "rating_band": "", "requests": 1, "input_tokens": 0, "cache_hit_tokens": 0, "output_tokens": 0, "gpu_us": 0,
    }  # fmt: skip
    return UsageQuantity(tenant_id=tenant_id, model=model, **(values | changed))


def charge(key: str, metric: Metric, price: str, per: int = 1, **where: str) -> Charge:
    """A per-unit charge."""
    return Charge(key, metric, Filters(**where), PerUnit(Decimal(price), per))


def version(
    *charges: Charge, name: str = "v1", valid_from: datetime = SINCE, plan: str = "p", currency: str = "USD"
) -> PlanVersion:
    """A plan version."""
    return PlanVersion(plan, name, currency, valid_from, charges)


def subscription(tenant_id: str = "tenant_1", **changed: Any) -> Subscription:
    """A subscription to plan `p`, paid by the tenant's own account."""
    starts_at = changed.pop("starts_at", SINCE)
    if "bill_statuses" in changed:
        changed["terms"] = Terms(bill_statuses=changed.pop("bill_statuses"))
    values: dict[str, Any] = {"billing_account": tenant_id, "plan": "p"}
    return Subscription(subscription_id(tenant_id, starts_at), tenant_id, starts_at=starts_at, **(values | changed))


def cut(
    versions: Sequence[PlanVersion], period: BillingPeriod = OCTOBER, of: Subscription | None = None
) -> list[Piece]:
    """The pieces of a period for one subscription."""
    return pieces([of or subscription()], {"p": versions}, period)


def rated(
    versions: PlanVersion | Sequence[PlanVersion], used: Iterable[UsageQuantity], period: BillingPeriod = OCTOBER
) -> Rating:
    """Usage rated, all of it in the one piece of the period."""
    (piece,) = cut([versions] if isinstance(versions, PlanVersion) else versions, period)
    return rate([(piece, list(used))], period)


def invoice(
    lines: Iterable[RatedLine],
    *,
    period: BillingPeriod = OCTOBER,
    currency: str = "USD",
    account: str = "tenant_1",
    rounding: Rounding = Rounding.HALF_EVEN,
    plan_versions: int = 1,
) -> Invoice:
    """The usage invoice over rated lines."""
    identity = InvoiceIdentity("default", account, InvoiceKind.USAGE, period, currency)
    return draw_up(identity, lines, plan_versions={"p": plan_versions}, rounding=rounding)


def stored(of: Invoice, **changed: Any) -> StoredInvoice:
    """The invoice as the database would have it: a draft."""
    values: dict[str, Any] = {
        "state": InvoiceState.DRAFT, "sending_step": SendingStep.NOT_BEGUN, "drafted_at": NOW,
        "stored_id": of.invoice_id, "stored_lines_hash": of.lines_hash,
    }  # fmt: skip
    nothing = {field.name: None for field in fields(StoredInvoice)}
    return StoredInvoice(**(nothing | {"invoice": of} | values | changed))


SIDES = Sides(Party("Tollbook GmbH", country="DE", tax_id="DE123456789"), Party("Acme Inc", country="US"), 30)


def bill(versions: PlanVersion | Sequence[PlanVersion], used: Iterable[UsageQuantity], **changed: Any) -> Invoice:
    """From usage to the invoice."""
    period = changed.get("period", OCTOBER)
    return invoice(rated(versions, used, period).lines, **changed)


def rounded(of: Invoice) -> dict[str, int]:
    """Minor amounts by line key."""
    return {line.line_key: line.amount_minor for line in of.lines}
