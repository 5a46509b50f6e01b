"""Late usage in the database: of which billed periods something is still to be billed, and what credits can cover."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Final

from sqlalchemy import ARRAY, UUID, Connection, String, and_, any_, case, cast, func, or_, select, text

from billing import tables
from billing.bills.late_usage import plain_group
from billing.database import raw
from billing.invoicing import billed_until_store
from billing.invoicing.invoices import InvoiceKind
from billing.invoicing.rated_line_store import rated_line
from billing.periods import BillingPeriod
from billing.rating import RatedLine
from billing.rating.period import Coverable
from streams.retention.archive_store import archived_days

# A line's identity, its price, and the tax group of its plan. What was billed of a period is on its own usage invoice,
# and on whatever names it as the original period of a line.
_LINE: Final = """l.tenant_id, l.subscription_id, l.segment_no, l.plan, l.version, l.charge_key, l.tier_no, l.kind,
    l.unit_price, split_part(l.tax_group, '@', 1) as tax_group"""
_OUTSTANDING: Final = text(
    f"""
    with asked as (
        select * from unnest(cast(:starts as timestamptz[]), cast(:ends as timestamptz[])) as p (since, until)
    ), own as (
        select i.invoice_id, i.billing_account as account, since, until
        from asked join ledger.invoices as i on (i.service_start, i.service_end) = (since, until)
        where i.kind = 'usage' and i.frozen_at is not null
          and (cast(:accounts as text[]) is null or i.billing_account = any(cast(:accounts as text[])))
        union all
        select null::uuid, account, since, until from unnest(cast(:closed as text[]),
            cast(:closed_starts as timestamptz[]), cast(:closed_ends as timestamptz[])) as c (account, since, until)
    ), moved as (
        select account, since, until, {_LINE}, l.amount, l.quantity
        from own join ledger.rated_lines as l
            on (l.billing_account, l.period_start, l.period_end) = (account, since, until)
        union all
        select account, since, until, {_LINE}, -l.amount_exact, -l.quantity
        from own join ledger.invoice_lines as l using (invoice_id)
        where l.original_start is null and l.kind <> 'credit'
        union all
        select account, since, until, {_LINE}, -l.amount_exact, -l.quantity
        from own join ledger.invoice_lines as l on (l.original_start, l.original_end) = (since, until)
        join ledger.invoices as i on i.invoice_id = l.invoice_id and i.billing_account = account
        where i.frozen_at is not null and l.kind <> 'credit'
    ), lines as (
        select account, since, until, tax_group, sum(amount) as amount
        from moved
        group by account, since, until, tenant_id, subscription_id, segment_no, plan, version, charge_key, tier_no,
            kind, unit_price, tax_group
        having sum(amount) <> 0 or sum(quantity) <> 0
    )
    select account, since, until, tax_group, sum(amount) from lines group by 1, 2, 3, 4 order by 1, 2, 3, 4
    """
)
Outstanding = dict[tuple[str, BillingPeriod], dict[str, Decimal]]


def outstanding(
    connection: Connection, periods: Collection[BillingPeriod], accounts: Collection[str] | None = None
) -> Outstanding:
    """By billing account and billed period what is rated and on no frozen document: tax group → exact, before credits.

    A group may come to nothing by lines that differ. Accounts whose invoice of the period is not frozen are left out,
    but those whose close has ended without one.
    """
    closed = billed_until_store.closed_without_invoice(connection, periods, accounts)
    given = {
        "closed": [account for account, _ in closed],
        "closed_starts": [period.start for _, period in closed],
        "closed_ends": [period.end for _, period in closed],
        "starts": [period.start for period in periods],
        "ends": [period.end for period in periods],
        "accounts": None if accounts is None else list(accounts),
    }
    found: Outstanding = defaultdict(dict)
    for account, since, until, group, amount in connection.execute(_OUTSTANDING, given):
        found[account, BillingPeriod(since, until)][group] = amount
    return dict(found)


@dataclass(frozen=True, slots=True)
class LateLine:
    """A line that was rated of a period after the account's invoice of it was frozen, or its close ended without one.

    `waits`: no frozen invoice of the account can carry it yet, because none was frozen since.
    """

    line: RatedLine
    waits: bool


def late_lines(connection: Connection, period: BillingPeriod, *, up_to_line: int | None = None) -> list[LateLine]:
    """What was rated of a period after its invoices were frozen; `up_to_line`: as in `rated_line_store.posted`."""
    rated, invoice, line = tables.rated_lines, tables.invoices, tables.invoice_lines
    of_period = and_(invoice.c.service_start == period.start, invoice.c.service_end == period.end)
    frozen = (
        select(
            invoice.c.billing_account,
            func.max(invoice.c.frozen_recorded_at).label("last"),
            func.min(case((of_period, invoice.c.frozen_recorded_at))).label("own"),
        )
        .where(invoice.c.kind == InvoiceKind.USAGE.value, invoice.c.service_start >= period.start)
        .group_by(invoice.c.billing_account)
        .subquery()
    )
    adjusted = (
        select(invoice.c.billing_account, line.c.tax_group, func.max(invoice.c.frozen_recorded_at))
        .join(line, line.c.invoice_id == invoice.c.invoice_id)
        .where(line.c.original_start == period.start, line.c.original_end == period.end)
        .group_by(invoice.c.billing_account, line.c.tax_group)
    )
    billed_at: dict[tuple[str, str], datetime] = {}
    for account, group, at in connection.execute(adjusted):
        if at is not None:
            of = account, plain_group(group)
            billed_at[of] = max(at, billed_at.get(of, at))
    closed = [account for account, _ in billed_until_store.closed_without_invoice(connection, [period])]
    query = (
        select(rated, frozen.c.last)
        .join(frozen, frozen.c.billing_account == rated.c.billing_account, isouter=True)
        .where(
            rated.c.period_start == period.start,
            rated.c.period_end == period.end,
            or_(rated.c.recorded_at > frozen.c.own, rated.c.billing_account == any_(cast(closed, ARRAY(String)))),
        )
    )
    if up_to_line is not None:
        query = query.where(rated.c.rated_line_no <= up_to_line)
    found = []
    for row in connection.execute(query):
        came = rated_line(
            row, billing_account=row.billing_account, currency=row.currency, amount=row.amount, reason=row.reason
        )
        of = row.billing_account, row.tax_group
        waits = all(at is None or row.recorded_at > at for at in (row.last, billed_at.get(of)))
        found.append(LateLine(came, waits))
    return found


def periods_with_late_lines(connection: Connection, since: datetime) -> list[BillingPeriod]:
    """The periods of which something was rated since a moment, after an invoice of theirs was frozen."""
    rated, invoice = tables.rated_lines, tables.invoices
    query = (
        select(rated.c.period_start, rated.c.period_end)
        .distinct()
        .join(
            invoice,
            (invoice.c.billing_account == rated.c.billing_account)
            & (invoice.c.service_start == rated.c.period_start)
            & (invoice.c.service_end == rated.c.period_end),
        )
        .where(
            invoice.c.kind == InvoiceKind.USAGE.value,
            rated.c.recorded_at > invoice.c.frozen_recorded_at,
            rated.c.recorded_at >= since,
        )
    )
    return sorted(BillingPeriod(*row) for row in connection.execute(query))


def rated_periods(connection: Connection, up_to: datetime) -> list[BillingPeriod]:
    """The periods that were rated and end by a moment, in order, as far as something late may have come to them.

    What is archived takes no further event (docs/retention.md) but by a replay: then it has to be recalled.
    """
    table = tables.tenant_periods
    query = select(table.c.period_start, table.c.period_end).where(table.c.period_end <= up_to).distinct()
    found = sorted(BillingPeriod(*row) for row in connection.execute(query))
    return [period for period in found if not is_archived(connection, period) or _replayed(connection, period)]


def is_archived(connection: Connection, period: BillingPeriod) -> bool:
    """Whether some of a period's raw events are only in the archive: it cannot be rated until they are recalled."""
    return any(held.is_gone for held in archived_days(raw(connection), period.start, period.end))


def _replayed(connection: Connection, period: BillingPeriod) -> bool:
    row = (
        raw(connection)
        .execute(
            "select exists (select from usage.replayed_identities where completed_at >= %s and completed_at < %s)",
            (period.start, period.end),
        )
        .fetchone()
    )
    return bool(row and row[0])


def save_coverables(
    connection: Connection, invoice_id: uuid.UUID, of: Mapping[BillingPeriod, Mapping[str, Iterable[Coverable]]]
) -> None:
    """Keep what credits can still cover of periods by tax group, once this document is frozen."""
    table = tables.billed_coverables
    connection.execute(table.delete().where(table.c.invoice_id == invoice_id))
    rows = [
        {
            "invoice_id": invoice_id,
            "period_start": period.start,
            "period_end": period.end,
            "tax_group": group,
            "content": [[c.at.isoformat(), c.charge_key, str(c.amount), c.is_fee, c.model] for c in listed],
        }
        for period, groups in of.items()
        for group, listed in groups.items()
    ]
    if rows:
        connection.execute(table.insert(), rows)


def coverables(
    connection: Connection, invoice_ids: Sequence[uuid.UUID], period: BillingPeriod
) -> list[Coverable] | None:
    """What credits can still cover of a period as some frozen documents left it; None if none of them says."""
    table = tables.billed_coverables
    query = (
        select(table.c.tax_group, table.c.content)
        .where(
            table.c.invoice_id.in_([cast(each, UUID) for each in invoice_ids]),
            table.c.period_start == period.start,
            table.c.period_end == period.end,
        )
        .order_by(table.c.coverable_no)
    )
    latest = {row.tax_group: row.content for row in connection.execute(query)}
    if not latest:
        return None
    return [
        Coverable(datetime.fromisoformat(at), key, group, Fraction(amount), is_fee, *model)
        for group, content in latest.items()
        for at, key, amount, is_fee, *model in content  # models were not kept at first
    ]


def by_group(groups: Iterable[str], listed: Iterable[Coverable]) -> dict[str, list[Coverable]]:
    """What credits can cover, by tax group; a group that has nothing left is there too."""
    found: dict[str, list[Coverable]] = {group: [] for group in groups}
    for each in listed:
        if each.tax_group in found:
            found[each.tax_group].append(each)
    return found
