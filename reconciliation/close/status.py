"""Where a month's close stands, for people and machines: accounts by state, gates with all that they found."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Engine

from billing.database import transaction
from billing.periods import BillingPeriod, rfc3339
from reconciliation.close import close_store, signature_store
from reconciliation.close.gates import gate_store
from reconciliation.close.states import State


def close_status(engine: Engine, month: BillingPeriod) -> dict[str, Any]:
    """`accounts` by state, `books` that are closed, `parked` with reasons, what an approval would sign, what became of
    accounts that were reopened since their first signature, `gates` with differences, `waivers`."""
    with transaction(engine) as connection:
        standings = close_store.standings(connection, month.name).values()
        gates = gate_store.latest(connection, month.name)
        waivers = close_store.waivers(connection, month.name)
        to_sign = close_store.to_sign(connection, month.name)
        since_signed = signature_store.since_signed(connection, month)
    counts = Counter(each.state for each in standings if each.billing_account)
    return {
        "accounts": [{"state": state.value, "accounts": counts[state]} for state in State if state in counts],
        "books": [each.legal_entity for each in standings if not each.billing_account],
        "parked": [
            {"billing_account": each.billing_account, "actor": each.actor, "reason": each.reason}
            for each in standings
            if each.state is State.PARKED
        ],
        "to_sign": {"accounts": len(to_sign), "hash": close_store.signed(to_sign)} if to_sign else None,
        "since_signed": since_signed,
        "gates": [
            {"gate": gate.value, "compared": stored.result.compared, "at": rfc3339(stored.at),
             "differences": [each.document() for each in stored.result.found]}
            for gate, stored in gates.items()
        ],
        "waivers": [each.document() for each in waivers],
    }  # fmt: skip
