"""What an account's documents have billed of a period so far, and what remains of it. Values in, values out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction

from billing.bills.credit_notes import Remaining, net_by_group
from billing.bills.credits import Grant, draw_order
from billing.bills.documents import PaidByCredit
from billing.bills.late_usage import changed_key, of_period, plain_group
from billing.invoicing.invoices import Invoice, InvoiceKind
from billing.money import ZERO, exactly, quantise_line
from billing.periods import BillingPeriod
from billing.rating import LineIdentity, LineKind, RatedLine


@dataclass(frozen=True, slots=True)
class Bearer:
    """A document that bills of a period: what its credit notes leave of the period's lines on it (by the key of what
    they change) and of its groups, and of what credits paid on it (in order of drawing).

    `groups`: what the period's tax groups are called on it, where that is not their own name.
    """

    invoice: Invoice
    remaining: Remaining
    paid: tuple[PaidByCredit, ...]
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BilledPeriod:
    """A period that is billed: its invoice, its lines on this and all later documents, what its credit notes leave of
    the invoice, and of what credits paid on it (in order of drawing).

    `later`: the other documents that billed of it, in their order.
    """

    invoice: Invoice
    lines: tuple[RatedLine, ...]
    remaining: Remaining
    paid: tuple[PaidByCredit, ...]
    later: tuple[Bearer, ...] = ()

    @property
    def bearers(self) -> tuple[Bearer, ...]:
        """What a credit note can go against: its own invoice first, where that has billed anything."""
        own = (Bearer(self.invoice, self.remaining, self.paid),) if self.invoice.lines else ()
        return (*own, *self.later)

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
    later = []
    for other in documents:
        mine = [line for line in other.lines if line.original_period == period]
        if other.credits_invoice_id is None and mine:
            notes = _notes(documents, other)
            groups = {plain_group(line.tax_group): line.tax_group for line in mine}
            later.append(Bearer(other, _remaining(other, notes, period), paid_by_grants(other, notes, grants), groups))
    notes = _notes(documents, own)
    lines = [line.rated for line in own.lines if line.original_period is None]
    lines += [line.rated for d in documents for line in d.lines if line.original_period == period]
    paid = paid_by_grants(own, notes, grants)
    return BilledPeriod(own, tuple(lines), _remaining(own, notes, period), paid, tuple(later))


def _notes(documents: Sequence[Invoice], of: Invoice) -> list[Invoice]:
    return [each for each in documents if each.credits_invoice_id == of.invoice_id]


def _remaining(of: Invoice, notes: Sequence[Invoice], period: BillingPeriod) -> Remaining:
    """What remains of a period's lines on a document, and of all its groups."""
    lines: dict[str, tuple[Decimal, int]] = {}
    groups: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for each in (of, *notes):
        for line in each.lines:
            base, tax = groups[line.tax_group]
            groups[line.tax_group] = base + line.amount_minor, tax
            if (line.original_period or each.identity.period) == period:
                key = changed_key(of_period(line.line_key, period))
                amount, minor = lines.get(key, (ZERO, 0))
                with exactly():
                    lines[key] = amount + line.rated.amount, minor + line.amount_minor
        for row in each.taxes:
            base, tax = groups[row.group]
            groups[row.group] = base, tax + row.tax_minor
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


def billed_on(bearer: Bearer, less: Mapping[str, RatedLine]) -> dict[str, RatedLine]:
    """As much of lines that take something back as a document has left of what they change.

    Of tax groups of which that is more than nothing, none of it: a credit note charges nobody.
    """
    found: dict[str, RatedLine] = {}
    for key, line in less.items():
        billed, _ = bearer.remaining.line(changed_key(key))
        if billed and (billed < 0) != (line.amount < 0):
            found[key] = line if abs(line.amount) <= abs(billed) else _part(line, -billed)
    nets = net_by_group(list(found.values()))
    return {key: line for key, line in found.items() if nets[line.tax_group] <= 0}


def _part(line: RatedLine, amount: Decimal) -> RatedLine:
    """A part of a line that comes to an amount, its quantities in proportion."""
    share = Fraction(amount) / Fraction(line.amount)

    def of(quantity: Decimal) -> Decimal:
        return quantise_line(Fraction(quantity) * share)

    return replace(
        line,
        amount=amount,
        quantity=of(line.quantity),
        units=None if line.units is None else of(line.units),
        free=of(line.free),
        included=None if line.included is None else of(line.included),
    )
