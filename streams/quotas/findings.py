"""Usage that was settled and not metered within the metering lag: told once an hour for each tenant. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from streams.alerts import Alert
from streams.quotas.calendar import moment
from streams.quotas.held import Held

HOUR_US: Final = 3_600_000_000


def unconfirmed_alert(held: Held, request_id: str, now: int) -> list[Alert]:
    """The alert, if none was raised in this hour: whether one request is overdue or each, a person looks once."""
    hour = now // HOUR_US
    if held.found_in == hour:
        return []
    held.found_in = hour
    tenant_id, lag = held.book.tenant_id, held.book.limits.lag_us // 1_000_000
    text = (
        f"usage of {tenant_id} was settled and not metered within {lag} s, first of {request_id}: it counts as settled;"
    )
    text += " look at the workers' lag and the adapters' shippers"
    since = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=hour)
    return [Alert("quota_unconfirmed", tenant_id, {"hour": since.isoformat()}, text, moment(now))]
