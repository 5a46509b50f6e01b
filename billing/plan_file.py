"""Reading a price plan from YAML. Every problem is named with its line and field; nothing is guessed.

plan: azure-hour
currency: USD
versions:
  - version: v1
    from: 2026-01-01                 # UTC; in force until the next version
    charges:
      - key: llama-input
        model: per_unit              # the charge model (docs/spec/money.md 4)
        metric: input                # input, cached_input, output, total_tokens, request, gpu_second
        where: {model: llama-3.3-70b-instruct}   # optional: model, adapter, region, tier; most specific wins
        price: "0.59"
        per: 1000                    # optional power of ten: the price is for so many units
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Final, TypeVar

import yaml

from billing.errors import NotAnAmount, PlanInvalid, PlanProblem, UnknownCurrency
from billing.money import PRICE_DECIMALS, currency, decimals_of, parse_decimal, plain
from billing.price_plans import FILTER_NAMES, Charge, Filters, Metric, PerUnit, PlanVersion, PricePlan

SIZE_MAX: Final = 1_000_000  # characters: a plan is written by people; more is a wrong file
CHARGES_MAX: Final = 10_000
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CHARGE_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PRICE: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_PER: Final = re.compile(r"10{0,12}")
_FROM: Final = re.compile(r"\d{4}-\d{2}-\d{2}([Tt ]\d{2}:\d{2}(:\d{2})?([Zz]|\+00:00))?")

T = TypeVar("T")


def parse_plan(text: str, *, file: str) -> PricePlan:
    """The plan that a file's text describes; `file` names it in errors. Raises PlanInvalid with every problem."""
    problems: list[PlanProblem] = []
    if len(text) > SIZE_MAX:
        raise PlanInvalid(file, [PlanProblem(1, "", f"longer than {SIZE_MAX} characters: is this a plan?")])
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PlanInvalid(file, [PlanProblem(line, "", f"not YAML: {error.problem}")]) from None
    except yaml.YAMLError as error:
        raise PlanInvalid(file, [PlanProblem(1, "", f"not YAML: {error}")]) from None
    plan = _plan(_Reader(root, "", problems)) if root is not None else None
    if root is None:
        problems.append(PlanProblem(1, "", "the file is empty"))
    if problems or plan is None:
        raise PlanInvalid(file, sorted(problems, key=lambda problem: problem.line))
    return plan


class _Reader:
    """One node of the file with its path; what is wrong with it is added to the shared list of problems."""

    def __init__(self, node: yaml.Node, path: str, problems: list[PlanProblem]) -> None:
        self.node = node
        self.path = path
        self.problems = problems
        self._fields: dict[str, _Reader] | None = None

    def problem(self, reason: str) -> None:
        self.problems.append(PlanProblem(self.node.start_mark.line + 1, self.path, reason))

    def fields(self, known: tuple[str, ...]) -> dict[str, _Reader] | None:
        """The values of a mapping by field; unknown and repeated fields are problems."""
        if not isinstance(self.node, yaml.MappingNode):
            self.problem(f"must be a mapping with {', '.join(known)}")
            return None
        found: dict[str, _Reader] = {}
        for key, value in self.node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            reader = _Reader(value, f"{self.path}.{name}" if self.path else name, self.problems)
            mark = _Reader(key, reader.path, self.problems)
            if name not in known:
                mark.problem(f"unknown field; known are {', '.join(known)}")
            elif name in found:
                mark.problem("stands here twice")
            else:
                found[name] = reader
        return found

    def items(self) -> Iterator[_Reader]:
        """The elements of a list that must not be empty."""
        if not isinstance(self.node, yaml.SequenceNode) or not self.node.value:
            self.problem("must be a list with at least one element")
            return
        for index, value in enumerate(self.node.value):
            yield _Reader(value, f"{self.path}[{index}]", self.problems)

    def text(self) -> str | None:
        """A scalar as it is written."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag == "tag:yaml.org,2002:null":
            self.problem("must be a value")
            return None
        return str(self.node.value)

    def tag(self) -> str:
        """What YAML takes the scalar for: str, int, float, bool, timestamp."""
        return self.node.tag.rsplit(":", 1)[-1]


def _field(readers: dict[str, _Reader], parent: _Reader, name: str, read: Callable[[_Reader], T | None]) -> T | None:
    if name not in readers:
        _Reader(parent.node, f"{parent.path}.{name}" if parent.path else name, parent.problems).problem("is missing")
        return None
    return read(readers[name])


def _plan(reader: _Reader) -> PricePlan | None:
    readers = reader.fields(("plan", "currency", "versions"))
    if readers is None:
        return None
    name = _field(readers, reader, "plan", _name)
    code = _field(readers, reader, "currency", _currency)
    versions = _field(readers, reader, "versions", lambda r: _versions(r, name or "?", code or "?"))
    return PricePlan(name, code, versions) if name and code and versions else None


def _versions(reader: _Reader, plan: str, code: str) -> tuple[PlanVersion, ...] | None:
    found: list[PlanVersion] = []
    complete = True
    for item in reader.items():
        version = _version(item, plan, code)
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


def _version(reader: _Reader, plan: str, code: str) -> PlanVersion | None:
    readers = reader.fields(("version", "from", "charges"))
    if readers is None:
        return None
    name = _field(readers, reader, "version", _name)
    valid_from = _field(readers, reader, "from", _moment)
    charges = _field(readers, reader, "charges", _charges)
    if name is None or valid_from is None or charges is None:
        return None
    return PlanVersion(plan, name, code, valid_from, charges)


def _charges(reader: _Reader) -> tuple[Charge, ...] | None:
    found: list[Charge] = []
    for item in reader.items():
        charge = _charge(item)
        if charge is None:
            continue
        for other in found:
            if charge.key == other.key:
                item.problem(f"key {charge.key} stands here twice")
            elif charge.metric is other.metric and charge.where == other.where:
                item.problem(f"prices the same usage as charge {other.key}: which of them holds?")
        found.append(charge)
        if len(found) > CHARGES_MAX:
            reader.problem(f"more than {CHARGES_MAX} charges")
            break
    return tuple(found) or None


def _charge(reader: _Reader) -> Charge | None:
    readers = reader.fields(("key", "model", "metric", "where", "price", "per"))
    if readers is None:
        return None
    key = _field(readers, reader, "key", _charge_key)
    _field(readers, reader, "model", _charge_model)
    metric = _field(readers, reader, "metric", _metric)
    price = _field(readers, reader, "price", _price)
    per = _per(readers["per"]) if "per" in readers else 1
    where = _filters(readers["where"]) if "where" in readers else Filters()
    if key is None or metric is None or price is None or per is None or where is None:
        return None
    pricing = PerUnit(price, per)
    if decimals_of(pricing.unit_price) > PRICE_DECIMALS:
        readers["price"].problem(f"{plain(price)} per {per} has more than {PRICE_DECIMALS} decimals per unit")
        return None
    return Charge(key, metric, where, pricing)


def _name(reader: _Reader) -> str | None:
    return _matching(reader, NAME, "letters, digits and . _ -, at most 64")


def _charge_key(reader: _Reader) -> str | None:
    return _matching(reader, CHARGE_KEY, "letters, digits and _ -, at most 64")


def _matching(reader: _Reader, pattern: re.Pattern[str], wanted: str) -> str | None:
    text = reader.text()
    if text is not None and not pattern.fullmatch(text):
        reader.problem(f"{text!r} does not fit: {wanted}")
        return None
    return text


def _charge_model(reader: _Reader) -> str | None:
    text = reader.text()
    if text is not None and text != "per_unit":
        reader.problem(f"{text!r} is no charge model of this version: per_unit")
    return text


def _metric(reader: _Reader) -> Metric | None:
    text = reader.text()
    if text is None:
        return None
    if text not in set(Metric):
        reader.problem(f"{text!r} is no metric: {', '.join(Metric)}")
        return None
    return Metric(text)


def _price(reader: _Reader) -> Decimal | None:
    text = reader.text()
    if text is None:
        return None
    if reader.tag() == "float":
        reader.problem(f'{text} is a floating-point number, which is not exact: write it in quotes, "{text}"')
        return None
    if not _PRICE.fullmatch(text):
        reader.problem(f"{text!r} is no price: digits with at most one point")
        return None
    if text.startswith("-"):
        reader.problem(f"{text} is negative")
        return None
    try:
        return parse_decimal(text, decimals=PRICE_DECIMALS)
    except NotAnAmount as error:
        reader.problem(str(error))
        return None


def _per(reader: _Reader) -> int | None:
    text = reader.text()
    if text is not None and not _PER.fullmatch(text):
        reader.problem(f"{text!r} is no power of ten up to 1000000000000")
        return None
    return int(text) if text is not None else None


def _filters(reader: _Reader) -> Filters | None:
    readers = reader.fields(FILTER_NAMES)
    if readers is None:
        return None
    wanted: dict[str, str] = {}
    for name, value in readers.items():
        text = value.text()
        if not text:
            value.problem("must be a name")
            return None
        wanted[name] = text
    return Filters(**wanted)


def _currency(reader: _Reader) -> str | None:
    text = reader.text()
    if text is None:
        return None
    try:
        return currency(text, date.max).code
    except UnknownCurrency as error:
        reader.problem(str(error))
        return None


def _moment(reader: _Reader) -> datetime | None:
    text = reader.text()
    if text is None:
        return None
    if not _FROM.fullmatch(text):
        reader.problem(f"{text!r} is no time: write 2026-01-01 (midnight UTC) or 2026-01-01T06:00Z")
        return None
    try:
        moment = datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
    except ValueError as error:
        reader.problem(f"{text!r} is no time: {error}")
        return None
    moment = moment.replace(tzinfo=UTC)
    if (moment.minute, moment.second) != (0, 0):
        reader.problem(f"{text} is within an hour: usage is summed by the hour, so prices change on the hour")
        return None
    return moment
