"""Random plans over all charge models, in the form of tests/money/README.md."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tests.simulation.money.calendar import DAY, SECOND, read, written

Plain = dict[str, Any]
COUNTED = ("per_unit", "graduated", "volume", "package", "prepaid")
"""Models that count units of a metric; `percentage` looks at events, fees at time."""
FILTERS: tuple[Plain, ...] = (
    {"model": "m1"},
    {"model": "m2", "region": "eu"},
    {"adapter": "a1"},
    {"tier": "batch"},
    {"region": "eu"},
    {"context_up_to": 40},
    {"context_over": 40},
    {"context_over": 20, "context_up_to": 60},
    {"model": "m1", "context_over": 40},
)
TOKEN_METRICS = ("input", "cached_input", "output", "total_tokens", "request", "gpu_second")


@dataclass(slots=True)
class Traits:
    """What is the same for a charge in all plans and versions of a case."""

    key: str
    model: str
    metric: str
    tax_group: str
    continuity: str
    scale: int
    bounds: list[int]
    flat_fees: bool
    discounted: str
    """`percent`, `amount`, or nothing."""
    minimum: bool
    maximum: bool
    advance: bool
    prorated: bool = True
    where: Plain = field(default_factory=dict)
    """Which events it is for; of a metric's charges the most specific one takes an event."""


@dataclass(slots=True)
class Shape:
    """What the whole case agrees on: its charges, whether credits come, and what is shared over charges."""

    charges: list[Traits]
    by_events: bool
    pool: list[str] = field(default_factory=list)
    committed: list[str] = field(default_factory=list)
    invoice_discount: str = ""
    """What it is taken off; none without."""
    true_up_group: str = ""
    starts: list[int] = field(default_factory=list)
    """Of the billing periods: discounts begin and end around them."""
    below_zero: bool = False
    """Whether what percentages are of may be less than nothing, as a refund is."""

    def names(self) -> set[str]:
        """What of an event's names some charge asks for; the model always, since grants may."""
        return {"model", *(name for charge in self.charges for name in charge.where)}

    def models(self) -> set[str]:
        return {charge.model for charge in self.charges}


def decimal(random: Random, whole: int, places: int) -> str:
    """A number up to `whole` with up to `places` decimals, written without a float."""
    units = random.randint(1, whole * 10**places)
    text = str(units).rjust(places + 1, "0")
    return f"{text[:-places]}.{text[-places:]}" if places else text


def shape(random: Random, groups: list[str], starts: list[int]) -> Shape:
    """Which charges there are, and what they have in all versions."""
    by_events = random.random() < 0.45
    charges = []
    for i in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        model = random.choice((*COUNTED, "percentage", "percentage")) if by_events else random.choice(COUNTED)
        charges.append(_traits(random, f"u{i}", model, by_events, groups))
    if by_events:
        _narrow(random, charges)
    for i in range(random.choice((0, 0, 0, 1, 1, 2))):
        model = random.choice(("flat", "flat", "seat", "one_off"))
        charges.append(_traits(random, f"f{i}", model, by_events, groups))
    result = Shape(charges, by_events, starts=starts)
    if random.random() < 0.1:
        make_linear(result)
    pooled = [charge.key for charge in charges if charge.model in COUNTED and charge.model != "prepaid"]
    if pooled and random.random() < 0.25:
        result.pool = random.sample(pooled, random.randint(1, len(pooled)))
    if random.random() < 0.2:
        committable = [charge.key for charge in charges]
        result.committed = random.sample(committable, random.randint(1, len(committable)))
        result.true_up_group = random.choice(("", *groups))
    result.below_zero = random.random() < 0.15
    if random.random() < 0.15:
        result.invoice_discount = random.choice(("usage", "usage", "fees", "all"))
    return result


def _traits(random: Random, key: str, model: str, by_events: bool, groups: list[str]) -> Traits:
    counted = model in COUNTED
    metric = random.choice(TOKEN_METRICS) if by_events else key
    continuity = "carry"
    if model in COUNTED and random.random() < 0.4:
        continuity = random.choice(("reset", "prorate"))
    limited = counted or model == "percentage"
    bounds = sorted(random.sample(range(1, 60), random.randint(1, 3)))
    scale = random.choice((1, 1, 1, 10, 1000))
    in_advance = {"prepaid": 0.3, "flat": 0.5, "seat": 0.5, "one_off": 0.5}.get(model, 0)
    traits = Traits(
        key=key,
        model=model,
        metric="pass_through_cost" if model == "percentage" else metric,
        tax_group=random.choice(groups),
        continuity=continuity,
        scale=scale,
        bounds=[bound * scale for bound in bounds],
        flat_fees=model in ("graduated", "volume") and random.random() < 0.4,
        discounted=random.choices(("", "percent", "amount"), (75, 15, 10))[0],
        minimum=limited and random.random() < 0.2,
        maximum=limited and random.random() < 0.15,
        advance=random.random() < in_advance,
        prorated=random.random() < 0.85,
    )
    if traits.advance:  # what is on an earlier invoice has no limits
        traits.minimum = traits.maximum = False
    return traits


def _narrow(random: Random, charges: list[Traits]) -> None:
    """Now and then charges for some events only, often of a metric that another charge counts, too."""
    for traits in charges:
        if random.random() < 0.4:
            traits.where = random.choice(FILTERS)
            other = random.choice(charges)
            if "percentage" not in (traits.model, other.model) and random.random() < 0.6:
                traits.metric = other.metric


def of_another_plan(random: Random, form: Shape) -> Shape:
    """The shape as another plan has it: now and then a charge counts its metric by another model."""
    charges = []
    for traits in form.charges:
        if traits.model in COUNTED and traits.model != "prepaid" and not form.pool and random.random() < 0.1:
            model = random.choice(("per_unit", "graduated", "volume", "package"))
            charges.append(like(traits, model))
        else:
            charges.append(traits)
    return replace(form, charges=charges)


def like(traits: Traits, model: str) -> Traits:
    """The same charge, counting by another model."""
    return replace(traits, model=model, flat_fees=traits.flat_fees and model in ("graduated", "volume"))


def make_linear(form: Shape) -> None:
    """All that counts units turned into per-unit charges without limits: then pools and credits may cut anywhere."""
    form.pool = []
    for charge in form.charges:
        if charge.key.startswith("u"):
            charge.model, charge.continuity, charge.flat_fees, charge.maximum = "per_unit", "carry", False, False
            charge.metric = "output" if charge.metric == "pass_through_cost" else charge.metric


def plan(random: Random, form: Shape, starts: list[int], without: str = "") -> list[Plain]:
    """Versions of a plan; the first is valid always, the others from `starts` on; one charge may be left out."""
    result = []
    charges = [traits for traits in form.charges if traits.key != without]
    pool, committed = ([key for key in keys if key != without] for keys in (form.pool, form.committed))
    for number, start in enumerate([None, *starts], 1):
        version: Plain = {"version": f"v{number}"}
        if start is not None:
            version["from"] = written(start)
        version["charges"] = [charge(random, traits, form.starts) for traits in charges]
        if pool:
            version["allowances"] = [{"pool": "pool", "units": random.choice((1, 5, 20, 60, 1000)), "charges": pool}]
        if committed:
            version["commitment"] = {"amount": decimal(random, 200, 2)}
            if random.random() < 0.75:  # without names all usage counts, and no fee
                version["commitment"]["charges"] = committed
            if form.true_up_group:
                version["commitment"]["tax_group"] = form.true_up_group
        if form.invoice_discount and random.random() < 0.9:
            kind = random.choice(("percent", "percent", "amount"))
            version["invoice_discount"] = {**_discount(random, kind, form.starts), "base": form.invoice_discount}
        result.append(version)
    return result


def _discount(random: Random, kind: str, starts: list[int]) -> Plain:
    """A share or an amount; now and then from, until, or for some periods only."""
    if kind == "percent":
        result: Plain = {"percent": random.choice(("0.1", "0.05", "0.125", "0.25", "0.333", "0.0125"))}
    else:
        result = {"amount": random.choice((decimal(random, 20, 2), decimal(random, 200, 2), "5", "0.0000000000005"))}
    if random.random() < 0.2:
        result["from"] = written(random.choice(starts) + random.choice((-40 * DAY, -SECOND, 0, 0, SECOND)))
    if random.random() < 0.2:
        result["until"] = written(random.choice(starts) + random.choice((-SECOND, 0, SECOND, 40 * DAY)))
        if "from" in result and read(result["until"]) <= read(result["from"]):
            del result["until"]
    if random.random() < 0.25:
        result["periods"] = random.choice((1, 1, 2, 2, 3, 4))
    return result


def charge(random: Random, traits: Traits, starts: list[int]) -> Plain:
    """One charge with its own prices; its traits stay."""
    result: Plain = {"key": traits.key, "model": traits.model}
    if traits.tax_group != "std":
        result["tax_group"] = traits.tax_group
    if traits.where:
        result["where"] = traits.where
    result |= _PARAMETERS[traits.model](random, traits)
    if traits.continuity != "carry":
        result["tier_continuity"] = traits.continuity
    if traits.discounted:
        found = _discount(random, traits.discounted, starts)
        result["discount"] = found["percent"] if found.keys() == {"percent"} and random.random() < 0.5 else found
    if traits.minimum:
        result["minimum"] = decimal(random, 40, 2)
    if traits.maximum:
        result["maximum"] = str(random.randint(41, 400))
    if traits.advance:
        result["timing"] = "advance"
    if traits.model in ("flat", "seat", "prepaid") and not traits.prorated:
        result["prorated"] = False
    return result


def price(random: Random, scale: int) -> str:
    """Prices of many sizes; some with more than 12 decimals, so that lines are cut at 10⁻¹²."""
    if random.random() < 0.12:
        return random.choice(("0.0000000000005", "0.000000000625", "0.000000000000000001", "0.1234567890123456"))
    places = random.choice((0, 1, 2, 3, 3, 4, 6, 9))
    return decimal(random, 1 if scale > 1 or places > 2 else 9, places)


def _counted(random: Random, traits: Traits) -> Plain:
    return {"metric": traits.metric, "price": price(random, traits.scale)}


def _tiered(random: Random, traits: Traits) -> Plain:
    tiers: list[Plain] = []
    for bound in [*traits.bounds, None]:
        tier: Plain = {"price": price(random, traits.scale)}
        if bound is not None:
            tier["up_to"] = bound
        if traits.flat_fees and random.random() < 0.7:
            tier["flat_fee"] = decimal(random, 9, 2)
        tiers.append(tier)
    return {"metric": traits.metric, "tiers": tiers}


def _package(random: Random, traits: Traits) -> Plain:
    size = random.choice((traits.bounds[0], traits.bounds[0], 7, 100))
    return {"metric": traits.metric, "size": size, "price": decimal(random, 9, 2)}


def _prepaid(random: Random, traits: Traits) -> Plain:
    return {
        "metric": traits.metric,
        "included": random.choice((traits.bounds[0], traits.bounds[-1])),
        "fee": decimal(random, 99, 2),
        "overage_price": price(random, traits.scale),
    }


def _percentage(random: Random, traits: Traits) -> Plain:
    result: Plain = {"base": "pass_through_cost", "rate": random.choice(("0.029", "0.1", "0.003333", "0.5"))}
    if random.random() < 0.5:
        result["fixed_per_event"] = decimal(random, 1, 2)
    if random.random() < 0.4:
        result["min_per_event"] = decimal(random, 2, 2)
    if random.random() < 0.4:
        result["max_per_event"] = str(random.randint(2, 12))
    return result


def _fee(random: Random, traits: Traits) -> Plain:
    return {"fee": random.choice((decimal(random, 99, 2), str(random.randint(1, 200)), "100", "31"))}


def _seat(random: Random, traits: Traits) -> Plain:
    """Now and then as many seats as the plan says, whatever is subscribed."""
    return _fee(random, traits) | ({"seats": random.randint(1, 9)} if random.random() < 0.25 else {})


_PARAMETERS = {
    "per_unit": _counted,
    "graduated": _tiered,
    "volume": _tiered,
    "package": _package,
    "prepaid": _prepaid,
    "percentage": _percentage,
    "flat": _fee,
    "seat": _seat,
    "one_off": _fee,
}
