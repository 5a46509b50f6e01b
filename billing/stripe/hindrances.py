"""What Stripe's refusal of a step means for an invoice, as it stands there by now, and the way on."""

from __future__ import annotations

from billing.errors import BillingError, StripeRefused
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.sending import SendingStep
from billing.stripe.stripe_gateway import StripeGateway, StripeInvoice

GONE = "resource_missing"
CREDIT_IT = "credit all of it there, out of band (what was paid of it stays the account's, as unapplied cash)"
TAKE_OVER = "`tollbook invoice credit-note INVOICE --made-in-stripe cn_… --amount …`"


def hindrance(gateway: StripeGateway, stored: StoredInvoice, why: BillingError) -> str:
    """Why an invoice cannot go on, and what a person can do. Raises StripeError where Stripe cannot be asked.

    `why`: what Stripe's refusal says, or what differs there.
    """
    anew = f"`tollbook invoice restart {stored.number or stored.invoice.invoice_id}`"
    draft, customer = stored.stripe_invoice_id, stored.stripe_customer_id
    there = None if draft is None else draft_of(gateway, draft)
    if customer is not None and customer_deleted(gateway, customer):
        first = f"delete its draft {draft} there, too, then " if there is not None else ""
        return f"customer {customer} was deleted in Stripe: {first}{anew} bills another customer"
    if draft is not None and there is None:
        return f"its draft {draft} was deleted in Stripe by hand: {anew} builds it again"
    if there is not None and there.seen.status != "draft":
        as_what = f"{there.seen.status}, number {there.seen.number}"
        first = CREDIT_IT if there.seen.status == "paid" else "void it there"
        return f"its draft {draft} was finalized in Stripe by hand ({as_what}): {first}, then {anew}"
    code = f" ({why.code})" if isinstance(why, StripeRefused) and why.code else ""
    number = stored.number if stored.sending_step is SendingStep.RELEASED and isinstance(why, StripeRefused) else None
    taken = f"; where another invoice there has the number {number}, delete draft {draft} there, then {anew[:-1]}"
    other_number = f"{taken} --number-taken in_…` sends it with the next one" if number else ""
    return f"{why}{code}: mend it there, then send it again{other_number}"


def draft_of(gateway: StripeGateway, stripe_invoice: str) -> StripeInvoice | None:
    """What Stripe has of an invoice; None where it was deleted."""
    try:
        return gateway.invoice(stripe_invoice)[0]
    except StripeRefused as error:
        if error.code != GONE:
            raise
        return None


def customer_deleted(gateway: StripeGateway, customer: str) -> bool:
    """Whether a customer is deleted in Stripe, which shows it as a shell, or is not there at all."""
    try:
        return bool(gateway.get("/v1/customers/{}", customer).get("deleted"))
    except StripeRefused as error:
        if error.code != GONE:
            raise
        return True
