"""What needs two people: one proposes, another approves, and only then it happens (docs/spec/money.md 9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine

from billing.bills.credits import GrantKind
from billing.commands.grant_credit import unreserved
from billing.database import raw, retrying, transaction
from billing.errors import CreditRefused, ProposalRefused
from billing.invoicing import correction_store, credit_store, invoice_store
from billing.invoicing.correcting import CorrectionKind
from billing.invoicing.credit_store import CreditState, Movement, MovementKind
from billing.invoicing.invoice_states import InvoiceState
from billing.ledger import ledger_store
from billing.money import ZERO, currency, exactly, plain, whole_quanta
from billing.plans import account_store
from billing.posting import manual_entries, proposal_store, top_up_invoicing, top_up_store
from billing.posting.booking import booking
from billing.posting.posting_rules import Booking, credit_refunded, credit_settled, prepaid_invoice_paid
from billing.posting.proposal_store import Proposal, ProposalKind
from streams import audit

CarryOut = Callable[[Connection, Proposal, datetime, str], int | None]
"""Does what is proposed, in the caller's transaction, for who approves it; the journal entry, if it made one."""


@retrying
def propose(
    engine: Engine,
    kind: ProposalKind,
    subject: str,
    content: Mapping[str, Any],
    *,
    document: str,
    now: datetime,
    actor: str,
    dry_run: bool = False,
    others: Mapping[ProposalKind, CarryOut] | None = None,
) -> int:
    """Propose something; returns the proposal's number. It is tried out first, so that only what can be done is
    proposed. `others`: how kinds are carried out that are not billing's. Raises ProposalRefused, and what doing it
    raises."""
    with transaction(engine, dry_run=dry_run) as connection:
        checked = manual_entries.checked(content, now=now) if kind is ProposalKind.POST_ENTRY else dict(content)
        number = proposal_store.add(connection, kind, subject, checked, document, actor)
        tried = connection.begin_nested()
        _carry_out(kind, others)(connection, proposal_store.one(connection, number), now, actor)
        tried.rollback()
        detail = {"proposal_no": number, "document": document, **checked}
        audit.record(raw(connection), actor, f"{kind}.propose", subject, detail)
    return number


@retrying
def decide(
    engine: Engine,
    proposal_no: int,
    *,
    approved: bool,
    now: datetime,
    actor: str,
    reason: str = "",
    dry_run: bool = False,
    others: Mapping[ProposalKind, CarryOut] | None = None,
) -> Proposal:
    """Approve a proposal of another person, which carries it out, or reject it. The same again changes nothing.

    Raises ProposalRefused, and what carrying it out raises.
    """
    with transaction(engine, dry_run=dry_run) as connection:
        proposal = proposal_store.one(connection, proposal_no)
        if proposal.decided_by is not None:
            if (proposal.approved, proposal.decided_by) == (approved, actor):
                return proposal
            raise ProposalRefused(f"proposal {proposal_no} is decided already, by {proposal.decided_by}")
        if proposal.proposed_by == actor:
            raise ProposalRefused(f"proposal {proposal_no} is your own: another person decides it")
        entry_id = _carry_out(proposal.kind, others)(connection, proposal, now, actor) if approved else None
        proposal_store.decide(connection, proposal, approved=approved, actor=actor, reason=reason, entry_id=entry_id)
        detail = {"proposal_no": proposal_no, "reason": reason}
        audit.record(
            raw(connection), actor, f"approval.{'approve' if approved else 'reject'}", proposal.subject, detail
        )
        return replace(proposal, approved=approved, decided_by=actor, reason=reason, entry_id=entry_id)


def proposals(engine: Engine, *, undecided: bool = False) -> list[Proposal]:
    """All proposals, or those that nobody has decided."""
    with transaction(engine) as connection:
        return proposal_store.listed(connection, undecided=undecided)


def _settle(connection: Connection, proposal: Proposal, now: datetime, actor: str) -> int:
    state = credit_store.one(connection, proposal.subject)
    grant, paid_at = state.grant, datetime.fromisoformat(proposal.content["paid_at"])
    with exactly():
        amount = grant.amount - state.voided
    if grant.kind is not GrantKind.PAID or grant.paid_at is not None or amount <= 0:
        raise CreditRefused(f"credit {grant.grant_id} is {_told(state)}: there is nothing to settle")
    if paid_at > now:
        raise CreditRefused(f"paid at {paid_at:%Y-%m-%d %H:%M}, which is yet to come")
    key = f"credit:{grant.grant_id}:settled"
    where = _booking(connection, state, key, paid_at, now)
    entry = credit_settled(grant, proposal.document, booking=where)
    if grant.invoiced_at is not None or top_up_store.is_top_up(connection, grant.grant_id):
        account = account_store.accounts(connection, [state.given.billing_account])[state.given.billing_account]
        if grant.invoiced_at is None:
            top_up_invoicing.issue(
                connection, account, grant, paid_at, where=where, now=now, actor=actor, is_paid=True
            )  # fmt: skip
        entry = prepaid_invoice_paid(grant, amount, account.billing_account, proposal.document, booking=where)
    entry_id = ledger_store.post(connection, [entry])[key]
    at = max(paid_at, grant.invoiced_at or paid_at)
    movement = Movement(key, grant.grant_id, MovementKind.SETTLED, ZERO, at, entry_id=entry_id)
    credit_store.move(connection, [replace(movement, reason=proposal.document)], actor)
    return entry_id


def _refund(connection: Connection, proposal: Proposal, now: datetime, actor: str) -> int:
    state = credit_store.one(connection, proposal.subject)
    grant = state.grant
    amount = whole_quanta(unreserved(connection, state), currency(grant.currency, now.date()).quantum)
    if grant.kind is not GrantKind.PAID or grant.paid_at is None or amount <= 0:
        raise CreditRefused(f"credit {grant.grant_id} is {_told(state)}: there is nothing to refund")
    key = f"credit:{grant.grant_id}:refunded:{proposal.proposal_no}"
    where = _booking(connection, state, key, now, now)
    entry = credit_refunded(grant, amount, proposal.document, booking=where)
    entry_id = ledger_store.post(connection, [entry])[key]
    movement = Movement(key, grant.grant_id, MovementKind.REFUNDED, -amount, now, None, entry_id, proposal.document)
    credit_store.move(connection, [movement], actor)
    return entry_id


def _post(connection: Connection, proposal: Proposal, now: datetime, actor: str) -> int:
    content, key = proposal.content, f"manual:{proposal.proposal_no}"
    at = datetime.fromisoformat(content["effective_at"])
    where = booking(connection, key, legal_entity=proposal.subject, at=at, now=now)
    if content["kind"] == manual_entries.PRIOR_PERIOD and where.original_period is not None:
        where = Booking(key, proposal.subject, where.original_period, at)
    return ledger_store.post(connection, [manual_entries.entry_of(content, where, document=proposal.document)])[key]


def _correct(kind: CorrectionKind, *states: InvoiceState) -> CarryOut:
    """Stripe is told of it by `tollbook stripe sync`, and the books follow its answer."""

    def carry_out(connection: Connection, proposal: Proposal, now: datetime, actor: str) -> None:
        stored = invoice_store.find(connection, proposal.subject)
        if stored.state not in states:
            raise ProposalRefused(f"invoice {proposal.subject} is {stored.state}: it must be {' or '.join(states)}")
        reason = f"proposal {proposal.proposal_no}: {proposal.document}"
        made = correction_store.add(connection, stored.invoice.invoice_id, kind, reason=reason, actor=actor)
        detail = {"correction": made.correction_no, "proposal_no": proposal.proposal_no}
        audit.record(raw(connection), actor, f"invoice.{kind}", str(made.invoice_id), detail)

    return carry_out


_CARRY_OUT: Final[Mapping[ProposalKind, CarryOut]] = {
    ProposalKind.SETTLE_CREDIT: _settle,
    ProposalKind.REFUND_CREDIT: _refund,
    ProposalKind.POST_ENTRY: _post,
    ProposalKind.WRITE_OFF: _correct(CorrectionKind.WRITE_OFF, InvoiceState.FINALIZED),
    ProposalKind.PAID_ELSEWHERE: _correct(
        CorrectionKind.PAID_ELSEWHERE, InvoiceState.FINALIZED, InvoiceState.UNCOLLECTIBLE
    ),
}


def _carry_out(kind: ProposalKind, others: Mapping[ProposalKind, CarryOut] | None) -> CarryOut:
    return {**_CARRY_OUT, **(others or {})}[kind]


def _booking(connection: Connection, state: CreditState, key: str, at: datetime, now: datetime) -> Booking:
    account = state.given.billing_account
    entity = account_store.accounts(connection, [account])[account].legal_entity
    return booking(connection, key, legal_entity=entity, at=at, now=now)


def _told(state: CreditState) -> str:
    paid = "" if state.grant.kind is not GrantKind.PAID else ", settled" if state.grant.paid_at else ", not settled"
    invoiced = ", invoiced" if state.grant.invoiced_at else ""
    return f"{state.grant.kind}{invoiced}{paid}{', voided' if state.voided else ''}, {plain(state.remaining)} left"
