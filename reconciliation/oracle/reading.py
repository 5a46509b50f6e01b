"""Plain data into a Case. A field that nobody here reads is an error, never ignored: it would be money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from fractions import Fraction

from reconciliation.oracle import calendar
from reconciliation.oracle.calendar import DAY, MONTHS, Period, Schedule, instant
from reconciliation.oracle.case import (
    Account,
    Agreed,
    Case,
    Change,
    Contract,
    Correction,
    Event,
    Grant,
    Late,
    Plan,
    PriorCredit,
    Terms,
    Usage,
)
from reconciliation.oracle.fields import Plain, each, one_of, only, optional, spread, words
from reconciliation.oracle.rational import exact
from reconciliation.oracle.reading_plans import read_plan

_TOP = words(
    "id title rule source reading together_with expect working account contract periods anchor anchor_months plan"
    " subscription usage late credits prior_credits known_at"
)
_EVENT = words(
    "id completed started status fault source purpose request_id attempt metric quantity corrects counts input"
    " cached_input output gpu_second pass_through_cost model adapter region tier"
)
_NAMES = ("model", "adapter", "region", "tier")
_GRANT = words(
    "id kind amount currency tax_treatment priority effective expires granted_at paid_at invoiced_at applies_to models"
    " note"
)
_PAID = "paid"


def read_case(plain: Plain) -> Case:
    """The case that plain data in the form of `tests/money/README.md` describes.

    Raises:
        CaseError: for a field that is missing, unknown, or of no use.
    """
    only(plain, _TOP, "case")
    account = _account(plain["account"])
    periods = _periods(plain)
    known_at = optional(plain, "known_at", instant)
    plans = {name: read_plan(name, versions, known_at) for name, versions in plain["plan"].items()}
    changes = _after_trial(_changes(plain["subscription"], plans), plain.get("contract", {}).get("trial_days", 0))
    anywhere = max(periods[0].start, next(change.at for change in changes if change.plan))
    usage = _usage(plain.get("usage", ()), anywhere, 0)
    return Case(
        account=account,
        contract=_contract(plain.get("contract", {})),
        periods=periods,
        changes=changes,
        agreed=_agreed(plain, changes),
        usage=usage,
        late=_late(plain.get("late", ()), anywhere, len(usage.events)),
        grants=tuple(_grant(grant, _when_owed(plain)) for grant in plain.get("credits", ())),
        prior_credits=tuple(_prior_credit(credit) for credit in plain.get("prior_credits", ())),
    )


def _account(plain: Plain) -> Account:
    only(plain, words("currency minor_unit quantum tax stripe_minimum"), "account")
    tax = plain.get("tax", {})
    tax = {"mode": "none"} if tax == "none" else tax
    minor_unit = exact(plain["minor_unit"])
    return Account(
        currency=plain["currency"],
        minor_unit=minor_unit,
        quantum=exact(plain.get("quantum", minor_unit)),
        tax_mode=one_of(
            tax.get("mode", "none"), ("none", "exclusive", "inclusive", "reverse_charge", "exempt"), "account.tax.mode"
        ),
        rates={group: exact(rate) for group, rate in tax.get("groups", {}).items()},
        stripe_minimum=exact(plain.get("stripe_minimum", 0)),
    )


def _contract(plain: Plain) -> Contract:
    only(
        plain,
        words(
            "price_at bill_attempts bill_statuses changes weighted_allowances rounding late_usage_days period"
            " trial_days agreed paid_credit_from"
        ),
        "contract",
    )
    terms: list[tuple[int | None, Terms]] = [(None, _terms(plain, "contract"))]
    for number, change in enumerate(plain.get("changes", ())):
        only(change, words("from price_at bill_attempts bill_statuses"), f"contract.changes[{number}]")
        terms.append((instant(change["from"]), _terms(change, f"contract.changes[{number}]")))
    return Contract(
        terms=tuple(terms),
        weighted_allowances=plain.get("weighted_allowances", False),
        rounding=one_of(plain.get("rounding", "half_even"), ("half_even", "half_up"), "contract.rounding"),
        late_usage_days=plain.get("late_usage_days"),
    )


def _terms(plain: Plain, where: str) -> Terms:
    return Terms(
        price_at=one_of(plain.get("price_at", "completion"), ("completion", "start"), f"{where}.price_at"),
        bill_attempts=one_of(plain.get("bill_attempts", "delivered"), ("delivered", "all"), f"{where}.bill_attempts"),
        bill_statuses=frozenset(plain.get("bill_statuses", ("ok", "aborted"))),
    )


def _periods(plain: Plain) -> tuple[Period, ...]:
    if "periods" in plain:
        return tuple(calendar.named(text) for text in plain["periods"])
    schedule = _schedule(plain, _contracted(plain))
    return tuple(calendar.anchored(schedule.anchor, offset, schedule.months) for offset in plain["anchor_months"])


def _contracted(plain: Plain) -> str:
    """How long the contract's billing periods are: months unless it says otherwise."""
    return str(plain.get("contract", {}).get("period", "month"))


def _schedule(plain: Plain, length: str) -> Schedule:
    """Billing periods of a length, by the calendar unless there is an anchor."""
    months = MONTHS[one_of(length, MONTHS, "period")]
    anchor = optional(plain, "anchor", date.fromisoformat)
    return Schedule(months, anchor) if anchor else Schedule(months)


def _agreed(plain: Plain, changes: Sequence[Change]) -> tuple[Agreed, ...]:
    """Since when there are contracts: as told, or by the entries that follow a cancellation, or nothing; and since when
    one has periods of another length."""
    told = plain.get("contract", {}).get("agreed")
    if told is not None:
        return tuple(
            Agreed(
                instant(one["since"]),
                one["begins"],
                Schedule(MONTHS[one["period"]], *([date.fromisoformat(one["anchor"])] if "anchor" in one else [])),
            )
            for one in each(told, "since begins period anchor", "contract.agreed")
        )
    result, schedule = [], _schedule(plain, _contracted(plain))
    before: Plan | None = None
    for entry, change in zip(_in_time(plain["subscription"]), changes, strict=True):
        begun = change.plan and not before
        if "period" in entry:
            schedule = _schedule(plain, entry["period"])
        if begun or "period" in entry:
            result.append(Agreed(instant(entry["at"]), bool(begun) and not change.resumed, schedule))
        before = change.plan
    return tuple(result)


def _after_trial(changes: Sequence[Change], days: int) -> tuple[Change, ...]:
    """What begins first bills only when its trial is over, or what follows it begins."""
    first, *others = changes
    ends = min([first.at + days * DAY, *(change.at for change in others[:1])])
    return (replace(first, at=max(first.at, ends)), *others)


def _in_time(entries: Sequence[Plain]) -> list[Plain]:
    return sorted(entries, key=lambda entry: instant(entry["at"]))


def _changes(plain: Sequence[Plain], plans: Mapping[str, Plan]) -> tuple[Change, ...]:
    """In the order of their instants; a change that names no plan or no seats, or ends a pause, keeps what was."""
    result: list[Change] = []
    plan = paused = None
    seats = exact(1)
    for change in _in_time(plain):
        only(change, words("at plan seats cancel resume period"), "subscription")
        resumed = change.get("resume", False)
        if change.get("cancel"):
            plan, paused = None, plan
        elif "plan" in change:
            plan = plans[change["plan"]]
        elif resumed:
            plan = paused
        seats = exact(change.get("seats", seats))
        result.append(Change(instant(change["at"]), plan, seats, resumed))
    return tuple(result)


def _usage(plain: Sequence[Plain], anywhere: int, order: int) -> Usage:
    events: list[Event] = []
    corrections: list[Correction] = []
    for given in plain:
        for one in spread(given, "metric"):
            only(one, _EVENT, "usage")
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
        only(one, words("of_period usage"), "late")
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
        names={name: plain[name] for name in _NAMES if name in plain},
        context=optional(plain, "input", exact),
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


def _when_owed(plain: Plain) -> tuple[str, ...]:
    """What makes a paid grant usable: its payment; its invoice too, where the contract says so (6)."""
    told = plain.get("contract", {}).get("paid_credit_from", "payment")
    by_invoice = one_of(told, ("payment", "invoice"), "contract.paid_credit_from") == "invoice"
    return ("paid_at", "invoiced_at") if by_invoice else ("paid_at",)


def _grant(plain: Plain, when_owed: Sequence[str]) -> Grant:
    """A paid grant is usable from max(effective, paid_at), never before it is paid, or invoiced (6, 13.12).

    For `fees`, or `all`, is for usage and fees.
    """
    only(plain, _GRANT, f"credits.{plain['id']}")
    told = plain.get("applies_to", "usage")
    named = {told} if isinstance(told, str) else {*told}
    kind = one_of(plain["kind"], (_PAID, "promo", "sla", "goodwill"), f"credits.{plain['id']}.kind")
    effective = instant(plain["effective"])
    usable: int | None = effective
    if kind == _PAID:
        owed = [instant(plain[name]) for name in when_owed if name in plain]
        usable = max(effective, min(owed)) if owed else None
    return Grant(
        id=plain["id"],
        kind=kind,
        amount=exact(plain["amount"]),
        currency=plain["currency"],
        treatment=one_of(
            plain.get("tax_treatment", "payment" if kind == _PAID else "price_reduction"),
            ("price_reduction", "payment", "taxed_at_sale"),
            f"credits.{plain['id']}.tax_treatment",
        ),
        priority=plain.get("priority", 50),
        usable_from=usable,
        expires=optional(plain, "expires", instant),
        granted_at=instant(plain["granted_at"]) if "granted_at" in plain else effective,
        usage=bool(named & {"usage", "fees", "all"}),
        fees=bool(named & {"fees", "all"}),
        charges=frozenset(named - {"usage", "fees", "all"}),
        models=frozenset(plain["models"]) if "models" in plain else None,
    )


def _prior_credit(plain: Plain) -> PriorCredit:
    only(plain, words("line amount at why"), "prior_credits")
    return PriorCredit(plain["line"], exact(plain["amount"]), instant(plain["at"]))
