"""A gateway's log and the events by tenant, model and hour (docs/spec/metering.md 6): do they agree, without tolerance?

A request stands in the hour in which its event is counted; one that is not counted, in the hour of the log.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import psycopg

from serving_adapter.events import UsageEvent

MOST_ADMITTED: Final = 2_000_000
"""Requests of a log, some 200 MB of identities, so that a line that is there twice counts once."""
MOST_HOURS: Final = 200_000
"""Of tenants and models, some 200 MB: whoever has more looks at a shorter time."""
HOUR: Final = timedelta(hours=1)
Key = tuple[str, str, datetime]
"""(tenant, model, hour)."""
_COUNTED: Final = """
    select tenant_id, model, bucket, sum(requests)::int8, sum(input_tokens)::int8, sum(output_tokens)::int8
    from usage.windows_1h
    where tenant_id = any(%s) and bucket >= %s and bucket < %s and purpose = 'tenant' group by 1, 2, 3 limit %s
"""


class Sums(NamedTuple):
    """Requests and their tokens."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class Hour(NamedTuple):
    """An hour of a tenant and model: what the log has, what is counted, and how many of the log's are not counted."""

    tenant_id: str
    model: str
    hour: datetime
    admitted: Sums
    counted: Sums
    missing: int

    @property
    def agrees(self) -> bool:
        """Whether both are the same requests, as far as sums tell, and the same tokens."""
        return self.admitted == self.counted and not self.missing

    @property
    def beyond(self) -> int:
        """How many are counted that the log does not have."""
        return self.counted.requests - (self.admitted.requests - self.missing)


@dataclass(frozen=True, slots=True)
class ByHour:
    """Every tenant, model and whole hour in [begin, end) that the log or the events of its tenants have.

    `whole` is False where there is more than is compared so (MOST_ADMITTED, MOST_HOURS): then there are no hours.
    """

    begin: datetime
    end: datetime
    hours: tuple[Hour, ...]
    whole: bool = True

    @property
    def differing(self) -> list[Hour]:
        """Those that do not agree."""
        return [hour for hour in self.hours if not hour.agrees]


class Admitted:
    """What a log has by hour, as it is read."""

    def __init__(self) -> None:
        self._seen: set[bytes] | None = set()
        self._sums: dict[Key, list[int]] = defaultdict(lambda: [0, 0, 0])
        self._missing: dict[Key, int] = defaultdict(int)

    def add(self, key: bytes, event: UsageEvent, at: datetime, counted_at: datetime | None) -> None:
        """A request of the log by the key of its identity; `counted_at`: when its event counts, if there is one."""
        if self._seen is None or key in self._seen:
            return
        if len(self._seen) == MOST_ADMITTED:
            self._seen = None
            return
        self._seen.add(key)
        hour = (event.tenant_id, event.model, hour_of(counted_at or at))
        for index, count in enumerate((1, event.input_tokens, event.output_tokens)):
            self._sums[hour][index] += count
        self._missing[hour] += counted_at is None

    def compare(self, connection: psycopg.Connection, begin: datetime, end: datetime) -> ByHour:
        """Compare the whole hours in [begin, end), of the tenants that the log has, from its first hour to its last."""
        times = [hour for _, _, hour in self._sums]
        if not times or self._seen is None:
            return ByHour(begin, begin, (), whole=self._seen is not None)
        begin = max(hour_of(begin + HOUR - timedelta(microseconds=1)), min(times))
        end = min(hour_of(end), max(times) + HOUR)
        if begin >= end:
            return ByHour(begin, begin, ())
        tenants = sorted({tenant_id for tenant_id, *_ in self._sums})
        counted = {
            (tenant_id, model, hour): Sums(*sums)
            for tenant_id, model, hour, *sums in connection.execute(_COUNTED, (tenants, begin, end, MOST_HOURS + 1))
        }
        if len(counted) > MOST_HOURS:
            return ByHour(begin, begin, (), whole=False)
        keys = {key for key in self._sums if begin <= key[2] < end} | counted.keys()
        hours = (
            Hour(
                tenant_id,
                model,
                hour,
                Sums(*self._sums.get(key, ())),
                counted.get(key, Sums()),
                self._missing.get(key, 0),
            )
            for key in sorted(keys)
            for tenant_id, model, hour in [key]
        )
        return ByHour(begin, end, tuple(hours))


def hour_of(at: datetime) -> datetime:
    """The hour that holds a moment, by its begin."""
    return at.replace(minute=0, second=0, microsecond=0)
