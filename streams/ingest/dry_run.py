"""What would become of messages if they were applied now: read only, without a lock, nothing written.

By the same judgement as `apply`: which may enter (`judging`), and what each is beside the stored versions of its
identity (`rules/duplicates`). Messages that came before in the same dry run count as stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import psycopg

from serving_adapter.identity import event_id_of
from streams.completeness import number_sets, number_store
from streams.completeness.complete_to import BootKey
from streams.completeness.number_sets import Segments
from streams.ingest import old_events, resends
from streams.ingest.judging import Judge
from streams.ingest.resends import Due
from streams.rules.chunks import Accepted, Record, number_of
from streams.rules.duplicates import Verdict, Version, arriving, compared_with, in_force, judge, why_conflict
from streams.rules.replayed import Compared, Held, Standing, refused, standing


class Fate(StrEnum):
    """What would become of a message."""

    ADD = "add"
    SUPERSEDE = "supersede"
    """It takes the place of a weaker source's telling."""
    FILL = "fill"
    """It is counted already, and its number is missing: it would fill that alone."""
    THERE = "there"
    """It is counted already, or a better telling of it is."""
    CONFLICT = "conflict"
    """Another telling of equal strength is counted, with other content."""
    REFUSED = "refused"
    BEHIND = "behind"
    """It is behind the horizon, and was not compared with what is held from then."""

    @property
    def changes(self) -> bool:
        """Whether applying it changes anything."""
        return self in (Fate.ADD, Fate.SUPERSEDE, Fate.FILL)


class Expected(NamedTuple):
    """A message and its fate; `reason` and `detail` where it would not enter, `beside` what it was compared with."""

    record: Record
    fate: Fate
    reason: str = ""
    detail: str = ""
    tenant_id: str | None = None
    message: Accepted | None = None
    key: bytes = b""
    beside: Version | None = None
    is_behind: bool = False
    """Behind the horizon, and compared."""
    is_counted: bool = False
    """Its identity is counted: by what was applied, and not by what is planned alone."""
    enters_at: datetime | None = None
    """When it counts, where that is not its own time: a correction, when what it corrects was completed."""


class DryRun:
    """Judges messages over one connection, in the order in which they would be applied."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._judge = Judge(connection)
        self._planned: dict[bytes, list[Version]] = {}
        self._received: dict[BootKey, tuple[int, Segments]] = {}

    def expect(self, records: Sequence[Record], compared: Compared | None = None) -> list[Expected]:
        """The fate of each message, in order.

        What is behind the horizon is told by `compared`; without it, or of what it does not cover: `BEHIND`.
        """
        accepted, refused, behind, horizon = self._judge.judge(records, None)
        due, old = ([resends.due(message) for message in of] for of in (accepted, [each.message for each in behind]))
        stored = resends.stored_of(self._connection, [*due, *old]) if due or old else {}
        self._look_up_numbers(accepted)
        found = [self._expected(each, stored) for each in due]
        found += [Expected(r.record, Fate.REFUSED, r.reason, r.detail, r.tenant_id) for r in refused]
        if compared is None or not compared.covers([each.key for each in old], horizon.forgotten_before):
            found += [Expected(m.record, Fate.BEHIND, "too_old", why, m.event.tenant_id, m) for m, why in behind]
        else:
            for each in old:
                known = old_events.held_by_identity(stored.get(each.key, ()))
                found.append(self._behind(each, [*compared.held.get(each.key, ()), *known]))
        return sorted(found, key=lambda expected: expected.record.position)

    def _behind(self, each: Due, held: Sequence[Held]) -> Expected:
        """The fate of an event behind the horizon, beside what is held of it and what is planned."""
        message, tenant_id = each.message, each.message.event.tenant_id
        planned = [Held(version, "that is planned") for version in self._planned.get(each.key, ())]
        what, why = standing(message, [*held, *planned])
        if (refusal := refused(message, what, why)) is not None:
            fate = Fate.CONFLICT if what is Standing.CONFLICT else Fate.REFUSED
            return Expected(message.record, fate, refusal.reason, why, tenant_id, message, each.key)
        if what is Standing.NEW:
            self._planned.setdefault(each.key, []).append(arriving(message))
            return Expected(message.record, Fate.ADD, "", "", tenant_id, message, each.key, is_behind=True)
        # It fills no number: those of boots that ended are let go of
        return Expected(message.record, Fate.THERE, "", "", tenant_id, message, each.key, is_behind=True)

    def _expected(self, each: Due, stored: resends.Stored) -> Expected:
        message, arrived = each.message, arriving(each.message)
        versions = [*stored.get(each.key, ()), *self._planned.get(each.key, ())]
        tenant_id, corrected = message.event.tenant_id, None
        if each.original is not None:
            originals = [*stored.get(each.original_key, ()), *self._planned.get(each.original_key, ())]
            if message.event.corrects != str(event_id_of(each.original)):
                return Expected(message.record, Fate.REFUSED, "invalid", "corrects: names another event", tenant_id)
            if not originals:
                detail = "what it corrects is not here, nor in what is replayed"
                return Expected(message.record, Fate.REFUSED, "orphan", detail, tenant_id)
            corrected = in_force(originals)
        beside = compared_with(versions, arrived) if versions else None
        verdict = judge(versions, arrived) if versions else None
        if verdict is Verdict.CONFLICT and beside is not None:
            detail = f"{why_conflict(beside, arrived)}, of {beside.completed_at.isoformat()}"
            return Expected(message.record, Fate.CONFLICT, "conflict", detail, tenant_id, message, each.key, beside)
        fate = Fate.ADD if verdict is None else Fate.SUPERSEDE if verdict is Verdict.STRONGER else Fate.THERE
        if corrected is not None and corrected.strength > arrived.strength:
            fate = Fate.THERE  # what counts is a better telling than the one that it corrects
        if fate is Fate.THERE and self._fills_a_number(message):
            fate = Fate.FILL
        elif fate.changes:
            self._planned.setdefault(each.key, []).append(arrived)
        known, at = each.key in stored, corrected.completed_at if corrected is not None else None
        return Expected(
            message.record, fate, "", "", tenant_id, message, each.key, beside, is_counted=known, enters_at=at
        )

    def _look_up_numbers(self, messages: Sequence[Accepted]) -> None:
        """Which numbers have come, of boots that were not met before."""
        numbers = (number_of(message.event) for message in messages)
        new = sorted({(n.replica_id, n.boot_id) for n in numbers if n is not None} - self._received.keys())
        if not new:
            return
        self._received |= number_store.received(self._connection, new)

    def _fills_a_number(self, message: Accepted) -> bool:
        """Whether its number has not come, by this message or another."""
        number = number_of(message.event)
        if number is None:
            return False
        through, beyond = self._received[number.replica_id, number.boot_id]
        return number.seq > through and not number_sets.holds(beyond, number.seq)
