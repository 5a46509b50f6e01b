"""What reports read: entries, documents and movements by when they were booked. Reads alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from datetime import datetime
from decimal import Decimal

from sqlalchemy import ARRAY, BigInteger, Connection, String, any_, cast, select, text

from billing import tables
from billing.invoicing import credit_store, invoice_store, rated_line_store
from billing.invoicing.credit_store import MovementKind
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import ISSUED, InvoiceState
from billing.invoicing.invoices import InvoiceKind
from billing.ledger import balance_store
from billing.ledger.balance_store import AsOf
from billing.ledger.journal import FEES_EARNED
from billing.ledger.journal_chain import BookedEntry
from billing.ledger.journal_chain_store import ENTRY, booked_entry
from billing.money import currency, from_minor
from billing.periods import BillingPeriod
from billing.rating import RatedLine
from billing.reports.ageing import Receivable, Settled
from billing.reports.credit_rollforward import GrantHistory, Moved
from billing.reports.report import Amounts, summed


def entries(
    connection: Connection, legal_entity: str, span: BillingPeriod, codes: Collection[int]
) -> list[BookedEntry]:
    """Entries effective in a span with a leg on one of some accounts, in order of their ids."""
    rows = connection.execute(
        text(
            f"select {ENTRY} from ledger.journal_entries e where e.legal_entity = :entity"
            " and e.effective_at >= :since and e.effective_at < :until and exists (select from ledger.postings p"
            " join ledger.accounts a using (account_id) where p.entry_id = e.entry_id and a.code = any(:codes))"
            " order by e.entry_id"
        ),
        {"entity": legal_entity, "since": span.start, "until": span.end, "codes": list(codes)},
    )
    return [booked_entry(row) for row in rows]


def lines_of(connection: Connection, entry_ids: Collection[int]) -> dict[int, list[RatedLine]]:
    """The rated lines that some accruals booked."""
    table = tables.rated_lines
    query = select(table).where(table.c.entry_id == any_(cast(list(entry_ids), ARRAY(BigInteger))))
    found: dict[int, list[RatedLine]] = defaultdict(list)
    for row in connection.execute(query.order_by(table.c.rated_line_no)):
        found[row.entry_id].append(
            rated_line_store.rated_line(
                row, billing_account=row.billing_account, currency=row.currency, amount=row.amount, reason=row.reason
            )
        )
    return found


def owed(connection: Connection, legal_entity: str, code: int, at: datetime) -> Amounts:
    """What an account owes at a moment (credit less debit) by (currency, subledger); what owes nothing is left out."""
    return {key: -amount for key, amount in balances(connection, legal_entity, code, at).items()}


def balances(connection: Connection, legal_entity: str, code: int, at: datetime) -> Amounts:
    """Balances of an account at a moment, debit positive, by (currency, subledger), but those of zero."""
    found = balance_store.account_balances(connection, legal_entity=legal_entity, as_of=AsOf(at), code=code)
    return {(one.currency, one.subledger): one.amount for one in found if one.amount}


def balances_by_code(connection: Connection, legal_entity: str, at: datetime) -> dict[tuple[str, str], Decimal]:
    """All balances at a moment, debit positive, by (currency, account code)."""
    found = balance_store.account_balances(connection, legal_entity=legal_entity, as_of=AsOf(at))
    return summed(((one.currency, str(one.account.code)), one.amount) for one in found)


def posted(
    connection: Connection, legal_entity: str, span: BillingPeriod, *, kind: str | None = None
) -> dict[tuple[str, str], Decimal]:
    """What postings effective in a span come to, of one kind of entry or all, by (currency, account code)."""
    rows = connection.execute(
        text(
            "select a.currency, a.code, sum(p.amount) from ledger.journal_entries e join ledger.postings p"
            " using (entry_id) join ledger.accounts a using (account_id) where e.legal_entity = :entity"
            " and e.effective_at >= :since and e.effective_at < :until"
            " and (cast(:kind as text) is null or e.kind = :kind) group by 1, 2"
        ),
        {"entity": legal_entity, "since": span.start, "until": span.end, "kind": kind},
    )
    return {(row[0], str(row[1])): row[2] for row in rows}


def issued(connection: Connection, legal_entity: str, span: BillingPeriod) -> list[StoredInvoice]:
    """Invoices and credit notes that were booked in a span, with their lines."""
    table, entry = tables.invoices, tables.journal_entries
    booked = select(entry.c.entry_id).where(
        entry.c.legal_entity == legal_entity, entry.c.effective_at >= span.start, entry.c.effective_at < span.end
    )
    return invoice_store.selected(connection, table.c.entry_id.in_(booked))


def fees_in_advance(
    connection: Connection, legal_entity: str, span: BillingPeriod
) -> list[tuple[StoredInvoice, datetime, dict[str, datetime]]]:
    """Documents over fees in advance of which the books may hold something in a span; with when each was booked, and
    when what it earned in a month was."""
    table, entry = tables.invoices, tables.journal_entries
    query = (
        select(table.c.invoice_id, entry.c.effective_at)
        .join(entry, entry.c.entry_id == table.c.entry_id)
        .where(
            invoice_store.in_advance(),
            table.c.legal_entity == legal_entity,
            (entry.c.effective_at < span.end) | (table.c.service_start < span.end),
            (table.c.service_end > span.start) | (entry.c.effective_at >= span.start),
        )
    )
    booked = {row[0]: row[1] for row in connection.execute(query)}
    earned: dict[str, dict[str, datetime]] = defaultdict(dict)
    of = entry.c.source["invoice_id"].astext
    recognised = select(of, entry.c.source["period"].astext, entry.c.effective_at).where(
        entry.c.legal_entity == legal_entity,
        entry.c.kind == FEES_EARNED,
        of == any_(cast([str(each) for each in booked], ARRAY(String))),
    )
    for invoice_id, month, at in connection.execute(recognised):
        earned[invoice_id][month] = at
    found = invoice_store.listed(connection, invoice_ids=list(booked), as_stored=True)
    return [(each, booked[each.stored_id], earned[str(each.stored_id)]) for each in found]


def billed(connection: Connection, legal_entity: str, month: BillingPeriod) -> list[StoredInvoice]:
    """What a month bills, issued: its invoices; and the credit notes and adjustments that were booked in it."""
    corrects = (InvoiceKind.CREDIT_NOTE, InvoiceKind.ADJUSTMENT)
    of_month = invoice_store.listed(connection, of_month=month, states=ISSUED, as_stored=True)
    own = [
        each
        for each in of_month
        if each.invoice.identity.legal_entity == legal_entity and each.invoice.identity.kind not in corrects
    ]
    return own + [each for each in issued(connection, legal_entity, month) if each.invoice.identity.kind in corrects]


_RECEIVABLES = text(
    """
    select i.invoice_id, i.billing_account, i.currency, i.service_end, i.number, i.issue_date,
        coalesce(i.due_date, n.due_date) as due_date, i.credits_invoice_id,
        i.total_minor - coalesce((select sum(c.amount_minor) from ledger.invoice_credits c
            where c.invoice_id = i.invoice_id and c.tax_treatment = 'payment'), 0) as minor,
        exists (select from ledger.invoice_transitions t
            where t.invoice_id = i.invoice_id and t.to_state = :paid and t.at < :until) as is_paid
    from ledger.invoices i join ledger.journal_entries e on e.entry_id = i.entry_id
        left join ledger.invoice_carried k on k.carried_invoice_id = i.invoice_id
        left join ledger.invoices n on n.invoice_id = k.invoice_id
    where i.legal_entity = :entity and e.effective_at < :until
    order by i.billing_account, i.number, i.invoice_id
    """
)
_SETTLED = text(
    """
    select a.subledger, a.currency, sum(p.amount), coalesce(e.source ->> 'invoice_id', (
        select i.invoice_id::text from ledger.invoice_lines l join ledger.invoices i using (invoice_id)
        where i.kind = 'top_up' and l.kind = 'top_up' and l.charge_key = e.source ->> 'grant_id'))
    from ledger.journal_entries e join ledger.postings p using (entry_id) join ledger.accounts a using (account_id)
    where e.legal_entity = :entity and a.code = 1100 and e.effective_at < :until
        and e.kind not in ('invoice', 'credit_note')
    group by 1, 2, 4 order by 1, 2, 4
    """
)


def receivables(connection: Connection, legal_entity: str, until: datetime) -> list[Receivable]:
    """Every document that was booked before a moment. What is carried is due with the document that carries it."""
    found = []
    for row in connection.execute(
        _RECEIVABLES, {"entity": legal_entity, "until": until, "paid": InvoiceState.PAID.value}
    ):
        money = currency(row.currency, row.service_end.date())
        against = None if row.credits_invoice_id is None else str(row.credits_invoice_id)
        found.append(
            Receivable(
                str(row.invoice_id), row.billing_account, row.currency, from_minor(int(row.minor), money),
                row.number or "", row.issue_date, row.due_date, row.is_paid, against,
            )
        )  # fmt: skip
    return found


def settled(connection: Connection, legal_entity: str, until: datetime) -> list[Settled]:
    """What else moved 1100 before a moment."""
    rows = connection.execute(_SETTLED, {"entity": legal_entity, "until": until})
    return [Settled(*row) for row in rows]


def grant_histories(connection: Connection, accounts: Collection[str]) -> list[GrantHistory]:
    """All credits of some accounts with what moved them, as of when that is booked."""
    rows = connection.execute(
        text(
            "select m.grant_id, m.kind, m.amount, coalesce(e.effective_at, m.at) from ledger.credit_movements m"
            " left join ledger.journal_entries e using (entry_id) order by m.movement_no"
        )
    )
    moved: dict[str, list[Moved]] = defaultdict(list)
    for grant_id, kind, amount, at in rows:
        moved[grant_id].append(Moved(MovementKind(kind), amount, at))
    return [
        GrantHistory(state.grant, state.given.billing_account, moved[state.grant.grant_id])
        for state in credit_store.states(connection, accounts=accounts)
    ]
