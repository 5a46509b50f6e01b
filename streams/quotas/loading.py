"""Budgets filled from the windows, and the thresholds that their usage has reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streams.alerts import Alert
from streams.quotas.amounts import amount
from streams.quotas.book import TenantBook
from streams.quotas.calendar import moment
from streams.quotas.definitions import shown
from streams.quotas.feed import Span, Used


def fill(book: TenantBook, found: Mapping[Span, Sequence[Used]]) -> None:
    """Load the budgets that are empty, and whose periods were read."""
    for meter in book.meters.budgets:
        used = found.get(Span(meter.start, meter.end))
        if used is None or meter.loaded:
            continue
        sums = [0, 0]
        for each in used:
            if meter.quota.covers(each.model, each.adapter) and (each.bills or meter.quota.metric != "spend"):
                price = book.meters.price(each.model, each.priced_at)
                sums[each.ahead] += amount(meter.quota.metric, each.counts, price)
        meter.load(sums[0], {meter.end: sums[1]})


def threshold_alerts(book: TenantBook, now: int) -> list[Alert]:
    """Alerts of thresholds that confirmed usage has reached, and that were not told yet as far as is known here."""
    found = []
    for meter in book.meters.budgets:
        if not meter.loaded or not meter.quota.thresholds:
            continue
        for threshold, period, confirmed in meter.crossed():
            quota = meter.quota
            start = moment(period).isoformat()
            subject = {"quota_id": quota.quota_id, "version": quota.version, "period": start, "percent": threshold}
            limit, used = shown(quota.limit, quota.metric), shown(confirmed, quota.metric)
            text = f"{threshold} % of {quota.quota_id} is used: {used} of {limit} in the period from {start}"
            found.append(Alert("quota_threshold", book.tenant_id, subject, text, moment(now)))
    return found
