"""What is to be billed, as frozen values: account, contract, periods, plans, subscription, usage, credits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from reconciliation.oracle.calendar import Period, Schedule

TaxMode = Literal["none", "exclusive", "inclusive", "reverse_charge", "exempt"]
Rounding = Literal["half_even", "half_up"]
Continuity = Literal["carry", "reset", "prorate"]


@dataclass(frozen=True, slots=True)
class Account:
    """Who pays. Amounts are counted in `minor_unit`; rounded ones are multiples of `quantum` (13.14)."""

    currency: str
    minor_unit: Fraction
    quantum: Fraction
    tax_mode: TaxMode
    rates: Mapping[str, Fraction]
    stripe_minimum: Fraction


@dataclass(frozen=True, slots=True)
class Terms:
    """Which requests bill, and by which version (2); the defaults are those of section 2."""

    price_at: Literal["completion", "start"] = "completion"
    bill_attempts: Literal["delivered", "all"] = "delivered"
    bill_statuses: frozenset[str] = frozenset({"ok", "aborted"})


@dataclass(frozen=True, slots=True)
class Contract:
    """What was agreed; the defaults are those of section 5. `terms` are dated, the first since ever."""

    terms: tuple[tuple[int | None, Terms], ...] = ((None, Terms()),)
    weighted_allowances: bool = False
    rounding: Rounding = "half_even"
    late_usage_days: int | None = None

    def terms_at(self, completed: int) -> Terms:
        """Those of the segment that contains a completion (2): an event belongs to it whole."""
        return [terms for since, terms in self.terms if since is None or since <= completed][-1]


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier; `up_to` is its inclusive upper end, None for the last."""

    up_to: Fraction | None
    price: Fraction
    flat_fee: Fraction


@dataclass(frozen=True, slots=True)
class Discount:
    """A share, or an amount per period: one of the two.

    It holds in billing periods that begin in [since, until), and in the first `periods` of the contract's among them.
    """

    percent: Fraction | None
    amount: Fraction | None
    since: int | None = None
    until: int | None = None
    periods: int | None = None


@dataclass(frozen=True, slots=True)
class Where:
    """Which events a charge is for: those with these names, and with more input than `over`, at most `up_to`."""

    names: Mapping[str, str]
    over: Fraction | None
    up_to: Fraction | None

    def takes(self, event: Event) -> bool:
        """Whether an event is meant. One whose context is not known fits no step."""
        if any(event.names.get(name, "") != wanted for name, wanted in self.names.items()):
            return False
        if self.over is None and self.up_to is None:
            return True
        context = event.context
        return (
            context is not None
            and (self.over is None or context > self.over)
            and (self.up_to is None or context <= self.up_to)
        )

    @property
    def rank(self) -> tuple[int, ...]:
        """How specific: by how many names and steps; of as many, adapter before model, region, tier, and context."""
        has = [name in self.names for name in ("adapter", "model", "region", "tier")]
        has.append(self.over is not None or self.up_to is not None)
        return (sum(has), *has)


@dataclass(frozen=True, slots=True)
class Charge:
    """One charge of a plan version; what a model does not use is zero or None.

    `counted_months`: the length of its tier period, None for the billing period (4). `seats`: None for as many as are
    subscribed.
    """

    key: str
    model: str
    metric: str
    where: Where
    tax_group: str
    continuity: Continuity
    counted_months: int | None
    price: Fraction
    tiers: tuple[Tier, ...]
    size: Fraction
    rate: Fraction
    fixed_per_event: Fraction
    min_per_event: Fraction | None
    max_per_event: Fraction | None
    included: Fraction
    overage_price: Fraction
    fee: Fraction
    seats: Fraction | None
    in_advance: bool
    prorated: bool
    discount: Discount | None
    minimum: Fraction | None
    maximum: Fraction | None

    @property
    def counts_usage(self) -> bool:
        return self.model not in ("flat", "seat", "one_off")

    @property
    def has_fee(self) -> bool:
        return self.model in ("flat", "seat", "prepaid")


@dataclass(frozen=True, slots=True)
class Allowance:
    """The first `units` of the period are free, over all `charges` together."""

    pool: str
    units: Fraction
    charges: frozenset[str]


@dataclass(frozen=True, slots=True)
class Commitment:
    """What the named charges shall come to in a full period; without names all usage, and no fee. `tax_group` is the
    true-up's, where it is said."""

    amount: Fraction
    charges: tuple[str, ...]
    tax_group: str | None


@dataclass(frozen=True, slots=True)
class InvoiceDiscount:
    """A discount on what `base` names: usage, fees, or all."""

    discount: Discount
    base: Literal["usage", "fees", "all"]


@dataclass(frozen=True, slots=True)
class Version:
    """A plan from `start` on, until the next version starts."""

    name: str
    start: int | None
    charges: Mapping[str, Charge]
    allowances: tuple[Allowance, ...]
    commitment: Commitment | None
    invoice_discount: InvoiceDiscount | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Its versions in the order of their starts."""

    name: str
    versions: tuple[Version, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """From `at` on this plan with these seats; no plan after a cancellation. `resumed`: a pause is over."""

    at: int
    plan: Plan | None
    seats: Fraction
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class Agreed:
    """From `since` on a tenant's contract has the periods of this schedule; `begins`: the contract itself begins."""

    since: int
    begins: bool
    schedule: Schedule


@dataclass(frozen=True, slots=True)
class Event:
    """One usage event, or a quantity of one metric (`counted` is then None).

    `counted` holds the event's own metrics; `request_id`, where given, says which request it was an attempt of.
    `names`: its model, adapter, region and tier; `context`: its whole input, where it says so.
    """

    order: int
    id: str
    completed: int
    started: int
    status: str
    fault: str
    source: str
    purpose: str
    request_id: str
    attempt: int
    is_request: bool
    metrics: Mapping[str, Fraction]
    names: Mapping[str, str]
    context: Fraction | None


@dataclass(frozen=True, slots=True)
class Correction:
    """Signed deltas to the event it names, as `source` tells them; all else is that event's (13.18)."""

    id: str
    corrects: str
    source: str
    metrics: Mapping[str, Fraction]


@dataclass(frozen=True, slots=True)
class Usage:
    """Events and corrections, as they came."""

    events: tuple[Event, ...]
    corrections: tuple[Correction, ...]

    def and_also(self, other: Usage) -> Usage:
        return Usage(self.events + other.events, self.corrections + other.corrections)


@dataclass(frozen=True, slots=True)
class Late:
    """Usage that arrives after a period (its number, from 0) was frozen; it may have completed in another."""

    of_period: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class Grant:
    """A credit. `usable_from` is None for a paid one that was never paid (6, 13.12).

    It covers all `usage`, all `fees`, and what the named charges come to.
    """

    id: str
    kind: str
    amount: Fraction
    currency: str
    treatment: str
    priority: int
    usable_from: int | None
    expires: int | None
    granted_at: int
    usage: bool
    fees: bool
    charges: frozenset[str]
    models: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class PriorCredit:
    """A credit note that was given by hand against a fee's line before."""

    line: str
    amount: Fraction
    at: int


@dataclass(frozen=True, slots=True)
class Case:
    """All that a billing account's documents follow from."""

    account: Account
    contract: Contract
    periods: tuple[Period, ...]
    changes: tuple[Change, ...]
    agreed: tuple[Agreed, ...]
    usage: Usage
    late: tuple[Late, ...]
    grants: tuple[Grant, ...]
    prior_credits: tuple[PriorCredit, ...]
