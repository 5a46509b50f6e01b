"""The cut: what a period was rated from, copied in the transaction that rated it, and where all else stood then."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from enum import StrEnum
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ARRAY, Column, Connection, Row, String, all_, and_, any_, cast, func, select, text

from billing import tables
from billing.commands.rate_period import Keep, KeptRating
from billing.database import add_rows, raw
from billing.invoicing import billed_until_store, rated_line_store
from billing.ledger import journal_chain_store
from billing.ledger.journal_chain import canonical, written_time
from billing.periods import BillingPeriod, parse_period, rfc3339
from billing.plans.term_digests import term_digests
from billing.usage.period_usage import PieceSums
from streams.rules.windows import UsageQuantity
from streams.usage.event_reader import positions

ROW: Final = (
    "tenant_id", "billing_account", "plan", "version", "segment_no", "service_start", "service_end", "model", "adapter",
    "region", "tier", "status", "fault", "usage_source", "rating_band", "requests", "input_tokens", "cache_hit_tokens",
    "output_tokens", "gpu_us",
)  # fmt: skip
"""The columns of a row of frozen usage that its digest is over, in this order."""
COUNTS: Final = ("requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")
_QUANTITY: Final = tuple(each.name for each in fields(UsageQuantity))
LOCK_FILE: Final = Path(__file__).resolve().parents[2] / "requirements.lock"


class CutOf(StrEnum):
    """Which usage a month's close cuts: of a period that ends in the month, which it bills; of an earlier one to which
    something came; of one that goes on, as far as the month goes, which it accrues."""

    MONTH = "month"
    LATE = "late"
    ACCRUAL = "accrual"


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut of one billing period, of some tenants. `accrued_to`: up to when, of a period that goes on."""

    cut_id: int
    period: BillingPeriod
    tenants: frozenset[str]
    coordinates: Mapping[str, Any]
    digest: str
    taken_at: datetime
    accrued_to: datetime | None = None

    @property
    def until(self) -> datetime:
        """Where the usage that is cut ends."""
        return self.accrued_to or self.period.end

    @property
    def below(self) -> dict[str, int]:
        """Up to which position of each source usage was applied."""
        return dict(self.coordinates["offsets"])

    @property
    def last_line(self) -> int:
        """The highest number of a rated line."""
        return int(self.coordinates["rated_line_no"])


def row_digest(row: Mapping[str, Any]) -> str:
    """The digest of a row of frozen usage: SHA-256 over the canonical JSON of its columns."""
    return hashlib.sha256(canonical([_written(row[name]) for name in ROW])).hexdigest()


def written_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of frozen usage as JSON holds it, with its digest."""
    return {name: _written(row[name]) for name in ROW} | {"digest": row["digest"]}


def cut_digest(coordinates: Mapping[str, Any], digests: Collection[str]) -> str:
    """The digest of a cut: over its coordinates and its rows' digests, in their order."""
    return hashlib.sha256(canonical([dict(coordinates), list(digests)])).hexdigest()


def keeping(month: BillingPeriod, tenants: Collection[str], actor: str, freeze: Callable[[Connection], None]) -> Keep:
    """What a rating is told to do in its transaction: cut the usage of those of the tenants that could be rated.

    `freeze` is called after that, in the same transaction.
    """

    def keep(connection: Connection, rated: KeptRating) -> None:
        _add(connection, month, rated, rated.tenants.intersection(tenants), actor)
        freeze(connection)

    return keep


def keeping_late(month: BillingPeriod, actor: str) -> Keep:
    """What the rating of an earlier period is told to do in its transaction: cut anew the usage of each tenant of which
    something was rated after its invoice was frozen, and is in no cut yet; or in one of another month's close, none of
    whose documents could bill it."""

    def keep(connection: Connection, rated: KeptRating) -> None:
        uncut = _late_and_uncut(connection, rated.period, month)
        _add(connection, month, rated, rated.tenants.intersection(uncut), actor)

    return keep


_LATE_AND_UNCUT: Final = text(
    """
    with taken as materialized (
        select month, tenants, (coordinates ->> 'rated_line_no')::bigint as last_line from ledger.close_cuts
        where (period_start, period_end) = (:start, :end) and accrued_to is null
    ), cut as materialized (
        select month, tenant_id, max(last_line) as last_line from taken, unnest(tenants) as tenant_id group by 1, 2
    )
    select distinct l.tenant_id
    from ledger.rated_lines as l
    left join ledger.invoices as i
        on (i.billing_account, i.service_start, i.service_end) = (l.billing_account, l.period_start, l.period_end)
        and i.kind = 'usage'
    where (l.period_start, l.period_end) = (:start, :end)
      and (l.recorded_at > i.frozen_recorded_at or l.billing_account = any(cast(:closed as text[])))
      and not exists (
          select from cut as c
          where c.tenant_id = l.tenant_id and c.last_line >= l.rated_line_no
            and (c.month = :month or exists (
                select from ledger.invoices as billed
                where billed.billing_account = l.billing_account and billed.frozen_recorded_at > l.recorded_at
                  and case when billed.kind = 'usage' then billed.service_start >= :start
                      else billed.kind in ('adjustment', 'credit_note')
                        and (billed.service_start, billed.service_end) = (:start, :end) end)))
    order by 1
    """
)


def _late_and_uncut(connection: Connection, period: BillingPeriod, month: BillingPeriod) -> list[str]:
    closed = [account for account, _ in billed_until_store.closed_without_invoice(connection, [period])]
    given = {"start": period.start, "end": period.end, "closed": closed, "month": month.name}
    return list(connection.execute(_LATE_AND_UNCUT, given).scalars())


def _add(connection: Connection, month: BillingPeriod, rated: KeptRating, tenants: Collection[str], actor: str) -> None:
    if not tenants:
        return
    period, goes_on = rated.period, rated.until < rated.period.end
    sums = {tenant_id: rated.sums_of(tenant_id) for tenant_id in sorted(tenants)}
    rows = [row | {"digest": row_digest(row)} for tenant_id, own in sums.items() for row in _rows(tenant_id, own)]
    coordinates = _coordinates(connection, period, rated.until, sums)
    if goes_on:
        coordinates |= _terms_known(connection, period, sums)
    cut_id = connection.execute(
        tables.close_cuts.insert()
        .values(
            month=month.name, period_start=period.start, period_end=period.end, actor=actor, tenants=sorted(sums),
            accrued_to=rated.until if goes_on else None,
            coordinates=coordinates, digest=cut_digest(coordinates, [row["digest"] for row in rows]),
        )
        .returning(tables.close_cuts.c.cut_id)
    ).scalar_one()  # fmt: skip
    numbered = [{"cut_id": cut_id, "row_no": number} | row for number, row in enumerate(rows, start=1)]
    add_rows(connection, tables.frozen_usage, numbered)


def _rows(tenant_id: str, sums: PieceSums) -> Iterator[dict[str, Any]]:
    for piece, quantities in sums:
        of = {
            "billing_account": piece.subscription.billing_account, "plan": piece.version.plan,
            "version": piece.version.version, "segment_no": piece.segment_no, "service_start": piece.start,
            "service_end": piece.end,
        }  # fmt: skip
        for quantity in sorted(quantities, key=astuple):
            yield of | dict(zip(_QUANTITY, astuple(quantity), strict=True))


def _terms_known(connection: Connection, period: BillingPeriod, tenants: Collection[str]) -> dict[str, Any]:
    """The numbers of the rows that tenants' terms were known by: those of a period that goes on may change after it was
    cut. Not the highest number: what is being recorded meanwhile may have a lower one."""
    held, versions = tables.subscriptions.c, tables.plan_versions.c
    known = (
        held.tenant_id == any_(cast(list(tenants), ARRAY(String))), held.superseded_at.is_(None),
        held.starts_at < period.end,
    )  # fmt: skip
    of_plans = versions.plan.in_(select(held.plan).where(*known))
    return {
        "subscriptions": sorted(connection.execute(select(held.subscription_row).where(*known)).scalars()),
        "plan_versions": sorted(connection.execute(select(versions.plan_version_no).where(of_plans)).scalars()),
    }


def _coordinates(
    connection: Connection, period: BillingPeriod, until: datetime, sums: Mapping[str, PieceSums]
) -> dict[str, Any]:
    """Where everything stood that the period's figures follow from (docs/spec/money.md 11.2)."""
    seals = {
        entity: {"seal_no": seal.seal_no, "position": seal.last_position, "chain_hash": seal.chain_hash.hex()}
        for entity in journal_chain_store.legal_entities(connection)
        for seal in [journal_chain_store.last_seal(connection, entity)]
    }
    lists = tables.stripe_cursors.c
    cursors = connection.execute(select(lists.legal_entity, lists.name, lists.read_to))
    return {
        "begins": rfc3339(period.start),
        "ends": rfc3339(until),
        "offsets": positions(raw(connection)),
        "rated_line_no": rated_line_store.last_line(connection),
        "ledger_seals": seals,
        "stripe_cursors": {f"{entity}/{name}": rfc3339(read_to) for entity, name, read_to in cursors},
        "terms": dict(sorted(term_digests(connection, period, sums.keys()).items())),
        "tax_rules": _tax_rules(connection, sums),
        "tax_rule_no": _highest(connection, tables.tax_rules.c.tax_rule_no),
        "exchange_rate_no": _highest(connection, tables.exchange_rates.c.exchange_rate_no),
        "credit_movement_no": _highest(connection, tables.credit_movements.c.movement_no),
        "lock_file": lock_file_hash(),
        "code": code_version(),
    }


def _tax_rules(connection: Connection, sums: Mapping[str, PieceSums]) -> dict[str, dict[str, str]]:
    """By tenant the digests of its payers' tax rules, by their numbers: what was recorded by then stays there."""
    payers = {t: {piece.subscription.billing_account for piece, _ in pieces} for t, pieces in sums.items()}
    rules: dict[str, dict[str, str]] = defaultdict(dict)
    for number, account, digest in _digested_rules(connection, set().union(*payers.values())):
        rules[account][str(number)] = digest
    found = {t: {no: d for name in sorted(own) for no, d in rules[name].items()} for t, own in sorted(payers.items())}
    return {tenant_id: known for tenant_id, known in found.items() if known}


def _digested_rules(connection: Connection, accounts: Collection[str]) -> Iterator[tuple[int, str, str]]:
    table = tables.tax_rules
    query = select(table).where(table.c.billing_account == any_(cast(sorted(accounts), ARRAY(String))))
    for row in connection.execute(query.order_by(table.c.tax_rule_no)):
        said = [row.billing_account, row.mode, row.rates, row.rounding, row.evidence, written_time(row.valid_from)]
        yield row.tax_rule_no, row.billing_account, hashlib.sha256(canonical(said)).hexdigest()


def tax_rules_then_and_now(connection: Connection, cut: Cut) -> Iterator[tuple[str, str, str | None]]:
    """`tenant/cut 1/tax rule 7`, its digest when the cut was taken, and as it is now: None where it is gone.

    Rules that were recorded since are none of it. A cut of an earlier version has none.
    """
    then: Mapping[str, Mapping[str, str]] = cut.coordinates.get("tax_rules", {})
    numbers = {int(no) for rules in then.values() for no in rules}
    table = tables.tax_rules
    query = select(table.c.billing_account).distinct().where(table.c.tax_rule_no.in_(numbers))
    accounts = connection.execute(query).scalars().all()
    now = {str(no): digest for no, _, digest in _digested_rules(connection, accounts)}
    for tenant_id in sorted(cut.tenants & then.keys()):
        for no, digest in then[tenant_id].items():
            yield f"{tenant_id}/cut {cut.cut_id}/tax rule {no}", digest, now.get(no)


def _highest(connection: Connection, number: Column[Any]) -> int:
    return int(connection.execute(select(func.coalesce(func.max(number), 0))).scalar_one())


@cache
def lock_file_hash() -> str | None:
    """The hash of the locked dependencies; None where the lock file is not shipped."""
    return hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest() if LOCK_FILE.exists() else None


@cache
def code_version() -> str:
    """The version of the program."""
    return metadata.version("tollbook")


def cuts(connection: Connection, month: str, tenants: Collection[str], of: CutOf = CutOf.MONTH) -> list[Cut]:
    """The latest cut of each billing period and tenant that a month's close has taken of some usage, by period.

    A cut that a later one has replaced for some of its tenants is there with the others.
    """
    table = tables.close_cuts
    start = parse_period(month).start
    goes_on = table.c.accrued_to.is_not(None)
    chosen = {
        CutOf.MONTH: and_(~goes_on, table.c.period_end > start),
        CutOf.LATE: and_(~goes_on, table.c.period_end <= start),
        CutOf.ACCRUAL: goes_on,
    }[of]
    query = select(table).where(table.c.month == month, chosen).order_by(table.c.cut_id.desc())
    taken: set[tuple[BillingPeriod, str]] = set()
    found = []
    for row in connection.execute(query):
        period = BillingPeriod(row.period_start, row.period_end)
        own = frozenset(t for t in row.tenants if t in tenants and (period, t) not in taken)
        taken |= {(period, tenant_id) for tenant_id in own}
        if own:
            found.append(_cut(row, own))
    return sorted(found, key=lambda cut: (cut.period, cut.cut_id))


def by_digest(connection: Connection, digests: Collection[str]) -> list[Cut]:
    """The cuts of all closes that have these digests, of all their tenants, by period.

    Several have one digest where a run was cut off before its accounts were frozen, and the next has cut the same.
    """
    table = tables.close_cuts
    query = select(table).where(table.c.digest == any_(cast(sorted(digests), ARRAY(String))))
    found = [_cut(row, frozenset(row.tenants)) for row in connection.execute(query)]
    return sorted(found, key=lambda cut: (cut.period, cut.cut_id))


def _cut(row: Row[Any], tenants: frozenset[str]) -> Cut:
    period = BillingPeriod(row.period_start, row.period_end)
    return Cut(row.cut_id, period, tenants, row.coordinates, row.digest, row.taken_at, row.accrued_to)


def frozen_rows(connection: Connection, cut: Cut) -> list[dict[str, Any]]:
    """A cut's rows of its tenants, in order, as stored."""
    table = tables.frozen_usage
    query = select(table).where(
        table.c.cut_id == cut.cut_id, table.c.tenant_id == any_(cast(sorted(cut.tenants), ARRAY(String)))
    )
    return [dict(row) for row in connection.execute(query.order_by(table.c.row_no)).mappings()]


def left_out(connection: Connection, month: str) -> list[tuple[str, BillingPeriod, int]]:
    """Tenants of which a cut of a month's close has rows though it does not name them: nobody would compare these. With
    the period and the cut."""
    cut, table = tables.close_cuts, tables.frozen_usage
    query = select(table.c.tenant_id, cut.c.period_start, cut.c.period_end, cut.c.cut_id).distinct()
    query = query.join_from(table, cut, cut.c.cut_id == table.c.cut_id)
    query = query.where(cut.c.month == month, table.c.tenant_id != all_(cut.c.tenants))
    rows = connection.execute(query.order_by(cut.c.cut_id, table.c.tenant_id))
    return [(tenant_id, BillingPeriod(start, end), cut_id) for tenant_id, start, end, cut_id in rows]


def digests_of(connection: Connection, cut_id: int) -> list[str]:
    """The digests of all rows of a cut, in order."""
    table = tables.frozen_usage
    query = select(table.c.digest).where(table.c.cut_id == cut_id).order_by(table.c.row_no)
    return list(connection.execute(query).scalars())


def _written(value: Any) -> Any:
    return written_time(value) if isinstance(value, datetime) else value
