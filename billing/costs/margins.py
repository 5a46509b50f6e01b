"""What tenants bring less their share of GPU time, and why some cost more than they bring. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction
from typing import Final

from billing.costs.allocation import Consumer
from billing.money import quantise_line

WORSE_BY: Final = Fraction(11, 10)
"""A reason is told where a tenant is so many times worse than all of them together."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Sums of usage. Tokens in tokens, `gpu_us` in microseconds; input includes cached."""

    requests: int = 0
    input_tokens: int = 0
    cache_hit_tokens: int = 0
    output_tokens: int = 0
    gpu_us: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def units(self, metric: str) -> Fraction:
        """How much of a metric it is (docs/spec/money.md 2); 0 of one that is not counted here."""
        uncached = self.input_tokens - self.cache_hit_tokens
        known = {
            "input": uncached, "cached_input": self.cache_hit_tokens, "output": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens, "request": self.requests,
        }  # fmt: skip
        return Fraction(self.gpu_us, 1_000_000) if metric == "gpu_second" else Fraction(known.get(metric, 0))


@dataclass(frozen=True, slots=True)
class Earned:
    """What a rated line brings: `model` and `adapter` as far as its charge names them, else ''."""

    tenant_id: str
    model: str
    adapter: str
    metric: str
    amount: Fraction


@dataclass(frozen=True, slots=True)
class Margin:
    """Of a tenant, model or adapter (or some of them): revenue less cost, in major units of one currency."""

    key: tuple[str, ...]
    revenue: Decimal
    cost: Decimal
    traffic: Traffic
    reasons: tuple[str, ...] = ()

    @property
    def margin(self) -> Decimal:
        """What is left; below 0 where it costs more than it brings."""
        return self.revenue - self.cost


def spread_revenue(earned: Iterable[Earned], traffic: Mapping[Consumer, Traffic]) -> dict[Consumer, Fraction]:
    """Revenue by tenant, model and adapter. What a line has for several of them is spread by the units it counts.

    A line without units that anybody used (a fee, a minimum) is the tenant's, and no model's.
    """
    of_tenant: dict[str, list[tuple[Consumer, Traffic]]] = defaultdict(list)
    for consumer, used in traffic.items():
        of_tenant[consumer.tenant_id].append((consumer, used))
    found: dict[Consumer, Fraction] = defaultdict(Fraction)
    for each in earned:
        parts = [
            (consumer, units)
            for consumer, used in of_tenant[each.tenant_id]
            if each.model in ("", consumer.model) and each.adapter in ("", consumer.adapter)
            and (units := used.units(each.metric))
        ]  # fmt: skip
        whole = sum((units for _, units in parts), Fraction())
        if not whole:
            found[Consumer(each.tenant_id, each.model, each.adapter)] += each.amount
        for consumer, units in parts:
            found[consumer] += each.amount * units / whole
    return dict(found)


def margins(
    revenue: Mapping[Consumer, Fraction], cost: Mapping[Consumer, Fraction], traffic: Mapping[Consumer, Traffic],
    by: Sequence[str],
) -> list[Margin]:  # fmt: skip
    """By some of `tenant`, `model`, `adapter`; the least margin first. Reasons stand at those that cost more."""
    at = [("tenant", "model", "adapter").index(name) for name in by]

    def key(consumer: Consumer) -> tuple[str, ...]:
        return tuple(consumer[index] for index in at)

    sums: dict[tuple[str, ...], list[Fraction]] = defaultdict(lambda: [Fraction(), Fraction()])
    used: dict[tuple[str, ...], Traffic] = defaultdict(Traffic)
    for column, amounts in enumerate((revenue, cost)):
        for consumer, amount in amounts.items():
            sums[key(consumer)][column] += amount
    for consumer, own in traffic.items():
        used[key(consumer)] += own
    everybody = sum(traffic.values(), Traffic())
    all_revenue = sum(revenue.values(), Fraction())
    found = []
    for each in sorted(sums.keys() | used.keys()):
        brings, costs = sums[each]
        why = _reasons(brings, used[each], all_revenue, everybody) if costs > brings else ()
        found.append(Margin(each, quantise_line(brings), quantise_line(costs), used[each], why))
    return sorted(found, key=lambda margin: (margin.margin, margin.key))


def _reasons(revenue: Fraction, own: Traffic, all_revenue: Fraction, everybody: Traffic) -> tuple[str, ...]:
    """In which ways somebody differs from all together, so that it costs more than it brings; the greatest first."""
    found: list[tuple[Fraction, str]] = []
    for told, shape, less_is_worse, part, whole in _RATIOS:
        mine, theirs = (_ratio(part(*each), whole(each[1])) for each in ((revenue, own), (all_revenue, everybody)))
        if not mine and not theirs:
            continue
        better, worse = (theirs, mine) if less_is_worse else (mine, theirs)
        times = better / worse if worse else _ENDLESS
        if times >= WORSE_BY:
            found.append((times, f"{_shown(mine):{shape}} {told} (all together {_shown(theirs):{shape}})"))
    return tuple(text for _, text in sorted(found, reverse=True))


def _ratio(part: int | Fraction, whole: int) -> Fraction:
    return Fraction(part) / whole if whole else Fraction()


def _tokens(traffic: Traffic) -> int:
    return traffic.input_tokens + traffic.output_tokens


def _shown(number: Fraction) -> Decimal:
    return Decimal(number.numerator) / Decimal(number.denominator)


_RATIOS: Final[
    Sequence[tuple[str, str, bool, Callable[[Fraction, Traffic], int | Fraction], Callable[[Traffic], int]]]
] = (
    ("of its input from the cache", ".1%", True, lambda _, t: t.cache_hit_tokens, lambda t: t.input_tokens),
    ("input tokens a request", ",.0f", False, lambda _, t: t.input_tokens, lambda t: t.requests),
    ("GPU-microseconds a token", ",.1f", False, lambda _, t: t.gpu_us, _tokens),
    ("paid for a million tokens", ",.4f", True, lambda paid, _: paid * 1_000_000, _tokens),
)
"""What is told, how it is written, whether less of it costs more, and the two sums that it is the ratio of."""
_ENDLESS: Final = Fraction(10**9)
