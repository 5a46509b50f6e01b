"""What is owed, in Stripe and here: the credit notes on invoices, and what was paid of them.

An invoice's total and status agree (`stripe_agreement`), and 1100 follows from documents and entries ("the books are
explained"). With these two, 1100 is what remains to be paid in Stripe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection

from billing.errors import UnknownCurrency
from billing.invoicing import correction_store, invoice_store
from billing.invoicing.correcting import CorrectionKind, CorrectionState, credited
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceState
from billing.money import ZERO, currency, exactly
from billing.posting.stripe_money import major
from billing.stripe import returns_store
from billing.stripe.stripe_gateway import Json, StripeInvoice
from reconciliation.agreement import Check, compare
from reconciliation.comparison import Value

STAYING: Final = (InvoiceState.FINALIZED, InvoiceState.PAID, InvoiceState.UNCOLLECTIBLE)
"""What a credit note can lower. Of a void invoice nothing is owed, whatever was credited of it before."""
Paid = dict[tuple[str, str], Decimal]
"""By customer and currency what was paid of invoices, in major units."""


def noting(found: Iterable[StripeInvoice], paid: Paid) -> Iterator[StripeInvoice]:
    """The same invoices; what was paid of each through Stripe is added to `paid`, but for currencies that we do not
    know: of those nothing is in 1100."""
    for theirs in found:
        amount = theirs.amount_paid - theirs.paid_off_stripe + theirs.overpaid
        if amount:
            code = theirs.seen.currency.upper()
            key, at = (theirs.seen.customer, code), theirs.finalized_s or theirs.created_s
            with exactly(), suppress(UnknownCurrency):
                paid[key] = paid.get(key, ZERO) + major(amount, currency(code, datetime.fromtimestamp(at, UTC).date()))
        yield theirs


def credit_notes(connection: Connection, invoices: Sequence[StoredInvoice], found: Iterable[Json]) -> Check:
    """Each credit note on one of some invoices is there in Stripe and here, over the same amount (Stripe's integer).

    Not one that waits to be told, or that Stripe never takes; nor, of one that was made there by hand, what went back
    to the payer: that is booked as a refund.
    """
    of = {s.invoice.invoice_id: s.stripe_invoice_id or "" for s in invoices if s.state in STAYING}
    done = correction_store.listed(connection, state=CorrectionState.DONE, invoice_ids=list(of))
    kept_here = {each.note_id for each in done if each.kind is CorrectionKind.OVERPAYMENT}
    told = [
        each for each in done
        if each.kind is CorrectionKind.CREDIT_NOTE and each.stripe_id is not None and each.note_id not in kept_here
    ]  # fmt: skip
    notes = invoice_store.listed(connection, invoice_ids={each.note_id for each in told if each.note_id is not None})
    amounts = {note.invoice.invoice_id: credited(note.invoice) for note in notes} if told else {}
    ours: dict[str, Value] = {
        f"{of[each.invoice_id]}/{each.stripe_id}": amounts[each.note_id] for each in told if each.note_id is not None
    }
    there: dict[str, Value] = {}
    ids = set(of.values())
    for note in found:
        key = f"{note['invoice']}/{note['id']}"
        refunded = 0 if key in ours else sum(each.get("amount_refunded") or 0 for each in note["refunds"] or [])
        if note["invoice"] in ids and note["status"] == "issued" and note["total"] > refunded:
            there[key] = note["total"] - refunded
    check = compare("credit notes are in Stripe", "credit notes", "Stripe", ours, there)
    return Check(check.name, check.left, check.right, max(check.compared, len(of)), check.differences)


def payments(connection: Connection, customers: Mapping[str, str], paid: Paid) -> Check:
    """By account what its customers paid of invoices in Stripe, and what of 1100 the balance transactions took off.

    A payment that is for no invoice is only here; one that is not taken in yet is only there.
    """
    there: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for (customer, code), amount in paid.items():
            if customer in customers:
                there[f"{customers[customer]}/{code}"] += amount
        booked = {
            f"{account}/{code}": -amount for (account, code), amount in returns_store.received(connection).items()
        }
    check = compare("payments in Stripe are booked", "Stripe's invoices", "ledger 1100", dict(there), booked)
    return Check(check.name, check.left, check.right, max(check.compared, len(customers)), check.differences)
