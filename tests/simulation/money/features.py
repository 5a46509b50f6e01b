"""What of the rules (`docs/spec/money.md`) a case asks for, and what of it its documents show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Plain = Mapping[str, Any]

_SHOWN = {
    ".discount": "line discount",
    "invoice_discount": "invoice discount",
    ".minimum": "minimum",
    ".maximum": "maximum",
    "true_up": "true-up",
    ".overage": "overage",
    ".unused": "unused fee given back",
    ".fee": "tier's or prepaid fee",
    "adj.": "late usage",
    "credit.": "price reduction",
}
"""By a part of a line's key what it shows."""


def features(case: Plain, documents: Sequence[Plain]) -> set[str]:
    """Names of all that a case has, each as `group: what`; `billed:` says what came to be on documents."""
    return {
        *_of_account(case["account"]),
        *_of_contract(case),
        *(name for versions in case["plan"].values() for name in _of_versions(versions)),
        *_of_subscription(case["subscription"]),
        *_of_usage(case),
        *(name for grant in case.get("credits", ()) for name in _of_grant(grant)),
        *(name for document in documents for name in _of_document(document)),
    }


def _of_account(account: Plain) -> Iterator[str]:
    yield f"account: {account['currency']}"
    tax = account.get("tax", {"mode": "none", "groups": {}})
    yield f"tax: {tax['mode']}" + (", two groups" if len(tax["groups"]) > 1 else "")
    if "stripe_minimum" in account:
        yield "account: smallest amount"


def _of_contract(case: Plain) -> Iterator[str]:
    for name, value in case.get("contract", {}).items():
        yield f"contract: {name}" + (f" {value}" if isinstance(value, str) else "")
    if "anchor" in case:
        day = int(case["anchor"][-2:])
        yield "period: anniversary" + (" on the 29th to 31st" if day > 28 else "")
        if "period" in case.get("contract", {}):
            yield "period: anniversary of more than a month"
    if "prior_credits" in case:
        yield "fee: credited by hand"
    if "known_at" in case:
        yield "plan: as known at"


def _of_versions(versions: Sequence[Plain]) -> Iterator[str]:
    if len(versions) > 1:
        yield "plan: several versions"
    for version in versions:
        if "recorded" in version:
            yield "plan: corrected version"
        pools = version.get("allowances", ())
        if pools:
            yield "allowance: pool" + (" of several charges" if any(len(p["charges"]) > 1 for p in pools) else "")
        if "commitment" in version:
            named = version["commitment"].get("charges")
            fees = {charge["key"] for charge in version["charges"] if "fee" in charge}
            yield "commitment: " + ("no names" if not named else "with fees" if fees & {*named} else "usage")
        if "invoice_discount" in version:
            yield from _of_discount(f"invoice discount: on {version['invoice_discount']['base']}", version)
        for charge in version["charges"]:
            yield from _of_charge(charge)


def _of_charge(charge: Plain) -> Iterator[str]:
    model = charge["model"]
    yield f"model: {model}"
    if "fee" in charge:
        yield f"fee: {model} in {charge.get('timing', 'arrears')}" + (
            "" if charge.get("prorated", True) else ", not prorated"
        )
    for name in ("minimum", "maximum", "allowance"):
        if name in charge:
            yield f"{name}: of {model}"
    for name in ("tier_continuity", "tier_period"):
        if charge.get(name, "carry") != "carry":
            yield f"{name}: {charge[name]}, {model}"
    tiers = charge.get("tiers", ())
    if any("flat_fee" in tier for tier in tiers):
        yield f"model: {model} with flat fees"
    if any(tier["price"] == "0" for tier in tiers) or charge.get("price") == "0":
        yield f"model: {model} at price 0"
    for name in ("fixed_per_event", "min_per_event", "max_per_event"):
        if name in charge:
            yield f"model: percentage, {name}"
    for name in charge.get("where", {}):
        yield f"filter: {name}"
    yield from _of_discount(f"discount: on {model}", charge, "discount")


def _of_discount(what: str, plain: Plain, name: str = "invoice_discount") -> Iterator[str]:
    if name in plain:
        told = plain[name] if isinstance(plain[name], Mapping) else {"percent": plain[name]}
        yield f"{what}, {'amount' if 'amount' in told else 'percent'}"
        for term in ("from", "until", "periods"):
            if term in told:
                yield f"discount: {term}"


def _of_subscription(changes: Sequence[Plain]) -> Iterator[str]:
    cancelled = False
    for number, change in enumerate(changes):
        if change.get("resume"):
            yield "subscription: pause"
        elif cancelled:
            yield "subscription: return"
        elif number and "plan" in change:
            yield "subscription: change of plan"
        elif number and "seats" in change:
            yield "subscription: other seats"
        if number and "period" in change:
            yield "subscription: periods of another length"
        cancelled = bool(change.get("cancel"))
        if cancelled:
            yield "subscription: cancel"


def _of_usage(case: Plain) -> Iterator[str]:
    late = [one for batch in case.get("late", ()) for one in batch["usage"]]
    if len(case.get("late", ())) > 1:
        yield "late: several batches"
    requests = {one["request_id"] for one in case["usage"] if "request_id" in one}
    ids = {one["id"] for one in case["usage"] if "id" in one and "corrects" not in one}
    for when, usage in (("usage", case["usage"]), ("late", late)):
        for one in usage:
            for name in ("status", "fault", "source", "purpose"):
                if name in one:
                    yield f"{when}: {name} {one[name]}"
            yield from (f"{when}: {what}" for name, what in _EVENTS if name in one)
            if one.get("id") in ids and when == "late" and "corrects" not in one:
                yield "late: supersedes an event"
            if one.get("request_id") in requests and when == "late":
                yield "late: attempt of an earlier request"


_EVENTS = (("corrects", "correction"), ("request_id", "attempts"), ("started", "start"), ("gpu_second", "GPU seconds"))


def _of_grant(grant: Plain) -> Iterator[str]:
    default = "payment" if grant["kind"] == "paid" else "price_reduction"
    yield f"credit: {grant['kind']}, {grant.get('tax_treatment', default)}"
    told = grant.get("applies_to", "usage")
    if {"fees", "all"} & ({told} if isinstance(told, str) else {*told}):
        yield "credit: for fees"
    for name in ("expires", "priority", "applies_to", "models", "invoiced_at", "granted_at"):
        if name in grant:
            yield f"credit: {name}"
    if grant["kind"] == "paid" and "paid_at" not in grant:
        yield "credit: never paid"


def _of_document(document: Plain) -> Iterator[str]:
    yield f"billed: {document['doc']}, {document['state']}"
    for line in document["lines"]:
        yield from (f"billed: {what}" for part, what in _SHOWN.items() if part in line["key"])
        if line.get("free"):
            yield "billed: free units"
    for name, what in (("payment_credits", "payment by credits"), ("carried_in_minor", "carried amount")):
        if name in document:
            yield f"billed: {what}"
    if any(payment["used_minor"] < 0 for payment in document.get("payment_credits", ())):
        yield "billed: credit restored"
    if document["due_minor"] < 0 and document["doc"] != "credit_note":
        yield "billed: less than nothing"
