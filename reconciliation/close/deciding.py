"""What people decide in a close: waive, explain, approve, leave, release, reopen. Each by name, with a reason."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, Engine

from billing.commands.decide_proposal import propose
from billing.database import raw, transaction
from billing.invoicing import billed_until_store, invoice_store, rated_line_store
from billing.money import currency
from billing.periods import BillingPeriod, parse_period
from billing.posting.period_closing import close_book
from billing.posting.proposal_store import Proposal, ProposalKind
from reconciliation.close import close_store, signature_store
from reconciliation.close.close_store import Content, Standing, book_key, is_under_way
from reconciliation.close.gates.collecting import participants
from reconciliation.close.gates.gate import GATE_OF, WAIVABLE, Gate, Result, seen
from reconciliation.close.states import Event, State
from reconciliation.errors import CloseRefused
from streams import audit

TEAM_OF_ONE: Final = "TOLLBOOK_TEAM_OF_ONE"
"""Set to `yes` where nobody else is there: then who runs a close may approve it, and the evidence says so."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What a waived difference may be worth: from low to high, in major units of a currency."""

    low: Decimal
    high: Decimal
    currency: str


def waive(
    engine: Engine,
    month: BillingPeriod,
    gate: Gate,
    results: Mapping[Gate, Result],
    *,
    keys: Collection[str] | None,
    reason: str,
    worth: Worth | None,
    actor: str,
) -> list[str]:
    """Let differences of a gate stay, those with the keys given (None: all that it has now); returns their keys.

    Of WAIVABLE comparisons alone; what moved is explained, and needs no worth. A waiver is for what was seen: it holds
    for nothing that becomes of the same key later. Raises CloseRefused and UnknownCurrency.
    """
    if gate not in {GATE_OF[check] for check in WAIVABLE}:
        others = ", ".join(f"{GATE_OF[check]} ({check})" for check in WAIVABLE)
        raise CloseRefused(f"{gate} cannot be waived, only {others}")
    if not reason.strip():
        raise CloseRefused("say why: the evidence shows it")
    if gate is not Gate.R11 and worth is None:
        raise CloseRefused("say what it may be worth: --low, --high and --currency")
    if worth is not None:
        currency(worth.currency, month.end.date())
        if worth.low > worth.high:
            raise CloseRefused(
                f"it may be worth from --low {worth.low} to --high {worth.high}: that is nothing between"
            )
    found = results.get(gate)
    waivable = dict.fromkeys(seen(each) for each in found.open if each.check in WAIVABLE) if found else {}
    known = {key for key, _, _ in waivable}
    wanted = sorted(known) if keys is None else list(dict.fromkeys(keys))
    if unknown := [key for key in wanted if key not in known]:
        raise CloseRefused(f"{gate} has no difference {unknown[0]} that can be waived: see `tollbook close status`")
    with transaction(engine) as connection:
        close_store.lock(connection, month.name)
        standings = close_store.standings(connection, month.name)
        entities = {account.legal_entity for account in participants(connection, month).values()}
        if all(book_key(entity) in standings for entity in entities) and not any(map(is_under_way, standings.values())):
            raise CloseRefused(f"the books of {month.name} are closed: their evidence stays as it is")
        rows = [
            {"gate": gate.value, "key": key, "seen_left": left, "seen_right": right, "actor": actor, "reason": reason,
             "low": worth and worth.low, "high": worth and worth.high, "currency": worth and worth.currency}
            for key, left, right in waivable
            if key in wanted
        ]  # fmt: skip
        close_store.add_waivers(connection, month.name, rows)
        detail = {"gate": gate.value, "keys": wanted, "reason": reason}
        audit.record(raw(connection), actor, "close.waive", month.name, detail)
    return wanted


def approve(
    engine: Engine,
    month: BillingPeriod,
    *,
    actor: str,
    leave: Sequence[str] = (),
    reason: str = "",
    seen: str | None = None,
) -> list[Content]:
    """Sign the content of every account that is reconciled; those named in `leave` are parked instead, or stay so.

    `seen`: the hash over all that is reconciled, as `close status` shows it (`to_sign`), of what the person has read.
    Raises CloseRefused where something else waits by now, or where somebody would approve, or leave, what they have
    prepared themselves, unless TEAM_OF_ONE is set.
    """
    alone = os.environ.get(TEAM_OF_ONE) == "yes"
    with transaction(engine) as connection:
        close_store.lock(connection, month.name)
        standings = close_store.standings(connection, month.name)
        if seen is not None:
            waiting = close_store.to_sign(connection, month.name)
            if not waiting:
                raise CloseRefused(f"nothing of {month.name} waits to be signed: `tollbook close status {month.name}`")
            if seen != (now := close_store.signed(waiting)):
                raise CloseRefused(f"what waits to be signed has the hash {now}, not {seen}: read it, and sign that")
        if unknown := [name for name in leave if name not in standings]:
            raise CloseRefused(f"{unknown[0]} takes no part in the close of {month.name}")
        if leave and not reason.strip():
            raise CloseRefused("say why they are left: the evidence shows it")
        prepared = close_store.preparers(close_store.history(connection, month.name)) if leave else {}
        if own := [name for name in leave if actor in prepared.get(name, ()) and not alone]:
            raise CloseRefused(f"{actor} has prepared {own[0]}: another person leaves it")
        parked = [standings[name] for name in leave if standings[name].state is State.PARKED]
        standings |= {
            each.billing_account: each
            for each in close_store.move(connection, parked, Event.RELEASE, actor, reason=reason)
        }
        close_store.move(connection, [standings[name] for name in leave], Event.PARK, actor, reason=reason)
        ready = {
            name: standing
            for name, standing in standings.items()
            if standing.state is State.RECONCILED and name not in leave
        }
        contents = close_store.latest_contents(connection, month.name, ready.keys())
        close_store.approve(connection, month.name, contents, actor, alone=alone)
        details = {each.billing_account: {"content_hash": each.hash} for each in contents}
        close_store.move(connection, ready.values(), Event.APPROVE, actor, details=details)
        hashes = {"accounts": len(contents), "signed": close_store.signed(contents), "parked": list(leave)}
        audit.record(raw(connection), actor, "close.approve", month.name, hashes)
    return contents


def release(engine: Engine, month: BillingPeriod, account: str, *, actor: str, reason: str) -> Standing:
    """Let a parked account go on where it was parked. Raises CloseRefused."""
    if not reason.strip():
        raise CloseRefused("say why: the evidence shows it")
    with transaction(engine) as connection:
        close_store.lock(connection, month.name)
        standing = _standing(connection, month.name, account)
        (moved,) = close_store.move(connection, [standing], Event.RELEASE, actor, reason=reason)
        audit.record(raw(connection), actor, "close.release", f"{month.name} {account}", {"reason": reason})
    return moved


def propose_reopening(
    engine: Engine, month: BillingPeriod, account: str, *, actor: str, reason: str, now: datetime
) -> int:
    """Propose to cut an account's month anew; another person approves it. Returns the proposal's number."""
    content = {"month": month.name, "billing_account": account}
    return propose(
        engine, ProposalKind.REOPEN_CLOSE, f"{month.name}/{account}", content, document=reason, now=now, actor=actor,
        others=CARRIED_OUT,
    )  # fmt: skip


def _reopen(connection: Connection, proposal: Proposal, now: datetime, actor: str) -> None:
    month, account = parse_period(proposal.content["month"]).name, proposal.content["billing_account"]
    close_store.lock(connection, month)
    standing = _standing(connection, month, account)
    if book_key(standing.legal_entity) in close_store.standings(connection, month):
        raise CloseRefused(
            f"the book of {month} is closed: what changes now is billed by the next month (docs/late-usage.md)"
        )
    _check_not_billed_since(connection, parse_period(month), account)
    people = {"proposed_by": proposal.proposed_by, "proposal_no": proposal.proposal_no}
    issued = signature_store.issued_with(connection, close_store.latest_contents(connection, month, [account]))
    details = {account: people | issued.get(account, {})}
    close_store.move(connection, [standing], Event.REOPEN, actor, reason=proposal.document, details=details)


def _check_not_billed_since(connection: Connection, month: BillingPeriod, account: str) -> None:
    """What came to a month that was closed without an invoice, and is on a later one, would be billed twice."""
    for period in rated_line_store.periods_ending_in(connection, month):
        if not billed_until_store.closed_without_invoice(connection, [period], [account]):
            continue
        found = invoice_store.listed(connection, billing_account=account, adjusts=period, as_stored=True)
        if numbers := [each.number or str(each.stored_id) for each in found if each.frozen_at is not None]:
            raise CloseRefused(
                f"{account} was closed without an invoice for {period.name}, and what came since is on {numbers[0]}"
            )


def _close_book(connection: Connection, proposal: Proposal, now: datetime, actor: str) -> None:
    """By itself only a book is closed that no close is about: all others wait for their accounts and gates."""
    entity, month = proposal.subject, parse_period(proposal.content["month"])
    if count := sum(account.legal_entity == entity for account in participants(connection, month).values()):
        raise CloseRefused(
            f"{count} billing accounts take part in {month.name}: `tollbook close run {month.name}` closes its book"
            " once they are closed and its gates are green"
        )
    close_book(connection, entity, month.name, now)


CARRIED_OUT: Final = {ProposalKind.REOPEN_CLOSE: _reopen, ProposalKind.CLOSE_BOOK: _close_book}
"""How the close's proposals are carried out."""


def _standing(connection: Connection, month: str, account: str) -> Standing:
    found = close_store.standings(connection, month).get(account)
    if found is None:
        raise CloseRefused(f"{account} takes no part in the close of {month}")
    return found
