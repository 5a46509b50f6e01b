"""Reports for finance over a month's books. Each reads at one moment, changes nothing, and says whether it ties."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, Engine

from billing.costs.margins import Traffic
from billing.database import one_moment, raw
from billing.errors import ReportRefused
from billing.invoicing import party_store, rated_line_store
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoices import InvoiceKind
from billing.invoicing.party_store import Sides
from billing.money import ZERO, exactly
from billing.periods import INSTANT, BillingPeriod, rfc3339
from billing.plans import account_store, plan_store
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY
from billing.reports import report_store
from billing.reports.ageing import ageing_report
from billing.reports.commitments import commitment_report, running
from billing.reports.credit_rollforward import credit_report
from billing.reports.deferred import AdvanceInvoice, deferred_report
from billing.reports.erp import Target, erp_report
from billing.reports.focus import CORRECTING, FocusDocument, focus_report
from billing.reports.report import Report
from billing.reports.revenue import REVENUE_CODES, Place, Sources, revenue_report
from billing.reports.tax_report import TaxedDocument, tax_report
from streams.usage import gpu_usage


@dataclass(frozen=True, slots=True)
class Asked:
    """What a report is over: a month of a legal entity's books, up to a moment within it or all of it.

    Raises ReportRefused where the moment is not in the month.
    """

    month: BillingPeriod
    as_of: datetime | None = None
    legal_entity: str = DEFAULT_LEGAL_ENTITY

    def __post_init__(self) -> None:
        if self.as_of is not None and not self.month.start < self.as_of <= self.month.end:
            raise ReportRefused(f"{rfc3339(self.as_of)} is not in {self.month.name}: ask for the month that it is in")

    @property
    def span(self) -> BillingPeriod:
        """From the month's start until then."""
        return self.month if self.as_of is None else replace(self.month, end=self.as_of)


@contextmanager
def _reading(engine: Engine, asked: Asked) -> Iterator[Connection]:
    with one_moment(engine) as connection:
        if asked.legal_entity not in account_store.legal_entities(connection):
            raise ReportRefused(f"there is no legal entity {asked.legal_entity!r}")
        yield connection


def report_revenue(engine: Engine, asked: Asked, *, by: Sequence[str]) -> Report:
    """Revenue by some of tenant, model and region."""
    of, span = asked.legal_entity, asked.span
    with _reading(engine, asked) as connection:
        found = report_store.entries(connection, of, span, REVENUE_CODES)
        accruals = [entry.entry_id for entry in found if entry.kind == "accrual"]
        sources = Sources(
            report_store.lines_of(connection, accruals),
            {str(each.stored_id): each.invoice for each in report_store.issued(connection, of, span)},
            {
                Place(*key): Traffic(*sums)
                for key, sums in gpu_usage.tenants_places(raw(connection), asked.month.start, asked.month.end)
            },
        )
        before, after = (report_store.balances_by_code(connection, of, at) for at in (span.start, span.end))
    with exactly():
        moved = {
            key: before.get(key, ZERO) - amount
            for key, amount in after.items()
            if int(key[1]) in REVENUE_CODES and before.get(key, ZERO) != amount
        }
    return revenue_report(found, sources, moved, by)


def report_deferred(engine: Engine, asked: Asked) -> Report:
    """Fees in advance: the roll-forward of 2110."""
    with _reading(engine, asked) as connection:
        found = report_store.fees_in_advance(connection, asked.legal_entity, asked.span)
        opening, closing = (
            report_store.owed(connection, asked.legal_entity, 2110, at) for at in (asked.span.start, asked.span.end)
        )
    documents = [
        AdvanceInvoice(each.invoice, _name(each), booked_at, earned_at) for each, booked_at, earned_at in found
    ]
    return deferred_report(documents, asked.span, opening, closing)


def report_credits(engine: Engine, asked: Asked) -> Report:
    """Credits: the roll-forward of 2100, and of what was given without payment."""
    with _reading(engine, asked) as connection:
        histories = report_store.grant_histories(connection, _accounts(connection, asked))
        opening, closing = (
            report_store.owed(connection, asked.legal_entity, 2100, at) for at in (asked.span.start, asked.span.end)
        )
    return credit_report(histories, asked.span, opening, closing)


def report_ageing(engine: Engine, asked: Asked, *, by_document: bool = False) -> Report:
    """Receivables by how long they have been due on the span's last day."""
    until = asked.span.end
    with _reading(engine, asked) as connection:
        return ageing_report(
            report_store.receivables(connection, asked.legal_entity, until),
            report_store.settled(connection, asked.legal_entity, until),
            (until - INSTANT).date(),
            report_store.balances(connection, asked.legal_entity, 1100, until),
            by_document=by_document,
        )


def report_tax(engine: Engine, asked: Asked, *, by_document: bool = False) -> Report:
    """Tax on the documents that were booked in the span."""
    with _reading(engine, asked) as connection:
        found = report_store.issued(connection, asked.legal_entity, asked.span)
        sides = _sides(connection, found)
        before, after = (
            report_store.owed(connection, asked.legal_entity, 2200, at) for at in (asked.span.start, asked.span.end)
        )
    with exactly():
        moved = {key: after.get(key, ZERO) - before.get(key, ZERO) for key in {**before, **after}}
    documents = [
        TaxedDocument(each.invoice, _name(each), buyer.country or "", buyer.tax_id or "")
        for each in found
        for buyer in (sides[each.stored_id].buyer,)
    ]
    return tax_report(documents, moved, by_document=by_document)


def report_commitments(engine: Engine, asked: Asked) -> Report:
    """What is committed, used and still to come in the billing periods that have time in the month."""
    with _reading(engine, asked) as connection:
        subscribed = account_store.subscriptions_during(connection, asked.month)
        accounts = set(_accounts(connection, asked))
        versions = {name: plan.versions for name, plan in plan_store.plans(connection).items()}
        found = [
            each
            for listed in subscribed.values()
            for each in running(listed, asked.month)
            if each.subscriptions[-1].billing_account in accounts
        ]
        posted = {
            period: rated_line_store.posted(connection, period, until=asked.month.end)
            for period in {each.period for each in found}
        }
        booked = report_store.posted(connection, asked.legal_entity, asked.month, kind="accrual")
        accruals = [
            entry.entry_id
            for entry in report_store.entries(connection, asked.legal_entity, asked.month, [4050])
            if entry.kind == "accrual"
        ]
        true_ups = [line for lines in report_store.lines_of(connection, accruals).values() for line in lines]
    with_lines = [replace(each, lines=posted[each.period].get(each.subscriptions[0].tenant_id, ())) for each in found]
    credited = {(unit, ""): -amount for (unit, code), amount in booked.items() if code == "4050"}
    return commitment_report(with_lines, versions, asked.span.end, true_ups, credited)


def report_focus(engine: Engine, asked: Asked) -> Report:
    """What the month billed, as rows of FOCUS."""
    with _reading(engine, asked) as connection:
        found = report_store.billed(connection, asked.legal_entity, asked.month)
        sides = _sides(connection, found)
    return focus_report(
        FocusDocument(
            each.invoice,
            asked.month if each.invoice.identity.kind in CORRECTING else _billing_period(each, asked.month),
            each.number, sides[each.stored_id].seller.name, sides[each.stored_id].buyer.name,
        )
        for each in found
    )  # fmt: skip


def report_erp(engine: Engine, asked: Asked, targets: Mapping[int, Target]) -> Report:
    """A month's balances as lines for another ledger."""
    with _reading(engine, asked) as connection:
        opening, closing = (
            report_store.balances_by_code(connection, asked.legal_entity, at)
            for at in (asked.span.start, asked.span.end)
        )
        moved = report_store.posted(connection, asked.legal_entity, asked.span)
    return erp_report(opening, closing, moved, asked.span, targets, legal_entity=asked.legal_entity)


def _billing_period(stored: StoredInvoice, month: BillingPeriod) -> BillingPeriod:
    """A usage invoice's own period; fees in advance and credit that is bought are of the month they are billed in."""
    of = stored.invoice.identity
    return of.period if of.kind is InvoiceKind.USAGE else month


def _accounts(connection: Connection, asked: Asked) -> Collection[str]:
    known = account_store.accounts(connection).values()
    return [each.billing_account for each in known if each.legal_entity == asked.legal_entity]


def _sides(connection: Connection, found: Sequence[StoredInvoice]) -> Mapping[uuid.UUID, Sides]:
    return party_store.on_documents(connection, {each.stored_id: each.invoice.identity for each in found})


def _name(stored: StoredInvoice) -> str:
    return stored.number or str(stored.stored_id)
