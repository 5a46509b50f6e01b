"""Documents in numbers: lines rounded, tax, what is paid by credits, what is due (docs/spec/money.md 5, 8, 10, 13.16).

Values in, values out. What makes an invoice the one it is and the states of its life: invoices.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final

from billing.bills.tax import NO_TAX, TaxRow, TaxRules, tax_row
from billing.money import Currency, Rounding, exactly, from_minor, round_to_quantum, spread, to_minor, total
from billing.periods import BillingPeriod
from billing.rating.lines import RatedLine

GRACE: Final = timedelta(hours=24)
"""From a period's end until it is frozen and billed (docs/spec/money.md 11)."""


class DocumentKind(StrEnum):
    """What a document is."""

    USAGE = "usage"
    ADVANCE = "advance"
    ADJUSTMENT = "adjustment"
    CREDIT_NOTE = "credit_note"


class DocumentState(StrEnum):
    """What becomes of it: sent, or kept local because it is zero or below the minimum; a credit note is issued."""

    FINALIZE = "finalize"
    ZERO = "zero"
    CARRIED_BELOW_MINIMUM = "carried_below_minimum"
    ISSUED = "issued"


@dataclass(frozen=True, slots=True)
class Payer:
    """What the documents of a billing account are made with. `minimum_minor`: the least that is collected."""

    money: Currency
    tax: TaxRules = NO_TAX
    rounding: Rounding = Rounding.HALF_EVEN

    @property
    def minimum_minor(self) -> int:
        """Below it an amount is carried to the next document; an amount equal to it is not below."""
        return self.money.stripe_minimum


@dataclass(frozen=True, slots=True)
class DocumentLine:
    """A line on a document: its key there, and its amount rounded, in minor units."""

    key: str
    rated: RatedLine
    amount_minor: int


@dataclass(frozen=True, slots=True)
class PaidByCredit:
    """What a grant pays of a document, in minor units; negative where it is given back."""

    grant_id: str
    used_minor: int


@dataclass(frozen=True, slots=True)
class Document:
    """A document. `exact_total` is exact net, or gross where prices contain tax; `residue` = exact − rounded."""

    kind: DocumentKind
    service: BillingPeriod
    lines: tuple[DocumentLine, ...]
    exact_total: Decimal
    residue: Decimal
    net_minor: int
    taxes: tuple[TaxRow, ...]
    total_minor: int
    paid: tuple[PaidByCredit, ...] = ()
    carried_in_minor: int = 0
    state: DocumentState = DocumentState.ISSUED

    @property
    def due_minor(self) -> int:
        """What is to be paid."""
        return self.total_minor - sum(each.used_minor for each in self.paid) + self.carried_in_minor


def draw_up(kind: DocumentKind, service: BillingPeriod, lines: Mapping[str, RatedLine], payer: Payer) -> Document:
    """A document over lines by key: rounded once and spread by largest remainder, with its tax.

    Tax exclusive: net is rounded once. Inclusive: gross is rounded once per tax group.
    """
    groups: dict[str, dict[str, Decimal]] = defaultdict(dict)
    for key, line in lines.items():
        groups[line.tax_group if payer.tax.inclusive else ""][key] = line.amount
    minor: dict[str, int] = {}
    for amounts in groups.values():
        rounded = round_to_quantum(total(amounts.values()), payer.money.quantum, payer.rounding)
        for key, share in spread(rounded, amounts, payer.money.quantum).items():
            minor[key] = to_minor(share, payer.money)
    return of_lines(kind, service, lines, minor, taxes_on(lines, minor, payer), payer)


def taxes_on(lines: Mapping[str, RatedLine], minor: Mapping[str, int], payer: Payer) -> tuple[TaxRow, ...]:
    """The tax rows of rounded lines, by group."""
    sums: dict[str, int] = defaultdict(int)
    for key, line in lines.items():
        sums[line.tax_group] += minor[key]
    return tuple(tax_row(group, sums[group], payer.tax, payer.money) for group in sorted(sums))


def of_lines(
    kind: DocumentKind,
    service: BillingPeriod,
    lines: Mapping[str, RatedLine],
    minor: Mapping[str, int],
    taxes: tuple[TaxRow, ...],
    payer: Payer,
) -> Document:
    """A document of lines that are rounded already."""
    exact_total = total(line.amount for line in lines.values())
    rounded, tax = sum(minor.values()), sum(row.tax_minor for row in taxes)
    with exactly():
        residue = exact_total - from_minor(rounded, payer.money)
    return Document(
        kind=kind,
        service=service,
        lines=tuple(DocumentLine(key, lines[key], minor[key]) for key in sorted(lines, key=str.encode)),
        exact_total=exact_total,
        residue=residue,
        net_minor=rounded - tax if payer.tax.inclusive else rounded,
        taxes=taxes,
        total_minor=rounded if payer.tax.inclusive else rounded + tax,
    )


def settle(document: Document, paid: tuple[PaidByCredit, ...], carried_in_minor: int, payer: Payer) -> Document:
    """The document with what pays for it and what is carried in, and what becomes of it."""
    settled = replace(document, paid=paid, carried_in_minor=carried_in_minor)
    if settled.due_minor == 0:
        state = DocumentState.ZERO
    elif 0 < settled.due_minor < payer.minimum_minor:
        state = DocumentState.CARRIED_BELOW_MINIMUM
    else:
        state = DocumentState.FINALIZE
    return replace(settled, state=state)
