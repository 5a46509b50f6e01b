"""Corrections of invoices as journal entries (docs/spec/money.md 9, 10). Values in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from billing.invoicing.correcting import Correction, CorrectionKind
from billing.ledger.journal import AccountCode, JournalEntry, Posting, Subledger
from billing.posting.posting_rules import Booking

AGAINST: Final[Mapping[CorrectionKind, AccountCode]] = {
    CorrectionKind.WRITE_OFF: AccountCode.BAD_DEBT,
    CorrectionKind.RECOVERY: AccountCode.BAD_DEBT,
    CorrectionKind.PAID_ELSEWHERE: AccountCode.BANK,
    CorrectionKind.CREDIT_NOTE: AccountCode.CUSTOMER_CREDIT_BALANCE,
    CorrectionKind.VOID: AccountCode.CUSTOMER_CREDIT_BALANCE,
    CorrectionKind.OVERPAYMENT: AccountCode.CUSTOMER_CREDIT_BALANCE,
}
"""The other side of what an account owes. Written off is bad debt, gross: tax is taken back by credit notes alone.

What a credit note takes off beyond what was still to be paid, what was paid of a void invoice, and what was paid beyond
what was due, is unapplied cash.
"""
LOWERS: Final = (CorrectionKind.WRITE_OFF, CorrectionKind.PAID_ELSEWHERE)
"""Those that lower what an account owes; the others raise it."""


def corrected(
    correction: Correction, amount: Decimal, currency: str, billing_account: str, *, booking: Booking
) -> JournalEntry | None:
    """The entry of a correction over an amount in major units; None if it comes to nothing.

    Written off, paid elsewhere: Dr 5200 or 1020 / Cr 1100. Paid after all, unapplied: Dr 1100 / Cr 5200 or 2150.
    """
    if not amount:
        return None
    other = AGAINST[correction.kind]
    sign = 1 if correction.kind in LOWERS else -1
    subledger = billing_account if other.subledger is Subledger.BILLING_ACCOUNT else ""
    return booking.entry(
        kind=f"invoice_{correction.kind}",
        postings=(
            Posting(other, currency, sign * amount, subledger),
            Posting(AccountCode.ACCOUNTS_RECEIVABLE, currency, -sign * amount, billing_account),
        ),
        source={"invoice_id": str(correction.invoice_id), "correction": str(correction.correction_no)},
    )
