"""Random months with late usage, corrections and credits: what the commands store is what the pure core bills."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from random import Random

import pytest

from billing.bills.credits import Grant, GrantKind, TaxTreatment
from billing.bills.tax import NO_TAX, TaxMode, TaxRules
from billing.commands.grant_credit import credits_of
from billing.commands.set_tax import set_tax
from billing.invoicing.tax_store import DatedTaxRules
from billing.stripe.stripe_gateway import StripeGateway
from tests.billing_builders import SINCE, subscription
from tests.integration.billing.conftest import World
from tests.integration.billing.late_months import MONTHS, Arrivals, Months, Wire, correction, said, used
from tests.integration.billing.test_credits import assert_the_liability_is_what_is_left, give

PLANS = (
    """\
plan: p
currency: USD
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - key: out
        model: graduated
        metric: output
        tiers: [{up_to: 3000, price: "0.004"}, {price: "0.0017", flat_fee: "1.5"}]
      - {key: in, model: per_unit, metric: input, price: "0.00031", tax_group: low, minimum: "0.7"}
      - {key: fee, model: flat, fee: "3.333"}
    commitment: {amount: "14", charges: [out]}
""",
    """\
plan: p
currency: USD
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - {key: out, model: volume, metric: output, tiers: [{up_to: 4000, price: "0.003"}, {price: "0.002"}]}
      - {key: in, model: package, metric: input, size: 700, price: "0.9", tax_group: low}
      - {key: fee, model: flat, fee: "1.11", tax_group: low}
  - version: v2
    from: 2026-11-12
    charges:
      - {key: out, model: per_unit, metric: output, price: "0.0025", allowance: 500, discount: "0.1"}
      - {key: in, model: per_unit, metric: input, price: "0.0007", tax_group: low}
      - {key: fee, model: flat, fee: "2.22", tax_group: low}
""",
)
RATES = {"std": Decimal("0.19"), "low": Decimal("0.07")}
TAXES = (NO_TAX, TaxRules(TaxMode.EXCLUSIVE, RATES), TaxRules(TaxMode.INCLUSIVE, RATES))


def random_grants(random: Random) -> tuple[Grant, ...]:
    """Up to three credits, some of which end in between."""
    found = []
    for number in range(random.choice([0, 0, 1, 2, 3])):
        kind = random.choice([GrantKind.PROMO, GrantKind.PAID, GrantKind.SLA])
        found.append(
            Grant(
                f"g{number}", kind, Decimal(random.randrange(100, 3000)).scaleb(-2), "USD",
                effective=random.choice([SINCE, MONTHS[0].start + timedelta(days=9)]),
                expires=random.choice([None, MONTHS[0].end, MONTHS[1].start + timedelta(days=5)]),
                granted_at=SINCE, paid_at=SINCE if kind is GrantKind.PAID else None, priority=random.choice([10, 50]),
                tax_treatment=random.choice([None, TaxTreatment.PRICE_REDUCTION, TaxTreatment.PAYMENT]),
            )
        )  # fmt: skip
    return tuple(found)


def random_usage(random: Random, number: int, before: list[Wire], month: int) -> Wire:
    """A request of a month so far, or a correction of one."""
    if before and random.random() < 0.35:
        of = random.choice(before)
        return correction(of, -random.randint(1, max(1, of["output_tokens"] // 9)), number)
    at = MONTHS[random.randint(0, month)]
    return used(
        f"r{number}",
        at.start + random.random() * (at.end - at.start),
        random.randint(0, 2500),
        input_tokens=random.randint(0, 1500),
    )


@pytest.mark.parametrize("seed", range(12))
def test_documents_and_books_are_the_cores_over_months_of_late_usage(
    world: World, gateway: StripeGateway, own_database_url: str, seed: int
) -> None:
    random = Random(seed)
    tax, grants = random.choice(TAXES), random_grants(random)
    months = Months(
        world, gateway, Arrivals(own_database_url), random.choice(PLANS), tax, (subscription("acme"),), grants
    )
    world.tenant("acme")
    world.plan(months.plan)
    world.subscribe("acme")
    set_tax(world.engine, DatedTaxRules("acme", tax, SINCE, ""), actor="ada")
    give(world, *grants)
    known: list[Wire] = []
    for number, period in enumerate(MONTHS):
        events = [random_usage(random, 10 * number + n, known, number) for n in range(random.randint(1, 5))]
        known += [event for event in events if "corrects" not in event]
        months.comes(*events)
        if number and random.random() < 0.4:
            months.close(MONTHS[number - 1])
        months.close(period)
        assert_the_liability_is_what_is_left(world)
    bills = months.core(MONTHS)
    assert months.stored() == said(bills, tax)
    drawn = {state.grant.grant_id: state.grant.amount - state.drawable for state in credits_of(world.engine)}
    assert drawn == dict(bills.drawn)
    assert months.differences(*MONTHS) == {}
