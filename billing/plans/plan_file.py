"""Reading a price plan from YAML. Every problem is named with its line and field; nothing is guessed.

plan: azure-hour
currency: USD
terms: {tier_continuity: carry}      # optional; every field of price_plans.Terms
metrics: [pages]                     # optional: what is counted beside tokens, requests and gpu-seconds
versions:
  - version: v1
    from: 2026-01-01                 # UTC; in force until the next version
    charges:
      - key: llama-input
        model: per_unit              # the charge model, with its parameters beside it (charge_models.py)
        metric: input                # input, cached_input, output, total_tokens, request, gpu_second, or declared
        where: {model: llama-3.3-70b-instruct}   # optional; the most specific charge of a metric wins
        price: "0.59"
        per: 1000                    # optional power of ten: the price is for so many units
        allowance: 1000000           # optional, as all of: discount, minimum, maximum, tax_group, tier_continuity,
                                     #   tier_period (month, quarter or year, no longer than the billing period)
      - {key: base, model: flat, fee: "20", timing: advance}
    allowances: [{pool: tokens, units: 1000000, charges: [llama-input]}]     # optional, as the next two
    invoice_discount: {percent: "0.10", base: usage}
    commitment: {amount: "100", charges: [llama-input]}
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, get_type_hints

import yaml

from billing.errors import PlanInvalid, PlanProblem, UnknownCurrency
from billing.money import currency
from billing.plans.charge_models import FEES, MODELS, Percentage, PerUnit
from billing.plans.plan_reader import Reader, compose, field_names
from billing.plans.price_plans import (
    WITH_ALLOWANCE,
    Allowance,
    Charge,
    Commitment,
    Cycle,
    Discount,
    Filters,
    InvoiceDiscount,
    Metric,
    PlanVersion,
    PricePlan,
    Terms,
)

SIZE_MAX: Final = 1_000_000  # characters: a plan is written by people; more is a wrong file
CHARGES_MAX: Final = 10_000
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CHARGE_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_METRIC: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_PER: Final = re.compile(r"10{0,12}")

_OF_CHARGE: Final = tuple(name for name in field_names(Charge) if name not in ("key", "metric", "where", "pricing"))
_OF_MODELS: Final = tuple(dict.fromkeys(name for of in MODELS.values() for name in field_names(of)))


def parse_plan(text: str, *, file: str) -> PricePlan:
    """The plan that a file's text describes; `file` names it in errors. Raises PlanInvalid with every problem."""
    problems: list[PlanProblem] = []
    if len(text) > SIZE_MAX:
        raise PlanInvalid(file, [PlanProblem(1, "", f"longer than {SIZE_MAX} characters: is this a plan?")])
    root = compose(text, problems)
    plan = None if root is None else _plan(root)
    if problems or plan is None:
        raise PlanInvalid(file, sorted(problems, key=lambda problem: problem.line))
    return plan


def _plan(reader: Reader) -> PricePlan | None:
    readers = reader.fields(("plan", "currency", "terms", "metrics", "versions"))
    if readers is None:
        return None
    name = reader.field(readers, "plan", _name)
    code = reader.field(readers, "currency", _currency)
    terms = readers["terms"].record(Terms) if "terms" in readers else Terms()
    metrics = _new_metrics(readers["metrics"]) if "metrics" in readers else ()
    context = _Context(metrics, (terms or Terms()).period)
    versions = reader.field(readers, "versions", lambda r: _versions(r, name or "?", code or "?", context))
    return PricePlan(name, code, versions, terms) if name and code and versions and terms else None


@dataclass(frozen=True, slots=True)
class _Context:
    """What a charge is read by: the metrics that the plan declares, and how long its billing periods are."""

    metrics: tuple[str, ...]
    period: Cycle


def _versions(reader: Reader, plan: str, code: str, context: _Context) -> tuple[PlanVersion, ...] | None:
    found: list[PlanVersion] = []
    complete = True
    for item in reader.items():
        version = _version(item, plan, code, context)
        if version is None:
            complete = False
            continue
        if any(version.version == other.version for other in found):
            item.problem(f"version {version.version} stands here twice")
        if found and version.valid_from == found[-1].valid_from:
            item.problem(f"begins at the same time as version {found[-1].version}: they overlap")
        elif found and version.valid_from < found[-1].valid_from:
            item.problem(f"begins before version {found[-1].version}: sort the versions by `from`")
        found.append(version)
    return tuple(found) if complete and found else None


def _version(reader: Reader, plan: str, code: str, context: _Context) -> PlanVersion | None:
    readers = reader.fields(("version", "from", "charges", "allowances", "invoice_discount", "commitment"))
    if readers is None:
        return None
    name = reader.field(readers, "version", _name)
    valid_from = reader.field(readers, "from", Reader.moment)
    charges = reader.field(readers, "charges", lambda r: _charges(r, context))
    allowances = readers["allowances"].value(tuple[Allowance, ...]) if "allowances" in readers else ()
    discount = readers["invoice_discount"].record(InvoiceDiscount) if "invoice_discount" in readers else None
    commitment = readers["commitment"].record(Commitment) if "commitment" in readers else None
    if name is None or valid_from is None or charges is None or allowances is None:
        return None
    version = PlanVersion(plan, name, code, valid_from, charges, allowances, discount, commitment)
    _check_references(readers, version)
    return version


def _check_references(readers: dict[str, Reader], version: PlanVersion) -> None:
    """Allowances and commitments name charges that there are; a charge is in one pool, a pool counts over one time."""
    metered = {charge.key: charge for charge in version.charges if not charge.is_fee}
    pooled = [(pool.pool, key) for pool in version.pools for key in pool.charges]
    for name, key in pooled:
        if key not in metered:
            readers["allowances"].problem(f"pool {name}: there is no charge {key} that counts usage")
        elif (model := metered[key].pricing.model) not in WITH_ALLOWANCE:
            readers["allowances"].problem(f"pool {name}: charge {key} is {model}: it counts no units that are priced")
    names = [pool.pool for pool in version.pools]  # a charge's own has the charge's key
    for name in sorted({name for name in names if names.count(name) > 1}):
        readers["allowances"].problem(f"pool {name}: another one, or a charge with an allowance, has that name")
    for key in sorted({key for _, key in pooled}):
        pools = [pool for pool, other in pooled if other == key]
        if len(pools) > 1:
            readers["allowances"].problem(f"charge {key} is in more than one pool: {', '.join(pools)}")
    over = {charge.key: charge.tier_period for charge in version.charges}
    for pool in version.allowances:
        if len({over[key] for key in pool.charges if key in over}) > 1:
            readers["allowances"].problem(f"pool {pool.pool}: its charges have different tier_periods")
    used = {key for pool in version.pools for key in pool.charges}
    items = list(readers["charges"].items())
    for item, charge in zip(items, version.charges, strict=True) if len(items) == len(version.charges) else ():
        if charge.tier_period is not None and isinstance(charge.pricing, PerUnit) and charge.key not in used:
            item.within("tier_period").problem("has no meaning for per_unit without an allowance")
    for key in version.commitment.charges if version.commitment else ():
        if key not in {charge.key for charge in version.charges}:
            readers["commitment"].problem(f"there is no charge {key}")


def _charges(reader: Reader, context: _Context) -> tuple[Charge, ...] | None:
    found: list[Charge] = []
    complete = True
    for item in reader.items():
        charge = _charge(item, context)
        if charge is None:
            complete = False
            continue
        for other in found:
            if charge.key == other.key:
                item.problem(f"key {charge.key} stands here twice")
            elif _same_usage(charge, other):
                item.problem(f"prices the same usage as charge {other.key}: which of them holds?")
        found.append(charge)
        if len(found) > CHARGES_MAX:
            reader.problem(f"more than {CHARGES_MAX} charges")
            break
    return tuple(found) if complete and found else None


def _same_usage(one: Charge, other: Charge) -> bool:
    """Whether no precedence tells which of two charges holds for some usage."""
    if one.is_fee or other.is_fee or one.metric != other.metric or one.where.rank != other.where.rank:
        return False
    a, b = one.where, other.where
    return (a.model, a.adapter, a.region, a.tier) == (b.model, b.adapter, b.region, b.tier) and a.meet(b)


def _charge(reader: Reader, context: _Context) -> Charge | None:
    """A charge: its own fields, and beside them those of its model."""
    model = _model_named(reader)
    of_model = field_names(MODELS[model]) if model in MODELS else _OF_MODELS
    readers = reader.fields(("key", "model", "metric", "where", *of_model, *_OF_CHARGE))
    if readers is None:
        return None
    before = len(reader.problems)
    key = reader.field(readers, "key", _charge_key)
    reader.field(readers, "model", _charge_model)
    metric = _metric_of(reader, readers, model, context.metrics)
    where = readers["where"].record(Filters) if "where" in readers else Filters()
    if "per" in readers:
        _check_per(readers["per"])
    pricing = None
    if model in MODELS and len(reader.problems) == before:
        pricing = reader.record(MODELS[model], {name: readers[name] for name in of_model if name in readers})
    hints = get_type_hints(Charge)
    own: dict[str, Any] = {}
    for name in _OF_CHARGE:
        if name in readers:
            own[name] = _discount(readers[name]) if name == "discount" else readers[name].value(hints[name])
    if len(reader.problems) > before or pricing is None:
        return None
    made: Charge | None = reader.checked(Charge(key, metric, where, pricing, **own), readers)
    if made is not None and (over := made.tier_period) is not None and over.months > context.period.months:
        readers["tier_period"].problem(
            f"a {over} is longer than the billing period, a {context.period}: what is invoiced would be priced anew"
            f" by later usage; bill by the {over} (terms: period), or count by the {context.period}"
        )
    return made


def _model_named(reader: Reader) -> str | None:
    if isinstance(reader.node, yaml.MappingNode):
        for key, value in reader.node.value:
            if key.value == "model" and isinstance(value, yaml.ScalarNode):
                return str(value.value)
    return None


def _metric_of(reader: Reader, readers: dict[str, Reader], model: str | None, metrics: tuple[str, ...]) -> str:
    """What a charge counts: its metric, a percentage's base, nothing for a fee."""
    if model in MODELS and MODELS[model] in FEES:
        if "metric" in readers:
            readers["metric"].problem("a fee counts nothing")
        return ""
    if model == Percentage.model and {"base", "metric"} <= readers.keys():
        readers["base"].problem("a percentage is of one counted amount: name it as `base` or as `metric`")
    name = "base" if model == Percentage.model and "metric" not in readers else "metric"
    found = reader.field(readers, name, _metric(metrics))
    return found or ""


def _discount(reader: Reader) -> Discount | None:
    """A discount, or just its share: `discount: "0.10"`."""
    if not reader.is_scalar:
        made: Discount | None = reader.record(Discount)
        return made
    percent = reader.number()
    return None if percent is None else reader.checked(Discount(percent=percent), {})


def _name(reader: Reader) -> str | None:
    return reader.matching(NAME, "letters, digits and . _ -, at most 64")


def _charge_key(reader: Reader) -> str | None:
    return reader.matching(CHARGE_KEY, "letters, digits and _ -, at most 64")


def _charge_model(reader: Reader) -> str | None:
    text = reader.text()
    if text is not None and text not in MODELS:
        reader.problem(f"{text!r} is no charge model: {', '.join(MODELS)}")
    return text


def _new_metrics(reader: Reader) -> tuple[str, ...]:
    found: list[str] = []
    for item in reader.items():
        name = item.matching(_METRIC, "small letters, digits and _, at most 64")
        if name is None:
            continue
        if name in set(Metric):
            item.problem(f"{name} is counted from every event: a label cannot stand in for it")
        if name in found:
            item.problem(f"{name} stands here twice")
        found.append(name)
    return tuple(found)


def _metric(declared: tuple[str, ...]) -> Callable[[Reader], str | None]:
    def read(reader: Reader) -> str | None:
        text = reader.text()
        if text is not None and text not in {*Metric, *declared}:
            reader.problem(f"{text!r} is no metric: {', '.join([*Metric, *declared])}; declare others under `metrics`")
            return None
        return text if text is None or text not in set(Metric) else Metric(text)

    return read


def _check_per(reader: Reader) -> None:
    text = reader.text()
    if text is not None and not _PER.fullmatch(text):
        reader.problem(f"{text!r} is no power of ten up to 1000000000000")


def _currency(reader: Reader) -> str | None:
    text = reader.text()
    if text is None:
        return None
    try:
        return currency(text, date.max).code
    except UnknownCurrency as error:
        reader.problem(str(error))
        return None
