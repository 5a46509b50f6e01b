"""Random cases in the form of tests/money/README.md: the same seed and number give the same case, anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from tests.simulation.money import calendar, plans, rarities, usages
from tests.simulation.money.calendar import DAY, SECOND, written
from tests.simulation.money.plans import Plain, Shape
from tests.simulation.money.usages import Met, Setting
from tests.simulation.money.versions import vary

CURRENCIES = (
    ("USD", "0.01", "", "0.50"),
    ("USD", "0.01", "", "0.50"),
    ("EUR", "0.01", "", "0.50"),
    ("GBP", "0.01", "", "0.30"),
    ("JPY", "1", "", "50"),
    ("KWD", "0.001", "0.010", "0.150"),
    ("ISK", "1", "1", "30"),
)
"""Currency, minor unit, quantum where it is another, and a smallest amount that can be charged."""

_LARGE = {"0.01": "40", "1": "900", "0.001": "25"}
"""Smallest amounts by minor unit that many invoices do not reach, so that they are carried."""

RATES = ("0.19", "0.2", "0.07", "0.081", "0.25", "0.055", "0.1")


@dataclass(frozen=True, slots=True)
class Simulated:
    """A case, and which (model, kind of event, boundary) its usage meets."""

    case: Plain
    met: Counter[Met]


def cases(seed: int, first: int, count: int) -> Iterator[Simulated]:
    """`count` cases from number `first` on."""
    for number in range(first, first + count):
        yield simulated(seed, number)


def simulated(seed: int, number: int) -> Simulated:
    """Case `number` of a seed."""
    random = Random(f"{seed}/{number}")
    fields, length, spans = calendar.longer(Random(f"{seed}/{number}/longer"), *calendar.periods(random))
    account, groups = _account(random)
    if account["currency"] == "ISK" and Random(f"{seed}/{number}/currency").random() < 0.5:
        account["currency"] = "UGX"  # rounded alike
    credits = random.choices(("none", "price_reduction", "payment", "both"), (65, 17, 10, 8))[0]
    form = plans.shape(random, groups, [start for start, _ in spans])
    starts = {name: _version_starts(random, spans) for name in ("a", "b")[: random.choice((1, 1, 2))]}
    changes = _subscription(random, spans, list(starts), starts, form)
    edges = _edges(spans, starts, changes)
    case: Plain = {"id": f"sim-{seed}-{number}", "account": account, "contract": _contract(random, length), **fields}
    _trial(random, case["contract"], changes, edges)
    _other_periods(random, changes, length, spans[0][0])
    forms = {"a": form, "b": plans.of_another_plan(random, form)}
    case["plan"] = {
        name: plans.plan(random, forms[name], at, _left_out(random, form, name)) for name, at in starts.items()
    }
    _corrections(Random(f"{seed}/{number}/corrections"), case, forms)
    _tier_periods(Random(f"{seed}/{number}/tiers"), case, length, spans, edges)
    vary(Random(f"{seed}/{number}/versions"), case, form, groups if "tax" in account else ["std", "reduced"])
    rarities.in_plans(Random(f"{seed}/{number}/rare plans"), case)
    case["subscription"] = changes
    if credits != "none":
        case["credits"] = _grants(random, form, spans, credits, account["currency"], edges)
        rarities.in_credits(Random(f"{seed}/{number}/rare credits"), case)
        _invoiced(Random(f"{seed}/{number}/invoiced"), case, spans, edges)
    setting = Setting(random, form, spans[0][0], spans[-1][1], edges, case["contract"].get("price_at") == "start")
    setting.meet_fees()
    case["usage"] = usages.usage(setting, spans)
    _late(case, setting, spans)
    rarities.in_usage(Random(f"{seed}/{number}/rare usage"), case, setting, spans)
    _prior_credit(random, case, spans)
    if not case["contract"]:
        del case["contract"]
    return Simulated(case, setting.met)


def _account(random: Random) -> tuple[Plain, list[str]]:
    currency, minor_unit, quantum, least = random.choice(CURRENCIES)
    account: Plain = {"currency": currency, "minor_unit": minor_unit}
    if quantum:
        account["quantum"] = quantum
    groups = ["std"]
    modes = ("none", "exclusive", "inclusive", "reverse_charge", "exempt")
    mode = random.choices(modes, (45, 30, 15, 6, 4))[0]
    if mode != "none":
        groups = ["std", "reduced"] if random.random() < 0.4 else ["std"]
        account["tax"] = {"mode": mode, "groups": {group: random.choice(RATES) for group in groups}}
    if random.random() < 0.2:
        account["stripe_minimum"] = random.choice((least, _LARGE[minor_unit]))
    return account, groups


def _contract(random: Random, length: str) -> Plain:
    result: Plain = {} if length == "month" else {"period": length}
    if random.random() < 0.1:
        result["weighted_allowances"] = True
    if random.random() < 0.15:
        result["price_at"] = "start"
    if random.random() < 0.15:
        result["bill_attempts"] = "all"
    if random.random() < 0.1:
        result["bill_statuses"] = random.choice((["ok"], ["ok", "aborted", "error"]))
    if random.random() < 0.2:
        result["rounding"] = "half_up"
    if random.random() < 0.1:
        result["late_usage_days"] = random.choice((5, 31, 90))
    return result


def _trial(random: Random, contract: Plain, changes: list[Plain], edges: list[tuple[str, int]]) -> None:
    """Now and then nothing bills at first; nothing changes before it does."""
    days = random.choice((1, 7, 14, 30))
    ends = calendar.read(changes[0]["at"]) + days * DAY
    if random.random() < 0.12 and all(calendar.read(change["at"]) >= ends for change in changes[1:]):
        contract["trial_days"] = days
        edges.append(("trial", ends))


def _other_periods(random: Random, changes: list[Plain], length: str, start: int) -> None:
    """Now and then the contract had periods of another length before those that are billed here."""
    others = [other for other in ("month", "quarter", "year") if other != length]
    before = calendar.read(changes[0]["at"]) < start
    if random.random() < 0.15 and before and all(calendar.read(change["at"]) > start for change in changes[1:]):
        changes[0]["period"] = random.choice(others)
        changes.insert(1, {"at": written(start), "period": length})


def _version_starts(random: Random, spans: list[tuple[int, int]]) -> list[int]:
    return sorted({_instant(random, spans) for _ in range(random.choice((0, 0, 0, 1, 1, 2)))})


def _instant(random: Random, spans: list[tuple[int, int]]) -> int:
    """A period's edge, a midnight, or any second."""
    start, end = random.choice(spans)
    how = random.random()
    if how < 0.2:
        return start
    if how < 0.6:
        return start + random.randrange((end - start) // DAY) * DAY
    return start + random.randrange((end - start) // SECOND) * SECOND


def _corrections(random: Random, case: Plain, forms: dict[str, Shape]) -> None:
    """Now and then a version that corrected another one, and now and then that is not known yet."""
    if random.random() < 0.2:
        case["known_at"] = "2020-01-01T12:00:00Z"
    for name, versions in case["plan"].items():
        for version in list(versions):
            if random.random() < 0.15:
                wrong = plans.plan(random, forms[name], [])[0] | {"version": f"{version['version']}-wrong"}
                if "from" in version:
                    wrong["from"] = version["from"]
                if random.random() < 0.5:
                    wrong["recorded"] = "2020-01-01"
                version["recorded"] = "2020-01-02"
                versions.insert(random.randrange(len(versions) + 1), wrong)


def _tier_periods(
    random: Random, case: Plain, length: str, spans: list[tuple[int, int]], edges: list[tuple[str, int]]
) -> None:
    """Of quarters and years often some charges count by the month or quarter; those of a pool alike."""
    if length == "month" or random.random() < 0.4:
        return
    versions = [version for versions in case["plan"].values() for version in versions]
    charges = [charge for version in versions for charge in version["charges"]]
    pooled = {key for version in versions for pool in version.get("allowances", ()) for key in pool["charges"]}
    of_pool = random.choice(("month", "month", "quarter", ""))
    chosen: dict[str, str] = {}
    for charge in charges:
        if charge["model"] in plans.COUNTED:
            own = random.choice(("month", "month", "quarter", ""))
            over = of_pool if charge["key"] in pooled else chosen.setdefault(charge["key"], own)
            charge |= {"tier_period": over} if over else {}
    edges += [("tier period", at) for start, end in spans for at in calendar.months(start, end)]


def _left_out(random: Random, form: Shape, name: str) -> str:
    """A charge that plan b does not have."""
    if name == "b" and len(form.charges) > 1 and random.random() < 0.2:
        charge = random.choice(form.charges[1:])
        return "" if charge.maximum else charge.key
    return ""


def _subscription(
    random: Random, spans: list[tuple[int, int]], names: list[str], starts: dict[str, list[int]], form: Shape
) -> list[Plain]:
    """From before, at, or after the first start; upgrades, other seats, a cancellation, now and then a return or the
    end of a pause."""
    before = spans[0][0] - random.choice((40, 40, 75, 400)) * DAY
    first = random.choices((before, spans[0][0], _instant(random, spans)), (60, 15, 25))[0]
    entries: dict[int, Plain] = {first: {"plan": names[0]}}
    versions = [at for of in starts.values() for at in of]

    def later() -> int:
        return random.choice(versions) if versions and random.random() < 0.15 else _instant(random, spans)

    plan_now = names[0]
    for at in sorted(later() for _ in range(random.choice((1, 1, 2)) if len(names) > 1 else 0)):
        if at > first and at not in entries:
            plan_now = "b" if plan_now == "a" else "a"
            entries[at] = {"plan": plan_now}
    if "seat" in form.models():
        entries[first]["seats"] = random.randint(1, 9)
        at = later()
        if at > first and at not in entries and random.random() < 0.5:
            entries[at] = {"seats": random.randint(1, 9)}
    if random.random() < 0.25:
        at = later()
        if at > max(entries):
            entries[at] = {"cancel": True}
            back = later()
            if back > at and random.random() < 0.5:
                entries[back] = {"resume": True} if random.random() < 0.5 else {"plan": random.choice(names)}
    return [{"at": written(at), **entries[at]} for at in sorted(entries)]


def _edges(spans: list[tuple[int, int]], starts: dict[str, list[int]], changes: list[Plain]) -> list[tuple[str, int]]:
    """Named instants around which usage is placed."""
    edges = [("period", at) for at in {edge for span in spans for edge in span}]
    edges += [("version", at) for of in starts.values() for at in of]
    for change in changes:
        name = "cancel" if change.get("cancel") else "change"
        edges.append((name, calendar.read(change["at"])))
    return sorted(edges)


def _grants(
    random: Random,
    form: Shape,
    spans: list[tuple[int, int]],
    treatment: str,
    currency: str,
    edges: list[tuple[str, int]],
) -> list[Plain]:
    """One to four, of one treatment, or now and then of both."""
    usage = [charge.key for charge in form.charges if charge.key.startswith("u")]
    result = []
    for number in range(random.choice((1, 1, 2, 3, 4))):
        grant: Plain = {"id": f"g{number}"}
        of = random.choice(("payment", "price_reduction")) if treatment == "both" else treatment
        grant["kind"] = "paid" if of == "payment" else random.choice(("promo", "sla", "goodwill", "paid"))
        if grant["kind"] == "paid" and of == "price_reduction":
            grant["tax_treatment"] = random.choice(("price_reduction", "taxed_at_sale"))
        grant |= {"amount": str(random.choice((1, 5, 20, 100, 5000))), "currency": currency}
        if random.random() < 0.05:
            grant["currency"] = "CHF"
        before = spans[0][0] - random.randint(1, 300) * DAY
        effective = _instant(random, spans) if random.random() < 0.4 else before
        grant["effective"] = written(effective)
        edges.append(("effective", effective))
        if random.random() < 0.4:
            expires = random.choice((_instant(random, spans), spans[-1][1] + random.randint(0, 60) * DAY))
            if expires > effective:
                grant["expires"] = written(expires)
                edges.append(("expires", expires))
        if grant["kind"] == "paid" and random.random() < 0.85:
            paid = _instant(random, spans) if random.random() < 0.3 else before
            grant["paid_at"] = written(paid)
            edges.append(("paid", paid))
        if random.random() < 0.5:
            grant["priority"] = random.choice((5, 10, 90))
        if random.random() < 0.5:
            grant["granted_at"] = written(before - random.randint(0, 5) * DAY)
        result.append(grant)
    if usage and random.random() < 0.2:
        random.choice(result)["applies_to"] = random.sample(usage, random.randint(1, len(usage)))
    if form.by_events and random.random() < 0.25:
        random.choice(result)["models"] = random.sample(("m1", "m2", "m3"), random.randint(1, 2))
    return result


def _invoiced(random: Random, case: Plain, spans: list[tuple[int, int]], edges: list[tuple[str, int]]) -> None:
    """Now and then paid grants are invoiced, by a contract that lets them count from then, or by one that does not."""
    if random.random() < 0.6:
        return
    if random.random() < 0.8:
        case["contract"]["paid_credit_from"] = "invoice"
    for grant in case["credits"]:
        if grant["kind"] == "paid" and random.random() < 0.8:
            invoiced = _instant(random, spans)
            grant["invoiced_at"] = written(invoiced)
            edges.append(("invoiced", invoiced))


def _late(case: Plain, setting: Setting, spans: list[tuple[int, int]]) -> None:
    """Late usage: of a period that has a next invoice, of a tenant that has gone; now and then in several batches."""
    random = setting.random
    if random.random() > 0.45:
        return
    given, batches = list(case["usage"]), []
    for of_period in sorted(random.randrange(len(spans)) for _ in range(random.choice((1, 1, 1, 2, 3)))):
        span = spans[of_period if random.random() < 0.8 else random.randrange(of_period + 1)]
        found = usages.late(setting, given, *span)
        given += found
        if found:
            batches.append({"of_period": of_period, "usage": found})
    if batches:
        case["late"] = batches


def _prior_credit(random: Random, case: Plain, spans: list[tuple[int, int]]) -> None:
    """A credit by hand against a fee in advance, of no more than its line, before the subscription is cancelled."""
    charges = case["plan"]["a"][0]["charges"]
    in_advance = [charge for charge in charges if charge["model"] == "flat" and charge.get("timing") == "advance"]
    fees = [charge for charge in in_advance if "discount" not in charge]
    changes = case["subscription"]
    plain = len(case["plan"]) == 1 and len(case["plan"]["a"]) == 1 and len(changes) == 2 and changes[1].get("cancel")
    if not (plain and fees):
        return
    credited = random.choice(fees)
    cancelled = calendar.read(changes[1]["at"])
    begun = calendar.read(changes[0]["at"]) + case["contract"].get("trial_days", 0) * DAY
    for start, end in spans:
        since = max(start, begun)
        if since < cancelled < end:
            at = since + random.randrange((cancelled - since) // SECOND + 1) * SECOND
            cents = random.randint(1, max(1, int(Fraction(credited["fee"]) * 100 * (end - since) / (end - start))))
            amount = f"{cents // 100}.{cents % 100:02d}"
            case["prior_credits"] = [{"line": credited["key"], "amount": amount, "at": written(at)}]
