"""Credits: which grant pays for which usage (docs/spec/money.md 6, 13.12). Values in, values out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from billing.money import quantise_pieces
from billing.rating.period import Coverable


class GrantKind(StrEnum):
    """Why a grant was given."""

    PAID = "paid"
    PROMO = "promo"
    SLA = "sla"
    GOODWILL = "goodwill"


class TaxTreatment(StrEnum):
    """How a grant meets tax: it lowers the price, it pays like money, or it was taxed when it was sold."""

    PRICE_REDUCTION = "price_reduction"
    PAYMENT = "payment"
    TAXED_AT_SALE = "taxed_at_sale"


@dataclass(frozen=True, slots=True)
class Applicability:
    """What a grant covers: without anything named all usage charges; charges by key; `fees` those too; of `models`, if
    any is named, their usage alone."""

    charges: frozenset[str] = frozenset()
    fees: bool = False
    models: frozenset[str] = frozenset()

    def covers(self, of: Coverable) -> bool:
        """Whether the amount is covered."""
        if self.models and of.model not in self.models:
            return False
        if self.charges:
            return of.charge_key in self.charges
        return self.fees or not of.is_fee


@dataclass(frozen=True, slots=True)
class Grant:
    """A credit. `amount` in major units of `currency`; usable for usage in [usable_from, expires).

    `invoiced_at`: when it was invoiced by a contract that lets a paid one count from then.
    """

    grant_id: str
    kind: GrantKind
    amount: Decimal
    currency: str
    effective: datetime
    expires: datetime | None = None
    granted_at: datetime | None = None
    paid_at: datetime | None = None
    invoiced_at: datetime | None = None
    priority: int = 50
    tax_treatment: TaxTreatment | None = None
    applies_to: Applicability = Applicability()

    @property
    def treatment(self) -> TaxTreatment:
        """As given, or the default of the kind."""
        default = TaxTreatment.PAYMENT if self.kind is GrantKind.PAID else TaxTreatment.PRICE_REDUCTION
        return self.tax_treatment or default

    @property
    def owed_from(self) -> datetime | None:
        """From when a paid grant is a liability: its payment, or the invoice if that comes first; None: not yet."""
        return min((at for at in (self.paid_at, self.invoiced_at) if at is not None), default=None)

    @property
    def usable_from(self) -> datetime | None:
        """A paid grant is usable when it is owed, whatever its tax treatment; None: not yet."""
        if self.kind is not GrantKind.PAID:
            return self.effective
        return None if self.owed_from is None else max(self.effective, self.owed_from)

    def valid_at(self, at: datetime) -> bool:
        """Whether usage of a time can draw on it."""
        since = self.usable_from
        return since is not None and since <= at and (self.expires is None or at < self.expires)


@dataclass(frozen=True, slots=True)
class Draw:
    """What a grant gives for one coverable amount, exactly."""

    grant: Grant
    of: Coverable
    amount: Fraction


def draw_order(grant: Grant) -> tuple[object, ...]:
    """Priority, earlier expiry (none last), unpaid before paid, granted first, id."""
    expires, granted = grant.expires, grant.granted_at or grant.effective
    return (
        grant.priority,
        expires is None,
        expires.timestamp() if expires else 0,
        grant.kind is GrantKind.PAID,
        granted,
        grant.grant_id,
    )


def reduces_price(grant: Grant) -> bool:
    """Whether it is drawn before tax. What was taxed at its sale must not be taxed again, so it is too."""
    return grant.treatment is not TaxTreatment.PAYMENT


def by_model(grants: Iterable[Grant]) -> bool:
    """Whether some grant covers certain models alone, so that usage is told apart by model."""
    return any(grant.applies_to.models for grant in grants)


def draw(coverable: Iterable[Coverable], grants: Iterable[Grant], left: Mapping[str, Fraction]) -> list[Draw]:
    """Draw on grants, in their order, for each amount in the order of usage time.

    `left` is what is left of each grant, in the unit of the amounts; a grant that is not in it has nothing.
    """
    ordered = sorted(grants, key=draw_order)
    remaining = dict(left)
    found: list[Draw] = []
    for of in sorted(coverable, key=_by_time):
        open_amount = of.amount
        for grant in ordered:
            available = remaining.get(grant.grant_id, Fraction(0))
            if available <= 0 or not grant.valid_at(of.at) or not grant.applies_to.covers(of):
                continue
            amount = min(available, open_amount)
            remaining[grant.grant_id] = available - amount
            open_amount -= amount
            found.append(Draw(grant, of, amount))
            if not open_amount:
                break
    return found


def _by_time(of: Coverable) -> tuple[object, ...]:
    return of.at, of.charge_key, of.model or "", of.tax_group, of.amount, of.is_fee


def by_grant_and_group(draws: Iterable[Draw]) -> dict[tuple[str, str], Decimal]:
    """Draws summed per grant and tax group at 10⁻¹², so that a grant's parts add up."""
    sums: dict[str, dict[str, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
    for each in draws:
        sums[each.grant.grant_id][each.of.tax_group] += each.amount
    found: dict[tuple[str, str], Decimal] = {}
    for grant_id, groups in sums.items():
        names = sorted(groups)
        for group, amount in zip(names, quantise_pieces(groups[name] for name in names), strict=True):
            found[grant_id, group] = amount
    return found


def after(coverable: Iterable[Coverable], draws: Sequence[Draw]) -> list[Coverable]:
    """What is left to cover after draws."""
    drawn: dict[Coverable, Fraction] = defaultdict(Fraction)
    for each in draws:
        drawn[each.of] += each.amount
    reduced = (replace(of, amount=of.amount - drawn[of]) for of in coverable)
    return [of for of in reduced if of.amount > 0]
