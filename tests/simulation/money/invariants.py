"""What must hold of one rating alone, whatever the case. Used with `--self`, and as a check of the generator."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from random import Random
from typing import Any

from tests.simulation.money import calendar
from tests.simulation.money.compare import Rating, difference

Plain = dict[str, Any]


def broken(case: Plain, rating: Rating, number: int) -> Iterator[str]:
    """Every invariant that does not hold for the case, by name, with what was found."""
    documents = rating(case)
    for document in documents:
        yield from _adds_up(case, document)
    random = Random(number)
    for name, other in (
        ("the order of the usage matters", _shuffled(case, random)),
        ("repeating usage changes the bill", _repeated(case, random)),
        ("cutting quantities in two changes the bill", _in_batches(case, random)),
    ):
        found = difference(case, rating, lambda _, other=other: rating(other))
        if found:
            yield f"{name}: {found}"
    yield from _more_never_costs_less(case, documents, rating, random)
    yield from _a_version_that_changes_nothing(case, documents, rating, random)
    yield from _a_plan_that_changes_nothing(case, documents, rating, random)
    yield from _when_fees_are_billed(case, documents, rating)


def _adds_up(case: Plain, document: Mapping[str, Any]) -> Iterator[str]:
    """Σ lines = net or gross, total = net + tax, due, residue; all in multiples of the quantum."""
    account = case["account"]
    minor = Fraction(account["minor_unit"])
    whole = sum(line["rounded_minor"] for line in document["lines"])
    exact = sum((Fraction(line["exact"]) for line in document["lines"]), Fraction(0))
    tax = sum(group["tax_minor"] for group in document.get("tax", ()))
    inclusive = account.get("tax", {}).get("mode") == "inclusive"
    paid = sum(payment["used_minor"] for payment in document.get("payment_credits", ()))
    equal = {
        "exact": (exact, Fraction(document["exact_gross" if inclusive else "exact_net"])),
        "net": (whole - (tax if inclusive else 0), document["net_minor"]),
        "total": (document["net_minor"] + tax, document["total_minor"]),
        "due": (document["total_minor"] - paid + document.get("carried_in_minor", 0), document["due_minor"]),
        "residue": (exact - whole * minor, Fraction(document["residue"])),
    }
    if "tax" in document:
        equal["bases"] = (sum(group["base_minor"] for group in document["tax"]), document["net_minor"])
    for name, (one, other) in equal.items():
        if one != other:
            yield f"{name} does not add up on {document['doc']} {document['period']}: {one} != {other}"
    step = Fraction(account.get("quantum", account["minor_unit"])) / minor
    for line in document["lines"]:
        if line["rounded_minor"] % step:
            yield f"{line['key']} is no multiple of the quantum"
    roundings = len(document.get("tax", ())) if inclusive else 1
    if document["doc"] != "credit_note" and abs(Fraction(document["residue"])) > step * minor / 2 * roundings:
        yield f"residue {document['residue']} on {document['doc']} is more than half a quantum per rounding"


def _lists(case: Plain) -> list[list[Plain]]:
    """The lists of usage of a case."""
    return [case.get("usage", [])] + [batch["usage"] for batch in case.get("late", ())]


def _shuffled(case: Plain, random: Random) -> Plain:
    other = copy.deepcopy(case)
    for usage in _lists(other):
        random.shuffle(usage)
    return other


def _repeated(case: Plain, random: Random) -> Plain:
    other = copy.deepcopy(case)
    for usage in _lists(other):
        usage += [copy.deepcopy(one) for one in usage if ("id" in one or "request_id" in one) and random.random() < 0.5]
    return other


def _in_batches(case: Plain, random: Random) -> Plain:
    """Each quantity as two events of the same instant; events as they are (each is a request of its own).

    What is corrected stays whole: the correction names one event, and may be larger than a part of it.
    """
    other = copy.deepcopy(case)
    corrected = {one["corrects"] for usage in _lists(case) for one in usage if "corrects" in one}
    for usage in _lists(other):
        for one in list(usage):
            if "metric" in one and "corrects" not in one and one["id"] not in corrected and one["quantity"] > 1:
                part = random.randint(1, one["quantity"] - 1)
                usage.append({**one, "id": f"{one['id']}b", "quantity": part})
                one["quantity"] -= part
    return other


def _models(case: Plain) -> set[str]:
    return {charge["model"] for charge in _charges(case)}


def _by_context(case: Plain) -> bool:
    return any(name.startswith("context_") for charge in _charges(case) for name in charge.get("where", {}))


def exact_sum(documents: Sequence[Mapping[str, Any]]) -> Fraction:
    return sum((Fraction(line["exact"]) for document in documents for line in document["lines"]), Fraction(0))


def _more_never_costs_less(case: Plain, documents: Sequence[Plain], rating: Rating, random: Random) -> Iterator[str]:
    """For models whose price of a unit does not hang on what follows: no volume; tiers and packages of one version; no
    longer input where that chooses the charge.

    Not with credits: more usage draws more of them, and lowers a minimum and a true-up, which they do not cover (13.8).
    """
    positional = {"graduated", "package", "prepaid"} & _models(case)
    one_stretch = len(case["plan"]) == 1 and all(len(versions) == 1 for versions in case["plan"].values())
    if "volume" in _models(case) or (positional and not one_stretch) or "credits" in case:
        return
    usage = [one for one in case["usage"] if "corrects" not in one and "request_id" not in one]
    if not usage:
        return
    more = copy.deepcopy(case)
    chosen = random.randrange(len(usage))
    field = "quantity" if "metric" in usage[chosen] else "input"
    if field == "input" and _by_context(case):
        field = "output"
    target = next(one for one in more["usage"] if one.get("id") == usage[chosen]["id"])
    target[field] += random.choice((1, 10, 1000))
    if exact_sum(rating(more)) < exact_sum(documents):
        yield f"more usage costs less: in {usage[chosen]['id']}"


def _a_version_that_changes_nothing(
    case: Plain, documents: Sequence[Plain], rating: Rating, random: Random
) -> Iterator[str]:
    """A new version with the same content cuts every piece in two; the pieces add up to what was (3, 4).

    Not where a version corrects another. Not where charges share a pool: of two segments, the earlier one's units are
    free first (4); nor where an invoice discount of an amount, which earlier segments have first, lowers what counts
    towards a commitment to some charges. Not with credits, which are drawn by time of usage, nor where earlier credit
    notes name lines: a version's name becomes part of a line's.
    """
    if _drawn_or_shared(case):
        return
    name = random.choice(sorted(case["plan"]))
    other = copy.deepcopy(case)
    versions = other["plan"][name]
    if any("recorded" in version for version in versions):
        return
    instants = [one["completed"] for one in case["usage"] if "completed" in one]
    if not instants:
        return
    at = calendar.read(random.choice(instants)) // calendar.SECOND * calendar.SECOND
    if any("from" in version and calendar.read(version["from"]) == at for version in versions):
        return
    before = [v for v in versions if "from" not in v or calendar.read(v["from"]) < at][-1]
    versions.append({**copy.deepcopy(before), "version": f"{before['version']}b", "from": calendar.written(at)})
    again = rating(other)
    if _sums(documents) != _sums(again):
        yield f"a version that changes nothing changes the bill: from {calendar.written(at)} on"


def _a_plan_that_changes_nothing(
    case: Plain, documents: Sequence[Plain], rating: Rating, random: Random
) -> Iterator[str]:
    """A change to a plan of the same content begins a segment, which is cut by itself: to the last few of 10⁻¹².

    Where counters go on, and what is due once is not due again; not with a trial, which a change ends, nor prices as of
    the start, which come before those of later versions in one segment only. For the rest as above.
    """
    charges = _charges(case)
    due_again = any(charge["model"] == "one_off" or not charge.get("prorated", True) for charge in charges)
    anew = any(charge.get("tier_continuity", "carry") != "carry" for charge in charges)
    if due_again or anew or _drawn_or_shared(case) or {"trial_days", "price_at"} & case.get("contract", {}).keys():
        return
    instants = [one["completed"] for one in case["usage"] if "completed" in one]
    if not instants:
        return
    at = calendar.read(random.choice(instants)) // calendar.SECOND * calendar.SECOND
    before = [one for one in case["subscription"] if calendar.read(one["at"]) < at]
    named = [one["plan"] for one in before if "plan" in one]
    if not named or before[-1].get("cancel") or any(calendar.read(one["at"]) == at for one in case["subscription"]):
        return
    other = copy.deepcopy(case)
    other["plan"]["same"] = copy.deepcopy(case["plan"][named[-1]])
    other["subscription"].insert(len(before), {"at": calendar.written(at), "plan": "same"})
    if _differ(documents, rating(other)):
        yield f"a plan that changes nothing changes the bill: from {calendar.written(at)} on"


def _when_fees_are_billed(case: Plain, documents: Sequence[Plain], rating: Rating) -> Iterator[str]:
    """Fees come to the same in advance and in arrears (4), but for the last few of 10⁻¹².

    Not where an amount is taken off, which goes back in part with what is unused; nor with limits, which fees in
    advance do not have; nor where a fee was credited by hand.
    """
    charges = _charges(case)
    every = [one for versions in case["plan"].values() for one in versions]
    discounts = [one["discount"] for one in charges if "discount" in one]
    discounts += [one["invoice_discount"] for one in every if "invoice_discount" in one]
    if any(isinstance(one, dict) and "amount" in one for one in discounts) or "prior_credits" in case:
        return
    in_advance = {charge["key"] for charge in charges if "timing" in charge}
    limited = {charge["key"] for charge in charges if "minimum" in charge or "maximum" in charge}
    if "credits" in case or not in_advance or in_advance & limited:
        return
    other = copy.deepcopy(case)
    for charge in _charges(other):
        charge.pop("timing", None)
    if _differ(documents, rating(other)):
        yield "fees in arrears come to another bill than in advance"


def _charges(case: Plain) -> list[Plain]:
    return [charge for versions in case["plan"].values() for one in versions for charge in one["charges"]]


def _differ(documents: Sequence[Plain], others: Sequence[Plain]) -> bool:
    return abs(exact_sum(documents) - exact_sum(others)) > Fraction(1, 10**9)


def _drawn_or_shared(case: Plain) -> bool:
    """Whether credits, pools or amounts make it matter which of two segments some usage is in."""
    if "credits" in case or "prior_credits" in case:
        return True
    pools = [pool for versions in case["plan"].values() for one in versions for pool in one.get("allowances", ())]
    every = [one for versions in case["plan"].values() for one in versions]
    amounts = any("amount" in one.get("invoice_discount", {}) for one in every)
    return any(len(pool["charges"]) > 1 for pool in pools) or (amounts and any("commitment" in one for one in every))


def _sums(documents: Sequence[Plain]) -> list[tuple[str, str, Fraction]]:
    return sorted((document["period"], document["doc"], exact_sum([document])) for document in documents)
