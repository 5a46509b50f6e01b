"""Random tenants for the database and the pure core alike: plans, changes in mid-hour, events as they are sent."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

from billing.database import transaction
from billing.periods import BillingPeriod
from billing.plans import account_store, plan_store
from billing.plans.charge_models import (
    Flat,
    Graduated,
    Package,
    Percentage,
    PerUnit,
    Prepaid,
    Pricing,
    Seat,
    Tier,
    TierContinuity,
    Volume,
)
from billing.plans.price_plans import (
    BillAttempts,
    Charge,
    Commitment,
    Discount,
    Filters,
    Metric,
    PlanVersion,
    PriceAt,
    PricePlan,
    Terms,
)
from billing.plans.subscriptions import Subscription, subscription_id
from billing.rating import RatedLine, UnpricedUsage, rate_period
from billing.rating.usage import by_metric
from billing.rating.usage_events import UsageEvent, billable, usage_by_piece
from billing.usage import rating_bands
from serving_adapter.identity import Identity, event_id_of
from streams.database import connect
from streams.ingest.apply import ChunkApplier
from streams.rules.chunks import Record
from tests.billing_builders import NOVEMBER, OCTOBER, SINCE
from tests.builders import SOURCE, make_chunk
from tests.integration.billing.conftest import World
from tests.integration.streams.conftest import register_source

Wire = dict[str, Any]
MODELS = ("llama", "qwen")


@dataclass(frozen=True)
class Tenant:
    """All that a tenant's bills follow from. `events` as they are sent."""

    tenant_id: str
    plans: tuple[PricePlan, ...]
    subscriptions: tuple[Subscription, ...]
    events: tuple[Wire, ...]

    @property
    def terms(self) -> Terms:
        return self.subscriptions[-1].terms

    def by_the_core(self, period: BillingPeriod) -> tuple[tuple[RatedLine, ...], list[UnpricedUsage]]:
        """What the pure core rates, event by event."""
        versions = {plan.name: plan.versions for plan in self.plans}
        events = billable(map(as_event, self.events), self.terms)
        used, unpriced = usage_by_piece(events, self.subscriptions, versions, period, self.terms)
        return rate_period(period, used, self.terms).lines, unpriced


def store(world: World, url: str, made: Iterable[Tenant], *, late_bands: bool = False) -> None:
    """Put tenants into the database by the stores that the commands use, and their events by ingestion.

    `late_bands`: nobody has told ingestion by what requests must be told apart.
    """
    made = list(made)
    world.tenant(*(tenant.tenant_id for tenant in made))
    for tenant in made:
        world.account(tenant.tenant_id)
    with transaction(world.engine) as connection:
        for tenant in made:
            for plan in tenant.plans:
                plan_store.add_versions(connection, plan, plan.versions, "test")
            for subscription in tenant.subscriptions:
                account_store.add_subscription(connection, subscription, "test")
        if not late_bands:
            assert rating_bands.write_rules(connection, [tenant.tenant_id for tenant in made]) == []
    ingest(url, [event for tenant in made for event in tenant.events])


def ingest(url: str, events: Iterable[Wire], *, first: int = 0, at: datetime = NOVEMBER.end) -> None:
    """Apply events in one chunk, the first of which has this number and which arrived at a moment."""
    with connect(url) as connection:
        if not first:
            register_source(connection, SOURCE, "usage")
        records = [Record(first + n, b"t", json.dumps(event).encode(), at) for n, event in enumerate(events)]
        ChunkApplier(connection).apply(make_chunk(*records))


def tenant_of(seed: int) -> Tenant:
    """A tenant with a price version and perhaps a plan change within October or November, within an hour."""
    random = Random(seed)
    name = f"t{seed}"
    terms = Terms(
        tier_continuity=random.choice([*TierContinuity]),
        bill_attempts=random.choice([*BillAttempts]),
        bill_statuses=random.choice([("ok", "aborted"), ("ok",), ("ok", "aborted", "error")]),
        weighted_allowances=random.random() < 0.3,
        price_at=random.choice([*PriceAt]),
    )
    by_event = random.random() < 0.25
    plans = [_plan(random, f"{name}.{letter}", terms, by_event=by_event) for letter in "pq"]
    changes = sorted(moment(random) for _ in range(random.randint(0, 2)))
    starts, ends = [SINCE, *changes], [*changes, random.choice([None, None, moment(random)])]
    if ends[-1] is not None and ends[-1] <= starts[-1]:
        ends[-1] = None
    subscriptions = tuple(
        Subscription(
            subscription_id(name, start), name, name, plans[no % 2].name, start, end, terms,
            seats=random.choice([None, 3]), trial_ends_at=start + timedelta(days=2) if random.random() < 0.1 else None,
        )
        for no, (start, end) in enumerate(zip(starts, ends, strict=True))
    )  # fmt: skip
    bounds = [*changes, *(v.valid_from for plan in plans for v in plan.versions if v.valid_from > SINCE)]
    events = [e for n in range(random.randint(5, 25)) for e in _request(random, name, f"r{n}", bounds)]
    return Tenant(name, tuple(plans), subscriptions, tuple(events))


def _plan(random: Random, name: str, terms: Terms, *, by_event: bool) -> PricePlan:
    dates = sorted({SINCE, *(moment(random) for _ in range(random.randint(0, 2)))})
    versions = tuple(
        _version(random, name, f"v{n}", since, by_event=by_event) for n, since in enumerate(dates, start=1)
    )
    return PricePlan(name, "USD", versions, terms)


def _version(random: Random, plan: str, version: str, since: datetime, *, by_event: bool) -> PlanVersion:
    metrics = random.sample([*Metric], random.randint(1, 4))
    charges = [
        Charge(
            f"c{metric}", metric, Filters(), _pricing(random),
            tier_continuity=random.choice([None, *TierContinuity]),
            discount=random.choice([None, Discount(percent=Decimal("0.1"))]),
            minimum=random.choice([None, _money(random)]),
        )
        for metric in metrics
    ]  # fmt: skip
    charges += [
        Charge(f"{charge.key}.llama", charge.metric, Filters(model="llama"), PerUnit(_price(random)))
        for charge in charges
        if random.random() < 0.3
    ]
    if random.random() < 0.3:
        charges.append(
            Charge("pages", "pages", Filters(), random.choice([PerUnit(_price(random)), _percentage(random)]))
        )
    if by_event and random.random() < 0.5:
        charges.append(Charge("share", "output", Filters(tier="batch"), _percentage(random)))
    if random.random() < 0.5:
        step = random.choice([4, 5, 299, 300])
        charges += [
            Charge("short", metrics[0], Filters(context_up_to=step), PerUnit(_price(random))),
            Charge(
                "long", metrics[0], Filters(context_over=step, context_up_to=1999), Graduated((Tier(_price(random)),))
            ),
            Charge("longer", metrics[0], Filters(context_over=1999), PerUnit(_price(random))),
        ]
    charges.append(Charge("fee", "", Filters(), random.choice([Flat(_money(random)), Seat(_money(random))])))
    commitment = random.choice([None, Commitment(_money(random))])
    return PlanVersion(plan, version, "USD", since, tuple(charges), commitment=commitment)


def _percentage(random: Random) -> Percentage:
    least = random.choice([None, _money(random)])
    most = random.choice([None, _money(random)])
    if least is not None and most is not None and least > most:
        least, most = most, least
    return Percentage(_price(random), "", _money(random), least, most)


def _pricing(random: Random) -> Pricing:
    units = Decimal(random.randint(1, 2000))
    bounds = sorted(random.sample(range(1, 3000), random.randint(1, 3)))
    tiers = tuple(Tier(_price(random), None if b is None else Decimal(b), _money(random)) for b in [*bounds, None])
    return random.choice(
        [
            PerUnit(_price(random)),
            Graduated(tiers),
            Volume(tiers),
            Package(units, _price(random)),
            Prepaid(units, _money(random), _price(random)),
        ]
    )


def _request(random: Random, tenant: str, request: str, bounds: list[datetime]) -> list[Wire]:
    """A request's attempts, most of them one; some near a bound, some corrected."""
    near = timedelta(seconds=random.choice([-1800, -1, 0, 1, 1800])) + timedelta(microseconds=random.choice([-1, 0, 1]))
    at = random.choice(bounds) + near if bounds and random.random() < 0.5 else moment(random)
    attempts = random.choice([1, 1, 1, 2, 3])
    found = []
    for attempt in range(1, attempts + 1):
        at += timedelta(seconds=random.choice([1, 600, 4000]))
        tokens = random.choice([0, 5, 300, 2000])
        found.append(
            {
                "tenant_id": tenant, "request_id": request, "attempt": attempt, "model": random.choice(MODELS),
                "input_tokens": tokens, "cache_hit_tokens": random.randint(0, tokens),
                "output_tokens": random.randint(0, 400), "gpu_us": random.randint(0, 10**7),
                "status": random.choice(["ok", "ok", "ok", "aborted", "error"]),
                "tier": random.choice(["", "", "batch"]),
                "labels": random.choice([{}, {"pages": "2"}, {"pages": "0.25", "team": "blue"}]),
                "fault": random.choice(["none", "none", "none", "platform"]),
                "timestamp": written(at), "started_at": written(at - timedelta(seconds=random.choice([1, 5000]))),
            }
        )  # fmt: skip
    if random.random() < 0.2:
        corrected = event_id_of(Identity(tenant, request, attempts, "usage", 0))
        less: Wire = {"kind": "correction", "correction_no": 1, "corrects": str(corrected), "gpu_us": 17}
        less |= (
            {"labels": random.choice([{}, {"pages": "-0.25"}])} if found[-1]["labels"] else {"labels": {"pages": "3"}}
        )
        found.append(found[-1] | less | dict.fromkeys(("input_tokens", "cache_hit_tokens"), 0) | {"output_tokens": 3})
    return found


def as_event(wire: Wire) -> UsageEvent:
    """The event as the core takes it."""
    own = Identity(wire["tenant_id"], wire["request_id"], wire["attempt"], wire.get("kind", "usage"),
                   wire.get("correction_no", 0))  # fmt: skip
    counts = by_metric(
        wire["input_tokens"], wire["cache_hit_tokens"], wire["output_tokens"], Decimal(wire["gpu_us"]).scaleb(-6),
        0 if "corrects" in wire else 1,
    )  # fmt: skip
    quantities = {str(metric): quantity for metric, quantity in counts.items()}
    if "pages" in wire["labels"]:
        quantities["pages"] = Decimal(wire["labels"]["pages"])
    return UsageEvent(
        str(event_id_of(own)), datetime.fromisoformat(wire["timestamp"]), quantities,
        started_at=datetime.fromisoformat(wire["started_at"]), request_id=wire["request_id"], attempt=wire["attempt"],
        status=wire["status"], fault=wire["fault"], model=wire["model"], tier=wire["tier"],
        context=wire["input_tokens"], corrects=wire.get("corrects"),
    )  # fmt: skip


def moment(random: Random) -> datetime:
    """Some microsecond of October and November."""
    return OCTOBER.start + (NOVEMBER.end - OCTOBER.start) * random.random()


def _money(random: Random) -> Decimal:
    return Decimal(random.randrange(10**6)).scaleb(-4)


def _price(random: Random) -> Decimal:
    return Decimal(random.randrange(10**9)).scaleb(-random.choice([4, 9, 15]))


def written(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
