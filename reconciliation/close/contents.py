"""What a billing account's month comes to, as canonical JSON: what a person approves, and auditors read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import Connection

from billing.commands.show_invoices import documents_of
from billing.invoicing import adjustment_store, invoice_store, rated_line_store
from billing.invoicing.invoice_rows import StoredInvoice
from billing.ledger.journal_chain import canonical
from billing.money import plain
from billing.periods import BillingPeriod, rfc3339
from billing.rating.differences import net
from billing.rating.lines import Naming, RatedLine
from reconciliation.close import freezing, priced_events
from reconciliation.close.billed_late import billed_late, cuts_of
from reconciliation.close.close_store import APPROVED
from reconciliation.close.freezing import Cut, CutOf
from reconciliation.close.gates.collecting import Account
from reconciliation.close.gates.contracts import contracts
from reconciliation.close.gates.cut_checks import naming

FORMAT: Final = "tollbook.close_content.v5"
WITHOUT_EVENTS: Final = "tollbook.close_content.v2"
WITHOUT_LATE: Final = ("tollbook.close_content.v3", WITHOUT_EVENTS)
READABLE: Final = (FORMAT, "tollbook.close_content.v4", *WITHOUT_LATE)
"""Formats that evidence is made of, and verified: v4 had no `accrued`; those before no `late`; v2 had no `events`, nor
kept what moved (R11)."""
CHANGES_LATER: Final = (
    "state",
    "parked_because",
    "reason_not_in_stripe",
)
"""What of an invoice goes on changing after its close, by payments."""
NOT_YET: Final = (
    *CHANGES_LATER, "number", "issue_date", "due_date", "stripe_invoice_id", "stripe_customer_id", "hosted_invoice_url",
)  # fmt: skip
"""What a draft does not have when it is approved."""


def contents(connection: Connection, month: BillingPeriod, accounts: Mapping[str, Account]) -> dict[str, str]:
    """By account what it comes to: a function of its cuts, and of its drafts, which are frozen.

    A tenant that several accounts pay for in turn is with each of them, as a whole, since it was rated as a whole;
    rows and lines name the account that pays. `events`: the digest of its single events, where it is priced by them
    (`priced_events`, kept before this). Its `late_lines` are the part of its `rated_lines` that came to a frozen
    draft: a later invoice has them. `accrued` are periods that go on, which no document bills yet: what they were
    rated from until the month's end, by the terms that were known. `late` are earlier periods that the documents bill
    something of: what they were rated from by then, and what other documents had billed of them (`billed_before`).
    """
    found: dict[str, dict[str, Any]] = {
        name: {
            "format": FORMAT, "month": month.name, "billing_account": name, "legal_entity": account.legal_entity,
            "tenants": [], "accrued": [], "late": [], "documents": [],
        }
        for name, account in accounts.items()
    }  # fmt: skip
    payers: dict[str, list[str]] = defaultdict(list)
    for name, account in accounts.items():
        for tenant_id in account.tenants:
            payers[tenant_id].append(name)
    for cut in freezing.cuts(connection, month.name, payers.keys()):
        late: dict[str, list[RatedLine]] = defaultdict(list)
        for each in adjustment_store.late_lines(connection, cut.period, up_to_line=cut.last_line):
            late[each.line.identity.tenant_id].append(each.line)
        ratings = rated_line_store.tenant_periods(connection, cut.period, cut.tenants)
        for tenant_id, of_cut in _rated(connection, cut).items():
            called = naming(tenant_id, of_cut["contract"])
            rated = of_cut | {
                "rating_no": ratings[tenant_id].rating_no,
                "late_lines": [_line(each, called) for each in net(late[tenant_id]).values()],
            }
            for name in payers[tenant_id]:
                found[name]["tenants"].append(rated)
    for cut in freezing.cuts(connection, month.name, payers.keys(), CutOf.ACCRUAL):
        numbers = rated_line_store.last_ratings(connection, cut.period, up_to_line=cut.last_line)
        for tenant_id, of_cut in _rated(connection, cut).items():
            accrued = of_cut | {"accrued_to": rfc3339(cut.until), "rating_no": numbers.get(tenant_id, 0)}
            for name in payers[tenant_id]:
                found[name]["accrued"].append(accrued)
    documents = _documents(connection, month, accounts)
    of_late = billed_late(connection, [s.stored_id for s in documents], month)
    rated_late = {
        (cut.digest, tenant_id): of_cut
        for cut in cuts_of(of_late)
        for tenant_id, of_cut in _rated(connection, cut).items()
    }
    for billed in of_late:
        before = {"billed_before": [each.document() for each in billed.before]}
        found[billed.billing_account]["late"].append(rated_late[billed.cut.digest, billed.tenant_id] | before)
    for document in documents_of(connection, documents):
        told = {name: value for name, value in document.items() if name not in NOT_YET}
        found[document["billing_account"]]["documents"].append(told)
    return {name: canonical(content).decode() for name, content in found.items()}


def _rated(connection: Connection, cut: Cut) -> dict[str, dict[str, Any]]:
    """By tenant of a cut, in order, what its period was rated from and what that came to."""
    rows: dict[str, list[dict[str, Any]]] = {tenant_id: [] for tenant_id in sorted(cut.tenants)}
    for row in freezing.frozen_rows(connection, cut):
        rows[row["tenant_id"]].append(freezing.written_row(row))
    agreements = contracts(connection, cut)
    lines = rated_line_store.posted(connection, cut.period, until=cut.accrued_to, up_to_line=cut.last_line)
    single = priced_events.digests(connection, cut.cut_id)
    return {
        tenant_id: {
            "tenant_id": tenant_id,
            "period": cut.period.name,
            "cut": cut.digest,
            "contract": agreements.get(tenant_id),
            "usage": usage,
            "events": single.get(tenant_id),
            "rated_lines": [
                _line(each, naming(tenant_id, agreements.get(tenant_id)))
                for each in net(lines.get(tenant_id, ())).values()
            ],
        }
        for tenant_id, usage in rows.items()
    }


def signed_cuts(connection: Connection, month: BillingPeriod, accounts: Mapping[str, Account]) -> list[Cut]:
    """The cuts that accounts' contents follow from: of what the month bills, of what it accrues, of what came late."""
    tenants = {tenant_id for account in accounts.values() for tenant_id in account.tenants}
    documents = [s.stored_id for s in _documents(connection, month, accounts)]
    return [
        *freezing.cuts(connection, month.name, tenants),
        *freezing.cuts(connection, month.name, tenants, CutOf.ACCRUAL),
        *cuts_of(billed_late(connection, documents, month)),
    ]


def _documents(connection: Connection, month: BillingPeriod, accounts: Collection[str]) -> list[StoredInvoice]:
    """Drafts of the month. Altered or not: a gate names what is, and what was signed is not this any more."""
    listed = invoice_store.listed(connection, of_month=month, billing_accounts=accounts, as_stored=True)
    listed += invoice_store.open_adjustments(connection, before=month)
    own = [
        s
        for s in {s.invoice.invoice_id: s for s in listed}.values()
        if s.invoice.identity.billing_account in accounts and s.invoice.identity.kind in APPROVED
    ]
    return sorted(own, key=lambda s: str(s.invoice.invoice_id))


def _line(line: RatedLine, naming: Naming) -> dict[str, Any]:
    identity = {name: str(value) for name, value in asdict(line.identity).items()}
    model, adapter, region, tier = line.where
    amounts = {
        name: None if (value := getattr(line, name)) is None else plain(value)
        for name in ("unit_price", "quantity", "free", "units", "included", "amount")
    }
    return identity | amounts | {
        "key": naming.key(line.identity), "metric": str(line.metric), "model": model, "adapter": adapter,
        "region": region, "tier": tier, "tax_group": line.tax_group, "currency": line.currency,
        "billing_account": line.billing_account, "service_start": rfc3339(line.service_start),
        "service_end": rfc3339(line.service_end),
    }  # fmt: skip
