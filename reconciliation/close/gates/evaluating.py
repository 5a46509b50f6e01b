"""Reads everything that the gates compare, as it is now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from time import monotonic, sleep
from typing import Final

from sqlalchemy import Connection, Engine

from billing.bills.tax import TaxMode
from billing.commands.verify_journal import verify_journals
from billing.database import one_moment, raw, transaction
from billing.invoicing import invoice_sums, rated_line_store
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import ISSUED, InvoiceState, settled_locally
from billing.invoicing.invoices import InvoiceKind
from billing.invoicing.sending import SendingStep, position
from billing.ledger import ledger_store
from billing.money import ZERO, exactly, plain
from billing.periods import BillingPeriod
from billing.plans import account_store
from billing.posting import proposal_store
from billing.posting.proposal_store import ProposalKind
from billing.stripe import returns_store, stripe_request_store
from billing.stripe.stripe_accounts import Stripe, all_followed
from reconciliation.agreement import Check, Made, compare, told
from reconciliation.close import close_store, freezing, signature_store
from reconciliation.close.close_store import APPROVED
from reconciliation.close.freezing import CutOf
from reconciliation.close.gates.collecting import Account, held_back, participants, quarantined
from reconciliation.close.gates.cut_checks import CutChecks
from reconciliation.close.gates.gate import WAITING, Gate, Owners, Result, results
from reconciliation.close.gates.kept_checks import kept_checks
from reconciliation.close.gates.movement import movements, to_explain
from reconciliation.comparison import Difference, Value
from reconciliation.numbers_received import numbers_received
from reconciliation.period import ask, compare_period, documents_of_month
from reconciliation.usage_records import ReadLog
from streams.ingest import sources
from streams.ingest.logs import Log

LOOK_AGAIN_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Outside:
    """What is asked beside the database; None: not asked, and its comparisons are left out."""

    gateway: Stripe | None = None
    log: ReadLog | None = None
    patience_s: float = 0
    """So long it is waited for what is in Kafka to be applied."""


def evaluate(
    engine: Engine | Connection,
    month: BillingPeriod,
    *,
    now: datetime,
    outside: Outside,
    rated_again: Collection[str] | None = None,
    made: Made = lambda name: None,
) -> dict[Gate, Result]:
    """Every gate of a month, as it stands at one moment; R2 and R3 of some accounts only (None: of all that are cut).

    Stripe and Kafka are asked before it: a platform goes on while its books are closed.
    """
    if outside.gateway is not None:
        all_followed(engine, outside.gateway, dry_run=True)
    asked = ask(outside.gateway, outside.log)
    if asked.ended is not None:
        _await_applied(engine, asked.ended, outside.patience_s)
    with one_moment(engine) as connection:
        checks = list(compare_period(connection, period=month, now=now, asked=asked, made=made).checks)
        accounts = participants(connection, month)
        waived = close_store.waived(connection, month.name)
        standings = close_store.standings(connection, month.name)
        invoices = documents_of_month(connection, month)
        of_cuts = CutChecks(connection, made)
        cut = [name for name in (standings if rated_again is None else rated_again) if name in accounts]
        for each in _cuts(connection, month, [accounts[name] for name in cut]):
            of_cuts.add(each)
        of_cuts.add_left_out(month.name)
        checks += of_cuts.checks
        checks += told(_checks(connection, month, accounts.values(), invoices, now), made)
        moved = _moved(connection, month)
        checks += told([moved.check], made)
        owned = owners(connection, month, accounts, invoices)
        checks += told(_sealed(connection), made)
    found = _with_parts(results(checks, owned, waived), of_cuts, owned)
    return found | {Gate.R11: replace(found[Gate.R11], shown=moved.rows)}


def evaluate_late(engine: Engine, month: BillingPeriod, accounts: Mapping[str, Account]) -> dict[Gate, Result]:
    """R2 and R3 of what came late to earlier periods, of some accounts: before any document is issued for it."""
    with one_moment(engine) as connection:
        of_cuts = CutChecks(connection, lambda name: None)
        for each in freezing.cuts(connection, month.name, _tenants(accounts.values()), CutOf.LATE):
            of_cuts.add(each)
        of_cuts.add_left_out(month.name)
        return results(of_cuts.checks, owners(connection, month, accounts, ()), {})


def _tenants(accounts: Iterable[Account]) -> set[str]:
    return {tenant_id for account in accounts for tenant_id in (*account.tenants, *account.before)}


def _cuts(connection: Connection, month: BillingPeriod, accounts: Collection[Account]) -> Iterator[freezing.Cut]:
    """The cuts of what a month bills of some accounts, of its own periods and of what came late to earlier ones, and
    of what it accrues of those that go on."""
    own = {tenant_id for account in accounts for tenant_id in account.tenants}
    yield from freezing.cuts(connection, month.name, own)
    yield from freezing.cuts(connection, month.name, own, CutOf.ACCRUAL)
    yield from freezing.cuts(connection, month.name, _tenants(accounts), CutOf.LATE)


def _with_parts(found: dict[Gate, Result], of_cuts: CutChecks, owned: Owners) -> dict[Gate, Result]:
    parts: dict[Gate, dict[str, Result]] = defaultdict(dict)
    for name, checks in of_cuts.parts.items():
        for gate, result in results(checks, owned, {}).items():  # nobody waives these
            parts[gate][name] = result
    return {gate: replace(result, parts=parts[gate]) for gate, result in found.items()}


def _await_applied(engine: Engine | Connection, log: Log, patience_s: float) -> None:
    """Wait until all that was in Kafka is applied, but not longer: a stream that stands still is a difference."""
    until = monotonic() + patience_s
    while monotonic() < until:
        with transaction(engine) as connection:
            states = sources.states(raw(connection), log.topic)
        if all(p in states and states[p].next_position >= end for p, end in log.ends.items() if end > log.begins[p]):
            return
        sleep(LOOK_AGAIN_S)


def _checks(
    connection: Connection,
    month: BillingPeriod,
    accounts: Iterable[Account],
    invoices: Collection[StoredInvoice],
    now: datetime,
) -> Iterator[Check]:
    yield from _rounding(connection, invoices)
    yield drafts_in_stripe(invoices)
    yield signature_store.as_signed(connection, month)
    yield from kept_checks(connection, invoices)
    yield _waiting(connection, month, invoices)
    yield _complete(connection, month, accounts, now)


def evaluate_waivable(engine: Engine, month: BillingPeriod, *, now: datetime) -> dict[Gate, Result]:
    """The part of R1, R9 and R11 that a person may waive or explain, as it stands now."""
    with transaction(engine) as connection:
        accounts = participants(connection, month)
        invoices = documents_of_month(connection, month)
        checks = [
            *numbers_received(raw(connection), month.start, month.end),
            _complete(connection, month, accounts.values(), now),
            _waiting(connection, month, invoices),
            _moved(connection, month).check,
        ]
        waived = close_store.waived(connection, month.name)
        return results(checks, owners(connection, month, accounts, invoices), waived)


def owners(
    connection: Connection, month: BillingPeriod, accounts: Collection[str], invoices: Iterable[StoredInvoice]
) -> Owners:
    """Whose differences are: of a tenant that nobody pays for in the month they are those who did before."""
    payers: dict[str, set[str]] = defaultdict(set)
    once: dict[str, set[str]] = defaultdict(set)
    for each in account_store.subscriptions(connection):
        if each.starts_at < month.end:
            during = each.ends_at is None or each.ends_at > month.start
            (payers if during else once)[each.tenant_id].add(each.billing_account)
    documents = {}
    for s in invoices:
        for reference in (str(s.stored_id), str(s.invoice.invoice_id), s.stripe_invoice_id):
            if reference:
                documents[reference] = s.invoice.identity.billing_account
    waiting = quarantined(raw(connection), month).items()
    messages = {each.key: tenant_id for tenant_id, listed in waiting if tenant_id is not None for each in listed}
    return Owners(once | payers, accounts, documents, messages)


def _rounding(connection: Connection, invoices: Iterable[StoredInvoice]) -> list[Check]:
    """R8: account 5900 is the residues of all that was issued, and none is more than its roundings can leave."""
    expected: dict[str, Decimal] = defaultdict(lambda: ZERO)
    booked: dict[str, Decimal] = defaultdict(lambda: ZERO)
    by_hand = [
        p.entry_id
        for p in proposal_store.listed(connection)
        if p.kind is ProposalKind.POST_ENTRY and p.entry_id is not None
    ]
    outside = [*by_hand, *returns_store.entries(connection)]
    with exactly():
        for row in invoice_sums.totals(connection, ISSUED):
            expected[row[1]] += row[4]
        for (_, _, code), amount in ledger_store.balances(connection, [5900], of_entries=outside).items():
            expected[code] += amount
        for (_, _, code), amount in ledger_store.balances(connection, [5900]).items():
            booked[code] += amount
    wanted: dict[str, Value] = {code: amount for code, amount in expected.items() if amount}
    there: dict[str, Value] = {code: amount for code, amount in booked.items() if amount}
    listed = [s.invoice for s in invoices]
    large = []
    for invoice in listed:
        roundings = max(len(invoice.taxes), 1) if invoice.tax_mode is TaxMode.INCLUSIVE else 1
        with exactly():
            most = invoice.identity.money.quantum * roundings / 2
        if invoice.identity.kind is not InvoiceKind.CREDIT_NOTE and abs(invoice.rounding) > most:
            large.append(Difference(f"{invoice.invoice_id}/rounding", f"at most {plain(most)}", invoice.rounding))
    return [
        compare("rounding is booked", "residues of invoices", "ledger 5900", wanted, there),
        Check("rounding is small", "half a quantum a rounding", "residues", len(listed), tuple(large)),
    ]


def drafts_in_stripe(invoices: Iterable[StoredInvoice]) -> Check:
    """R5a: a draft that is sent is built in Stripe and was compared; one that is not is expected to be absent."""
    drafts = [s for s in invoices if s.state is InvoiceState.DRAFT and s.invoice.identity.kind in APPROVED]
    found = []
    for s in drafts:
        wanted = SendingStep.FROZEN if settled_locally(s.invoice) else SendingStep.COMPARED
        if position(s.sending_step) < position(wanted) or s.parked_because:
            found.append(Difference(str(s.stored_id), wanted.value, s.parked_because or s.sending_step.value))
    return Check("drafts are in Stripe", "what is due", "steps done", len(drafts), tuple(found))


def _waiting(connection: Connection, month: BillingPeriod, invoices: Iterable[StoredInvoice]) -> Check:
    """R9: requests to Stripe without an answer, its events that nobody has handled, quarantine, what is parked."""
    listed = list(invoices)
    asked = stripe_request_store.unanswered(connection, {s.invoice.invoice_id for s in listed})
    waiting = [each for found in quarantined(raw(connection), month).values() for each in found]
    waiting += [Difference(f"request/{key}", None, step) for key, step in asked]
    waiting += [Difference(f"event/{e.event_id}", None, e.type) for e in returns_store.unhandled(connection)]
    waiting += [
        Difference(f"parked/{s.stored_id}", None, s.parked_because) for s in listed if s.parked_because is not None
    ]
    return Check(WAITING, "nothing", "outbox, inbox, quarantine, parked", len(waiting), tuple(waiting))


def _complete(connection: Connection, month: BillingPeriod, accounts: Iterable[Account], now: datetime) -> Check:
    listed = list(accounts)
    back = held_back(connection, month, listed, max(now, month.end + timedelta(days=1)), {})
    missing = {d.key: d for found in back.values() for d in found if d.key.startswith("complete_to/")}
    tenants = sum(len(account.tenants) for account in listed)
    return Check("tenants are complete", "the month's end", "complete to", tenants, tuple(missing.values()))


@dataclass(frozen=True, slots=True)
class _Moved:
    """R11, and all that moved."""

    check: Check
    rows: tuple[Mapping[str, str], ...]


def _moved(connection: Connection, month: BillingPeriod) -> _Moved:
    before = BillingPeriod((month.start - timedelta(days=1)).replace(day=1), month.start)
    then, now = (rated_line_store.accrued_in(connection, each) for each in (before, month))
    found = movements(then, now)
    explain = tuple(to_explain(found, then))
    check = Check("movement is explained", "the month before", "this month", len(found), explain)
    return _Moved(check, tuple(each.row for each in found))


def _sealed(connection: Connection) -> Iterator[Check]:
    found = verify_journals(connection)
    broken = [Difference(each.legal_entity, "as sealed", each.broken) for each in found if each.broken is not None]
    yield Check("the journal is as sealed", "chain", "entries", sum(each.entries for each in found), tuple(broken))
