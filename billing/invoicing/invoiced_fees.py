"""What an account's documents say of its fees in advance: what a credit note against them goes by.

One billing account and one end of billing periods, moment by moment (docs/spec/money.md 6, 13.9, 13.10, 13.17). Values
in, values out.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from billing.bills import credit_notes
from billing.bills.credit_application import Written, given_back_with_fees
from billing.bills.credit_notes import Remaining, Returned, on_no_document, without_ending
from billing.bills.credits import Grant
from billing.bills.documents import Document, Payer
from billing.bills.payment_credits import given_back
from billing.invoicing import invoices
from billing.invoicing.advance_fees import ByShare, Share, by_share
from billing.invoicing.billed_documents import paid_by_grants
from billing.invoicing.invoices import INVOICED, AccountCredits, Invoice, InvoiceIdentity, InvoiceKind
from billing.money import ZERO, exactly
from billing.periods import BillingPeriod
from billing.rating import LineIdentity, LineKind, Naming, RatedLine, net, segments_of


@dataclass(slots=True)
class InvoicedFees:
    """By tenant and tax group the invoice that its running fees are on; what remains of each such invoice, and its
    credit notes."""

    invoices: dict[Share, Invoice] = field(default_factory=dict)
    _remaining: dict[uuid.UUID, Remaining] = field(default_factory=dict)
    _notes: dict[uuid.UUID, list[Invoice]] = field(default_factory=lambda: defaultdict(list))
    _lines: list[Written] = field(default_factory=list)

    def take_in(self, document: Invoice) -> None:
        """An invoice for fees in advance was issued, or a credit note against one."""
        self._lines += ((line.rated, line.amount_minor) for line in document.lines)
        of = document.credits_invoice_id
        if of is None:
            for share in by_share(line.rated for line in document.lines):
                known = self.invoices.get(share)
                if known is None or known.identity.period != document.identity.period:
                    self.invoices[share] = (
                        document  # else it is a revision over a difference: the fees are on the first
                    )
            self._remaining[document.invoice_id] = _added(Remaining(), document)
        elif of in self._remaining:
            self._notes[of].append(document)
            self._remaining[of] = _added(self._remaining[of], document)

    def go_on(self, service: BillingPeriod, share: Share, lines: Sequence[RatedLine], payer: Payer) -> None:
        """A change that nets to nothing has no document: from now on other fees run (13.9)."""
        original = self.invoices.get(share)
        if original is not None:
            before = self._remaining[original.invoice_id]
            _, after = self._note(original, service, {_name(line): line for line in lines}, payer)
            of_credit = {_name(line) for line, _ in self._lines if line.identity.kind == LineKind.CREDIT}
            self._remaining[original.invoice_id] = on_no_document(before, after, of_credit)
            self._lines += ((line, 0) for line in lines)

    def by_invoice(self, less: ByShare) -> list[tuple[Invoice, list[RatedLine]]]:
        """Fees that come to less, by the invoice that they are taken back from; those that are on none are left out."""
        found: dict[uuid.UUID, list[RatedLine]] = defaultdict(list)
        for share, lines in sorted(less.items()):
            if share in self.invoices:
                found[self.invoices[share].invoice_id] += lines
        originals = {each.invoice_id: each for each in self.invoices.values()}
        return [(originals[of], lines) for of, lines in found.items()]

    def credit_note(
        self,
        original: Invoice,
        service: BillingPeriod,
        taken_back: Sequence[RatedLine],
        *,
        revision: int,
        payer: Payer,
        plan_versions: Mapping[str, int],
        credits: AccountCredits,
    ) -> Invoice:
        """The credit note over fees that come to less from a moment on, against the invoice that they are on.

        What credits paid of the invoice comes back to them, and what price reductions took off beyond what is left of
        the fees. Raises UnknownTaxGroup.
        """
        less = list(net(taken_back).values())
        lines = [replace(line, reason=INVOICED) for line in less]
        back = [
            replace(each, line=replace(each.line, reason=INVOICED))
            for each in given_back_with_fees(self._lines, less, credits.grants)
        ]
        naming = Naming(segments_of([*lines, *(each.line for each in back)]), plan_versions)
        keyed = {naming.key(line.identity): line for line in lines}
        returned = [(naming.key(each.line.identity), each) for each in back]
        document, _ = self._note(original, service, keyed, payer, returned)
        grants: dict[str, Grant] = {grant.grant_id: grant for grant in credits.grants}
        paid = paid_by_grants(original, self._notes[original.invoice_id], grants)
        document = replace(document, paid=given_back(paid, -document.total_minor))
        of = original.identity
        identity = InvoiceIdentity(
            of.legal_entity, of.billing_account, InvoiceKind.CREDIT_NOTE, service, of.currency, revision
        )
        note = invoices.invoice_of(document, identity, {}, tax=payer.tax, credits=credits)
        return replace(note, credits_invoice_id=original.invoice_id)

    def _note(
        self, original: Invoice, service: BillingPeriod, lines: Mapping[str, RatedLine], payer: Payer,
        returned: Sequence[tuple[str, Returned]] = (),
    ) -> tuple[Document, Remaining]:  # fmt: skip
        against = {
            key: _fee(line) if line.identity.kind == LineKind.UNUSED else _name(line) for key, line in lines.items()
        }
        remaining = self._remaining[original.invoice_id]
        return credit_notes.credit_note(service, lines, against, remaining, payer, returned)


def _added(remaining: Remaining, document: Invoice) -> Remaining:
    """What remains when a document's lines, and its tax, are added."""
    lines: dict[str, tuple[Decimal, int]] = dict(remaining.lines)
    groups = defaultdict(lambda: (0, 0), remaining.groups)
    for line in document.lines:
        fee = _fee(line.rated)
        exact, minor = lines.get(fee, (ZERO, 0))
        with exactly():
            lines[fee] = exact + line.rated.amount, minor + line.amount_minor
        amount, tax = groups[line.tax_group]
        groups[line.tax_group] = amount + line.amount_minor, tax
    for row in document.taxes:
        amount, tax = groups[row.group]
        groups[row.group] = amount, tax + row.tax_minor
    return Remaining(lines, dict(groups))


def _fee(line: RatedLine) -> str:
    """What a fee has in common with its discounts and the credit for its unused time; a line of credit by itself."""
    return _name(line) if line.identity.kind == LineKind.CREDIT else without_ending(_name(line))


def _name(line: RatedLine) -> str:
    """What names a line on whichever document: keys there depend on what else is on it."""
    of: LineIdentity = line.identity
    key = Naming({of.tenant_id: max(of.segment_no, 2)}, {of.plan: 2}).key(of)
    return f"{of.tenant_id}/{of.plan}/{key}"
