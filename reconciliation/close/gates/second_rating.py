"""A tenant's period for the second rating: contracts as they are stored, usage by the charges that take it.

Rests on the stored documents, the rules and the oracle alone: nothing here asks how the first rating reads a plan. What
the oracle has no reading of is refused by name, so that it is never taken to agree. Values in, values out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

from reconciliation.oracle.calendar import instant
from reconciliation.oracle.rational import written
from reconciliation.oracle.reading import read_case
from reconciliation.oracle.statement import accrued, statement

Plain = Mapping[str, Any]
TOKENS: Final = ("input", "cached_input", "output", "total_tokens", "request", "gpu_second")
FILTERS: Final = ("adapter", "model", "region", "tier")
NO_DECIMAL: Final = "n/d"
TWELVE: Final = 10**12
_FEES: Final = ("flat", "seat", "one_off")
_AS_IS: Final = (
    "size", "rate", "fixed_per_event", "min_per_event", "max_per_event", "included", "fee", "seats", "allowance",
    "minimum", "maximum", "tax_group", "timing", "prorated",
)  # fmt: skip
_READ: Final = frozenset(
    (*_AS_IS, "key", "model", "metric", "where", "price", "per", "tiers", "base", "overage_price", "tier_continuity",
     "tier_period", "discount")
)  # fmt: skip
_OF_SEGMENT: Final = {"price_at": "completion", "bill_attempts": "delivered", "bill_statuses": ["aborted", "ok"]}
"""Those that lines hang on, with what holds where nothing is said; a subscription's own, from its beginning on."""
_WEIGHTED: Final = "weighted_allowances"
_ELSEWHERE: Final = frozenset(
    {*_OF_SEGMENT, _WEIGHTED, "tier_continuity", "rounding", "period", "anchor", "trial_days", "late_usage_days",
     "paid_credit_from"}
)  # fmt: skip
"""Terms that are read, or that are applied elsewhere: to what is a period, from when it bills, what is too late."""
_DISCOUNT: Final = ("percent", "amount", "from", "until", "periods")


class NotRerated(Exception):
    """A contract that says something of which the second rating has no reading."""


@dataclass(frozen=True, slots=True)
class Used:
    """Usage of one request, or of many with the same names: tokens as told (input includes cached), `gpu_us` µs.

    `context`: input tokens of the request, for steps. `corrects`: of a correction, the id of its event.
    """

    id: str
    completed: str
    model: str
    adapter: str
    region: str
    tier: str
    status: str
    fault: str
    source: str
    requests: int
    input_tokens: int
    cache_hit_tokens: int
    output_tokens: int
    gpu_us: int
    context: int | None = None
    started: str | None = None
    request_id: str = ""
    attempt: int = 1
    corrects: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def counted(self) -> dict[str, Fraction]:
        """Each metric: uncached input = input − cached; total = all three; labels of a plan's own metrics (money 2)."""
        cached, output = self.cache_hit_tokens, self.output_tokens
        values = (self.input_tokens - cached, cached, output, self.input_tokens + output, self.requests)
        found = {name: Fraction(value) for name, value in zip(TOKENS, values, strict=False)}
        return found | {"gpu_second": Fraction(self.gpu_us, 1_000_000)}


def rated_again(contract: Plain, used: Iterable[Used], until: str | None = None) -> dict[str, str]:
    """`line/tax group/amount` and `…/quantity` → number in decimal digits, of a tenant's period; zeros left out.

    `contract`: `start` and `end` (dates), `subscriptions`, `agreed` and `plans` as `contracts.py` reads them. `until`:
    what a period that goes on has come to by a moment. Raises NotRerated, also for a case that the oracle refuses.
    """
    if not _changes(contract["subscriptions"]):
        return {}  # each ended within its trial: nothing ever billed
    try:
        case = read_case(case_of(contract, used))
        (period,) = case.periods
        if until is None:
            lines = statement(case, period, case.usage).lines
        else:
            lines = accrued(case, period, case.usage, instant(until))
    except ValueError as error:
        raise NotRerated(str(error)) from error
    sums: dict[str, Fraction] = defaultdict(Fraction)
    for line in lines:
        key = line.kind if line.kind == "invoice_discount" else line.key
        sums[f"{key}/{line.group}/amount"] += line.amount
        if line.quantity is not None:
            sums[f"{key}/{line.group}/quantity"] += line.quantity
    return {key: _told(value) for key, value in sums.items() if value}


def _told(number: Fraction) -> str:
    """As decimal digits, or NO_DECIMAL: a prorated tier splits a unit as no line can say it (money 13.13)."""
    return written(number) if TWELVE % number.denominator == 0 else NO_DECIMAL


def case_of(contract: Plain, used: Iterable[Used]) -> dict[str, Any]:
    """The oracle's case of a tenant's period: no tax, no credits, no rounding. Raises NotRerated."""
    subscriptions: Sequence[Plain] = contract["subscriptions"]
    continuity = _continuity(subscriptions)
    assignment = _Assignment(contract["plans"])
    return {
        "account": {"currency": "XXX", "minor_unit": "1"},
        "contract": _terms(subscriptions) | {"agreed": contract["agreed"]},
        "periods": [f"{contract['start']}..{contract['end']}"],
        "plan": {name: [_version(name, v, continuity[name]) for v in plan] for name, plan in contract["plans"].items()},
        "subscription": _changes(subscriptions),
        "usage": [_event(each, assignment) for each in used],
    }


def priced_by_event(contract: Plain) -> bool:
    """Whether each event counts by itself or at its own time, so that sums of usage do not say what it costs."""
    charges = [c for plan in contract["plans"].values() for version in plan for c in version["charges"]]
    return any(
        c["model"] == "percentage" or c.get("tier_period") or (c["metric"] and c["metric"] not in TOKENS)
        for c in charges
    )


def _terms(subscriptions: Sequence[Plain]) -> dict[str, Any]:
    """Terms of the contract, and what they change to. Quantities of a period are weighted as its last contract says."""
    if unknown := sorted({name for each in subscriptions for name in each["terms"]} - _ELSEWHERE):
        raise NotRerated(f"the term {unknown[0]}")
    weighted = False
    dated: list[dict[str, Any]] = []
    for each in sorted(filter(bills, subscriptions), key=lambda each: str(each["bills_from"])):
        weighted = bool(each["terms"].get(_WEIGHTED, False))
        terms = {name: each["terms"].get(name, default) for name, default in _OF_SEGMENT.items()}
        if not dated or any(dated[-1][name] != value for name, value in terms.items()):
            dated.append({"from": each["bills_from"], **terms})
    (first, *changes) = dated
    return {name: first[name] for name in _OF_SEGMENT} | {_WEIGHTED: weighted, "changes": changes}


def _continuity(subscriptions: Sequence[Plain]) -> dict[str, str]:
    """By plan how its tiers go on, which its charges may say otherwise."""
    found: dict[str, str] = {}
    for each in subscriptions:
        told = each["terms"].get("tier_continuity", "carry")
        if found.setdefault(each["plan"], told) != told:
            raise NotRerated("the term tier_continuity, which changes within what is rated")
    return found


def _changes(subscriptions: Sequence[Plain]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    ended: str | None = None
    for each in sorted(subscriptions, key=lambda each: str(each["bills_from"])):
        if not bills(each):
            continue
        if ended is not None and ended != each["bills_from"]:
            found.append({"at": ended, "cancel": True})
        seats = 1 if each["seats"] is None else each["seats"]
        change = {"at": each["bills_from"], "plan": each["plan"], "seats": seats}
        found.append(change | ({} if each["begins_plan"] else {"resume": True}))
        ended = each["ends_at"]
    return [*found, {"at": ended, "cancel": True}] if ended is not None else found


def bills(subscription: Plain) -> bool:
    """Whether a subscription is none that ended within its trial."""
    return subscription["ends_at"] is None or bool(subscription["ends_at"] > subscription["bills_from"])


def _version(plan: str, given: Plain, continuity: str) -> dict[str, Any]:
    found: dict[str, Any] = {"version": given["version"], "from": given["from"]}
    found["charges"] = [_charge(f"{plan}/{given['version']}", charge, continuity) for charge in given["charges"]]
    found["allowances"] = [
        {"pool": each["pool"], "units": each["units"], "charges": each["charges"]}
        for each in given.get("allowances", ())
    ]
    if discount := given.get("invoice_discount"):
        said = _said(discount, "an invoice discount's", *_DISCOUNT, "base")
        found["invoice_discount"] = {"base": "all"} | said
    if commitment := given.get("commitment"):
        found["commitment"] = _said(commitment, "a commitment's", "amount", "charges", "tax_group")
    return found


def _charge(where: str, given: Plain, continuity: str) -> dict[str, Any]:
    if unknown := sorted(given.keys() - _READ):
        raise NotRerated(f"{unknown[0]} of charge {given['key']}")
    found = {name: given[name] for name in _AS_IS if given.get(name) is not None}
    found |= {"key": given["key"], "model": given["model"]}
    per = Fraction(given.get("per", 1))
    for name in ("price", "overage_price"):
        if name in given:
            found[name] = str(Fraction(given[name]) / per)
    if "tiers" in given:
        found["tiers"] = [tier | {"price": str(Fraction(tier["price"]) / per)} for tier in given["tiers"]]
    if given["model"] not in _FEES:
        found["metric"] = f"{where}/{given['key']}"
        found["tier_continuity"] = given.get("tier_continuity") or continuity
        if given.get("tier_period"):
            found["tier_period"] = given["tier_period"]
    if discount := given.get("discount"):
        found["discount"] = _said(discount, f"a discount of charge {given['key']}, its", *_DISCOUNT)
    return found


def _said(given: Plain, what: str, *names: str) -> dict[str, Any]:
    """The fields that have a value. Raises NotRerated for any but the named."""
    if unknown := sorted(given.keys() - set(names)):
        raise NotRerated(f"{what} {unknown[0]}")
    return {name: value for name, value in given.items() if value is not None}


class _Assignment:
    """Which charges of each price version take usage, by its names: of a metric the most specific ones (money 4)."""

    def __init__(self, plans: Mapping[str, Sequence[Plain]]) -> None:
        self._by_metric: list[tuple[str, dict[str, list[Plain]]]] = []
        for name, versions in plans.items():
            for version in versions:
                of: dict[str, list[Plain]] = defaultdict(list)
                for charge in version["charges"]:
                    if charge["model"] not in _FEES:
                        of[charge["metric"]].append(charge)
                self._by_metric.append((f"{name}/{version['version']}", of))
        charges = [c for _, of in self._by_metric for listed in of.values() for c in listed]
        self._by_context = any(name.startswith("context_") for c in charges for name in c.get("where", {}))
        self._known: dict[tuple[object, ...], list[tuple[str, str, str, bool]]] = {}

    def counts(self, used: Used) -> dict[str, str]:
        """The quantity of each charge that takes it, by the name that the charge's metric has in the case."""
        counted = used.counted()
        labels = {
            name: number
            for name, value in used.labels.items()
            if self._declared(name) and (number := _number(value)) is not None
        }
        found = {}
        for name, metric, base, by_event in self._taking(used):
            amount = (counted | labels).get(base)
            if metric in counted or metric in labels:
                if by_event and used.corrects is None:
                    found[name] = str(amount or 0)
                elif amount:
                    found[name] = str(amount)
        return found

    def _declared(self, name: str) -> bool:
        return any(
            name in of or any(c.get("base") == name for cs in of.values() for c in cs) for _, of in self._by_metric
        )

    def _taking(self, used: Used) -> list[tuple[str, str, str, bool]]:
        key = (used.model, used.adapter, used.region, used.tier, used.context if self._by_context else None)
        if key not in self._known:
            self._known[key] = [
                (f"{where}/{c['key']}", metric, c.get("base") or metric, c["model"] == "percentage")
                for where, of in self._by_metric
                for metric, charges in of.items()
                for c in _most_specific(charges, used)
            ]
        return self._known[key]


def _number(label: str) -> Fraction | None:
    """What a label says; None where it is no number: nothing is billed of it unless a correction says what it is."""
    try:
        return Fraction(label)
    except (ValueError, ZeroDivisionError):
        return None


def _most_specific(charges: Sequence[Plain], used: Used) -> list[Plain]:
    fitting = [charge for charge in charges if _takes(charge.get("where", {}), used)]
    highest = max((_rank(charge.get("where", {})) for charge in fitting), default=())
    return [charge for charge in fitting if _rank(charge.get("where", {})) == highest]


def _takes(where: Plain, used: Used) -> bool:
    if any(name in where and where[name] != getattr(used, name) for name in FILTERS):
        return False
    over, up_to = where.get("context_over"), where.get("context_up_to")
    if over is None and up_to is None:
        return True
    context = used.context
    return context is not None and (over is None or context > over) and (up_to is None or context <= up_to)


def _rank(where: Plain) -> tuple[int, ...]:
    """More filters first, then adapter, model, region, tier, context length."""
    has = [name in where for name in FILTERS] + [any(name.startswith("context_") for name in where)]
    return (sum(has), *has)


def _event(used: Used, assignment: _Assignment) -> dict[str, Any]:
    found: dict[str, Any] = {"id": used.id, "source": used.source, "counts": assignment.counts(used)}
    if used.corrects is not None:
        return found | {"corrects": used.corrects}
    found |= {"completed": used.completed, "status": used.status, "fault": used.fault}
    if used.started is not None:
        found["started"] = used.started
    return found | ({"request_id": used.request_id, "attempt": used.attempt} if used.request_id else {})
