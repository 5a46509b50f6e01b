"""Plans in plain data into versions, charges, allowances, discounts and commitments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reconciliation.oracle.calendar import MONTHS, instant
from reconciliation.oracle.case import (
    Allowance,
    Charge,
    Commitment,
    Discount,
    InvoiceDiscount,
    Plan,
    Tier,
    Version,
    Where,
)
from reconciliation.oracle.fields import CaseError, Plain, each, one_of, only, optional, spread, words
from reconciliation.oracle.rational import exact

_VERSION = words("version from recorded charges allowances commitment invoice_discount")
_CHARGE = words(
    "key model metric tax_group tier_continuity tier_period price tiers size rate base fixed_per_event min_per_event"
    " max_per_event included overage_price fee seats timing prorated discount minimum maximum allowance where"
)
_MODELS = words("per_unit graduated volume package percentage prepaid flat seat one_off")
_WITH_FREE_UNITS = ("per_unit", "graduated", "volume", "package")
_NAMES = words("model adapter region tier")
_DISCOUNT = "percent amount from until periods"


def read_plan(name: str, plain: Sequence[Plain], known_at: int | None) -> Plan:
    """Of the versions that begin together the one recorded last holds, of those recorded by `known_at` (1)."""
    newest: dict[int | None, tuple[int | None, Version]] = {}
    for one in plain:
        recorded, version = optional(one, "recorded", instant), _version(one, f"plan.{name}")
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
    only(plain, _VERSION, where)
    where = f"{where}.{plain['version']}"
    charges = [_charge(one, where) for charge in plain["charges"] for one in spread(charge, "key")]
    commitment, discount = plain.get("commitment"), plain.get("invoice_discount")
    only(commitment or {}, words("amount charges tax_group"), f"{where}.commitment")
    return Version(
        name=plain["version"],
        start=optional(plain, "from", instant),
        charges={charge.key: charge for charge in charges},
        allowances=_allowances(plain, where),
        commitment=_commitment(commitment) if commitment else None,
        invoice_discount=_invoice_discount(discount, f"{where}.invoice_discount") if discount else None,
    )


def _commitment(plain: Plain) -> Commitment:
    return Commitment(exact(plain["amount"]), tuple(plain.get("charges") or ()), plain.get("tax_group"))


def _invoice_discount(plain: Plain, where: str) -> InvoiceDiscount:
    base = one_of(plain["base"], ("usage", "fees", "all"), f"{where}.base")
    return InvoiceDiscount(_discount({name: plain[name] for name in plain if name != "base"}, where), base)


def _discount(plain: Plain | str, where: str) -> Discount:
    """A share, in itself or as `percent`, or an amount per period; when and for how many periods."""
    told = plain if isinstance(plain, Mapping) else {"percent": plain}
    only(told, words(_DISCOUNT), where)
    if ("percent" in told) == ("amount" in told):
        raise CaseError(where, "either a share or an amount")
    return Discount(
        percent=optional(told, "percent", exact),
        amount=optional(told, "amount", exact),
        since=optional(told, "from", instant),
        until=optional(told, "until", instant),
        periods=optional(told, "periods", int),
    )


def _allowances(plain: Plain, where: str) -> tuple[Allowance, ...]:
    """Pools, and what a charge has for itself alone."""
    shared = each(plain.get("allowances", ()), "pool units charges", f"{where}.allowances")
    pools = [Allowance(pool["pool"], exact(pool["units"]), frozenset(pool["charges"])) for pool in shared]
    own = [charge for charge in plain["charges"] if "allowance" in charge]
    pools += [Allowance(f"of {one['key']}", exact(one["allowance"]), frozenset([one["key"]])) for one in own]
    models = {one["key"]: one["model"] for charge in plain["charges"] for one in spread(charge, "key")}
    for key in sorted({key for pool in pools for key in pool.charges}):
        if models.get(key, _WITH_FREE_UNITS[0]) not in _WITH_FREE_UNITS:
            raise CaseError(f"{where}.{key}", f"no units of a {models[key]} charge are free")
    return tuple(pools)


def _where(plain: Plain, where: str) -> Where:
    only(plain, _NAMES | words("context_over context_up_to"), where)
    names = {name: plain[name] for name in plain if name in _NAMES}
    return Where(names, optional(plain, "context_over", exact), optional(plain, "context_up_to", exact))


def _charge(plain: Plain, where: str) -> Charge:
    where = f"{where}.{plain['key']}"
    only(plain, _CHARGE, where)
    model = one_of(plain["model"], _MODELS, f"{where}.model")
    return Charge(
        key=plain["key"],
        model=model,
        metric=plain.get("base", plain.get("metric", plain["key"])),
        where=_where(plain.get("where", {}), f"{where}.where"),
        tax_group=plain.get("tax_group", "std"),
        continuity=one_of(
            plain.get("tier_continuity", "carry"), ("carry", "reset", "prorate"), f"{where}.tier_continuity"
        ),
        counted_months=MONTHS[one_of(plain["tier_period"], MONTHS, f"{where}.tier_period")]
        if plain.get("tier_period")
        else None,
        price=exact(plain.get("price", 0)),
        tiers=tuple(
            Tier(optional(tier, "up_to", exact), exact(tier["price"]), exact(tier.get("flat_fee", 0)))
            for tier in each(plain.get("tiers", ()), "up_to price flat_fee", f"{where}.tiers")
        ),
        size=exact(plain.get("size", 1)),
        rate=exact(plain.get("rate", 0)),
        fixed_per_event=exact(plain.get("fixed_per_event", 0)),
        min_per_event=optional(plain, "min_per_event", exact),
        max_per_event=optional(plain, "max_per_event", exact),
        included=exact(plain.get("included", 0)),
        overage_price=exact(plain.get("overage_price", 0)),
        fee=exact(plain.get("fee", 0)),
        seats=optional(plain, "seats", exact),
        in_advance=one_of(plain.get("timing", "arrears"), ("arrears", "advance"), f"{where}.timing") == "advance",
        prorated=plain.get("prorated", True),
        discount=_discount(plain["discount"], f"{where}.discount") if "discount" in plain else None,
        minimum=optional(plain, "minimum", exact),
        maximum=optional(plain, "maximum", exact),
    )
