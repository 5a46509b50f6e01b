"""Price plans: dated, immutable versions of charges and terms (docs/spec/money.md 1 to 4). Values only.

The charge models: charge_models.py; the file: plan_file.py; how a version is stored: plan_documents.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final

from billing.errors import NoPriceVersion
from billing.money import ZERO, Rounding
from billing.plans.charge_models import FEES, PerUnit, Prepaid, Pricing, Problem, TierContinuity, Timing

__all__ = ["PerUnit", "Pricing"]

DEFAULT_TAX_GROUP: Final = "std"
TAX_GROUP: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What a tax group can be called: `@` and `.` stand before and after it in names of lines and rates."""


class Metric(StrEnum):
    """What is counted (docs/spec/money.md 2). Input is uncached; total is input + cached input + output.

    A plan may declare further metrics; they are counted by those who send them.
    """

    INPUT = "input"
    CACHED_INPUT = "cached_input"
    OUTPUT = "output"
    TOTAL_TOKENS = "total_tokens"
    REQUEST = "request"
    GPU_SECOND = "gpu_second"


class PaidCreditFrom(StrEnum):
    """From when a paid credit can be used and is owed: its payment, or its invoice (docs/spec/money.md 6)."""

    PAYMENT = "payment"
    INVOICE = "invoice"


class Cycle(StrEnum):
    """How long a billing period is, or a part of one over which a charge counts."""

    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"

    @property
    def months(self) -> int:
        """In months."""
        return {Cycle.MONTH: 1, Cycle.QUARTER: 3, Cycle.YEAR: 12}[self]


TOKEN_CLASSES: Final = (Metric.INPUT, Metric.CACHED_INPUT, Metric.OUTPUT)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which usage a charge is for; None takes any value.

    `tier` is the service tier, such as `batch`. `context_over` < input tokens of the request ≤ `context_up_to`: a step
    of context length, decided request by request.
    """

    model: str | None = None
    adapter: str | None = None
    region: str | None = None
    tier: str | None = None
    context_over: int | None = None
    context_up_to: int | None = None

    def take(self, model: str, adapter: str, region: str, tier: str, context: int | None = None) -> bool:
        """Whether usage with these keys is meant. Usage of unknown context fits no step."""
        found = (model, adapter, region, tier)
        if not all(wanted in (None, value) for wanted, value in zip(self._wanted(), found, strict=True)):
            return False
        over, up_to = self.context_over, self.context_up_to
        if over is None and up_to is None:
            return True
        return context is not None and (over is None or context > over) and (up_to is None or context <= up_to)

    @property
    def rank(self) -> tuple[int, ...]:
        """Precedence: more filters first, then adapter, model, region, tier, context."""
        adapter, model, region, tier = (
            value is not None for value in (self.adapter, self.model, self.region, self.tier)
        )
        context = self.context_over is not None or self.context_up_to is not None
        return (sum((adapter, model, region, tier, context)), adapter, model, region, tier, context)

    def meet(self, other: Filters) -> bool:
        """Whether some usage fits both."""
        for one, wanted in zip(self._wanted(), other._wanted(), strict=True):
            if None not in (one, wanted) and one != wanted:
                return False
        over = max(-1 if each.context_over is None else each.context_over for each in (self, other))
        return all(each.context_up_to is None or over < each.context_up_to for each in (self, other))

    def _wanted(self) -> tuple[str | None, ...]:
        return (self.model, self.adapter, self.region, self.tier)

    def problems(self) -> list[Problem]:
        """What is wrong with these values."""
        found = [(name, "must be a name") for name in FILTER_NAMES if getattr(self, name) == ""]
        if self.context_over is not None and self.context_up_to is not None and self.context_up_to <= self.context_over:
            found.append(("context_up_to", "must be more than context_over"))
        return found

    def as_dict(self) -> dict[str, str]:
        """The filters that are given, as text."""
        return {f.name: str(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) is not None}


FILTER_NAMES: Final = ("model", "adapter", "region", "tier")


@dataclass(frozen=True, slots=True)
class Validity:
    """When a discount holds: in billing periods that begin in [since, until), and in the first `periods` of them.

    The count begins with the period in which the contract began; with `since`, with its first one that begins then
    or later.
    """

    since: datetime | None = None
    until: datetime | None = None
    periods: int | None = None

    def holds(self, period_start: datetime, period_no: int) -> bool:
        """Whether it holds in the period that begins then; `period_no` counts from 1."""
        if self.since is not None and period_start < self.since:
            return False
        if self.until is not None and period_start >= self.until:
            return False
        return self.periods is None or period_no <= self.periods

    def never_holds(self) -> list[Problem]:
        """Why it holds in no period, by field."""
        found: list[Problem] = []
        if self.since is not None and self.until is not None and self.until <= self.since:
            found.append(("until", "must be after `from`"))
        if self.periods == 0:
            found.append(("periods", "must be at least 1"))
        return found


@dataclass(frozen=True, slots=True)
class Discount(Validity):
    """Less on one charge: a share of what the charge comes to, or an amount per period (never more than it is)."""

    percent: Decimal | None = None
    amount: Decimal | None = None

    def problems(self) -> list[Problem]:
        """What is wrong with these values."""
        return _discount_problems(self.percent, self.amount) + self.never_holds()


class DiscountBase(StrEnum):
    """What an invoice discount is a share of."""

    USAGE = "usage"
    FEES = "fees"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class InvoiceDiscount(Validity):
    """Less on the whole: a share of `base`, or an amount per period. A true-up is never reduced (13.8)."""

    percent: Decimal | None = None
    amount: Decimal | None = None
    base: DiscountBase = DiscountBase.ALL

    def problems(self) -> list[Problem]:
        """What is wrong with these values."""
        return _discount_problems(self.percent, self.amount) + self.never_holds()


@dataclass(frozen=True, slots=True)
class Allowance:
    """The first `units` of a period of these charges together are free."""

    pool: str
    units: Decimal
    charges: tuple[str, ...]

    def problems(self) -> list[Problem]:
        """What is wrong with these values."""
        return _repeated("charges", self.charges)


@dataclass(frozen=True, slots=True)
class Commitment:
    """What these charges (none named: all usage) come to at least; what is missing is billed as true-up.

    Its tax group, unless given, is that of the first charge that counts.
    """

    amount: Decimal
    charges: tuple[str, ...] = ()
    tax_group: str | None = None

    def problems(self) -> list[Problem]:
        """What is wrong with these values."""
        return _repeated("charges", self.charges) + _group_problems(self.tax_group)


@dataclass(frozen=True, slots=True)
class Charge:
    """One price of a version: what it counts, of which usage, how it prices it, and what is done with the amount.

    `minimum` and `maximum` are for a whole period. `timing` and `prorated` are for fees. `tier_period`: over what its
    tiers, packages, free and included units are counted, None: over the billing period.
    """

    key: str
    metric: str
    where: Filters
    pricing: Pricing
    tier_continuity: TierContinuity | None = None
    tier_period: Cycle | None = None
    allowance: Decimal | None = None
    discount: Discount | None = None
    minimum: Decimal | None = None
    maximum: Decimal | None = None
    tax_group: str = DEFAULT_TAX_GROUP
    timing: Timing = Timing.ARREARS
    prorated: bool = True

    @property
    def is_fee(self) -> bool:
        """Whether it costs something without any usage, and counts none."""
        return isinstance(self.pricing, FEES)

    def problems(self) -> list[Problem]:
        """What is wrong with these values."""
        found: list[Problem] = []
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            found.append(("maximum", "is less than the minimum"))
        if self.timing is Timing.ADVANCE and self.pricing.model not in ("flat", "seat", "one_off", "prepaid"):
            found.append(("timing", "only fees are billed in advance: usage is known afterwards"))
        if self.allowance is not None and self.pricing.model not in WITH_ALLOWANCE:
            found.append(("allowance", f"has no meaning for {self.pricing.model}: it counts no units that are priced"))
        if self.tier_period is not None and self.pricing.model not in _COUNTS_OVER_TIME:
            found.append(("tier_period", f"has no meaning for {self.pricing.model}: it counts nothing over a time"))
        limits = [name for name in ("minimum", "maximum") if getattr(self, name) is not None]
        if self.is_fee:
            found += [(name, "a fee is what it is: limits are for charges that count usage") for name in limits]
            if self.where != Filters():
                found.append(("where", "a fee counts no usage that could be told apart"))
            if self.tier_continuity is not None:
                found.append(("tier_continuity", "a fee has no tiers"))
        elif self.timing is Timing.ADVANCE:
            found += [(name, "a fee in advance is on an earlier invoice and cannot be limited") for name in limits]
        if not self.is_fee and not self.prorated and not isinstance(self.pricing, Prepaid):
            found.append(("prorated", "only fees are prorated"))
        return found + _group_problems(self.tax_group)


WITH_ALLOWANCE: Final = ("per_unit", "graduated", "volume", "package")
"""Models of which units can be free."""
_COUNTS_OVER_TIME: Final = (*WITH_ALLOWANCE, "prepaid")


@dataclass(frozen=True, slots=True)
class PlanVersion:
    """What is in force from `valid_from` until the plan's next version."""

    plan: str
    version: str
    currency: str
    valid_from: datetime
    charges: tuple[Charge, ...]
    allowances: tuple[Allowance, ...] = ()
    invoice_discount: InvoiceDiscount | None = None
    commitment: Commitment | None = None

    def charges_for(
        self, metric: str, *, model: str, adapter: str, region: str, tier: str, context: int | None = None
    ) -> tuple[Charge, ...]:
        """The charges of a metric that take usage with these keys (`most_specific`)."""
        of_metric = (charge for charge in self.charges if charge.metric == metric and not charge.is_fee)
        return most_specific(of_metric, model, adapter, region, tier, context)

    @property
    def metrics(self) -> frozenset[str]:
        """Every metric that some charge prices."""
        return frozenset(charge.metric for charge in self.charges if not charge.is_fee)

    @property
    def pools(self) -> tuple[Allowance, ...]:
        """Every allowance: the shared ones, and those of single charges under their charge's key."""
        own = (Allowance(c.key, c.allowance, (c.key,)) for c in self.charges if c.allowance is not None)
        return (*self.allowances, *own)


def most_specific(
    charges: Iterable[Charge], model: str, adapter: str, region: str, tier: str, context: int | None = None
) -> tuple[Charge, ...]:
    """Of charges the most specific one that takes usage with these keys; all of them where several are equally so."""
    fitting = [charge for charge in charges if charge.where.take(model, adapter, region, tier, context)]
    if len(fitting) < 2:
        return tuple(fitting)
    highest = max(charge.where.rank for charge in fitting)
    return tuple(charge for charge in fitting if charge.where.rank == highest)


class PriceAt(StrEnum):
    """Which moment of a request chooses the price version."""

    COMPLETION = "completion"
    START = "start"


class BillAttempts(StrEnum):
    """Which attempts of a request bill: the one that was delivered, or all of them."""

    DELIVERED = "delivered"
    ALL = "all"


class Anchor(StrEnum):
    """Where billing periods begin: with the calendar, or with the subscription."""

    CALENDAR = "calendar"
    ANNIVERSARY = "anniversary"


STATUSES: Final = ("ok", "aborted", "error", "rejected")
"""How a request can end and bill. What is lost bills by its release alone (docs/spec/money.md 2)."""
DAYS_MAX: Final = 3_660
"""Ten years: what a contract counts in days. More is a slip, and leaves the calendar."""
BILL_STATUSES: Final = ("ok", "aborted")
"""Statuses that bill unless the contract says otherwise (docs/spec/money.md 2)."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a contract may say otherwise than the defaults. A plan has terms; a subscription may have its own."""

    price_at: PriceAt = PriceAt.COMPLETION
    bill_statuses: tuple[str, ...] = BILL_STATUSES
    bill_attempts: BillAttempts = BillAttempts.DELIVERED
    tier_continuity: TierContinuity = TierContinuity.CARRY
    weighted_allowances: bool = False
    rounding: Rounding = Rounding.HALF_EVEN
    period: Cycle = Cycle.MONTH
    anchor: Anchor = Anchor.CALENDAR
    trial_days: int = 0
    late_usage_days: int | None = None
    paid_credit_from: PaidCreditFrom = PaidCreditFrom.PAYMENT

    def problems(self) -> list[Problem]:
        """What is wrong with these values."""
        unknown = [status for status in self.bill_statuses if status not in STATUSES]
        found = [("bill_statuses", f"{status!r} is none of {', '.join(STATUSES)}") for status in unknown]
        found += _repeated("bill_statuses", self.bill_statuses)
        for name in ("trial_days", "late_usage_days"):
            if (getattr(self, name) or 0) > DAYS_MAX:
                found.append((name, f"must be at most {DAYS_MAX}"))
        return found


DEFAULT_TERMS: Final = Terms()


def counts_by_part(charge: Charge, terms: Terms) -> bool:
    """Whether a charge counts over a part of the billing period, so that it matters when in it something was used."""
    return charge.tier_period is not None and charge.tier_period.months < terms.period.months


@dataclass(frozen=True, slots=True)
class PricePlan:
    """A plan with its versions, the earliest first, and the terms of contracts on it."""

    name: str
    currency: str
    versions: tuple[PlanVersion, ...]
    terms: Terms = DEFAULT_TERMS

    @property
    def declared_metrics(self) -> frozenset[str]:
        """What some charge counts beside what every event has (`Metric`): the events' labels of these names."""
        return frozenset(metric for version in self.versions for metric in version.metrics) - set(Metric)


def version_at(versions: Iterable[PlanVersion], at: datetime) -> PlanVersion:
    """The version in force at a moment. Raises NoPriceVersion."""
    begun = [version for version in versions if version.valid_from <= at]
    if not begun:
        raise NoPriceVersion(f"no version of the plan is valid at {at:%Y-%m-%d %H:%M} UTC")
    return max(begun, key=lambda version: version.valid_from)


def unpriced_token_classes(version: PlanVersion) -> tuple[Metric, ...]:
    """Token classes that nothing prices although the version prices others: free by omission, worth a warning."""
    if Metric.TOTAL_TOKENS in version.metrics or not version.metrics & set(TOKEN_CLASSES):
        return ()
    return tuple(metric for metric in TOKEN_CLASSES if metric not in version.metrics)


def counted_twice(version: PlanVersion) -> tuple[tuple[str, str], ...]:
    """Pairs of charges, one of all tokens and one of a class of them, that some request is charged by both."""
    charges = [charge for charge in version.charges if not charge.is_fee]
    return tuple(
        (whole.key, part.key)
        for whole in charges
        for part in charges
        if whole.metric == Metric.TOTAL_TOKENS and part.metric in TOKEN_CLASSES and whole.where.meet(part.where)
    )


def _repeated(field: str, names: tuple[str, ...]) -> list[Problem]:
    return [(field, f"{name} stands there twice") for name in dict.fromkeys(names) if names.count(name) > 1]


def _group_problems(tax_group: str | None) -> list[Problem]:
    if tax_group is not None and not TAX_GROUP.fullmatch(tax_group):
        return [("tax_group", f"{tax_group!r} does not fit: letters, digits and _ -, at most 64")]
    return []


def _discount_problems(percent: Decimal | None, amount: Decimal | None) -> list[Problem]:
    if (percent is None) == (amount is None):
        return [("", "must say either `percent` or `amount`")]
    if percent is not None and not ZERO <= percent <= 1:
        return [("percent", f"{percent} is no share: write 0.10 for ten per cent")]
    return []
