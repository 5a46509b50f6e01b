"""Laws that whole histories keep: plans of every model, plan changes, discounts, credits, late usage."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from billing.bills.billing_cycle import Bills, History, LateUsage, bill
from billing.bills.credits import Applicability, Grant, GrantKind
from billing.bills.documents import DocumentKind, Payer
from billing.bills.tax import TaxMode, TaxRules
from billing.money import currency, total
from billing.periods import anchored_period
from billing.plans.charge_models import (
    Flat,
    Graduated,
    Package,
    PerUnit,
    Prepaid,
    Pricing,
    Tier,
    TierContinuity,
    Timing,
    Volume,
)
from billing.plans.price_plans import Charge, Commitment, Discount, Filters, InvoiceDiscount, PlanVersion, Terms
from billing.plans.subscriptions import Subscription
from billing.rating.fees import prorated
from billing.rating.lines import LineKind
from billing.rating.usage_events import UsageEvent
from tests.billing_builders import NOVEMBER, OCTOBER, SINCE, subscription

USD = currency("USD", SINCE.date())
METRICS = ("a", "b")
SECONDS = 61 * 86400
MONTH_ENDS = st.sampled_from(
    [datetime(*day, tzinfo=UTC) for day in ((2024, 1, 31), (2025, 1, 30), (2024, 2, 29), (2025, 8, 31))]
)


def money(random: Random) -> Decimal:
    return Decimal(random.randrange(10**6)).scaleb(-4)


def price(random: Random) -> Decimal:
    return Decimal(random.randrange(10**9)).scaleb(-random.choice([4, 9, 15]))


def moment(random: Random) -> datetime:
    return OCTOBER.start + timedelta(seconds=random.randrange(SECONDS))


def tiers(random: Random) -> tuple[Tier, ...]:
    bounds = sorted(random.sample(range(1, 400), random.randint(1, 3)))
    return tuple(
        Tier(price(random), None if up_to is None else Decimal(up_to), money(random)) for up_to in [*bounds, None]
    )


def pricing(random: Random) -> Pricing:
    units = Decimal(random.randint(1, 500))
    return random.choice(
        [
            PerUnit(price(random)),
            Graduated(tiers(random)),
            Volume(tiers(random)),
            Package(units, price(random)),
            Prepaid(units, money(random), price(random)),
        ]
    )


def plan_version(random: Random, plan: str, name: str, valid_from: datetime) -> PlanVersion:
    charges = [
        Charge(
            metric,
            metric,
            Filters(),
            pricing(random),
            tier_continuity=random.choice([None, *TierContinuity]),
            discount=random.choice([None, Discount(percent=Decimal("0.1")), Discount(percent=Decimal("0.333"))]),
            minimum=random.choice([None, money(random)]),
            tax_group=random.choice(["std", "low"]),
        )
        for metric in METRICS
    ]
    charges += [
        Charge(key, "", Filters(), Flat(money(random)), tax_group=random.choice(["std", "low"]), timing=timing)
        for key, timing in (("fee", Timing.ARREARS), ("ahead", Timing.ADVANCE), ("first", Timing.ADVANCE))
        if random.random() < 0.6
    ]
    less = random.choice([None, InvoiceDiscount(percent=Decimal("0.25"))])
    commitment = random.choice([None, Commitment(money(random))])
    return PlanVersion(plan, name, "USD", valid_from, tuple(charges), (), less, commitment)


def event(random: Random, number: int) -> UsageEvent:
    return UsageEvent(f"e{number}", moment(random), {random.choice(METRICS): Decimal(random.randint(1, 500))})


def grant(random: Random, number: int) -> Grant:
    since = random.choice([SINCE, moment(random)])
    covers = random.choice([Applicability(), Applicability(fees=True), Applicability(frozenset({"ahead"}))])
    kind = random.choice([*GrantKind])
    return Grant(f"g{number}", kind, money(random), "USD", since, paid_at=SINCE, applies_to=covers)


def history_of(seed: int) -> History:
    """A tenant with two months, a price version and perhaps a plan change within them, late usage and credits."""
    random = Random(seed)
    change = moment(random)
    versions = {
        "p": (plan_version(random, "p", "v1", SINCE), plan_version(random, "p", "v2", moment(random))),
        "q": (plan_version(random, "q", "v1", SINCE),),
    }
    subscribed: tuple[Subscription, ...] = (subscription(ends_at=change),)
    if random.random() < 0.7:
        subscribed += (subscription(starts_at=change, plan="q"),)
    rates = {"std": Decimal("0.19"), "low": Decimal("0.07")}
    payer = Payer(replace(USD, stripe_minimum=random.choice([0, 50])), TaxRules(random.choice([*TaxMode]), rates))
    return History(
        payer,
        Terms(),
        (OCTOBER, NOVEMBER),
        subscribed,
        versions,
        tuple(event(random, number) for number in range(random.randint(0, 6))),
        (LateUsage(0, tuple(event(random, 100 + number) for number in range(random.randint(0, 2)))),),
        tuple(grant(random, number) for number in range(random.randint(0, 3))),
    )


# One seed is one history: drawing each of its hundred numbers by itself would be too slow.
HISTORIES = st.integers(0, 2**63).map(history_of)


def exact(bills: Bills) -> Decimal:
    return total(document.exact_total for document in bills.documents)


@given(history=HISTORIES)
def test_the_lines_of_every_document_add_up_exactly_and_rounded(history: History) -> None:
    for document in bill(history).documents:
        inclusive = history.payer.tax.inclusive
        rounded = sum(line.amount_minor for line in document.lines)
        tax = sum(row.tax_minor for row in document.taxes)
        assert total(line.rated.amount for line in document.lines) == document.exact_total
        assert rounded == (document.total_minor if inclusive else document.net_minor)
        assert document.net_minor + tax == document.total_minor
        assert sum(row.base_minor for row in document.taxes) == document.net_minor
        assert Fraction(document.exact_total) - Fraction(rounded, 100) == Fraction(document.residue)
        if document.kind is not DocumentKind.CREDIT_NOTE:
            roundings = len(document.taxes) if inclusive else 1
            assert abs(Fraction(document.residue)) <= Fraction(roundings, 200)


@given(history=HISTORIES, data=st.data())
def test_neither_the_order_of_events_nor_how_they_are_split_matters(history: History, data: st.DataObject) -> None:
    shuffled = replace(history, events=tuple(data.draw(st.permutations(history.events))))
    halves = [
        replace(event, event_id=f"{event.event_id}-{part}", quantities={m: q / 2 for m, q in event.quantities.items()})
        for event in history.events
        for part in (1, 2)
    ]
    once = bill(history)
    assert bill(shuffled) == once
    assert bill(replace(history, events=tuple(halves))).documents == once.documents


@given(history=HISTORIES)
def test_late_usage_bills_in_the_end_what_it_would_have_in_time(history: History) -> None:
    # Without an end of the credit's validity or a rounding of credit notes between, the exact amounts are the same.
    history = replace(history, grants=())
    in_time = replace(history, events=(*history.events, *history.late[0].events), late=())
    assert exact(bill(history)) == exact(bill(in_time))


@given(history=HISTORIES)
def test_a_grant_is_never_drawn_beyond_its_amount(history: History) -> None:
    drawn = bill(history).drawn
    for grant in history.grants:
        assert 0 <= drawn[grant.grant_id] <= grant.amount


@given(history=HISTORIES)
def test_what_is_drawn_of_a_grant_is_on_documents_and_no_reduction_of_fees_in_advance_is_paid_out(
    history: History,
) -> None:
    bills = bill(history)
    used: dict[str, Decimal] = defaultdict(Decimal)
    in_advance: dict[tuple[datetime, str], Decimal] = defaultdict(Decimal)
    for document in bills.documents:
        lines = [line.rated for line in document.lines]
        of_fees = document.kind is DocumentKind.ADVANCE or any(each.identity.kind == LineKind.UNUSED for each in lines)
        for line in lines:
            if line.identity.kind == LineKind.CREDIT:
                used[line.identity.charge_key.split(".")[1]] -= line.amount
            if of_fees:
                in_advance[document.service.end, line.tax_group] += line.amount
        assert not of_fees or document.kind is DocumentKind.ADVANCE or document.due_minor <= 0
        for each in document.paid:
            used[each.grant_id] += Decimal(each.used_minor).scaleb(-2)
    assert {name: amount for name, amount in bills.drawn.items() if amount} == {n: a for n, a in used.items() if a}
    assert all(amount >= 0 for amount in in_advance.values())


@given(history=HISTORIES)
def test_what_is_carried_is_collected_or_still_open_once(history: History) -> None:
    bills = bill(history)
    carried = 0
    for document in bills.documents:
        if document.kind is not DocumentKind.CREDIT_NOTE:
            assert document.carried_in_minor == carried
            carried = document.due_minor if document.state == "carried_below_minimum" else 0


@given(history=HISTORIES, seed=st.integers(0, 2**32))
def test_more_usage_never_costs_less_under_one_version_without_volume_prices(history: History, seed: int) -> None:
    # Over a change of prices it may: a further unit before it moves units after it into a cheaper tier.
    more = event(Random(seed), 999)
    version = history.versions["q"][0]
    metered = tuple(charge for charge in version.charges if not isinstance(charge.pricing, Volume))
    history = replace(
        history,
        subscriptions=(subscription(plan="q"),),
        versions={"q": (replace(version, charges=metered),)},
        grants=(),
        late=(),
    )
    assert exact(bill(replace(history, events=(*history.events, more)))) >= exact(bill(history))


@given(
    whole=st.integers(0, 10**19).map(lambda atto: Decimal(atto).scaleb(-18)),
    bounds=st.sets(st.integers(1, 30 * 86400 - 1), max_size=8),
)
def test_the_pieces_of_a_price_add_up_to_it(whole: Decimal, bounds: set[int]) -> None:
    shares = [Fraction(0), *(Fraction(bound, 30 * 86400) for bound in sorted(bounds)), Fraction(1)]
    pieces = [prorated(whole, since, until) for since, until in pairwise(shares)]
    assert total(pieces) == prorated(whole, Fraction(0), Fraction(1))


@given(
    anchor=st.integers(0, 4000).map(lambda day: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=day)) | MONTH_ENDS,
    number=st.integers(-40, 40),
    months=st.sampled_from([1, 3, 12]),
)
def test_anchored_periods_follow_each_other_without_gap_and_return_to_the_anchors_day(
    anchor: datetime, number: int, months: int
) -> None:
    period = anchored_period(anchor, months, number)
    assert period.end == anchored_period(anchor, months, number + 1).start
    last_of_month = (period.start + timedelta(days=1)).month != period.start.month
    assert period.start.day == anchor.day or last_of_month


def test_the_histories_reach_every_kind_of_document() -> None:
    # The strategies above are worth what they reach: this fails if they stop reaching adjustments and credit notes.
    # Counted from 0, not drawn: what Hypothesis draws depends on which modules are imported.
    kinds = {document.kind for seed in range(200) for document in bill(history_of(seed)).documents}
    assert kinds == {*DocumentKind}
