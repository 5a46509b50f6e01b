"""Credits in the database: grants as they were given, and what moved them since. Both are added, never changed."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ARRAY, UUID, Connection, Row, String, and_, any_, case, cast, func, not_, or_, select, text

from billing import tables
from billing.bills.credits import Applicability, Grant, GrantKind, TaxTreatment
from billing.bills.documents import GRACE
from billing.errors import UnknownCredit
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.invoices import InvoiceKind
from billing.money import ZERO, exactly, total


class MovementKind(StrEnum):
    """What happened to a grant. `settled`: a paid one was paid; `invoiced`: one that counts from its invoice was
    invoiced; `reinstated`: drawn on after it had expired."""

    SETTLED = "settled"
    INVOICED = "invoiced"
    DRAWN = "drawn"
    RESTORED = "restored"
    EXPIRED = "expired"
    REINSTATED = "reinstated"
    VOIDED = "voided"
    REFUNDED = "refunded"


_DRAWN: Final = (MovementKind.DRAWN.value, MovementKind.RESTORED.value)


@dataclass(frozen=True, slots=True)
class GivenCredit:
    """A grant with whose it is and why it was given."""

    grant: Grant
    billing_account: str
    reason: str
    funding_invoice: str | None = None
    recorded_by: str = ""


@dataclass(frozen=True, slots=True)
class CreditState:
    """A grant and what became of it, in major units.

    `remaining` is what is left of it; `drawable` what usage of its time can still draw, also when it has expired;
    `voided` what was taken back of it, `drawn` what invoices took of it.
    """

    given: GivenCredit
    remaining: Decimal
    drawable: Decimal
    voided: Decimal = ZERO
    expiries: int = 0
    drawn: Decimal = ZERO

    @property
    def grant(self) -> Grant:
        """The grant; `paid_at` as it was settled, `invoiced_at` as it was invoiced."""
        return self.given.grant

    @property
    def is_liability(self) -> bool:
        """Whether what remains is owed to the payer: paid, and settled or invoiced (docs/spec/money.md 6)."""
        return self.grant.kind is GrantKind.PAID and self.grant.owed_from is not None


@dataclass(frozen=True, slots=True)
class Movement:
    """Something that happened to a grant: `amount` is what it adds to what is left."""

    idempotency_key: str
    grant_id: str
    kind: MovementKind
    amount: Decimal
    at: datetime
    invoice_id: uuid.UUID | None = None
    entry_id: int | None = None
    reason: str = ""

    def booked_as(self, entry_id: int | None) -> Movement:
        """The same with its journal entry, if it has one of its own."""
        return self if entry_id is None else replace(self, entry_id=entry_id)


def add(connection: Connection, given: GivenCredit, actor: str) -> None:
    """Append a grant."""
    grant = given.grant
    connection.execute(
        tables.credit_grants.insert().values(
            grant_id=grant.grant_id,
            billing_account=given.billing_account,
            currency=grant.currency,
            kind=grant.kind.value,
            tax_treatment=grant.treatment.value,
            amount=grant.amount,
            charges=sorted(grant.applies_to.charges),
            fees=grant.applies_to.fees,
            models=sorted(grant.applies_to.models),
            priority=grant.priority,
            effective_at=grant.effective,
            expires_at=grant.expires,
            granted_at=grant.granted_at,
            funding_invoice=given.funding_invoice,
            reason=given.reason,
            recorded_by=actor,
        )
    )


def move(connection: Connection, movements: Sequence[Movement], actor: str) -> None:
    """Append what happened. The database refuses to take more of a grant than it has."""
    if movements:
        rows = [
            {
                "idempotency_key": m.idempotency_key,
                "grant_id": m.grant_id,
                "kind": m.kind.value,
                "amount": m.amount,
                "at": m.at,
                "invoice_id": m.invoice_id,
                "entry_id": m.entry_id,
                "reason": m.reason,
                "recorded_by": actor,
            }
            for m in movements
        ]
        for row in rows:
            connection.execute(tables.credit_movements.insert(), row)


def lock(connection: Connection, grant_ids: Iterable[str]) -> None:
    """Let what happens to these grants go one after another, until the transaction ends."""
    for grant_id in sorted(grant_ids):
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"credit/{grant_id}", 0))))


def states(
    connection: Connection,
    *,
    accounts: Collection[str] | None = None,
    grant_ids: Collection[str] | None = None,
    as_of: datetime | None = None,
) -> list[CreditState]:
    """Grants by billing account and start, with what became of them (before a moment)."""
    table, moved = tables.credit_grants, tables.credit_movements
    query = select(table).order_by(table.c.billing_account, table.c.effective_at, table.c.grant_id)
    if accounts is not None:
        query = query.where(table.c.billing_account == any_(cast(list(accounts), ARRAY(String))))
    if grant_ids is not None:
        query = query.where(table.c.grant_id == any_(cast(list(grant_ids), ARRAY(String))))
    rows = connection.execute(query).all()
    movements = (
        select(moved.c.grant_id, moved.c.kind, func.sum(moved.c.amount), func.min(moved.c.at), func.count())
        .where(moved.c.grant_id == any_(cast([row.grant_id for row in rows], ARRAY(String))))
        .group_by(moved.c.grant_id, moved.c.kind)
    )
    if as_of is not None:
        movements = movements.where(moved.c.at < as_of)
    sums: dict[str, dict[str, _Moved]] = {row.grant_id: {} for row in rows}
    for grant_id, kind, *rest in connection.execute(movements):
        sums[grant_id][kind] = _Moved(*rest)
    return [_state(row, sums[row.grant_id]) for row in rows]


def moved_at(connection: Connection, grant_ids: Collection[str]) -> dict[str, list[tuple[datetime, datetime]]]:
    """By credit for when each movement counts, and when it was recorded."""
    moved = tables.credit_movements
    query = select(moved.c.grant_id, moved.c.at, moved.c.recorded_at).where(
        moved.c.grant_id == any_(cast(list(grant_ids), ARRAY(String)))
    )
    found: dict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
    for grant_id, at, recorded_at in connection.execute(query):
        found[grant_id].append((at, recorded_at))
    return found


def one(connection: Connection, grant_id: str) -> CreditState:
    """A grant and what became of it, locked until the transaction ends. Raises UnknownCredit."""
    lock(connection, [grant_id])
    found = states(connection, grant_ids=[grant_id])
    if not found:
        raise UnknownCredit(f"there is no credit {grant_id!r}: `tollbook credit list` has them")
    return found[0]


def reserved(
    connection: Connection,
    grant_ids: Collection[str],
    *,
    before: datetime | None = None,
    but: uuid.UUID | None = None,
    draws_alone: bool = False,
) -> dict[str, Decimal]:
    """What invoices that are not issued yet will draw of grants: the frozen ones, and drafts that are due `before`.

    Less what they will give back, unless it is `draws_alone` that count: that is there once they are issued.

    One over usage is due a day after its period, one for fees in advance when its time begins. A draft of an adjustment
    holds nothing: it is drawn up anew with the others.
    """
    table, invoices = tables.invoice_credits, tables.invoices
    frozen = invoices.c.frozen_at.is_not(None)
    adjusts = invoices.c.kind == InvoiceKind.ADJUSTMENT.value
    in_advance = invoices.c.kind == InvoiceKind.ADVANCE.value
    due = case((in_advance, invoices.c.service_start), else_=invoices.c.service_end + GRACE)
    holds = frozen if before is None else or_(frozen, and_(due < before, not_(adjusts)))
    query = (
        select(table.c.grant_id, func.sum(table.c.amount))
        .join(invoices, invoices.c.invoice_id == table.c.invoice_id)
        .where(
            table.c.grant_id == any_(cast(list(grant_ids), ARRAY(String))),
            invoices.c.state.in_([InvoiceState.DRAFT.value, InvoiceState.APPROVED.value]),
            holds,
        )
        .group_by(table.c.grant_id)
    )
    if but is not None:
        query = query.where(invoices.c.invoice_id != cast(but, UUID))
    if draws_alone:
        query = query.where(table.c.amount > 0)
    return {row[0]: row[1] for row in connection.execute(query)}


def drawn(connection: Connection) -> dict[tuple[str, str], Decimal]:
    """What invoices took of credits, less what came back: (invoice id, credit) → amount."""
    table = tables.credit_movements
    key = (table.c.invoice_id, table.c.grant_id)
    query = select(*key, -func.sum(table.c.amount)).where(table.c.kind.in_(_DRAWN)).group_by(*key)
    return {(str(row[0]), row[1]): row[2] for row in connection.execute(query) if row[2]}


def drawn_unpaid(connection: Connection) -> dict[str, Decimal]:
    """The same of credits that nobody paid for, by currency: it reduces income."""
    table, grants = tables.credit_movements, tables.credit_grants
    query = (
        select(grants.c.currency, -func.sum(table.c.amount))
        .join(grants, grants.c.grant_id == table.c.grant_id)
        .where(table.c.kind.in_(_DRAWN), grants.c.kind != GrantKind.PAID.value)
        .group_by(grants.c.currency)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


@dataclass(frozen=True, slots=True)
class Registered:
    """A field of a grant, or of one of its movements (`movement_no`, else None), that is not as the memo register has
    it; as text, None where there is none. `field` is empty where one of the two is missing as a whole."""

    billing_account: str
    grant_id: str
    movement_no: int | None
    kind: str
    field: str
    registered: str | None
    there: str | None


_REGISTER: Final = text("""
    with there as (
        select billing_account, grant_id, null::bigint as movement_no, to_jsonb(g) as row
        from ledger.credit_grants as g
        union all
        select g.billing_account, m.grant_id, m.movement_no, to_jsonb(m)
        from ledger.credit_movements as m left join ledger.credit_grants as g using (grant_id)
    )
    select coalesce(t.billing_account, r.said ->> 'billing_account', of.billing_account, ''),
        coalesce(t.grant_id, r.grant_id),
        coalesce(t.movement_no, r.movement_no), coalesce(r.said, t.row) ->> 'kind', f.name,
        case when f.name = '' then r.said ->> 'amount' else r.said ->> f.name end,
        case when f.name = '' then t.row ->> 'amount' else t.row ->> f.name end
    from there as t
    full join ledger.credit_register as r
        on r.grant_id = t.grant_id and coalesce(r.movement_no, 0) = coalesce(t.movement_no, 0)
    left join ledger.credit_grants as of on of.grant_id = r.grant_id
    cross join lateral (
        select '' as name where r.said is null or t.row is null
        union all
        select name from jsonb_object_keys(r.said) as name
        where t.row is not null and r.said -> name is distinct from t.row -> name
    ) as f
    order by 1, 2, 3 nulls first, 5
""")


def not_as_registered(connection: Connection) -> list[Registered]:
    """What of grants and movements is not what was written down when they were added."""
    return [Registered(*row) for row in connection.execute(_REGISTER)]


def registered(connection: Connection) -> int:
    """How many grants and movements there are in the memo register."""
    return int(connection.execute(text("select count(*) from ledger.credit_register")).scalar_one())


@dataclass(frozen=True, slots=True)
class _Moved:
    """All movements of one kind of a grant: their sum, the time of the first, how many they are."""

    amount: Decimal
    first_at: datetime
    count: int


def _state(row: Row[Any], moved: dict[str, _Moved]) -> CreditState:
    settled, expired = moved.get(MovementKind.SETTLED), moved.get(MovementKind.EXPIRED)
    invoiced, voided = moved.get(MovementKind.INVOICED), moved.get(MovementKind.VOIDED)
    grant = Grant(
        grant_id=row.grant_id,
        kind=GrantKind(row.kind),
        amount=row.amount,
        currency=row.currency,
        effective=row.effective_at,
        expires=row.expires_at,
        granted_at=row.granted_at,
        paid_at=None if settled is None else settled.first_at,
        invoiced_at=None if invoiced is None else invoiced.first_at,
        priority=row.priority,
        tax_treatment=TaxTreatment(row.tax_treatment),
        applies_to=Applicability(frozenset(row.charges), row.fees, frozenset(row.models)),
    )
    lapsed = total(moved[kind].amount for kind in (MovementKind.EXPIRED, MovementKind.REINSTATED) if kind in moved)
    remaining = total([row.amount, *(each.amount for each in moved.values())])
    with exactly():
        drawable = remaining - lapsed
    given = GivenCredit(grant, row.billing_account, row.reason, row.funding_invoice, row.recorded_by)
    taken_back = ZERO if voided is None else -voided.amount
    with exactly():
        drawn_of_it = -total(moved[kind].amount for kind in _DRAWN if kind in moved)
    return CreditState(given, remaining, drawable, taken_back, 0 if expired is None else expired.count, drawn_of_it)
