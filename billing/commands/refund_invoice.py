"""Giving back what was paid of an invoice in Stripe: decided here; `send_corrections` tells Stripe.

What of the payments is unapplied cash goes back for the credit note that left it so, and nothing of it without one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Engine

from billing.commands.correct_invoice import audit_correction, check_amounts, correctable, from_payments
from billing.database import transaction
from billing.errors import CorrectionRefused
from billing.invoicing import correction_store, invoice_store
from billing.invoicing.correcting import Correction, CorrectionKind, CorrectionState
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceState
from billing.ledger import balance_store
from billing.ledger.journal import AccountCode
from billing.money import ZERO, Currency, exactly, plain, to_minor, to_stripe, total
from billing.posting.correction_amounts import booked
from billing.posting.stripe_money import major
from billing.stripe import returns
from billing.stripe.returns import Payment
from billing.stripe.stripe_accounts import Stripe, followed

REFUNDABLE: Final = (InvoiceState.FINALIZED, InvoiceState.PAID, InvoiceState.UNCOLLECTIBLE)


@dataclass(frozen=True, slots=True)
class Unapplied:
    """What became unapplied cash of an invoice, in major units: by the number of the credit note, and overpaid.

    `held` is what the whole account still holds of it in 2150, and `coming` what is not booked there yet.
    """

    notes: Mapping[str, Decimal]
    overpaid: Decimal
    held: Decimal
    coming: Decimal

    def of_note(self, number: str, payments: Sequence[Payment], money: Currency) -> Decimal:
        """What a credit note left and was not given back for it."""
        back = sum(payment.back.get(number, 0) for payment in payments)
        with exactly():
            return max(ZERO, self.notes.get(number, ZERO) - major(back, money))

    def left(self, payments: Sequence[Payment], money: Currency) -> Decimal:
        """All of it that is still there; what a journal entry has paid out is not."""
        notes = total(self.of_note(number, payments, money) for number in self.notes)
        with exactly():
            return min(notes + self.overpaid, max(ZERO, self.held)) + self.coming


def refund_invoice(
    engine: Engine,
    reference: str,
    amount: Decimal | None,
    *,
    gateway: Stripe,
    reason: str,
    actor: str,
    note: str | None = None,
    dry_run: bool = False,
) -> Correction:
    """Give back what was paid of an invoice, or an amount (major units), or what a credit note (`note`) took off.

    Booked once Stripe's balance moves: against 4920, or what the credit note left as unapplied cash. Raises
    CorrectionRefused.
    """
    check_amounts(*([] if amount is None else [amount]))
    with transaction(engine) as connection:
        stored = correctable(connection, reference, REFUNDABLE)
        number = None if note is None else invoice_store.find(connection, note).number or note
        _check_notes_told(connection, reference, stored, number)
        unapplied = _unapplied(connection, stored)
    of, stripe_id = stored.invoice, stored.stripe_invoice_id or ""
    account = followed(engine, gateway, of.identity.legal_entity, dry_run=dry_run)
    payments, money = returns.payments(account, stripe_id), of.identity.money
    if number is None:
        wanted = _without_note(reference, amount, unapplied, payments, money)
    else:
        wanted = _of_note(number, amount, unapplied, payments, money)
    minor = to_stripe(to_minor(wanted, money), money)
    content: dict[str, Any] = {"note": number, "parts": from_payments(payments, minor, money)}
    with transaction(engine, dry_run=dry_run) as connection:
        others = correction_store.listed(
            connection, state=CorrectionState.OPEN, invoice_ids=[of.invoice_id], kind=CorrectionKind.REFUND
        )
        if others:
            raise CorrectionRefused(
                f"another refund of {reference} is under way: `tollbook stripe sync` goes on with it"
            )
        _check_notes_told(connection, reference, stored, number)
        made = correction_store.add(
            connection, of.invoice_id, CorrectionKind.REFUND, reason=reason, actor=actor, content=content
        )
        audit_correction(connection, actor, made, stored.number or reference)
        return made


def _check_notes_told(connection: Connection, reference: str, stored: StoredInvoice, number: str | None) -> None:
    """What an open credit note leaves of the payments is not known yet. Raises CorrectionRefused without a note."""
    open_ = correction_store.listed(
        connection, state=CorrectionState.OPEN, invoice_ids=[stored.invoice.invoice_id], kind=CorrectionKind.CREDIT_NOTE
    )
    if number is None and open_:
        (first, *_) = [invoice_store.load(connection, each.note_id).number for each in open_ if each.note_id]
        raise CorrectionRefused(
            f"credit note {first} of {reference} is not told to Stripe yet: `tollbook stripe sync` first, then what it"
            f" leaves of the payments goes back with `--credit-note {first}`"
        )


def _of_note(
    number: str, amount: Decimal | None, unapplied: Unapplied, payments: Sequence[Payment], money: Currency
) -> Decimal:
    left = unapplied.of_note(number, payments, money)
    wanted = left if amount is None else amount
    if not 0 < wanted <= left:
        raise CorrectionRefused(f"{number} has {plain(left)} {money.code} left that was paid and not given back")
    return wanted


def _without_note(
    reference: str, amount: Decimal | None, unapplied: Unapplied, payments: Sequence[Payment], money: Currency
) -> Decimal:
    """What of the payments no credit note and no overpayment has made unapplied cash, or the amount asked for."""
    paid, kept = major(sum(payment.left for payment in payments), money), unapplied.left(payments, money)
    if not paid:
        raise CorrectionRefused(f"nothing was paid of {reference} in Stripe that could be given back")
    with exactly():
        left = max(ZERO, paid - kept)
    wanted = left if amount is None else amount
    if kept and not 0 < wanted <= left:
        named = [number for number in unapplied.notes if unapplied.of_note(number, payments, money)]
        ways = [*(f"`--credit-note {number}`" for number in named), *(["by hand"] if unapplied.overpaid else [])]
        raise CorrectionRefused(
            f"{plain(left)} {money.code} of its payments can be given back so, not more: {plain(kept)} is unapplied"
            f" cash, which goes back {' or '.join(ways)}"
        )
    return wanted


def _unapplied(connection: Connection, stored: StoredInvoice) -> Unapplied:
    identity = stored.invoice.identity
    notes: dict[str, Decimal] = defaultdict(lambda: ZERO)
    overpaid = coming = ZERO
    with exactly():
        for each in correction_store.listed(connection, invoice_ids=[stored.invoice.invoice_id]):
            of_note = each.kind in (CorrectionKind.CREDIT_NOTE, CorrectionKind.OVERPAYMENT)
            if of_note and each.note_id is not None:
                number = invoice_store.load(connection, each.note_id).number or ""
                notes[number] += booked(connection, each)
            elif each.kind is CorrectionKind.OVERPAYMENT:
                overpaid += booked(connection, each)
                if each.state is CorrectionState.OPEN:
                    coming += major(each.content["amount"], identity.money)
        held = ZERO
        # What is a cash balance in Stripe is unapplied cash as well, and of no invoice.
        for code in (AccountCode.CUSTOMER_CREDIT_BALANCE.code, AccountCode.STRIPE_CUSTOMER_CASH.code):
            balances = balance_store.account_balances(
                connection, legal_entity=identity.legal_entity, code=code, subledger=identity.billing_account
            )
            held -= total(balance.amount for balance in balances if balance.currency == identity.currency)
    return Unapplied(dict(notes), overpaid, held, coming)
