"""Random usage around the instants and quantities at which bills change."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from tests.simulation.money.calendar import SECOND, read, written
from tests.simulation.money.plans import Plain, Shape, decimal

Met = tuple[str, str, str]
"""(model, kind of event, boundary): what a case exercises."""

_CUT_FEES = {"period", "version", "change", "cancel"}


@dataclass(slots=True)
class Setting:
    """Where usage happens: the span of all periods, and the named instants in it."""

    random: Random
    form: Shape
    start: int
    end: int
    edges: list[tuple[str, int]]
    priced_at_start: bool
    met: Counter[Met] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    counted: dict[str, Plain] = field(default_factory=dict)
    """By id what each event counts with its corrections so far: none may bring it below zero."""
    count: int = 0

    def next_id(self) -> str:
        self.count += 1
        return f"e{self.count}"

    def moment(self, start: int, end: int) -> tuple[int, str]:
        """An instant in [start, end), and the boundary that it is at, or one microsecond from."""
        near = [(name, at) for name, at in self.edges if start <= at <= end]
        if near and self.random.random() < 0.5:
            name, at = self.random.choice(near)
            offset = self.random.choice((-1, 0, 1))
            return at + offset, f"{name}{offset:+d}µs"
        return self.random.randrange(start, end), "inside"

    def meet(self, models: set[str], kind: str, *boundaries: str) -> None:
        for model in models:
            for boundary in boundaries:
                if boundary:
                    self.met[model, kind, boundary] += 1

    def meet_fees(self) -> None:
        """Fees have no events: they meet the changes that cut them."""
        for charge in self.form.charges:
            if charge.model in ("flat", "seat", "one_off", "prepaid"):
                kind = "fee in advance" if charge.advance else "fee in arrears"
                self.meet({charge.model}, kind, *sorted({name for name, _ in self.edges} & _CUT_FEES))


def usage(setting: Setting, periods: list[tuple[int, int]]) -> list[Plain]:
    """Few events per period, now and then many; corrections and further attempts among them."""
    result: list[Plain] = []
    random = setting.random
    for start, end in periods:
        setting.used.clear()
        count = random.choice((0, 1, 1, 2, 2, 3, 3, 4, 5, 6))
        if random.random() < 0.01:
            count = 60
        for _ in range(count):
            result += some(setting, start, end, "plain")
    return result


def late(setting: Setting, given: list[Plain], start: int, end: int) -> list[Plain]:
    """What arrives after the period was frozen: new events, and corrections of those that were there."""
    result: list[Plain] = []
    random = setting.random
    for _ in range(random.choice((0, 1, 1, 2))):
        result += some(setting, start, end, "late")
    inside = [one for one in given if "corrects" not in one and _within(one, start, end)]
    if inside and (not result or random.random() < 0.5):
        found = correction(setting, random.choice(inside), "late correction")
        result += [found] if found else []
    return result


def _within(event: Plain, start: int, end: int) -> bool:
    return start <= read(event["completed"]) < end


def some(setting: Setting, start: int, end: int, kind: str) -> list[Plain]:
    """An event, perhaps with a correction, or a request with several attempts."""
    random = setting.random
    if setting.form.by_events and random.random() < 0.12:
        return _attempts(setting, start, end, kind)
    event = _event(setting, start, end, kind) if setting.form.by_events else _quantity(setting, start, end, kind)
    result = [event]
    if kind == "plain" and random.random() < 0.12:
        found = correction(setting, event, "correction")
        result += [found] if found else []
    return result


def _models(setting: Setting, metrics: set[str]) -> set[str]:
    return {charge.model for charge in setting.form.charges if charge.metric in metrics}


def _units(setting: Setting, metric: str) -> tuple[int, str]:
    """A quantity; often the one that ends at a tier's bound, one before it, or one after it."""
    random = setting.random
    of_metric = [charge for charge in setting.form.charges if charge.metric == metric]
    traits = random.choice(of_metric) if of_metric else None
    bounds = traits.bounds if traits else []
    scale = traits.scale if traits else 1
    if bounds and random.random() < 0.35:
        offset = random.choice((-1, 0, 1))
        units = random.choice(bounds) + offset - setting.used[metric]
        if units > 0:
            setting.used[metric] += units
            return units, f"tier{offset:+d}"
    units = random.randint(1, 30) * scale + (random.randint(0, scale) if scale > 1 else 0)
    if random.random() < 0.01:
        units = random.randint(10**8, 10**10)
    setting.used[metric] += units
    return units, ""


def _times(setting: Setting, start: int, end: int) -> tuple[Plain, str]:
    random = setting.random
    completed, boundary = setting.moment(start, end)
    result = {"completed": written(completed)}
    if setting.priced_at_start and random.random() < 0.8:
        before, at = setting.moment(completed - 3600 * SECOND, completed)
        result["started"] = written(min(before, completed))
        boundary = f"start {at}" if at != "inside" else boundary
    return result, boundary


def _quantity(setting: Setting, start: int, end: int, kind: str) -> Plain:
    metrics = sorted({charge.metric for charge in setting.form.charges if charge.key.startswith("u")})
    metric = setting.random.choice(metrics)
    units, tier = _units(setting, metric)
    times, boundary = _times(setting, start, end)
    setting.meet(_models(setting, {metric}), kind, boundary, tier)
    return {"id": setting.next_id(), "metric": metric, "quantity": units, **times}


def _event(setting: Setting, start: int, end: int, kind: str) -> Plain:
    random = setting.random
    times, boundary = _times(setting, start, end)
    result: Plain = {"id": setting.next_id(), **times, **counts(setting)}
    if random.random() < 0.15:
        name, value = random.choice(
            (
                ("status", "aborted"),
                ("status", "error"),
                ("status", "rejected"),
                ("status", "lost"),
                ("fault", "platform"),
                ("fault", "client"),
                ("source", "estimate"),
                ("purpose", "probe"),
            )
        )
        result[name] = value
        kind = f"{kind}, {value}" if name != "fault" else f"{kind}, fault {value}"
    setting.meet(event_models(setting), kind, boundary)
    setting.meet({charge.model for charge in setting.form.charges if charge.where}, kind, "filter")
    return result


def event_models(setting: Setting) -> set[str]:
    return {charge.model for charge in setting.form.charges if charge.key.startswith("u")}


def counts(setting: Setting) -> Plain:
    random = setting.random
    uncached, _ = _units(setting, "input")
    cached = random.choice((0, random.randint(0, 40)))
    result: Plain = {"input": uncached + cached, "cached_input": cached, "output": _units(setting, "output")[0]}
    if random.random() < 0.05:
        result["input"] = uncached = random.choice((20, 21, 40, 41, 60)) + cached  # at a step of context length
    result |= _names(setting)
    if any(charge.metric == "gpu_second" for charge in setting.form.charges):
        result["gpu_second"] = decimal(random, 20, 6)
    if "percentage" in setting.form.models():
        result["pass_through_cost"] = random.choice(("0", decimal(random, 50, 2), decimal(random, 4, 6)))
        if setting.form.below_zero and random.random() < 0.3:
            result["pass_through_cost"] = f"-{decimal(random, 50, 2)}"
    return result


def _names(setting: Setting) -> Plain:
    """Of which model, adapter, region and tier, where a charge or a grant asks for it."""
    random, found = setting.random, {}
    for name, values in (("model", ("m1", "m2", "m3")), ("adapter", ("", "a1")), ("region", ("eu", "us")),
                         ("tier", ("", "batch"))):  # fmt: skip
        if name in setting.form.names():
            found[name] = random.choice(values)
    return found


def _attempts(setting: Setting, start: int, end: int, kind: str) -> list[Plain]:
    """A request with two or three attempts, seconds apart; at most the last ended ok."""
    random = setting.random
    request = f"r{setting.next_id()}"
    completed, boundary = setting.moment(start, end)
    count = random.choice((2, 2, 3))
    result = []
    for attempt in range(1, count + 1):
        status = random.choice(("aborted", "error", "aborted"))
        if attempt == count:
            status = random.choice(("ok", "ok", "aborted", "error"))
        event: Plain = {"request_id": request, "attempt": attempt, "completed": written(completed)}
        event |= {"status": status, **counts(setting)}
        if random.random() < 0.1:
            event["fault"] = "platform"
        result.append(event)
        completed += random.choice((1, SECOND, 9 * SECOND))
        if completed >= end:
            break
    setting.meet(event_models(setting), f"{kind}, attempts", boundary)
    return result


def correction(setting: Setting, event: Plain, kind: str) -> Plain | None:
    """A signed delta to an event; its counts stay at least zero. None for one that cannot be named."""
    random = setting.random
    if "id" not in event:
        return None
    result: Plain = {"id": setting.next_id(), "corrects": event["id"], "completed": event["completed"]}
    now = setting.counted.setdefault(event["id"], dict(event))
    if "metric" in event:
        most = now["quantity"]
        less = [-most, -random.randint(1, most)] if most else []
        result |= {"metric": event["metric"], "quantity": random.choice((*less, 3))}
        models = _models(setting, {event["metric"]})
        now["quantity"] += result["quantity"]
    else:
        uncached = now["input"] - now["cached_input"]
        result |= {"input": -random.randint(0, uncached), "output": random.choice((-now["output"], 7))}
        models = event_models(setting)
        now["input"] += result["input"]
        now["output"] += result["output"]
    setting.meet(models, kind, "inside")
    return result
