"""What the rules name and random cases hardly ever have by themselves. Each by random numbers of its own, so that a
case without it stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from tests.simulation.money import plans, usages
from tests.simulation.money.calendar import DAY, SECOND, read, written
from tests.simulation.money.plans import Plain
from tests.simulation.money.usages import Setting

Spans = Sequence[tuple[int, int]]
_POOLED = ("per_unit", "graduated", "volume", "package")
_SOURCES = ("settled", "gateway", "stream", "engine")
"""What told of an event, weakest first: a stronger one supersedes it (`metering.md` 1.5)."""


def in_plans(random: Random, case: Plain) -> None:
    """A charge's own free units; units and tiers that cost nothing."""
    versions = [version for of in case["plan"].values() for version in of]
    charges = [charge for version in versions for charge in version["charges"]]
    shared = {key for version in versions for pool in version.get("allowances", ()) for key in pool["charges"]}
    for key in sorted({charge["key"] for charge in charges} - shared):
        of_key = [charge for charge in charges if charge["key"] == key]
        alike = len({charge.get("tier_period") for charge in of_key}) == 1
        if alike and all(charge["model"] in _POOLED for charge in of_key) and random.random() < 0.08:
            for charge in of_key:
                charge["allowance"] = random.choice((1, 5, 20, 60, 1000))
    for charge in charges:
        if charge["model"] in plans.COUNTED and random.random() < 0.04:
            priced = random.choice(charge["tiers"]) if "tiers" in charge else charge
            priced["overage_price" if charge["model"] == "prepaid" else "price"] = "0"


def in_credits(random: Random, case: Plain) -> None:
    """Grants that cover fees, by name or all of them."""
    charges = [charge for versions in case["plan"].values() for version in versions for charge in version["charges"]]
    fees = sorted({charge["key"] for charge in charges if charge["model"] in ("flat", "seat", "one_off")})
    for grant in case.get("credits", ()):
        if random.random() < 0.25:
            named = random.sample(fees, random.randint(1, len(fees))) if fees else ["fees"]
            grant["applies_to"] = random.choice([["fees"], named])


def in_usage(random: Random, case: Plain, setting: Setting, spans: Spans) -> None:
    """Requests with an attempt in the next period, or one that comes late; events that a better source tells again."""
    if not setting.form.by_events:
        return
    own = replace(setting, random=random, used=Counter(), counted={})
    for number, (start, end) in enumerate(spans[:-1]):
        if random.random() < 0.15:
            case["usage"] += _over_two_periods(own, f"over{number}", start, end)
    if random.random() < 0.12:
        _late_attempt(own, case, spans)
    if random.random() < 0.15:
        _told_again(own, case, spans)


def _over_two_periods(setting: Setting, request: str, start: int, end: int) -> list[Plain]:
    """Within hours, so that both are there when the first period is frozen."""
    random = setting.random
    times = (max(start, end - random.choice((1, SECOND, 3600 * SECOND))), end + random.choice((0, 1, 3600 * SECOND)))
    statuses = (random.choice(("ok", "aborted", "aborted", "error")), random.choice(("ok", "ok", "aborted", "error")))
    setting.meet(usages.event_models(setting), "plain, attempts", "period between them")
    return [
        _attempt(setting, request, number, at, status)
        for number, (at, status) in enumerate(zip(times, statuses, strict=True), 1)
    ]


def _attempt(setting: Setting, request: str, number: int, at: int, status: str) -> Plain:
    event: Plain = {"request_id": request, "attempt": number, "completed": written(at), "status": status}
    return event | usages.counts(setting) | ({"fault": "platform"} if setting.random.random() < 0.1 else {})


def _late_attempt(setting: Setting, case: Plain, spans: Spans) -> None:
    """A further attempt of a request that was billed, or was not because nothing of it bills."""
    random = setting.random
    attempts = [one for one in case["usage"] if "request_id" in one and read(one["completed"]) < spans[-1][1]]
    if not attempts:
        return
    request = random.choice(attempts)["request_id"]
    of_request = [one for one in attempts if one["request_id"] == request]
    at = max(read(one["completed"]) for one in of_request) + random.choice((1, SECOND, 3 * 3600 * SECOND))
    of_period = _period_of(at, spans)
    if of_period is not None:
        status = random.choice(("ok", "ok", "aborted", "error"))
        _arrives_late(case, of_period, _attempt(setting, request, len(of_request) + 1, at, status))
        setting.meet(usages.event_models(setting), "late, attempts", "inside")


def _told_again(setting: Setting, case: Plain, spans: Spans) -> None:
    """An event as a weaker source tells it, and as a stronger one does, at once or late: with own counts and time."""
    random = setting.random
    told = [*case["usage"], *(one for batch in case.get("late", ()) for one in batch["usage"])]
    corrected = {one["corrects"] for one in told if "corrects" in one}
    events = [one for one in case["usage"] if "id" in one and "corrects" not in one and "source" not in one]
    events = [one for one in events if one["id"] not in corrected and "started" not in one]
    if not events:
        return
    event = random.choice(events)
    of_period = _period_of(read(event["completed"]), spans)
    if of_period is None:
        return
    weaker, stronger = sorted(random.sample(range(len(_SOURCES)), 2))
    start, end = spans[of_period]
    event["source"] = _SOURCES[weaker]
    at, boundary = setting.moment(max(start, read(event["completed"]) - DAY), end - 1)
    again: Plain = {"id": event["id"], "completed": written(at), **usages.counts(setting)}
    again["source"] = _SOURCES[stronger]
    late = random.random() < 0.5
    if late:
        _arrives_late(case, of_period, again)
    else:
        case["usage"].insert(random.randrange(len(case["usage"]) + 1), again)
    setting.meet(usages.event_models(setting), "late, told again" if late else "plain, told again", boundary)


def _period_of(at: int, spans: Spans) -> int | None:
    return next((number for number, (start, end) in enumerate(spans) if start <= at < end), None)


def _arrives_late(case: Plain, of_period: int, event: Plain) -> None:
    batches = [*case.get("late", ()), {"of_period": of_period, "usage": [event]}]
    case["late"] = sorted(batches, key=lambda batch: int(batch["of_period"]))
