"""A golden case (tests/money/README.md) through the product: from plain data to billing's types, and back.

Used by the test of the golden cases, and by whoever compares the product with a second rating over random cases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

from billing.bills.billing_cycle import Bills, History, LateUsage, PriorCredit, bill
from billing.bills.credits import Applicability, Grant, GrantKind, TaxTreatment
from billing.bills.documents import Document, DocumentLine, Payer
from billing.bills.tax import TaxMode, TaxRules
from billing.money import Currency, decimal_of, parse_decimal, plain
from billing.periods import BillingPeriod, anchored_period
from billing.plans.charge_models import FEES, MODELS
from billing.plans.plan_documents import charge_of_document, construct
from billing.plans.price_plans import (
    BILL_STATUSES,
    Allowance,
    Anchor,
    Charge,
    Commitment,
    Cycle,
    InvoiceDiscount,
    PaidCreditFrom,
    PlanVersion,
    Terms,
)
from billing.plans.recorded_versions import RecordedVersion, known_versions
from billing.plans.subscriptions import Subscription, subscription_id, with_contracts
from billing.rating.lines import LineKind, RatedLine
from billing.rating.usage import by_metric
from billing.rating.usage_events import UsageEvent

TENANT = "tenant"
SINCE = datetime(2000, 1, 1, tzinfo=UTC)
RANGE = re.compile(r"([A-Za-z_-]*)(\d+)\.\.\1(\d+)")
NOT_COUNTED = {
    "completed", "started", "metric", "quantity", "input", "cached_input", "output", "gpu_second", "request_id",
    "attempt", "status", "fault", "source", "purpose", "id", "corrects", "model", "adapter", "region", "tier", "note",
}  # fmt: skip
Case = Mapping[str, Any]


def documents_of(case: Case) -> list[dict[str, Any]]:
    """The documents of a case, in the form of its `expect.documents`."""
    documents: list[dict[str, Any]] = result_of(case)["documents"]
    return documents


def result_of(case: Case) -> dict[str, Any]:
    """What a case comes to, in the form of its `expect`: the documents, and what is left of the grants."""
    history = history_of(case)
    bills = bill(history)
    return {
        "documents": [_document(document, history.payer) for document in bills.documents],
        "credits_after": _credits_after(history.grants, bills),
    }


# -- the case read ---------------------------------------------------------------------------------------------------


def history_of(case: Case) -> History:
    """The case in billing's types."""
    contract = case.get("contract") or {}
    terms = terms_of(contract)
    periods = _periods(case, terms)
    money = _money(case["account"])
    known_at = moment(case["known_at"]) if "known_at" in case else None
    plans = {
        name: known_versions(_recorded(name, versions, money.code), known_at) for name, versions in case["plan"].items()
    }
    if "anchor" in case:
        terms = replace(terms, anchor=Anchor.ANNIVERSARY)
    anchored_at = moment(case["anchor"]) if "anchor" in case else None
    subscriptions = _subscriptions(case["subscription"], terms, contract, anchored_at)
    begins = max(periods[0].start, min(s.bills_from for s in subscriptions))
    late = case.get("late") or []
    return History(
        payer=Payer(money, _tax(case["account"].get("tax")), terms.rounding),
        terms=terms,
        periods=periods,
        subscriptions=subscriptions,
        versions=plans,
        events=tuple(_events(case.get("usage") or [], "e", begins)),
        late=tuple(
            LateUsage(each["of_period"], tuple(_events(each["usage"], f"late{number}-", begins)))
            for number, each in enumerate([late] if isinstance(late, Mapping) else late)
        ),
        grants=tuple(_grant(each, terms.paid_credit_from) for each in case.get("credits") or []),
        prior_credits=tuple(
            PriorCredit(each["line"], _number(each["amount"]), moment(each["at"]))
            for each in case.get("prior_credits") or []
        ),
    )


def moment(value: Any) -> datetime:
    """A time of a case; a bare date is midnight UTC."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    found = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def keys_of(key: str) -> list[str]:
    """`l001..l250` stands for 250 keys."""
    match = RANGE.fullmatch(key)
    if not match:
        return [key]
    name, first, last = match.groups()
    return [f"{name}{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def terms_of(contract: Mapping[str, Any]) -> Terms:
    """What the contract says otherwise than the defaults."""
    given = {name: value for name, value in contract.items() if name not in ("seats", "note")}
    _check_known(given, {field.name for field in fields(Terms)}, "contract")
    return construct(Terms, given | {"bill_statuses": tuple(contract.get("bill_statuses", BILL_STATUSES))})


def _check_known(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """A parameter that nobody reads would be two ratings of two different things."""
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{where}: unknown {', '.join(unknown)}")


def _number(value: Any) -> Decimal:
    return parse_decimal(str(value), decimals=18)


def _money(account: Mapping[str, Any]) -> Currency:
    minor = _number(account["minor_unit"])
    minimum = account.get("stripe_minimum")
    return Currency(
        account["currency"],
        SINCE.date(),
        minor,
        _number(account.get("quantum", account["minor_unit"])),
        1,
        0 if minimum is None else int(_number(minimum) / minor),
    )


def _tax(given: Any) -> TaxRules:
    if not given or given == "none":
        return TaxRules()
    rates = {group: _number(rate) for group, rate in (given.get("groups") or {}).items()}
    return TaxRules(TaxMode(given["mode"]), rates)


def _periods(case: Case, terms: Terms) -> tuple[BillingPeriod, ...]:
    if "anchor" in case:
        months = terms.period.months
        anchor = moment(case["anchor"])
        return tuple(
            BillingPeriod(anchored_period(anchor, 1, offset).start, anchored_period(anchor, 1, offset + months).start)
            for offset in case["anchor_months"]
        )
    return tuple(BillingPeriod(*(moment(bound) for bound in text.split(".."))) for text in case["periods"])


def _recorded(plan: str, versions: Iterable[Mapping[str, Any]], currency: str) -> list[RecordedVersion]:
    """In the order of recording; what does not say when was known from ever."""
    found = [
        RecordedVersion(_version(plan, each, currency), moment(each["recorded"]) if "recorded" in each else SINCE)
        for each in versions
    ]
    return sorted(found, key=lambda each: each.recorded_at)


def _version(plan: str, given: Mapping[str, Any], currency: str) -> PlanVersion:
    discount, commitment = given.get("invoice_discount"), given.get("commitment")
    return PlanVersion(
        plan,
        given["version"],
        currency,
        moment(given["from"]) if "from" in given else SINCE,
        tuple(charge for each in given["charges"] for charge in _charges(each)),
        tuple(
            construct(Allowance, each | {"charges": [k for key in each["charges"] for k in keys_of(key)]})
            for each in given.get("allowances") or []
        ),
        construct(InvoiceDiscount, _in_utc(discount)) if discount else None,
        construct(Commitment, commitment) if commitment else None,
    )


def _charges(given: Mapping[str, Any]) -> Iterable[Charge]:
    discount = given.get("discount")
    if discount is not None:
        discount = _in_utc(discount if isinstance(discount, Mapping) else {"percent": discount})
    model = given["model"].replace("-", "_")
    known = {field.name for of in (Charge, MODELS[model]) for field in fields(of)} | {"model", "note"}
    _check_known(given, known, f"charge {given['key']}")
    for key in keys_of(given["key"]):
        is_fee = MODELS[model] in FEES
        metric = "" if is_fee else given.get("base") or given.get("metric") or key
        yield charge_of_document({**given, "key": key, "model": model, "metric": metric, "discount": discount})


def _in_utc(discount: Mapping[str, Any]) -> dict[str, Any]:
    """A discount whose dates are moments, as a stored plan has them."""
    return {**discount, **{name: moment(discount[name]).isoformat() for name in ("from", "until") if name in discount}}


def _subscriptions(
    changes: Sequence[Mapping[str, Any]], terms: Terms, contract: Mapping[str, Any], anchored_at: datetime | None
) -> tuple[Subscription, ...]:
    """Each change begins a subscription; one of seats or of the periods' length alone, and the end of a pause, goes on
    with the plan."""
    found: list[Subscription] = []
    period = terms.period
    for change in sorted(changes, key=lambda each: moment(each["at"])):
        at = moment(change["at"])
        if found and found[-1].ends_at is None:
            found[-1] = replace(found[-1], ends_at=at)
        if change.get("cancel"):
            continue
        period = Cycle(change.get("period", period))
        same = bool(found) and change.get("plan", found[-1].plan) == found[-1].plan
        goes_on = same and (found[-1].ends_at == at or change.get("resume", False))
        before = found[-1] if found else None
        seats = change.get("seats", before.seats if before else contract.get("seats", 1))
        found.append(
            Subscription(
                subscription_id(TENANT, at),
                TENANT,
                TENANT,
                change.get("plan") or (before.plan if before else ""),
                at,
                terms=replace(terms, period=period),
                seats=seats,
                begins_plan=not goes_on,
                anchored_at=anchored_at,
                trial_ends_at=at + timedelta(days=terms.trial_days) if terms.trial_days and not before else None,
            )
        )
    return tuple(with_contracts(found))


def _events(usage: Iterable[Mapping[str, Any]], prefix: str, begins: datetime) -> Iterable[UsageEvent]:
    number = 0
    for given in usage:
        for metric in keys_of(given["metric"]) if "metric" in given else [""]:
            number += 1
            completed = moment(given["completed"]) if "completed" in given else begins
            yield UsageEvent(
                event_id=str(given.get("id") or _identity(given) or f"unnamed-{prefix}{number}"),
                completed_at=completed,
                started_at=moment(given["started"]) if "started" in given else None,
                quantities=_quantities(given, metric),
                request_id=str(given.get("request_id", "")),
                attempt=given.get("attempt", 1),
                status=given.get("status", "ok"),
                fault=given.get("fault", "none"),
                source=given.get("source", "engine"),
                purpose=given.get("purpose", "tenant"),
                model=given.get("model", ""),
                adapter=given.get("adapter", ""),
                region=given.get("region", ""),
                tier=given.get("tier", ""),
                context=given.get("input") if "corrects" not in given else None,
                corrects=given.get("corrects"),
            )


def _identity(given: Mapping[str, Any]) -> str:
    """An attempt without an id is known by its request and number."""
    return f"{given['request_id']}#{given.get('attempt', 1)}" if "request_id" in given else ""


def _quantities(given: Mapping[str, Any], metric: str) -> dict[str, Decimal]:
    """What an event counts: its one metric, or tokens, one request, GPU time and whatever else it names."""
    found: dict[str, Decimal] = {name: _number(value) for name, value in given.items() if name not in NOT_COUNTED}
    if metric:
        return found | {metric: _number(given["quantity"])}
    counted = by_metric(
        given.get("input", 0),
        given.get("cached_input", 0),
        given.get("output", 0),
        _number(given.get("gpu_second", 0)),
        0 if "corrects" in given else 1,
    )
    return found | {str(name): quantity for name, quantity in counted.items()}


def _grant(given: Mapping[str, Any], counts_from: PaidCreditFrom) -> Grant:
    def time(name: str) -> datetime | None:
        return moment(given[name]) if given.get(name) is not None else None

    treatment = given.get("tax_treatment")
    return Grant(
        grant_id=given["id"],
        kind=GrantKind(given["kind"]),
        amount=_number(given["amount"]),
        currency=given["currency"],
        effective=moment(given["effective"]),
        expires=time("expires"),
        granted_at=time("granted_at"),
        paid_at=time("paid_at"),
        invoiced_at=time("invoiced_at") if counts_from is PaidCreditFrom.INVOICE else None,
        priority=given.get("priority", 50),
        tax_treatment=TaxTreatment(treatment) if treatment else None,
        applies_to=replace(_applicability(given.get("applies_to")), models=frozenset(given.get("models", ()))),
    )


def _applicability(given: Any) -> Applicability:
    """`usage` (default), `fees` or `all`, or the keys of charges."""
    named = [given] if isinstance(given, str) else list(given or [])
    keys = {key for each in named if each not in ("usage", "fees", "all") for key in keys_of(each)}
    return Applicability(frozenset(keys), fees=bool({"fees", "all"} & set(named)))


# -- the result written ----------------------------------------------------------------------------------------------


def _document(document: Document, payer: Payer) -> dict[str, Any]:
    found: dict[str, Any] = {
        "doc": document.kind.value,
        "period": f"{document.service.start:%Y-%m-%d}..{document.service.end:%Y-%m-%d}",
        "lines": [_line(line) for line in document.lines],
        "exact_gross" if payer.tax.inclusive else "exact_net": plain(document.exact_total),
        "net_minor": document.net_minor,
    }
    if payer.tax.mode is not TaxMode.NONE:
        found["tax"] = [
            {"group": r.group, "rate": plain(r.rate), "base_minor": r.base_minor, "tax_minor": r.tax_minor}
            for r in document.taxes
        ]
    found["total_minor"] = document.total_minor
    if document.paid:
        found["payment_credits"] = [{"grant": each.grant_id, "used_minor": each.used_minor} for each in document.paid]
    if document.carried_in_minor:
        found["carried_in_minor"] = document.carried_in_minor
    found |= {
        "due_minor": document.due_minor,
        "residue": plain(document.residue),
        "state": document.state.value,
    }
    return found


WITH_QUANTITY = (LineKind.USAGE, LineKind.TIER_FEE, LineKind.OVERAGE)


def _line(line: DocumentLine) -> dict[str, Any]:
    rated: RatedLine = line.rated
    found: dict[str, Any] = {"key": line.key}
    if rated.identity.kind in WITH_QUANTITY or rated.unit_price is not None:
        found["quantity"] = _quantity(rated.split[0] if rated.split else rated.quantity)
    if rated.unit_price is not None and rated.identity.kind in WITH_QUANTITY:
        found["unit_price"] = plain(rated.unit_price)
    for name, value in (
        ("units", rated.units),
        ("free", (rated.split[1] if rated.split else rated.free) or None),
        ("included_used", rated.included),
    ):
        if value is not None:
            found[name] = _quantity(value)
    return found | {"exact": plain(rated.amount), "rounded_minor": line.amount_minor}


def _quantity(value: Decimal | Fraction) -> int | str:
    """A whole number, a decimal, or a fraction where units are split so that they do not end as decimals."""
    whole = Fraction(value)
    if whole.denominator == 1:
        return int(whole)
    decimal = decimal_of(whole)
    return plain(decimal) if Fraction(decimal) == whole else f"{whole.numerator}/{whole.denominator}"


def _credits_after(grants: Iterable[Grant], bills: Bills) -> dict[str, dict[str, str]]:
    return {
        grant.grant_id: {
            "used": plain(bills.drawn[grant.grant_id]),
            "left": plain(grant.amount - bills.drawn[grant.grant_id]),
        }
        for grant in grants
    }
