"""What a replay adds to windows and quotas, added up as its messages are judged. Values only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from streams.quotas.calendar import Anchor, bounds, microseconds, moment
from streams.quotas.definitions import Quota
from streams.rules.chunks import Accepted

SUMS: Final = ("requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")
Hour = tuple[str, str, str, datetime]
"""(tenant, model, adapter, hour)."""


@dataclass(slots=True)
class Effects:
    """What is added by hour, for each tenant, model and adapter; how many windows of a minute and of an hour change."""

    by_hour: dict[Hour, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0] * len(SUMS)))
    billable: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By tenant and month, events of purpose `tenant`."""
    minutes: set[int] = field(default_factory=set)
    """Hashes of the windows: of so few a collision is no matter."""
    first: datetime | None = None
    last: datetime | None = None

    def add(self, message: Accepted) -> None:
        """An event that would be counted."""
        event, at = message.event, message.completed_at
        if event.purpose == "tenant":
            self._count(event, event.adapter or "", at, 1)
        self.minutes.add(
            hash((at.replace(second=0, microsecond=0), event.tenant_id, event.model, event.adapter, event.region,
                  event.tier, event.pool, event.status, event.fault, event.purpose, event.usage_source,
                  message.rating_band))
        )  # fmt: skip
        self.first = at if self.first is None else min(self.first, at)
        self.last = at if self.last is None else max(self.last, at)

    def leave(self, row: Any) -> None:
        """A stored event that would count no more, with the columns of `usage.events`."""
        if row.purpose == "tenant":
            self._count(row, row.adapter, row.completed_at, -1)

    def _count(self, of: Any, adapter: str, at: datetime, sign: int) -> None:
        self.billable[of.tenant_id, f"{at:%Y-%m}"] += sign
        sums = self.by_hour[of.tenant_id, of.model, adapter, at.replace(minute=0, second=0, microsecond=0)]
        counts = (int(of.kind == "usage"), of.input_tokens, of.cache_hit_tokens, of.output_tokens, of.gpu_us)
        for index, count in enumerate(counts):
            sums[index] += sign * count

    def by_tenant_and_month(self) -> list[dict[str, Any]]:
        """Requests and tokens by tenant and calendar month, in order."""
        found: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * len(SUMS))
        hours: Counter[tuple[str, str]] = Counter()
        for (tenant_id, _, _, hour), sums in self.by_hour.items():
            key = (tenant_id, f"{hour:%Y-%m}")
            hours[key] += 1
            for index, count in enumerate(sums):
                found[key][index] += count
        return [
            {"tenant_id": tenant, "month": month, "events": self.billable[tenant, month]}
            | dict(zip(SUMS, sums, strict=True)) | {"windows_1h": hours[tenant, month]}
            for (tenant, month), sums in sorted(found.items())
        ]  # fmt: skip


_UNITS: Final = {"requests": 0, "input_tokens": 1, "cached_input_tokens": 2, "output_tokens": 3, "gpu_seconds": 4}


@dataclass(frozen=True, slots=True)
class QuotaEffect:
    """What one period of a quota gets beyond what it has: smallest units, as its limit."""

    quota: Quota
    tenant_id: str
    start: datetime
    end: datetime
    added: int


def quota_effects(
    by_hour: Mapping[Hour, list[int]], quotas: Mapping[str, Iterable[Quota]], anchors: Mapping[str, Anchor]
) -> list[QuotaEffect]:
    """The budgets that are touched, with what each of their periods gets. Spend is money's matter, and left out."""
    added: dict[tuple[str, str, int, int], int] = defaultdict(int)
    by_id: dict[tuple[str, str], Quota] = {}
    for (tenant_id, model, adapter, hour), sums in by_hour.items():
        for quota in quotas.get(tenant_id, ()):
            if not quota.is_budget or quota.metric == "spend" or not quota.covers(model, adapter):
                continue
            units = sums[1] + sums[3] if quota.metric == "total_tokens" else sums[_UNITS[quota.metric]]
            start, end = bounds(quota.period, microseconds(hour), anchors[tenant_id])
            added[tenant_id, quota.quota_id, start, end] += units
            by_id[tenant_id, quota.quota_id] = quota
    return [
        QuotaEffect(by_id[tenant, quota_id], tenant, moment(start), moment(end), units)
        for (tenant, quota_id, start, end), units in sorted(added.items())
        if units
    ]
