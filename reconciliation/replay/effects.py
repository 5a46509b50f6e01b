"""What a replay adds to windows and quotas, added up as its messages are judged. Values only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from streams.quotas.amounts import FREE, Counts, PriceList, amount
from streams.quotas.calendar import Anchor, bounds, microseconds, moment
from streams.quotas.definitions import Quota
from streams.rules.chunks import Accepted
from streams.rules.estimates import BILL_STATUSES

_HOUR_US: Final = 3_600_000_000
SUMS: Final = ("requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")
"""In the order of `Counts`."""
Hour = tuple[str, str, str, datetime]
"""(tenant, model, adapter, hour)."""


@dataclass(slots=True)
class Effects:
    """What is added by hour, for each tenant, model and adapter; how many windows of a minute and of an hour change."""

    by_hour: dict[Hour, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0] * len(SUMS)))
    that_may_bill: dict[tuple[str, str, str, datetime, str], list[int]] = field(
        default_factory=lambda: defaultdict(lambda: [0] * len(SUMS))
    )
    """By hour and status, what bills where the contract bills that status."""
    billable: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By tenant and month, events of purpose `tenant`."""
    minutes: set[int] = field(default_factory=set)
    """Hashes of the windows: of so few a collision is no matter."""
    first: datetime | None = None
    last: datetime | None = None

    def add(self, message: Accepted, enters_at: datetime | None = None, corrected: Any = None) -> None:
        """An event that would be counted.

        A correction enters the bucket of what it corrects (docs/spec/metering.md 1.3): `enters_at` its time, with the
        keys of `corrected`, its row, where that is stored.
        """
        event, at = message.event, enters_at or message.completed_at
        keys, band = (event, message.rating_band) if corrected is None else (corrected, corrected.rating_band)
        if keys.purpose == "tenant":
            self._count(event, keys, at, 1)
        self.minutes.add(
            hash((at.replace(second=0, microsecond=0), keys.tenant_id, keys.model, keys.adapter or "", keys.region,
                  keys.tier, keys.pool, keys.status, keys.fault, keys.purpose, keys.usage_source, band))
        )  # fmt: skip
        self.first = at if self.first is None else min(self.first, at)
        self.last = at if self.last is None else max(self.last, at)

    def leave(self, row: Any) -> None:
        """A stored event that would count no more, with the columns of `usage.events`."""
        if row.purpose == "tenant":
            self._count(row, row, row.completed_at, -1)

    def _count(self, of: Any, keys: Any, at: datetime, sign: int) -> None:
        self.billable[keys.tenant_id, f"{at:%Y-%m}"] += sign
        hour = at.replace(minute=0, second=0, microsecond=0)
        key = (keys.tenant_id, keys.model, keys.adapter or "", hour)
        counts = (int(of.kind == "usage"), of.input_tokens, of.cache_hit_tokens, of.output_tokens, of.gpu_us)
        may_bill = keys.status != "lost" and keys.fault != "platform" and keys.usage_source != "estimate"
        for sums in [self.by_hour[key], *([self.that_may_bill[(*key, keys.status)]] if may_bill else ())]:
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


@dataclass(frozen=True, slots=True)
class QuotaEffect:
    """What one period of a quota gets beyond what it has: smallest units, as its limit."""

    quota: Quota
    tenant_id: str
    start: datetime
    end: datetime
    added: int


def quota_effects(
    effects: Effects,
    quotas: Mapping[str, Iterable[Quota]],
    anchors: Mapping[str, Anchor],
    prices: Mapping[str, PriceList],
    statuses: Mapping[str, Collection[str]],
) -> list[QuotaEffect]:
    """The budgets that are touched, with what each of their periods gets.

    Spend is counted as the quota service does (docs/spec/metering.md 7.1): what bills, at the highest price that may
    apply; in an hour in which that changes, at the higher one. `statuses` that bill, where not as by default.
    """
    added: dict[tuple[str, str, int, int], int] = defaultdict(int)
    by_id: dict[tuple[str, str], Quota] = {}

    def note(tenant_id: str, quota: Quota, hour: datetime, units: int) -> None:
        start, end = bounds(quota.period, microseconds(hour), anchors[tenant_id])
        added[tenant_id, quota.quota_id, start, end] += units
        by_id[tenant_id, quota.quota_id] = quota

    for (tenant_id, model, adapter, hour), sums in effects.by_hour.items():
        for quota in quotas.get(tenant_id, ()):
            if quota.is_budget and quota.metric != "spend" and quota.covers(model, adapter):
                note(tenant_id, quota, hour, amount(quota.metric, Counts(*sums), FREE))
    for (tenant_id, model, adapter, hour, status), sums in effects.that_may_bill.items():
        if status not in (statuses.get(tenant_id) or BILL_STATUSES):
            continue
        for quota in quotas.get(tenant_id, ()):
            if quota.metric == "spend" and quota.covers(model, adapter):
                at = microseconds(hour)
                price = prices.get(tenant_id, PriceList()).highest(model, at, at + _HOUR_US - 1)
                note(tenant_id, quota, hour, price.of(Counts(*sums)))
    return [
        QuotaEffect(by_id[tenant, quota_id], tenant, moment(start), moment(end), units)
        for (tenant, quota_id, start, end), units in sorted(added.items())
        if units
    ]
