"""How the collection of an invoice stands: an enum and one pure function."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

from billing.invoicing.invoice_states import InvoiceState


class DunningState(StrEnum):
    """Due: nobody has tried in vain. Retrying: a payment failed, and another can still come in time or by itself.
    Failed: it failed, is overdue, and nothing more comes by itself. Uncollectible: written off."""

    DUE = "due"
    RETRYING = "retrying"
    FAILED = "failed"
    UNCOLLECTIBLE = "uncollectible"


@dataclass(frozen=True, slots=True)
class Standing:
    """How an invoice stood in Stripe when it was looked at last. Amounts are Stripe's integers.

    `failed_at`: when a payment failed last. `next_attempt_at`: when Stripe tries again by itself.
    """

    status: str
    amount_paid: int
    amount_remaining: int
    attempts: int
    next_attempt_at: datetime | None = None
    failed_at: datetime | None = None


def dunning(state: InvoiceState, standing: Standing | None, due_date: date | None, today: date) -> DunningState | None:
    """Where the collection of an invoice stands; None where there is nothing to collect."""
    if state is InvoiceState.UNCOLLECTIBLE:
        return DunningState.UNCOLLECTIBLE
    if state is not InvoiceState.FINALIZED or (standing is not None and standing.amount_remaining == 0):
        return None
    if standing is None or standing.failed_at is None:
        return DunningState.DUE
    overdue = due_date is not None and today > due_date
    if standing.next_attempt_at is not None or not overdue:
        return DunningState.RETRYING
    return DunningState.FAILED
