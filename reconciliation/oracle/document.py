"""A document: rounded once, spread, taxed, and written (money.md 5, 7, 13.14, 13.17)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from reconciliation.oracle.calendar import Period
from reconciliation.oracle.case import Account, Contract
from reconciliation.oracle.line import Line, totals
from reconciliation.oracle.rational import ONE, ZERO, at_twelve, counted, half_even, half_up, largest_remainder, written


@dataclass(slots=True)
class Tax:
    """A tax group of a document. `amount` is what tax is computed from: net, or gross where tax is inclusive."""

    amount: int
    tax: int


@dataclass(slots=True)
class Document:
    """Lines in order of their keys, each with its rounded amount. All ints count quanta (13.14)."""

    doc: str
    period: Period
    lines: list[tuple[Line, int]]
    taxes: dict[str, Tax]
    payments: list[tuple[str, int]] = field(default_factory=list)
    carried_in: int = 0
    state: str = ""

    def total(self, account: Account) -> int:
        whole = sum(rounded for _, rounded in self.lines)
        return whole if account.tax_mode == "inclusive" else whole + sum(tax.tax for tax in self.taxes.values())

    def due(self, account: Account) -> int:
        return self.total(account) - sum(quanta for _, quanta in self.payments) + self.carried_in


def rounding(contract: Contract, amount: Fraction) -> int:
    """Net (or gross) is rounded half-even unless the contract says half-up (5)."""
    return half_up(amount) if contract.rounding == "half_up" else half_even(amount)


def invoice(account: Account, contract: Contract, doc: str, period: Period, lines: Sequence[Line]) -> Document:
    """Net rounded once per invoice, gross once per tax group; spread by largest remainder; then the tax (5)."""
    ordered = sorted(lines, key=lambda line: line.key.encode())
    if account.tax_mode != "inclusive":
        spread = _spread(account, contract, ordered)
    else:
        by_group = {line.group for line in ordered}
        spread = {}
        for group in by_group:
            spread |= _spread(account, contract, [line for line in ordered if line.group == group])
    rounded = [(line, spread[line.key]) for line in ordered]
    return Document(doc, period, rounded, taxes_of(account, rounded))


def _spread(account: Account, contract: Contract, lines: Sequence[Line]) -> dict[str, int]:
    """Rounded amounts by key. Keys are unique in a document; a double one would lose money, so it is an error."""
    in_quanta = [(line.key, line.amount / account.quantum) for line in lines]
    whole = rounding(contract, sum((amount for _, amount in in_quanta), ZERO))
    result = dict(zip((line.key for line in lines), largest_remainder(in_quanta, whole), strict=True))
    if len(result) != len(lines):
        raise ValueError(f"two lines of one key among {[line.key for line in lines]}")
    return result


def taxes_of(account: Account, lines: Sequence[tuple[Line, int]]) -> dict[str, Tax]:
    """Tax groups of rounded lines; none where the account has no tax."""
    if account.tax_mode == "none":
        return {}
    amounts: dict[str, int] = {}
    for line, rounded in lines:
        amounts[line.group] = amounts.get(line.group, 0) + rounded
    return {group: Tax(amount, tax_on(account, group, amount)) for group, amount in sorted(amounts.items())}


def rate(account: Account, group: str) -> Fraction:
    """The group's rate; zero where the recipient owes the tax, or is exempt."""
    return ZERO if account.tax_mode in ("reverse_charge", "exempt") else account.rates[group]


def tax_on(account: Account, group: str, amount: int) -> int:
    """Tax, half-up: amount × r, or out of a gross amount × r / (1 + r) (5)."""
    r = rate(account, group)
    return half_up(amount * r / (ONE + r) if account.tax_mode == "inclusive" else amount * r)


def changes(
    account: Account, contract: Contract, lines: Iterable[tuple[Line, Fraction, int]]
) -> list[tuple[Line, int]]:  # fmt: skip
    """Each line rounded: rounded(original) − rounded(what remains), negated (5, 13.17).

    Args:
        lines: with each the exact amount and the quanta of what it changes, before.
    """
    return [
        (line, rounding(contract, (before + line.amount) / account.quantum) - quanta) for line, before, quanta in lines
    ]


def credit_note(
    account: Account, period: Period, lines: Iterable[tuple[Line, int]], against: dict[str, Tax]
) -> Document:  # fmt: skip
    """Of rounded lines; each group's tax is rounded(original) − rounded(what remains), negated (5, 13.17).

    Args:
        against: the original's tax groups less earlier notes; this note's are taken off.
    """
    rounded = _charging_nobody(sorted(lines, key=lambda at: at[0].key.encode()))
    taxes = {}
    for group, change in taxes_of(account, rounded).items():
        original = against.setdefault(group, Tax(0, 0))
        remains = Tax(original.amount + change.amount, tax_on(account, group, original.amount + change.amount))
        taxes[group] = Tax(change.amount, remains.tax - original.tax)
        against[group] = remains
    return Document("credit_note", period, rounded, taxes, state="issued")


def _charging_nobody(lines: Sequence[tuple[Line, int]]) -> list[tuple[Line, int]]:
    """Where a tax group comes to less, and its lines by themselves round to more than nothing: those of them that are
    more give that up, the last key first (7 has a credit note for what is negative; decision 58)."""
    exact = totals((line for line, _ in lines), lambda line: line.group)
    too_much = {
        group: max(0, sum(quanta for line, quanta in lines if line.group == group))
        for group, amount in exact.items()
        if amount <= 0
    }
    result = []
    for line, quanta in reversed(lines):
        given_up = max(0, min(quanta, too_much.get(line.group, 0)))
        if given_up:
            too_much[line.group] -= given_up
        result.append((line, quanta - given_up))
    return result[::-1]


def plain(account: Account, document: Document) -> dict[str, Any]:
    """The document in the form of `expect.documents` (`tests/money/README.md`)."""
    steps = account.quantum / account.minor_unit
    if steps.denominator != 1:
        raise ValueError(f"the quantum {account.quantum} is no multiple of the minor unit {account.minor_unit}")
    minor = steps.numerator
    inclusive = account.tax_mode == "inclusive"
    exact = sum((line.amount for line, _ in document.lines), ZERO)
    whole = sum(rounded for _, rounded in document.lines)
    tax = sum(one.tax for one in document.taxes.values())
    result: dict[str, Any] = {
        "doc": document.doc,
        "period": document.period.name,
        "lines": [_plain_line(line, rounded * minor) for line, rounded in document.lines],
        "exact_gross" if inclusive else "exact_net": written(exact),
        "net_minor": (whole - tax if inclusive else whole) * minor,
    }
    if document.taxes:
        result["tax"] = [
            {
                "group": group,
                "rate": written(rate(account, group)),
                "base_minor": (one.amount - one.tax if inclusive else one.amount) * minor,
                "tax_minor": one.tax * minor,
            }
            for group, one in document.taxes.items()
        ]
    result["total_minor"] = document.total(account) * minor
    if document.payments:
        result["payment_credits"] = [{"grant": grant, "used_minor": used * minor} for grant, used in document.payments]
    if document.carried_in:
        result["carried_in_minor"] = document.carried_in * minor
    result["due_minor"] = document.due(account) * minor
    result["residue"] = written(exact - whole * account.quantum)
    result["state"] = document.state
    return result


def _plain_line(line: Line, minor: int) -> dict[str, Any]:
    """A line as it is told: at most 12 decimals (13.19), but the units that a prorated tier splits (13.13)."""
    result: dict[str, Any] = {"key": line.key}
    if line.quantity is not None:
        result["quantity"] = counted(line.quantity)
    if line.unit_price is not None:
        result["unit_price"] = written(line.unit_price)
    if line.units is not None:
        result["units"] = counted(line.units)
    if line.free:
        result["free"] = counted(line.free)
    if line.included is not None:
        result["included_used"] = counted(at_twelve(line.included))
    result["exact"] = written(line.amount)
    result["rounded_minor"] = minor
    return result


def gross_per_group(account: Account, document: Document) -> Mapping[str, Fraction]:
    """Per tax group the rounded gross, in quanta, per unit of its exact amount; none for a group that costs nothing."""
    exact = totals((line for line, _ in document.lines), lambda line: line.group)
    result = {}
    for group, amount in exact.items():
        rounded = sum(quanta for line, quanta in document.lines if line.group == group)
        tax = document.taxes.get(group)
        if tax and account.tax_mode != "inclusive":
            rounded += tax.tax
        if amount > 0:
            result[group] = rounded / amount
    return result
