"""Invoices against Stripe, both ways: each of ours is there as it should be, and none that we cannot explain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.sending import customer_shown, seen_header, wanted_header
from billing.invoicing.stripe_lines import LineSeen, told, wanted_lines
from billing.periods import BillingPeriod
from billing.stripe.stripe_gateway import Json, StripeInvoice
from reconciliation.agreement import Check
from reconciliation.comparison import Difference, Value, differences, multiset_differences

DAY_S: Final = 86_400
STATUS: Final[Mapping[InvoiceState, str]] = {
    InvoiceState.FINALIZED: "open",
    InvoiceState.PAID: "paid",
    InvoiceState.VOID: "void",
    InvoiceState.UNCOLLECTIBLE: "uncollectible",
}
"""The states in which Stripe must have an invoice, and the status that it has there."""

Lines = Callable[[str], Sequence[LineSeen]]
"""All lines of an invoice in Stripe, asked for where a listing did not have them."""


@dataclass(frozen=True, slots=True)
class Ours:
    """What we know of Stripe: the period's invoices, the ids of all our invoices of any period, our customers with the
    billing accounts that they are."""

    period: BillingPeriod
    invoices: Sequence[StoredInvoice]
    stripe_ids: Collection[str]
    customers: Mapping[str, str]


def in_stripe(ours: Ours, found: Iterable[StripeInvoice], lines: Lines) -> Check:
    """Compare the period's invoices with what Stripe has.

    Of what is not ours, whatever claims the period is listed, and what one of our customers was given since the
    period began, with whose customer it is: it may have been made by hand, without our metadata. A void one asks
    nothing of anybody.
    """
    due = {s.stripe_invoice_id or "": s for s in ours.invoices if s.state in STATUS}
    there: set[str] = set()
    different: list[Difference] = []
    for theirs in found:
        stored = due.get(theirs.invoice_id)
        if stored is not None:
            there.add(theirs.invoice_id)
            listed = theirs.lines if theirs.lines is not None else lines(theirs.invoice_id)
            different += _differences(stored, theirs, listed)
        elif theirs.invoice_id not in ours.stripe_ids and _concerns(ours, theirs):
            there.add(theirs.invoice_id)
            claim = theirs.seen.metadata.get("invoice_id") or "without our id"
            of = [ours.customers[theirs.seen.customer]] if theirs.seen.customer in ours.customers else []
            key = "/".join((f"{theirs.invoice_id} ({claim})", *of))
            different.append(Difference(key, None, theirs.seen.status))
    for s in ours.invoices:
        if s.state in STATUS and s.stripe_invoice_id not in there:
            different.append(Difference(str(s.stored_id), s.stripe_invoice_id or s.state.value, None))
    return Check("finalized invoices are in Stripe", "invoices", "Stripe", len(due.keys() | there), tuple(different))


def money_in_stripe(listed: Mapping[str, Value], booked: Mapping[str, Value]) -> Check:
    """By balance transaction what Stripe's balance changed by, in Stripe, and as our journal has it in 1010.

    One that is in Stripe and not booked waits for `tollbook stripe sync`. `…/kept`: what is kept of it beside.
    """
    different = differences(listed, booked)
    return Check("money in Stripe is booked once", "balance transactions", "ledger 1010", len(listed), tuple(different))


def customers_in_stripe(
    ours: Mapping[str, str], explained: Mapping[str, int], as_told: Mapping[str, Json], billed: Collection[str],
    found: Iterable[Json], pending: Iterable[Json],
) -> Check:  # fmt: skip
    """Our customers (with whose they are) have the balances that we can explain (Stripe's integers; else 0), the names
    and addresses that Stripe was told, and no items that somebody left to be billed (docs/spec/money.md 10); those
    that are being `billed` are there."""
    there = {each["id"]: each for each in found if each["id"] in ours}
    asked = {name: account for name, account in ours.items() if name in there or name in billed}
    wanted: dict[str, Value] = {f"{account}/{name}/balance": explained.get(name, 0) for name, account in asked.items()}
    seen: dict[str, Value] = {f"{ours[name]}/{name}/balance": each["balance"] for name, each in there.items()}
    for name in there.keys() & as_told.keys():
        for side, data in ((wanted, as_told[name]), (seen, there[name])):
            side |= {f"{ours[name]}/{name}/{what}": text for what, text in customer_shown(data).items()}
    different = differences(wanted, seen)
    for item in pending:
        if (name := _name(item["customer"])) in ours:
            told_ = f"{item['amount']} {item['currency']} pending"
            different.append(Difference(f"{ours[name]}/{name}/{item['id']}", None, told_))
    return Check("customers in Stripe are explained", "accounts", "customers", len(ours), tuple(different))


def _name(found: Any) -> str:
    return found if isinstance(found, str) else str(found["id"])


def _concerns(ours: Ours, theirs: StripeInvoice) -> bool:
    if theirs.seen.status == "void":
        return False
    if theirs.seen.metadata.get("period") == ours.period.name:
        return True
    return theirs.seen.customer in ours.customers and theirs.created_s >= _seconds(ours.period.start)


def _differences(stored: StoredInvoice, theirs: StripeInvoice, lines: Sequence[LineSeen]) -> list[Difference]:
    wanted = wanted_header(
        stored.invoice,
        customer=stored.stripe_customer_id or "",
        status=STATUS[stored.state],
        number=stored.number or "",
    )
    seen = {name: value for name, value in seen_header(theirs.seen, wanted).items() if value is not None}
    found = differences(wanted, seen)
    if theirs.due_s not in _due(stored, theirs):
        found.append(Difference("due_date", str(stored.due_date), theirs.due_s))
    key = theirs.invoice_id
    return [Difference(f"{key}/{d.key}", d.left, d.right) for d in found] + multiset_differences(
        key,
        Counter({told(line): count for line, count in wanted_lines(stored.invoice).items()}),
        Counter(map(told, lines)),
    )


def _due(stored: StoredInvoice, theirs: StripeInvoice) -> set[int]:
    """Stripe counts the terms from a moment of its own clock: when it made the invoice, or when it finalized it."""
    if stored.issue_date is None or stored.due_date is None:
        return set()
    terms_s = (stored.due_date - stored.issue_date).days * DAY_S
    return {at + terms_s for at in (theirs.created_s, theirs.finalized_s) if at is not None}


def _seconds(at: datetime) -> int:
    return int(at.timestamp())
