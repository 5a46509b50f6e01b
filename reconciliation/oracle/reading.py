"""Plain data into a Case. A field that nobody here reads is an error, never ignored: it would be money."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from fractions import Fraction
from typing import Any, TypeVar

from reconciliation.oracle import calendar
from reconciliation.oracle.calendar import Period, instant
from reconciliation.oracle.case import (
    Account,
    Allowance,
    Case,
    Change,
    Charge,
    Commitment,
    Contract,
    Correction,
    Event,
    Grant,
    InvoiceDiscount,
    Late,
    Plan,
    PriorCredit,
    Tier,
    Usage,
    Version,
)
from reconciliation.oracle.rational import exact

Plain = Mapping[str, Any]
Read = TypeVar("Read")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TOP = _words(
    "id title rule source reading together_with expect working account contract periods anchor anchor_months plan"
    " subscription usage late credits prior_credits known_at"
)
_VERSION = _words("version from recorded charges allowances commitment invoice_discount")
_CHARGE = _words(
    "key model metric tax_group tier_continuity price tiers size rate base fixed_per_event min_per_event max_per_event"
    " included overage_price fee timing prorated discount minimum maximum allowance"
)
_MODELS = _words("per_unit graduated volume package percentage prepaid flat seat one_off")
_EVENT = _words(
    "id completed started status fault source purpose request_id attempt metric quantity corrects counts input"
    " cached_input output gpu_second pass_through_cost"
)
_GRANT = _words("id kind amount currency tax_treatment priority effective expires granted_at paid_at applies_to note")
_PAID = "paid"


class CaseError(ValueError):
    """The case says something that no rule here reads; `where` is the path to it."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")


def read_case(plain: Plain) -> Case:
    """The case that plain data in the form of `tests/money/README.md` describes.

    Raises:
        CaseError: for a field that is missing, unknown, or of no use.
    """
    _only(plain, _TOP, "case")
    account = _account(plain["account"])
    periods = _periods(plain)
    known_at = _optional(plain, "known_at", instant)
    plans = {name: _plan(name, versions, known_at) for name, versions in plain["plan"].items()}
    changes = _changes(plain["subscription"], plans)
    anywhere = max(periods[0].start, next(change.at for change in changes if change.plan))
    usage = _usage(plain.get("usage", ()), anywhere, 0)
    return Case(
        account=account,
        contract=_contract(plain.get("contract", {})),
        periods=periods,
        changes=changes,
        usage=usage,
        late=_late(plain.get("late", ()), anywhere, len(usage.events)),
        grants=tuple(_grant(grant) for grant in plain.get("credits", ())),
        prior_credits=tuple(_prior_credit(credit) for credit in plain.get("prior_credits", ())),
    )


def _only(plain: Plain, known: frozenset[str], where: str) -> None:
    if not plain.keys() <= known:
        raise CaseError(where, f"unknown field {', '.join(sorted(plain.keys() - known))}")


def _each(plain: Sequence[Plain], known: str, where: str) -> Sequence[Plain]:
    for one in plain:
        _only(one, _words(known), where)
    return plain


def _one_of(value: Any, allowed: Iterable[str], where: str) -> Any:
    if value not in allowed:
        raise CaseError(where, f"{value!r} is none of {', '.join(sorted(allowed))}")
    return value


def _optional(plain: Plain, key: str, read: Callable[[Any], Read]) -> Read | None:
    return read(plain[key]) if key in plain else None


def _account(plain: Plain) -> Account:
    _only(plain, _words("currency minor_unit quantum tax stripe_minimum"), "account")
    tax = plain.get("tax", {})
    tax = {"mode": "none"} if tax == "none" else tax
    minor_unit = exact(plain["minor_unit"])
    return Account(
        currency=plain["currency"],
        minor_unit=minor_unit,
        quantum=exact(plain.get("quantum", minor_unit)),
        tax_mode=_one_of(
            tax.get("mode", "none"), ("none", "exclusive", "inclusive", "reverse_charge", "exempt"), "account.tax.mode"
        ),
        rates={group: exact(rate) for group, rate in tax.get("groups", {}).items()},
        stripe_minimum=exact(plain.get("stripe_minimum", 0)),
    )


def _contract(plain: Plain) -> Contract:
    _only(plain, _words("price_at bill_attempts bill_statuses rounding late_usage_days"), "contract")
    return Contract(
        price_at=_one_of(plain.get("price_at", "completion"), ("completion", "start"), "contract.price_at"),
        bill_attempts=_one_of(plain.get("bill_attempts", "delivered"), ("delivered", "all"), "contract.bill_attempts"),
        bill_statuses=frozenset(plain.get("bill_statuses", ("ok", "aborted"))),
        rounding=_one_of(plain.get("rounding", "half_even"), ("half_even", "half_up"), "contract.rounding"),
        late_usage_days=plain.get("late_usage_days"),
    )


def _periods(plain: Plain) -> tuple[Period, ...]:
    if "periods" in plain:
        return tuple(calendar.named(text) for text in plain["periods"])
    anchor = date.fromisoformat(plain["anchor"])
    return tuple(calendar.anchored(anchor, offset) for offset in plain["anchor_months"])


def _plan(name: str, plain: Sequence[Plain], known_at: int | None) -> Plan:
    """Of the versions that begin together the one recorded last holds, of those recorded by `known_at` (1)."""
    newest: dict[int | None, tuple[int | None, Version]] = {}
    for one in plain:
        recorded, version = _optional(one, "recorded", instant), _version(one, f"plan.{name}")
        if known_at is not None and recorded is not None and recorded > known_at:
            continue
        if version.start not in newest:
            newest[version.start] = recorded, version
            continue
        other = newest[version.start][0]
        if recorded == other:
            raise CaseError(f"plan.{name}.{version.name}", "begins, and was recorded, together with another version")
        if other is None or (recorded is not None and recorded > other):
            newest[version.start] = recorded, version
    versions = [version for _, version in newest.values()]
    return Plan(name, tuple(sorted(versions, key=lambda version: (version.start is not None, version.start or 0))))


def _version(plain: Plain, where: str) -> Version:
    _only(plain, _VERSION, where)
    where = f"{where}.{plain['version']}"
    charges = [_charge(one, where) for charge in plain["charges"] for one in _spread(charge, "key")]
    commitment, discount = plain.get("commitment"), plain.get("invoice_discount")
    _only(commitment or {}, _words("amount charges"), f"{where}.commitment")
    _only(discount or {}, _words("percent base"), f"{where}.invoice_discount")
    return Version(
        name=plain["version"],
        start=_optional(plain, "from", instant),
        charges={charge.key: charge for charge in charges},
        allowances=_allowances(plain, where),
        commitment=Commitment(exact(commitment["amount"]), tuple(commitment["charges"])) if commitment else None,
        invoice_discount=InvoiceDiscount(
            exact(discount["percent"]), _one_of(discount["base"], ("usage", "fees", "all"), f"{where}.discount.base")
        )
        if discount
        else None,
    )


def _allowances(plain: Plain, where: str) -> tuple[Allowance, ...]:
    """Pools, and what a charge has for itself alone."""
    shared = _each(plain.get("allowances", ()), "pool units charges", f"{where}.allowances")
    pools = [Allowance(pool["pool"], exact(pool["units"]), frozenset(pool["charges"])) for pool in shared]
    own = [charge for charge in plain["charges"] if "allowance" in charge]
    pools += [Allowance(f"of {one['key']}", exact(one["allowance"]), frozenset([one["key"]])) for one in own]
    return tuple(pools)


def _charge(plain: Plain, where: str) -> Charge:
    where = f"{where}.{plain['key']}"
    _only(plain, _CHARGE, where)
    model = _one_of(plain["model"], _MODELS, f"{where}.model")
    if isinstance(plain.get("discount"), Mapping):
        raise CaseError(f"{where}.discount", "only a share of the charge is read here")
    return Charge(
        key=plain["key"],
        model=model,
        metric=plain.get("base", plain.get("metric", plain["key"])),
        tax_group=plain.get("tax_group", "std"),
        continuity=_one_of(
            plain.get("tier_continuity", "carry"), ("carry", "reset", "prorate"), f"{where}.tier_continuity"
        ),
        price=exact(plain.get("price", 0)),
        tiers=tuple(
            Tier(_optional(tier, "up_to", exact), exact(tier["price"]), exact(tier.get("flat_fee", 0)))
            for tier in _each(plain.get("tiers", ()), "up_to price flat_fee", f"{where}.tiers")
        ),
        size=exact(plain.get("size", 1)),
        rate=exact(plain.get("rate", 0)),
        fixed_per_event=exact(plain.get("fixed_per_event", 0)),
        min_per_event=_optional(plain, "min_per_event", exact),
        max_per_event=_optional(plain, "max_per_event", exact),
        included=exact(plain.get("included", 0)),
        overage_price=exact(plain.get("overage_price", 0)),
        fee=exact(plain.get("fee", 0)),
        in_advance=_one_of(plain.get("timing", "arrears"), ("arrears", "advance"), f"{where}.timing") == "advance",
        prorated=plain.get("prorated", True),
        discount=exact(plain.get("discount", 0)),
        minimum=_optional(plain, "minimum", exact),
        maximum=_optional(plain, "maximum", exact),
    )


def _changes(plain: Sequence[Plain], plans: Mapping[str, Plan]) -> tuple[Change, ...]:
    """In the order of their instants; a change that names no plan or no seats keeps what was."""
    result: list[Change] = []
    plan: Plan | None = None
    seats = exact(1)
    for change in sorted(plain, key=lambda change: instant(change["at"])):
        _only(change, _words("at plan seats cancel"), "subscription")
        if change.get("cancel"):
            plan = None
        elif "plan" in change:
            plan = plans[change["plan"]]
        seats = exact(change.get("seats", seats))
        result.append(Change(instant(change["at"]), plan, seats))
    return tuple(result)


def _usage(plain: Sequence[Plain], anywhere: int, order: int) -> Usage:
    events: list[Event] = []
    corrections: list[Correction] = []
    for given in plain:
        for one in _spread(given, "metric"):
            _only(one, _EVENT, "usage")
            if "corrects" in one:
                corrections.append(_correction(one))
            else:
                events.append(_event(one, anywhere, order + len(events)))
    return Usage(tuple(events), tuple(corrections))


def _correction(plain: Plain) -> Correction:
    source = plain.get("source", "measured")
    return Correction(plain.get("id", ""), plain["corrects"], source, _metrics(plain, requests=0))


def _late(plain: Plain | Sequence[Plain], anywhere: int, order: int) -> tuple[Late, ...]:
    """One batch, or a list of them."""
    result = []
    for one in [plain] if isinstance(plain, Mapping) else plain:
        _only(one, _words("of_period usage"), "late")
        usage = _usage(one["usage"], anywhere, order)
        order += len(usage.events)
        result.append(Late(one["of_period"], usage))
    return tuple(result)


def _event(plain: Plain, anywhere: int, order: int) -> Event:
    completed = instant(plain["completed"]) if "completed" in plain else anywhere
    request, attempt = plain.get("request_id", ""), plain.get("attempt", 1)
    return Event(
        order=order,
        id=plain.get("id", f"{request}#{attempt}" if request else ""),
        completed=completed,
        started=instant(plain["started"]) if "started" in plain else completed,
        status=plain.get("status", "ok"),
        fault=plain.get("fault", "none"),
        source=plain.get("source", "measured"),
        purpose=plain.get("purpose", "tenant"),
        request_id=request,
        attempt=attempt,
        is_request="metric" not in plain,
        metrics=_metrics(plain, requests=1),
    )


def _metrics(plain: Plain, requests: int) -> Mapping[str, Fraction]:
    """Each metric is one of its own; uncached input = input − cached, total = all three (2).

    `counts` names them all: a percentage counts the event then only where its own metric is among them.
    """
    if "counts" in plain:
        return {name: exact(quantity) for name, quantity in plain["counts"].items()}
    if "metric" in plain:
        return {plain["metric"]: exact(plain["quantity"])}
    whole, cached, output = (exact(plain.get(name, 0)) for name in ("input", "cached_input", "output"))
    return {
        "input": whole - cached,
        "cached_input": cached,
        "output": output,
        "total_tokens": whole + output,
        "request": Fraction(requests),
        "gpu_second": exact(plain.get("gpu_second", 0)),
        "pass_through_cost": exact(plain.get("pass_through_cost", 0)),
    }


def _grant(plain: Plain) -> Grant:
    """A paid grant is usable from max(effective, paid_at), never before it is paid (13.12)."""
    _only(plain, _GRANT, f"credits.{plain['id']}")
    named = plain.get("applies_to", ())
    if {"fees", "all"} & {*([named] if isinstance(named, str) else named)}:
        raise CaseError(f"credits.{plain['id']}.applies_to", "only charges that count usage are read here")
    kind = _one_of(plain["kind"], (_PAID, "promo", "sla", "goodwill"), f"credits.{plain['id']}.kind")
    effective = instant(plain["effective"])
    usable: int | None = effective
    if kind == _PAID:
        usable = max(effective, instant(plain["paid_at"])) if "paid_at" in plain else None
    return Grant(
        id=plain["id"],
        kind=kind,
        amount=exact(plain["amount"]),
        currency=plain["currency"],
        treatment=_one_of(
            plain.get("tax_treatment", "payment" if kind == _PAID else "price_reduction"),
            ("price_reduction", "payment", "taxed_at_sale"),
            f"credits.{plain['id']}.tax_treatment",
        ),
        priority=plain.get("priority", 50),
        usable_from=usable,
        expires=_optional(plain, "expires", instant),
        granted_at=instant(plain["granted_at"]) if "granted_at" in plain else effective,
        applies_to=frozenset(plain["applies_to"]) if "applies_to" in plain else None,
    )


def _prior_credit(plain: Plain) -> PriorCredit:
    _only(plain, _words("line amount at why"), "prior_credits")
    return PriorCredit(plain["line"], exact(plain["amount"]), instant(plain["at"]))


def _spread(plain: Plain, field: str) -> list[Plain]:
    """One entry for each key that `"l001..l250"` stands for; any other entry alone."""
    match = re.fullmatch(r"([a-z]*)(\d+)\.\.([a-z]*)(\d+)", str(plain.get(field, "")))
    if not match:
        return [plain]
    prefix, first, _, last = match.groups()
    return [{**plain, field: f"{prefix}{n:0{len(first)}d}"} for n in range(int(first), int(last) + 1)]
