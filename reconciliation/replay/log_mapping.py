"""How a line of somebody else's log becomes a usage event: a mapping file, as values (docs/replay.md).

A gateway's log has other names and forms than an event, and its tellings are weaker than an engine's (`gateway`). Only
with the platform's own request id does a line get the identity that its event would have had.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

import msgspec

from reconciliation.errors import MappingInvalid
from serving_adapter.errors import RefusedEvent
from serving_adapter.events import UsageEvent, UsageSource, decode

TimeForm = Literal["rfc3339", "epoch_s", "epoch_ms"]
_COUNTS: Final = ("input_tokens", "output_tokens", "cache_hit_tokens", "attempt", "duration_ms", "ttft_ms", "gpu_us")
_TIMES: Final = ("timestamp", "started_at")
REQUIRED: Final = ("tenant_id", "request_id", "model", "input_tokens", "output_tokens", "timestamp")


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from", "form": "as"}):
    """Where a field's value is in a line, and in which form. A bare name in the file stands for `{from: name}`."""

    source: str
    """A column, or a path of names joined by dots."""
    form: str = "rfc3339"
    """Of times: rfc3339, epoch_s, epoch_ms, or a form as of `strptime`, in UTC where it says no offset."""
    values: dict[str, str] = {}
    """What the line's values stand for; one that is not listed stands for `otherwise`."""
    otherwise: str | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    log: str
    fields: dict[str, str | Field]
    format: Literal["json", "csv"] = "json"
    delimiter: str = ","
    usage_source: UsageSource = "gateway"
    where: dict[str, list[str]] = {}
    defaults: dict[str, str | int] = {}


@dataclass(frozen=True, slots=True)
class LogMapping:
    """A mapping that was read: the log's name, and how each field of an event is found in a line."""

    log: str
    form: Literal["json", "csv"]
    delimiter: str
    where: Mapping[str, Sequence[str]]
    fields: Mapping[str, Field]
    constants: Mapping[str, str | int]

    def rows(self, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes, Mapping[str, Any] | str]]:
        """Each line with its number as names and values, or why it is none; of CSV the first line names the columns."""
        columns: list[str] | None = None
        for number, line in lines:
            try:
                text = line.decode()
                if self.form == "csv":
                    cells = next(csv.reader([text], delimiter=self.delimiter))
                    if columns is None:
                        columns = cells
                        continue
                    yield number, line, dict(zip(columns, cells, strict=True))
                else:
                    found = json.loads(text)
                    yield number, line, found if isinstance(found, dict) else "no JSON object"
            except (ValueError, RecursionError, csv.Error) as error:
                yield number, line, f"no {self.form.upper()}: {error}"

    def concerns(self, row: Mapping[str, Any]) -> bool:
        """Whether a line is about a request that is metered: has one of the values that `where` names."""
        return all(_text(_at(row, path)) in wanted for path, wanted in self.where.items())

    def event_of(self, row: Mapping[str, Any]) -> bytes:
        """The line's usage event as JSON. Raises ValueError, which names the field and what is wrong with it."""
        event: dict[str, Any] = dict(self.constants)
        for name, field in self.fields.items():
            value = _at(row, field.source)
            if field.values or field.otherwise is not None:
                value = field.values.get(_text(value), field.otherwise)
            if value is None or value == "" or value == "-":
                if name in REQUIRED and name not in event:
                    raise ValueError(f"{name}: the line has no {field.source}")
                continue
            event[name] = _converted(name, field, value)
        message = msgspec.json.encode(event)
        try:
            decode(message)
        except RefusedEvent as refused:
            raise ValueError(str(refused)) from None
        return message


def mapping_from(document: object, name: str) -> LogMapping:
    """A mapping from a YAML file's content. Raises MappingInvalid, which names file and field."""
    try:
        read = msgspec.convert(document, _File)
    except msgspec.ValidationError as error:
        raise MappingInvalid(f"{name}: {error}") from None
    fields = {field: Field(told) if isinstance(told, str) else told for field, told in read.fields.items()}
    known = set(UsageEvent.__struct_fields__) - {"event_id", "seq", "schema_version"}
    if strange := sorted((set(fields) | set(read.defaults)) - known):
        raise MappingInvalid(f"{name}: {strange[0]} is no field of a usage event that a log may tell")
    if missing := [field for field in REQUIRED if field not in fields and field not in read.defaults]:
        raise MappingInvalid(f"{name}: nothing says what {missing[0]} is")
    constants: dict[str, str | int] = {"usage_source": read.usage_source} | read.defaults
    return LogMapping(read.log, read.format, read.delimiter, read.where, fields, constants)


def _at(row: Mapping[str, Any], path: str) -> Any:
    """What a line has under a name, or under a path of names."""
    if path in row:
        return row[path]
    found: Any = row
    for name in path.split("."):
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return found


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _converted(name: str, field: Field, value: Any) -> Any:
    try:
        if name in _COUNTS:
            whole = int(value)
            if not isinstance(value, str) and whole != value:
                raise ValueError
            return whole
        if name in _TIMES:
            return _time(field.form, value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name}: {value!r} is not {'a whole number' if name in _COUNTS else field.form}") from None
    return str(value)


def _time(form: str, value: Any) -> str:
    """A line's time as RFC 3339 in UTC. Epoch times are taken digit by digit: no float touches them."""
    if form in get_args(TimeForm) and form != "rfc3339":
        whole, _, fraction = str(value).partition(".")
        digits = 6 if form == "epoch_s" else 3
        micros = int(whole) * 10**digits + int((fraction + "0" * digits)[:digits])
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
        return at.isoformat()
    at = datetime.fromisoformat(value) if form == "rfc3339" else datetime.strptime(value, form)  # noqa: DTZ007
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
