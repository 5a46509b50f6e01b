"""Credit notes that somebody decides on: over all of an invoice, so that it is billed anew, or over an amount.

Values in, values out. Those that follow from late usage: bills/late_usage.py.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Final

from billing.bills import credit_notes
from billing.bills.credits import Grant
from billing.bills.documents import Document, DocumentKind, Payer, of_lines
from billing.bills.late_usage import ADJUSTMENT, changed_key, dated_key, of_period
from billing.bills.payment_credits import given_back
from billing.bills.tax import TaxRow, TaxRules
from billing.errors import CorrectionRefused
from billing.invoicing import invoices
from billing.invoicing.billed_documents import BilledPeriod
from billing.invoicing.invoices import INVOICED, AccountCredits, Invoice, InvoiceIdentity, InvoiceKind, InvoiceLine
from billing.money import ZERO, exactly, plain, total
from billing.periods import BillingPeriod
from billing.rating import RatedLine
from billing.rating.made_lines import credit_line

REVERSIBLE: Final = (InvoiceKind.USAGE, InvoiceKind.ADJUSTMENT)


def cancelling_note(of: Invoice, notes: Sequence[Invoice], *, revision: int, tax: TaxRules) -> Invoice:
    """The credit note that takes back all that `notes` have left of an invoice, line by line and to the last digit.

    What it billed is then billed on no document, and is drawn up again. Raises CorrectionRefused where the invoice has
    more on it than usage: fees in advance, credits, what was carried.
    """
    _check_reversible(of)
    if of.carried or any(each.credits for each in (of, *notes)):
        raise CorrectionRefused("credits or a carried amount are on it: it cannot be billed anew, only credited")
    merged: dict[tuple[BillingPeriod, str], list[InvoiceLine]] = defaultdict(list)
    for each in (of, *notes):
        for line in each.lines:
            period = line.original_period or of.identity.period
            merged[period, changed_key(of_period(line.line_key, period))].append(line)
    lines: dict[str, RatedLine] = {}
    minor: dict[str, int] = {}
    original: dict[str, BillingPeriod] = {}
    for (period, key), listed in sorted(merged.items(), key=lambda each: each[0]):
        taken = _negated(listed)
        amount_minor = -sum(line.amount_minor for line in listed)
        if taken.amount or taken.quantity or amount_minor:
            name = ADJUSTMENT + key
            name = name if name not in lines else dated_key(name, period)
            lines[name], minor[name], original[name] = taken, amount_minor, period
    if not lines:
        raise CorrectionRefused("nothing of it is left to take back")
    payer = Payer(of.identity.money, replace(tax, mode=of.tax_mode))
    document = of_lines(DocumentKind.CREDIT_NOTE, of.identity.period, lines, minor, _taxes_left((of, *notes)), payer)
    return _note(document, of, revision, original, payer.tax, AccountCredits())


def goodwill_note(
    billed: BilledPeriod, grant: Grant, amounts: dict[str, Decimal], *, revision: int, payer: Payer,
    credits: AccountCredits,
) -> Invoice:  # fmt: skip
    """The credit note over amounts by tax group: a credit that is given and used up at once, which reduces the price.

    What credits had paid comes back to them first. Raises CorrectionRefused where less is left of the invoice.
    """
    of = billed.invoice
    _check_reversible(of)
    lines = {
        (key := f"credit.{grant.grant_id}" + (f".{group}" if len(amounts) > 1 else "")): replace(
            credit_line(of.lines[0].rated, key, -amount, group), reason=INVOICED
        )
        for group, amount in amounts.items()
    }
    left = sum(
        lines_minor + (0 if payer.tax.inclusive else tax) for lines_minor, tax in billed.remaining.groups.values()
    )
    document, _ = credit_notes.credit_note(
        of.identity.period, lines, {key: key for key in lines}, billed.remaining, payer
    )
    if not 0 < -document.total_minor <= left:
        raise CorrectionRefused(
            f"{plain(total(amounts.values()))} {of.identity.currency} is more than what is left of it, or nothing"
        )
    document = replace(document, paid=given_back(billed.paid, -document.total_minor))
    return _note(document, of, revision, {}, payer.tax, credits)


def _check_reversible(of: Invoice) -> None:
    if of.identity.kind not in REVERSIBLE:
        raise CorrectionRefused(
            f"an invoice of kind {of.identity.kind} is not taken back by hand: fees follow their subscriptions"
        )


def _note(
    document: Document,
    of: Invoice,
    revision: int,
    original: dict[str, BillingPeriod],
    tax: TaxRules,
    credits: AccountCredits,
) -> Invoice:
    identity = InvoiceIdentity(
        of.identity.legal_entity, of.identity.billing_account, InvoiceKind.CREDIT_NOTE, of.identity.period,
        of.identity.currency, revision,
    )  # fmt: skip
    made = invoices.invoice_of(document, identity, original, tax=tax, credits=credits)
    return replace(made, credits_invoice_id=of.invoice_id)


def _negated(listed: Sequence[InvoiceLine]) -> RatedLine:
    """A line that takes back what several come to."""
    first = listed[0]
    rated = [line.rated for line in listed]
    with exactly():
        return replace(
            first.rated,
            quantity=-sum((each.quantity for each in rated), ZERO),
            amount=-sum((each.amount for each in rated), ZERO),
            units=_minus(each.units for each in rated),
            free=-sum((each.free for each in rated), ZERO),
            included=_minus(each.included for each in rated),
            reason=INVOICED,
            tax_group=first.tax_group,
        )


def _minus(amounts: Iterable[Decimal | None]) -> Decimal | None:
    known = [each for each in amounts if each is not None]
    return -sum(known, ZERO) if known else None


def _taxes_left(documents: Sequence[Invoice]) -> tuple[TaxRow, ...]:
    """What is left of the tax rows of documents, taken back."""
    rows: dict[str, TaxRow] = {}
    for document in documents:
        for row in document.taxes:
            before = rows.get(row.group, TaxRow(row.group, row.rate, 0, 0))
            rows[row.group] = replace(
                before, base_minor=before.base_minor - row.base_minor, tax_minor=before.tax_minor - row.tax_minor
            )
    return tuple(rows[group] for group in sorted(rows))


def note_grant_id(invoice_id: uuid.UUID, what: str) -> str:
    """The name of the credit that a credit note over an amount gives and uses up."""
    return f"note-{invoice_id.hex[:12]}-{what}"
