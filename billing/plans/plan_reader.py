"""One node of a plan file: what it holds, and every problem with its line and field. What a plan is: plan_file.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, get_args, get_origin, get_type_hints

import yaml

from billing.errors import NotAnAmount, PlanProblem
from billing.money import PRICE_DECIMALS, parse_decimal
from billing.plans.plan_documents import FILE_NAMES, without_none

_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_MOMENT: Final = re.compile(r"\d{4}-\d{2}-\d{2}([Tt ]\d{2}:\d{2}(:\d{2})?([Zz]|\+00:00))?")
_WHOLE_MAX_DIGITS: Final = 18
_DEPTH_MAX: Final = 16
"""How deep a file may be nested. A plan needs half of it; each level costs a call, and deep ones time that grows."""


class _Loader(yaml.SafeLoader):
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=parent.start_mark if parent else None)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def compose(text: str, problems: list[PlanProblem]) -> Reader | None:
    """The root of a YAML document; None, and a problem, if there is none."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.append(PlanProblem(line, "", f"not YAML: {error.problem}"))
        return None
    except yaml.YAMLError as error:
        problems.append(PlanProblem(1, "", f"not YAML: {error}"))
        return None
    if root is None:
        problems.append(PlanProblem(1, "", "the file is empty"))
    return None if root is None else Reader(root, "", problems)


class Reader:
    """A node of the file with its path; what is wrong with it is added to the shared list of problems."""

    def __init__(self, node: yaml.Node, path: str, problems: list[PlanProblem]) -> None:
        self.node = node
        self.path = path
        self.problems = problems

    @property
    def name(self) -> str:
        """The field's own name."""
        return self.path.rsplit(".", 1)[-1]

    def problem(self, reason: str) -> None:
        """Something is wrong here."""
        self.problems.append(PlanProblem(self.node.start_mark.line + 1, self.path, reason))

    def missing(self, name: str) -> None:
        """A field that must be here is not."""
        Reader(self.node, f"{self.path}.{name}" if self.path else name, self.problems).problem("is missing")

    def fields(self, known: tuple[str, ...]) -> dict[str, Reader] | None:
        """The values of a mapping by field; unknown and repeated fields are problems."""
        if not isinstance(self.node, yaml.MappingNode):
            self.problem(f"must be a mapping with {', '.join(known)}")
            return None
        found: dict[str, Reader] = {}
        for key, value in self.node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            reader = Reader(value, f"{self.path}.{name}" if self.path else name, self.problems)
            mark = Reader(key, reader.path, self.problems)
            if name not in known:
                mark.problem(f"unknown field; known are {', '.join(known)}")
            elif name in found:
                mark.problem("stands here twice")
            else:
                found[name] = reader
        return found

    def within(self, name: str) -> Reader:
        """The value of a field of this mapping; the mapping itself where it does not have it."""
        pairs = self.node.value if isinstance(self.node, yaml.MappingNode) else ()
        found = (Reader(value, f"{self.path}.{name}", self.problems) for key, value in pairs if key.value == name)
        return next(found, self)

    def items(self) -> Iterator[Reader]:
        """The elements of a list that must not be empty."""
        if not isinstance(self.node, yaml.SequenceNode) or not self.node.value:
            self.problem("must be a list with at least one element")
            return
        for index, value in enumerate(self.node.value):
            yield Reader(value, f"{self.path}[{index}]", self.problems)

    @property
    def is_scalar(self) -> bool:
        """Whether it is a single value."""
        return isinstance(self.node, yaml.ScalarNode)

    def text(self) -> str | None:
        """A scalar as it is written."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag == "tag:yaml.org,2002:null":
            self.problem("must be a value")
            return None
        return str(self.node.value)

    def matching(self, pattern: re.Pattern[str], wanted: str) -> str | None:
        """A text of a form."""
        text = self.text()
        if text is not None and not pattern.fullmatch(text):
            self.problem(f"{text!r} does not fit: {wanted}")
            return None
        return text

    def number(self) -> Decimal | None:
        """An exact number, not negative."""
        text = self.text()
        if text is None:
            return None
        if self.node.tag.endswith(":float"):
            self.problem(f'{text} is a floating-point number, which is not exact: write it in quotes, "{text}"')
        elif not _NUMBER.fullmatch(text):
            self.problem(f"{text!r} is no {self.name}: digits with at most one point")
        elif text.startswith("-"):
            self.problem(f"{text} is negative")
        else:
            try:
                return parse_decimal(text, decimals=PRICE_DECIMALS)
            except NotAnAmount as error:
                self.problem(str(error))
        return None

    def moment(self) -> datetime | None:
        """A time in UTC, to the second."""
        text = self.text()
        if text is None:
            return None
        if not _MOMENT.fullmatch(text):
            self.problem(f"{text!r} is no time: write 2026-01-01 (midnight UTC) or 2026-01-01T06:00Z")
            return None
        try:
            return datetime.fromisoformat(text.upper().replace("Z", "+00:00")).replace(tzinfo=UTC)
        except ValueError as error:
            self.problem(f"{text!r} is no time: {error}")
            return None

    def value(self, hint: Any) -> Any:
        """A value of the type that a field has; None if it is none."""
        hint = without_none(hint)
        if get_origin(hint) is tuple:
            values = [item.value(get_args(hint)[0]) for item in self.items()]
            return tuple(values) if values and None not in values else None
        if isinstance(hint, type) and is_dataclass(hint):
            return self.record(hint)
        if hint is Decimal:
            return self.number()
        if hint is datetime:
            return self.moment()
        if hint is int:
            return self._whole()
        if hint is bool:
            return self._one_of({"true": True, "false": False})
        if isinstance(hint, type) and issubclass(hint, StrEnum):
            return self._one_of({each.value: each for each in hint})
        return self.text()

    def record(self, of: type[Any], readers: dict[str, Reader] | None = None) -> Any:
        """A value of one of the plan's classes, from these fields or else from this node's; None if it is none."""
        if readers is None:
            readers = self.fields(field_names(of))
        if readers is None:
            return None
        hints = get_type_hints(of)
        before = len(self.problems)
        values: dict[str, Any] = {}
        for field in fields(of):
            written = FILE_NAMES.get(field.name, field.name)
            if written in readers:
                values[field.name] = readers[written].value(hints[field.name])
            elif field.default is MISSING:
                self.missing(written)
        return self.checked(of(**values), readers) if len(self.problems) == before else None

    def checked(self, made: Any, readers: Mapping[str, Reader]) -> Any:
        """The value, or None if it says something is wrong with itself."""
        found = made.problems() if hasattr(made, "problems") else []
        for field, reason in found:
            readers.get(field, self).problem(reason)
        return None if found else made

    def field(self, readers: Mapping[str, Reader], name: str, read: Callable[[Reader], Any]) -> Any:
        """What a field that must be there holds."""
        if name not in readers:
            self.missing(name)
            return None
        return read(readers[name])

    def _whole(self) -> int | None:
        text = self.text()
        if text is not None and not (text.isdecimal() and len(text) <= _WHOLE_MAX_DIGITS):
            self.problem(f"{text!r} is no whole number")
            return None
        return None if text is None else int(text)

    def _one_of(self, known: Mapping[str, Any]) -> Any:
        text = self.text()
        if text is None:
            return None
        if text not in known:
            self.problem(f"{text!r} is none of {', '.join(known)}")
        return known.get(text)


def field_names(of: type[Any]) -> tuple[str, ...]:
    """The fields of a class as a file writes them."""
    return tuple(FILE_NAMES.get(field.name, field.name) for field in fields(of))
