"""What an account's documents bill of earlier periods: the cuts that it follows from, and what others billed before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, text

from billing.money import plain
from billing.periods import BillingPeriod
from reconciliation.close import freezing
from reconciliation.close.freezing import Cut

_LATE: Final = """
    late as (
        select i.billing_account as account, l.original_start as since, l.original_end as until, l.tenant_id,
            max(coalesce(i.frozen_recorded_at, 'infinity')) as frozen
        from ledger.invoices as i join ledger.invoice_lines as l using (invoice_id)
        where i.invoice_id = any(cast(:documents as uuid[])) and l.original_end <= :before and l.kind <> 'credit'
        group by 1, 2, 3, 4
    )"""
_CUTS: Final = text(
    f"""
    with {_LATE}
    select account, since, until, tenant_id, (
        select digest from ledger.close_cuts as c
        where (c.period_start, c.period_end) = (since, until) and late.tenant_id = any(c.tenants)
          and c.taken_at < frozen and c.accrued_to is null
        order by cut_id desc limit 1)
    from late order by account, since, until, tenant_id
    """
)
_BILLED: Final = text(
    f"""
    with {_LATE}
    select account, since, until, l.tenant_id, i.invoice_id, split_part(l.tax_group, '@', 1), sum(l.amount_exact)
    from late
    join ledger.invoices as i on i.billing_account = account and i.frozen_recorded_at < frozen
    join ledger.invoice_lines as l on l.invoice_id = i.invoice_id and l.tenant_id = late.tenant_id
    where i.invoice_id <> all(cast(:documents as uuid[])) and l.kind <> 'credit'
      and ((l.original_start, l.original_end) = (since, until) or (l.original_start is null and i.kind = 'usage'
           and (i.service_start, i.service_end) = (since, until)))
    group by 1, 2, 3, 4, 5, 6 order by 1, 2, 3, 4, 5, 6
    """
)


@dataclass(frozen=True, slots=True)
class BilledBefore:
    """What another document had billed of a tenant's period in a tax group: exact, in major units."""

    invoice_id: UUID
    tax_group: str
    amount: Decimal

    def document(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"invoice_id": str(self.invoice_id), "tax_group": self.tax_group, "amount": plain(self.amount)}


@dataclass(frozen=True, slots=True)
class BilledLate:
    """A tenant's earlier period of which an account's documents have lines: the last cut before these were frozen."""

    billing_account: str
    tenant_id: str
    cut: Cut
    before: tuple[BilledBefore, ...]


def billed_late(connection: Connection, documents: Collection[UUID], before: BillingPeriod) -> list[BilledLate]:
    """What documents of a month bill of periods that ended before it, in order; of a tenant that no close has cut then
    there is nothing to show."""
    given = {"documents": list(documents), "before": before.start}
    billed: dict[tuple[Any, ...], list[BilledBefore]] = defaultdict(list)
    for account, since, until, tenant_id, *of in connection.execute(_BILLED, given):
        billed[account, since, until, tenant_id].append(BilledBefore(*of))
    listed = [tuple(row) for row in connection.execute(_CUTS, given)]
    cuts = {cut.digest: cut for cut in freezing.by_digest(connection, {row[-1] for row in listed if row[-1]})}
    return [
        BilledLate(account, tenant_id, cuts[digest], tuple(billed[account, since, until, tenant_id]))
        for account, since, until, tenant_id, digest in listed
        if digest in cuts
    ]


def cuts_of(late: Iterable[BilledLate]) -> list[Cut]:
    """The cuts, each of the tenants that are asked for."""
    cuts: dict[str, Cut] = {}
    tenants: dict[str, set[str]] = defaultdict(set)
    for each in late:
        cuts[each.cut.digest] = each.cut
        tenants[each.cut.digest].add(each.tenant_id)
    return [replace(cut, tenants=frozenset(tenants[digest])) for digest, cut in cuts.items()]
