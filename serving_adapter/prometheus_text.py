"""Prometheus' text format, version 0.0.4, as far as counters need it: lines of `name{label="value",…} number`.

Strict: a page that is not in this format, or breaks off, is refused as a whole. A number that was misread would be a
false witness.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from serving_adapter.errors import BadMetrics
from serving_adapter.events import INT53

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\[\\"n])*)"\s*(,|(?=\}))')
_REST: Final = re.compile(r"\s*(\S+)(?:\s+-?\d+)?\s*")
"""A value, and a time stamp that is not used."""
_ESCAPED: Final = re.compile(r"\\(.)")


class Sample(NamedTuple):
    """One line: a series and its value as it is written."""

    name: str
    labels: dict[str, str]
    value: str
    line: int


def samples(text: str, wanted: Collection[str]) -> Iterator[Sample]:
    """The samples with one of the `wanted` names, in order. Raises BadMetrics, with the line."""
    if not text.endswith("\n"):
        raise BadMetrics("the page breaks off: its last line does not end")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name = _NAME.match(line)
        if name is None:
            raise BadMetrics(f"line {number} is not Prometheus' text format")
        if name.group() in wanted:
            yield _sample(name.group(), line, name.end(), number)


def whole(sample: Sample) -> int:
    """A counter's value: a whole number ≥ 0 that a double holds exactly. Raises BadMetrics."""
    value = number(sample)
    if not value.is_integer() or not 0 <= value <= INT53:
        raise BadMetrics(
            f"line {sample.line}: {sample.name} is {sample.value}, expected a whole number from 0 to 2^53-1"
        )
    return int(value)


def number(sample: Sample) -> float:
    """A value as a double, which is what the page was written from. Raises BadMetrics."""
    try:
        return float(sample.value)
    except ValueError:
        raise BadMetrics(f"line {sample.line}: {sample.name} is {sample.value!r}, expected a number") from None


def _sample(name: str, line: str, at: int, number: int) -> Sample:
    labels: dict[str, str] = {}
    if line[at : at + 1] == "{":
        at += 1
        while (label := _LABEL.match(line, at)) is not None:
            if label[1] in labels:
                raise BadMetrics(f"line {number}: label {label[1]} twice")
            labels[label[1]] = _ESCAPED.sub(_unescape, label[2])
            at = label.end()
        if line[at : at + 1] != "}":
            raise BadMetrics(f"line {number}: the labels of {name} cannot be read")
        at += 1
    rest = _REST.fullmatch(line, at)
    if rest is None:
        raise BadMetrics(f"line {number}: {name} has no value")
    return Sample(name, labels, rest[1], number)


def _unescape(found: re.Match[str]) -> str:
    return "\n" if found[1] == "n" else found[1]
