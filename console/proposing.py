"""What every verb does that only proposes: it takes effect once another person has approved it."""

from __future__ import annotations

from typing import Any

from billing.commands import decide_proposal
from billing.posting.proposal_store import ProposalKind
from console import session
from console.output import out
from reconciliation.close.deciding import CARRIED_OUT


def propose(
    kind: ProposalKind,
    subject: str,
    content: dict[str, Any],
    document: str,
    actor: str,
    dry_run: bool,
    then: str = "",
) -> None:
    """Propose it, and say under which number, and what comes `then`.

    Raises ProposalRefused and what its kind is refused for.
    """
    with session.engine() as engine:
        number = decide_proposal.propose(
            engine, kind, subject, content, document=document, now=session.clock(None), actor=actor, dry_run=dry_run,
            others=CARRIED_OUT,
        )  # fmt: skip
    out.print("it can be proposed" if dry_run else f"proposal {number}: another person approves it{then}")
