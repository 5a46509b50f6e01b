"""Budgets filled from the windows, and the thresholds that their usage has reached."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from streams.alerts import Alert
from streams.quotas.amounts import amount
from streams.quotas.book import TenantBook
from streams.quotas.calendar import moment
from streams.quotas.decisions import Refused
from streams.quotas.definitions import shown
from streams.quotas.feed import Span, Used
from streams.quotas.meters import BudgetMeter


def fill(book: TenantBook, found: Mapping[Span, Sequence[Used]], with_before: Collection[BudgetMeter] = ()) -> None:
    """Load the budgets that are empty, and whose periods were read; some of them with the period before."""
    for meter in book.meters.budgets:
        used = found.get(Span(meter.start, meter.end))
        if used is None or meter.loaded:
            continue
        within, ahead = _sums(book, meter, used)
        meter.load(within, {meter.end: ahead})
        before = found.get(Span(*meter.period_before())) if meter in with_before else None
        if before is not None:
            meter.load_before(_sums(book, meter, before)[0])


def _sums(book: TenantBook, meter: BudgetMeter, used: Sequence[Used]) -> tuple[int, int]:
    """What some usage is in a budget: of its span, and ahead of it."""
    sums = [0, 0]
    for each in used:
        if meter.quota.covers(each.model, each.adapter) and (each.bills or meter.quota.metric != "spend"):
            price = book.meters.price(each.model, each.priced_at)
            sums[each.ahead] += amount(meter.quota.metric, each.counts, price)
    return sums[0], sums[1]


def spent_alerts(book: TenantBook, refused: Refused) -> list[Alert]:
    """Alerts of budgets that are refused as spent, though confirmed usage stays below their limits."""
    spent = [wall for wall in refused.walls if wall.because == "spent" and wall.quota.thresholds]
    for wall in spent:
        meter = book.meters.named(wall.quota.quota_id)
        assert isinstance(meter, BudgetMeter), "only budgets are spent"
        meter.refused_as_spent(wall.needed)
    return threshold_alerts(book, refused.at) if spent else []


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
            if confirmed * 100 < threshold * quota.limit:
                text += "; what is left is too little, and requests are refused"
            found.append(Alert("quota_threshold", book.tenant_id, subject, text, moment(now)))
    return found
