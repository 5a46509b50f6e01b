"""What an account's documents have billed of a period so far, and what remains of it. Values in, values out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from billing.bills.credit_notes import Remaining
from billing.bills.credits import Grant, draw_order
from billing.bills.documents import PaidByCredit
from billing.bills.late_usage import changed_key
from billing.invoicing.invoices import Invoice, InvoiceKind
from billing.money import ZERO, exactly
from billing.periods import BillingPeriod
from billing.rating import LineIdentity, LineKind, RatedLine


@dataclass(frozen=True, slots=True)
class BilledPeriod:
    """A period that is billed: its invoice, its lines on this and all later documents, what its credit notes leave of
    the invoice, and of what credits paid on it (in order of drawing); how many credit notes there are."""

    invoice: Invoice
    lines: tuple[RatedLine, ...]
    remaining: Remaining
    paid: tuple[PaidByCredit, ...]

    @property
    def keys(self) -> dict[LineIdentity, str]:
        """The keys of its lines on the invoice."""
        return {line.rated.identity: line.line_key for line in self.invoice.lines if line.original_period is None}

    def drawn(self, grant_id: str) -> Decimal:
        """What price reductions of the period drew of a grant, in major units."""
        name, amount = f"credit.{grant_id}", ZERO
        for line in self.lines:
            key = line.identity.charge_key
            if line.identity.kind == LineKind.CREDIT and (key == name or key.startswith(f"{name}.")):
                with exactly():
                    amount -= line.amount
        return amount


def billed_period(
    documents: Iterable[Invoice], period: BillingPeriod, grants: Mapping[str, Grant]
) -> BilledPeriod | None:
    """A period as an account's frozen documents bill it; None while its own invoice is not among them."""
    documents = list(documents)
    own = next((d for d in documents if d.identity.kind is InvoiceKind.USAGE and d.identity.period == period), None)
    if own is None:
        return None
    notes = [d for d in documents if d.credits_invoice_id == own.invoice_id]
    lines = [line.rated for line in own.lines if line.original_period is None]
    lines += [line.rated for d in documents for line in d.lines if line.original_period == period]
    return BilledPeriod(own, tuple(lines), _remaining(own, notes), paid_by_grants(own, notes, grants))


def _remaining(own: Invoice, notes: Sequence[Invoice]) -> Remaining:
    lines = {line.line_key: (line.rated.amount, line.amount_minor) for line in own.lines}
    groups: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for each in (own, *notes):
        for line in each.lines:
            base, tax = groups[line.tax_group]
            groups[line.tax_group] = base + line.amount_minor, tax
        for row in each.taxes:
            base, tax = groups[row.group]
            groups[row.group] = base, tax + row.tax_minor
    for note in notes:
        for line in note.lines:
            key = changed_key(line.line_key)
            amount, minor = lines.get(key, (ZERO, 0))
            with exactly():
                lines[key] = amount + line.rated.amount, minor + line.amount_minor
    return Remaining(lines, dict(groups))


def paid_by_grants(own: Invoice, notes: Sequence[Invoice], grants: Mapping[str, Grant]) -> tuple[PaidByCredit, ...]:
    """What credits paid of an invoice, less what its credit notes gave back, in order of drawing."""
    used: dict[str, int] = defaultdict(int)
    for each in (own, *notes):
        for credit in each.credits:
            if credit.pays:
                used[credit.grant_id] += credit.amount_minor
    ordered = sorted(used, key=lambda grant_id: draw_order(grants[grant_id]))
    return tuple(PaidByCredit(grant_id, used[grant_id]) for grant_id in ordered)
