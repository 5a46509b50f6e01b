"""What needs two people, in the database: proposals and decisions, both added and never changed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, func, select

from billing import tables
from billing.errors import ProposalRefused


class ProposalKind(StrEnum):
    """What can be proposed."""

    SETTLE_CREDIT = "credit.settle"
    REFUND_CREDIT = "credit.refund"
    POST_ENTRY = "ledger.post"
    CLOSE_BOOK = "ledger.close"
    WRITE_OFF = "invoice.write_off"
    PAID_ELSEWHERE = "invoice.pay"
    REOPEN_CLOSE = "close.reopen"


@dataclass(frozen=True, slots=True)
class Proposal:
    """Something that one person proposes, with the document it rests on; `approved` is None until another decides."""

    proposal_no: int
    kind: ProposalKind
    subject: str
    content: dict[str, Any]
    document: str
    proposed_by: str
    proposed_at: datetime
    approved: bool | None = None
    decided_by: str | None = None
    decided_at: datetime | None = None
    reason: str | None = None
    entry_id: int | None = None


def add(
    connection: Connection, kind: ProposalKind, subject: str, content: dict[str, Any], document: str, actor: str
) -> int:
    """Append a proposal; returns its number. Raises ProposalRefused where no document is named."""
    if not document.strip():
        raise ProposalRefused("name the document that this rests on")
    row = connection.execute(
        tables.proposals.insert()
        .values(kind=kind.value, subject=subject, content=content, document=document, proposed_by=actor)
        .returning(tables.proposals.c.proposal_no)
    )
    return int(row.scalar_one())


def decide(
    connection: Connection, proposal: Proposal, *, approved: bool, actor: str, reason: str, entry_id: int | None
) -> None:
    """Append the decision. The database refuses a second one, and the proposer's own."""
    connection.execute(
        tables.decisions.insert().values(
            proposal_no=proposal.proposal_no, approved=approved, decided_by=actor, reason=reason, entry_id=entry_id
        )
    )


def listed(connection: Connection, *, proposal_no: int | None = None, undecided: bool = False) -> list[Proposal]:
    """Proposals with their decisions, in order of their numbers."""
    given, decided = tables.proposals, tables.decisions
    query = (
        select(
            given.c.proposal_no, given.c.kind, given.c.subject, given.c.content, given.c.document, given.c.proposed_by,
            given.c.proposed_at, decided.c.approved, decided.c.decided_by, decided.c.decided_at, decided.c.reason,
            decided.c.entry_id,
        )
        .join(decided, decided.c.proposal_no == given.c.proposal_no, isouter=True)
        .order_by(given.c.proposal_no)
    )  # fmt: skip
    if proposal_no is not None:
        query = query.where(given.c.proposal_no == proposal_no)
    if undecided:
        query = query.where(decided.c.proposal_no.is_(None))
    return [Proposal(row[0], ProposalKind(row[1]), *row[2:]) for row in connection.execute(query)]


def one(connection: Connection, proposal_no: int) -> Proposal:
    """A proposal, locked until the transaction ends. Raises ProposalRefused."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"proposal/{proposal_no}", 0))))
    found = listed(connection, proposal_no=proposal_no)
    if not found:
        raise ProposalRefused(f"there is no proposal {proposal_no}: `tollbook approval list` has them")
    return found[0]
