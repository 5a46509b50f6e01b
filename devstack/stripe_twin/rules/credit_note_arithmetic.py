"""The arithmetic of credit notes: what a note takes off before payment and after it, and how far notes may go.

Source: docs.stripe.com/api/credit_notes/create ("will first reduce the invoice's amount_remaining (and amount_due), but
not below zero"; refunds, balance credits and what is credited outside of Stripe "must equal the
post_payment_amount"; refunds of the Refund API count against the most that can be credited).
"""

from __future__ import annotations

from devstack.stripe_twin.errors import invalid


def split(amount: int, remaining: int) -> tuple[int, int]:
    """What of a note lowers what remains to be paid, and what is beyond that."""
    before = min(amount, remaining)
    return before, amount - before


def check_creditable(amount: int, total: int, credited: int, refunded: int) -> None:
    """Refuse a note that is more than what is left of the invoice. Raises StripeError (400)."""
    if amount <= 0:
        raise invalid("The credit note amount must be greater than zero.", "amount")
    left = total - credited - refunded
    if amount > left:
        raise invalid(f"The credit note amount ({amount}) is greater than the creditable amount ({left}).", "amount")


def check_post_payment(post: int, given: int) -> None:
    """Refuse a note of which the part after payment goes nowhere, or to more than it is. Raises StripeError (400)."""
    if post != given:
        raise invalid(
            f"The sum of refunds, credit amount and out of band amount ({given}) must equal the post payment"
            f" amount ({post})."
        )
