"""What versions of a plan, and plans of a case, have differently: more than prices.

A charge of the same key may be of another tax group, be prorated or billed otherwise, have limits or none, count by
another model or for other events, go on otherwise at a change; charges come and go, and stand in another order.
"""

from __future__ import annotations

from random import Random
from typing import Any

from tests.simulation.money import plans
from tests.simulation.money.plans import COUNTED, FILTERS, Plain, Shape, Traits, decimal

_FEES = ("flat", "seat", "prepaid", "one_off")
_PRORATED = ("flat", "seat", "prepaid")


def vary(random: Random, case: Plain, form: Shape, groups: list[str]) -> None:
    """Change the versions of a case's plans, in place; the first version of the first plan mostly stays."""
    if random.random() < 0.35:
        return
    often = random.choice((0.08, 0.15, 0.4))
    for name, versions in case["plan"].items():
        for number, version in enumerate(versions):
            if number or name != "a" or random.random() < 0.3:
                _vary(random, version, form, groups, often)


def _vary(random: Random, version: Plain, form: Shape, groups: list[str], often: float) -> None:
    traits = {one.key: one for one in form.charges}
    pooled = {key for pool in version.get("allowances", ()) for key in pool["charges"]}
    for at, charge in enumerate(version["charges"]):
        if charge["model"] in COUNTED and charge["model"] != "prepaid" and random.random() < often / 2:
            charge = version["charges"][at] = _counted_otherwise(random, charge, traits[charge["key"]], form.starts)
        _vary_charge(random, charge, form, groups, often, pooled=charge["key"] in pooled)
    if len(version["charges"]) > 1 and random.random() < often:
        _leave_out(version, random.choice(version["charges"])["key"])
    if random.random() < often:
        random.shuffle(version["charges"])
    if "commitment" in version and random.random() < often:
        keys = [charge["key"] for charge in version["charges"]]
        version["commitment"]["charges"] = random.sample(keys, random.randint(1, len(keys)))


def _counted_otherwise(random: Random, charge: Plain, traits: Traits, starts: list[int]) -> Plain:
    """By another model; what it is besides stays."""
    model = random.choice(("per_unit", "graduated", "volume", "package"))
    of_model = plans.charge(random, plans.like(traits, model), starts)
    kept = {name: charge[name] for name in ("discount", "minimum", "maximum", "tax_group", "where") if name in charge}
    kept |= {name: charge[name] for name in ("tier_continuity", "tier_period") if name in charge}
    return {name: value for name, value in of_model.items() if name not in ("discount", "minimum", "maximum")} | kept


def _vary_charge(
    random: Random, charge: Plain, form: Shape, groups: list[str], often: float, *, pooled: bool
) -> None:  # fmt: skip
    model = charge["model"]
    if random.random() < often:
        _set(charge, "tax_group", random.choice(groups), "std")
    if model in COUNTED and random.random() < often:
        _set(charge, "tier_continuity", random.choice(("carry", "reset", "prorate")), "carry")
    if model in _PRORATED and random.random() < often:
        _set(charge, "prorated", random.random() < 0.5, True)
    if model in _FEES and random.random() < often:
        _set(charge, "timing", random.choice(("advance", "arrears")), "arrears")
    if form.by_events and model not in ("flat", "seat", "one_off") and random.random() < often / 2:
        _set(charge, "where", random.choice((*FILTERS, None)), None)
    if "tier_period" in charge and not pooled and random.random() < often:
        del charge["tier_period"]
    if model in ("flat", "seat", "one_off"):
        return
    if random.random() < often:
        _set(charge, "minimum", random.choice((None, decimal(random, 40, 2))), None)
    if random.random() < often:
        _set(charge, "maximum", random.choice((None, str(random.randint(41, 400)))), None)
    if charge.get("timing") == "advance":
        charge.pop("minimum", None)
        charge.pop("maximum", None)


def _set(charge: Plain, name: str, value: Any, default: Any) -> None:
    if value == default:
        charge.pop(name, None)
    else:
        charge[name] = value


def _leave_out(version: Plain, key: str) -> None:
    """A charge that this version does not have, nor what names it."""
    version["charges"] = [charge for charge in version["charges"] if charge["key"] != key]
    for pool in version.get("allowances", ()):
        pool["charges"] = [other for other in pool["charges"] if other != key]
    if "allowances" in version:
        version["allowances"] = [pool for pool in version["allowances"] if pool["charges"]]
        if not version["allowances"]:
            del version["allowances"]
    named = version.get("commitment", {}).get("charges")
    if named:
        version["commitment"]["charges"] = [other for other in named if other != key]
        if not version["commitment"]["charges"]:
            del version["commitment"]
