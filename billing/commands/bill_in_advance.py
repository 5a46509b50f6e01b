"""Draw up the invoices for fees in advance whose time has begun. Drafts follow what is due until they are frozen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine

from billing import account_store, credit_store, invoice_parts, invoice_store, plan_store, tax_store
from billing.advance_fees import FeesDue, Service, fees_due, figures
from billing.credits import reduces_price
from billing.database import transaction
from billing.errors import UnknownTaxGroup
from billing.invoice_store import StoredInvoice
from billing.invoices import ISSUED, NO_CREDITS, AccountCredits, Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.money import ZERO, exactly, plain
from billing.payment_credits import fees_to_cover
from billing.rating import RatedLine


@dataclass(frozen=True, slots=True)
class AdvanceBilled:
    """What is due in advance: `drafts` are to be sent, one per account; `blocked` (account, reason) has no document."""

    drafts: tuple[Invoice, ...]
    blocked: tuple[tuple[str, str], ...]


def bill_in_advance(
    engine: Engine | Connection,
    *,
    until: datetime,
    now: datetime,
    actor: str,
    dry_run: bool = False,
    billing_accounts: Collection[str] | None = None,
) -> AdvanceBilled:
    """Draw up each billing account's next invoice for fees in advance that become due until a moment.

    One at a time: what it leaves of credits, or below the minimum, is for the one after it. What is invoiced already
    stays, and periods of closed books are over. A tenant that comes to a frozen invoice's moment later gets a further
    revision. What comes to less than zero is a credit note against the original.
    """
    with transaction(engine, dry_run=dry_run) as connection:
        invoice_store.lock_kind(connection, InvoiceKind.ADVANCE)
        due = fees_due(connection, min(until, now), billing_accounts)
        stored: dict[Service, list[StoredInvoice]] = defaultdict(list)
        for each in invoice_store.listed(connection, kind=InvoiceKind.ADVANCE):
            of = each.invoice.identity
            if of.period.start <= min(until, now) and (
                billing_accounts is None or of.billing_account in billing_accounts
            ):
                stored[of.billing_account, of.period].append(each)
        drawing = _Drawing(connection, {account for account, _ in [*due, *stored]})
        drafts: dict[str, Invoice] = {}
        blocked: list[tuple[str, str]] = []
        for service in sorted(due.keys() | stored.keys(), key=lambda service: (service[1], service[0])):
            wanted, problems = still_due(service, due.get(service, FeesDue()), stored.get(service, ()))
            blocked += [(service[0], problem) for problem in problems]
            for each in stored.get(service, ()):
                if each.frozen_at is not None and each.state not in ISSUED:
                    drafts.setdefault(service[0], each.invoice)
            invoices = [each for each in stored.get(service, ()) if each.frozen_at is None]
            if service[0] not in drafts and (wanted or invoices):
                revision = len(stored.get(service, ())) - len(invoices)
                try:
                    invoice = drawing.draw_up(service, revision, wanted)
                except UnknownTaxGroup as error:
                    blocked.append((service[0], str(error)))
                    continue
                invoice_store.save_draft(connection, invoice, now, actor)
                drafts[service[0]] = invoice
    return AdvanceBilled(tuple(drafts.values()), tuple(blocked))


def still_due(
    service: Service, due: FeesDue, stored: Sequence[StoredInvoice]
) -> tuple[dict[str, list[RatedLine]], list[str]]:
    """What of the fees due at a moment is on no frozen invoice yet, by tenant, and what cannot be billed, in words."""
    at = f"fees in advance from {service[1].start:%Y-%m-%d %H:%M} to {service[1].end:%Y-%m-%d}"
    billed: dict[str, list[RatedLine]] = defaultdict(list)
    for each in stored:
        if each.frozen_at is not None:
            for line in each.invoice.lines:
                billed[line.rated.identity.tenant_id].append(line.rated)
    wanted: dict[str, list[RatedLine]] = {}
    problems = []
    for tenant_id in sorted(due.lines.keys() | billed.keys()):
        lines = due.lines.get(tenant_id, [])
        comes_to = due.comes_to(tenant_id) if lines else ZERO
        if tenant_id in billed:
            if figures(lines) != figures(billed[tenant_id]):
                problems.append(f"tenant {tenant_id}: {at} are invoiced otherwise than they are due by now")
        elif comes_to > 0:
            wanted[tenant_id] = lines
        elif comes_to < 0:
            problems.append(
                f"tenant {tenant_id}: {at} come to {plain(comes_to)}: that is a credit note, which is not built yet"
            )
    return wanted, problems


class _Drawing:
    """Draws up invoices for fees in advance: what all accounts need is read once."""

    def __init__(self, connection: Connection, accounts: Collection[str]) -> None:
        self._connection = connection
        self._accounts = account_store.accounts(connection, accounts)
        self._plan_versions = {name: len(plan.versions) for name, plan in plan_store.plans(connection).items()}

    def draw_up(self, service: Service, revision: int, wanted: Mapping[str, Sequence[RatedLine]]) -> Invoice:
        """The invoice as it is by now. Its tax point is when its time begins. Raises UnknownTaxGroup."""
        name, period = service
        account = self._accounts[name]
        identity = InvoiceIdentity(account.legal_entity, name, InvoiceKind.ADVANCE, period, account.currency, revision)
        lines = [line for tenant_id in sorted(wanted) for line in wanted[tenant_id]]
        return draw_up(
            identity,
            lines,
            plan_versions=self._plan_versions,
            rounding=account.rounding,
            tax=tax_store.in_force(self._connection, [name], period.start)[name],
            credits=self._credits(identity, lines),
            carried=invoice_parts.carried_to_next(self._connection, [name], [identity.invoice_id]).get(name, ()),
        )

    def _credits(self, identity: InvoiceIdentity, lines: Sequence[RatedLine]) -> AccountCredits:
        """Credits that pay; those that lower prices are for usage."""
        states = [
            state
            for state in credit_store.states(self._connection, accounts=[identity.billing_account])
            if not reduces_price(state.grant)
        ]
        if not states:
            return NO_CREDITS
        ids = [state.grant.grant_id for state in states]
        reserved = credit_store.reserved(self._connection, ids, before=identity.period.start, but=identity.invoice_id)
        with exactly():
            left = {s.grant.grant_id: s.drawable - reserved.get(s.grant.grant_id, ZERO) for s in states}
        grants = [state.grant for state in states if left[state.grant.grant_id] > 0]
        return AccountCredits(grants, left, fees_to_cover(lines)) if grants else NO_CREDITS
