"""Where one tenant stands and what was decided about a request, read from the database: no service is asked."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import psycopg

from serving_adapter.quota.groups import GROUPS, group_of
from streams import tenants
from streams.quotas import feed, journal, looking
from streams.quotas.book import TenantBook
from streams.quotas.calendar import moment
from streams.quotas.decisions import Limits
from streams.quotas.definitions import shown
from streams.quotas.held import Held
from streams.quotas.meters import BudgetMeter, Meter, SlotMeter
from streams.quotas.parts import State
from streams.quotas.rebuilding import rebuild
from streams.quotas.standings import standing, standing_view

_LOOKS: Final = 3


def standing_of(connection: psycopg.Connection, tenant_id: str) -> list[dict[str, Any]]:
    """Every quota of a tenant and where it stands. Raises UnknownTenant."""
    book, now = _book(connection, tenant_id)
    return [meter_view(meter, now) for meter in book.meters.all]


def decisions_of(connection: psycopg.Connection, tenant_id: str, request_id: str) -> list[dict[str, Any]]:
    """What was decided about a request: refusals as they were, and what was promised if that is not over."""
    book, _ = _book(connection, tenant_id)
    return [*stored_decisions(connection, tenant_id, request_id), *live_decisions(book, request_id)]


def meter_view(meter: Meter, now: int) -> dict[str, Any]:
    """A quota with all its numbers. Amounts of spend and GPU time as decimals in text."""
    quota = meter.quota
    amounts: dict[str, int] = {}
    if isinstance(meter, BudgetMeter):
        amounts = {
            "used": meter.used, "confirmed": meter.confirmed, "unconfirmed": meter.unconfirmed,
            "reserved": meter.reserved, "leased": meter.leased, "unreserved": meter.unreserved,
        }  # fmt: skip
    elif isinstance(meter, SlotMeter):
        amounts = {"used": meter.in_use, "leased": meter.leased}
    exact = quota.metric in ("spend", "gpu_seconds")
    view = msgspec.structs.asdict(standing_view(standing(meter, now))) | {"hard": quota.hard, "version": quota.version}
    return view | {name: shown(units, quota.metric) if exact else units for name, units in amounts.items()}


def stored_decisions(connection: psycopg.Connection, tenant_id: str, request_id: str) -> list[dict[str, Any]]:
    """Refusals of a request, and decisions about it that were made without the service."""
    return [
        {"at": each.decided_at, "attempt": each.attempt, "decision": each.kind} | msgspec.json.decode(each.detail)
        for each in journal.decisions_on(connection, tenant_id, request_id)
    ]


def live_decisions(book: TenantBook, request_id: str) -> list[dict[str, Any]]:
    """What was promised to a request that is not over yet."""
    request = book.requests.get(request_id)
    found = []
    for attempt, part in sorted(request.parts.items()) if request else ():
        was = part.reserved
        if part.state is State.WITHDRAWN and was is None:
            continue  # a question that never came, taken back
        view: dict[str, Any] = {
            "at": moment(was.at if was else part.settled_at), "attempt": attempt,
            "decision": "admitted" if was else "unasked", "state": part.state.value, "model": part.model,
        }  # fmt: skip
        if was is not None:
            view |= {"max_tokens": was.max_tokens, "limited_by": list(was.limited_by), "priority": was.priority,
                     "expires_at": moment(was.deadline)}  # fmt: skip
        if part.settled_at:
            view |= {"used": part.settled._asdict()}
        found.append(view)
    return found


def _book(connection: psycopg.Connection, tenant_id: str) -> tuple[TenantBook, int]:
    """A tenant's book as a service would have it now. Raises UnknownTenant."""
    tenants.get(connection, tenant_id)
    group = group_of(tenant_id)
    with feed.one_snapshot(connection):
        rebuilt = rebuild(connection, journal.looked_at(connection, group), Limits())
    shard, look = rebuilt.shard, rebuilt.look
    shard.registered.add(tenant_id)
    held = shard.ready(tenant_id, look.at)
    for _ in range(_LOOKS):
        if isinstance(held, Held):
            break
        wanted = looking.wanted(shard)
        look = feed.look(connection, look.positions, shard.definitions.marks, wanted, group, GROUPS)
        for _ in looking.take_look(shard, look, wanted):
            pass
        shard.barred.pop(tenant_id, None)
        held = shard.ready(tenant_id, look.at)
    assert isinstance(held, Held), "its windows were read"
    return held.book, look.at
