"""What tenants have committed to: used, missing in the period that runs, and still to come. Values in, values out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Final

from billing.money import ZERO, exactly, quantise_line, total
from billing.periods import BillingPeriod
from billing.plans.price_plans import PlanVersion
from billing.plans.schedules import by_schedule
from billing.plans.subscriptions import Piece, Subscription, pieces
from billing.rating import LineKind, RatedLine
from billing.rating.advance import in_advance
from billing.rating.positions import share_of
from billing.reports.report import Amounts, Report, summed, table, ties

COLUMNS: Final = (
    "billing_account", "tenant_id", "plan", "period", "currency", "committed", "used", "true_up", "missing",
    "later_periods", "ends_at",
)  # fmt: skip
PERIODS_MAX: Final = 120
"""How many periods to come are added up: ten years of months."""
_NEVER_COUNT: Final = (LineKind.INVOICE_DISCOUNT, LineKind.TRUE_UP, LineKind.CREDIT, LineKind.TOP_UP)
_FEES: Final = (LineKind.FEE, LineKind.PREPAID_FEE, LineKind.UNUSED)


@dataclass(frozen=True, slots=True)
class RunningCommitment:
    """A tenant's subscriptions of one schedule in a billing period, with the lines that were rated of it."""

    subscriptions: Sequence[Subscription]
    period: BillingPeriod
    lines: Sequence[RatedLine] = ()


def commitment_report(
    found: Iterable[RunningCommitment],
    versions: Mapping[str, Sequence[PlanVersion]],
    until: datetime,
    true_ups: Iterable[RatedLine],
    booked: Amounts,
) -> Report:
    """Commitments of the billing periods that run or end in a month, by tenant.

    `later_periods` is what is committed from this period's end to the subscription's; nothing is said of one without
    end. `true_ups`: rated lines that were accrued in the month; `booked`: (currency, '') → what accruals credited 4050.
    """
    rows = []
    for each in sorted(found, key=lambda each: (each.subscriptions[0].tenant_id, each.period)):
        cut = pieces(each.subscriptions, versions, each.period)
        committed = committed_in(cut, each.period)
        last = each.subscriptions[-1]
        later = _later(each, versions, last.ends_at)
        if not committed and not later:
            continue
        with exactly():
            used = counting(each.lines, cut) + _fees_counting(cut, each.period)
            missing = max(ZERO, committed - used) if until < each.period.end else ZERO
        rows.append(
            {
                "billing_account": last.billing_account, "tenant_id": last.tenant_id, "plan": last.plan,
                "period": each.period.name, "currency": versions[last.plan][0].currency, "committed": committed,
                "used": used, "true_up": total(a.amount for a in each.lines if a.identity.kind == LineKind.TRUE_UP),
                "missing": missing, "later_periods": later, "ends_at": last.ends_at,
            }
        )  # fmt: skip
    billed = summed(((line.currency, ""), line.amount) for line in true_ups if line.identity.kind == LineKind.TRUE_UP)
    return Report(
        "commitments",
        table(rows, COLUMNS),
        ties("true-ups accrued in the month = 4050 by accruals", billed, booked),
        ("an invoice discount lowers what counts, and is known at the period's end: it is not in `used`",),
    )


def running(subscriptions: Iterable[Subscription], month: BillingPeriod) -> list[RunningCommitment]:
    """One tenant's billing periods that have time in a month, by schedule."""
    found = []
    for schedule, listed in by_schedule(subscriptions).items():
        for period in schedule.periods(month.start, month.end):
            held = [
                each for each in listed
                if each.bills_from < period.end and (each.ends_at is None or each.ends_at > period.start)
            ]  # fmt: skip
            if held:
                found.append(RunningCommitment(held, period))
    return found


def committed_in(cut: Iterable[Piece], period: BillingPeriod) -> Decimal:
    """What is committed in a period, weighted by the seconds that it is in force (docs/spec/money.md 3)."""
    shares = (
        Fraction(piece.version.commitment.amount) * share_of(piece, period)
        for piece in cut
        if piece.version.commitment is not None
    )
    return quantise_line(sum(shares, Fraction()))


def counting(lines: Iterable[RatedLine], cut: Sequence[Piece]) -> Decimal:
    """What counts towards a commitment: charges that it names whole; all usage and no fee if it names none."""
    commitments = [piece.version.commitment for piece in cut if piece.version.commitment is not None]
    named = {key for commitment in commitments for key in commitment.charges}
    all_usage = any(not commitment.charges for commitment in commitments)
    fees = {charge.key for piece in cut for charge in piece.version.charges if charge.is_fee}
    by_charge: dict[str, list[RatedLine]] = defaultdict(list)
    for line in lines:
        if line.identity.kind not in _NEVER_COUNT:
            by_charge[line.identity.charge_key].append(line)
    found = Fraction(total(line.amount for key in named & by_charge.keys() for line in by_charge[key]))
    if all_usage:
        found += sum((_usage(of) for key, of in by_charge.items() if key not in named | fees), Fraction())
    return quantise_line(found)


def _usage(lines: Iterable[RatedLine]) -> Fraction:
    """What of a charge's lines is usage: its fee bears discounts, and a maximum, by what it costs (decision 58)."""
    costs, fees, less = (defaultdict[tuple[int, str], Fraction](Fraction) for _ in range(3))
    limits: dict[str, Fraction] = defaultdict(Fraction)
    for line in lines:
        kind, piece = line.identity.kind, (line.identity.segment_no, line.identity.version)
        if kind in (LineKind.MINIMUM, LineKind.MAXIMUM):
            limits[kind] += Fraction(line.amount)
        elif kind == LineKind.DISCOUNT:
            less[piece] += Fraction(line.amount)
        else:
            costs[piece] += Fraction(line.amount)
            fees[piece] += Fraction(line.amount) if kind in _FEES else 0
    usage, whole = Fraction(), Fraction()
    for piece, cost in costs.items():
        left = cost + less[piece]
        whole += left
        usage += left * (1 - fees[piece] / cost) if cost else left
    off = limits[LineKind.MAXIMUM] * (usage / whole if whole else 1)
    return usage + limits[LineKind.MINIMUM] + off


def _fees_counting(cut: Sequence[Piece], period: BillingPeriod) -> Decimal:
    """What a period's fees in advance, on invoices of their own, count towards a commitment that names them."""
    named = {key for piece in cut if piece.version.commitment for key in piece.version.commitment.charges}
    return total(amount for key, amount in in_advance(cut, period).net.items() if key in named)


def _later(
    each: RunningCommitment, versions: Mapping[str, Sequence[PlanVersion]], ends_at: datetime | None
) -> Decimal | None:
    if ends_at is None:
        return None
    ((schedule, listed),) = by_schedule(each.subscriptions).items()
    to_come = islice(schedule.periods(each.period.end, ends_at), PERIODS_MAX)
    return total(committed_in(pieces(listed, versions, period), period) for period in to_come)
