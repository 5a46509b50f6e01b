"""Messages that are neither new nor plain resends: other sources of an event, corrections (docs/spec/metering.md 1).

They are rare, so each takes its own statements, in the chunk's transaction. The identity's row is locked first: what is
decided about one event is decided one after another. What is alone in its chunk and plain, of resends, of other sources
and of corrections, is taken out before, for the whole chunk at once (`resends.py`, `supersedes.py`, `corrections.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from serving_adapter.events import decode, decode_completed
from serving_adapter.identity import content_digest_of, event_id_of, identity_of
from streams.ingest import engine_sums, moved_corrections
from streams.ingest.event_rows import EventRows, Outcome, version_of
from streams.ingest.moved_corrections import impossible, refuse
from streams.rules.chunks import Accepted, Refused
from streams.rules.duplicates import (
    Verdict,
    Version,
    arriving,
    compared_with,
    judge,
    makes_younger,
    original_of,
    why_conflict,
)
from streams.rules.identity_keys import identity_key


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Takes the further arrivals of a chunk, one after another."""

    rows: EventRows
    sealed_before: datetime | None = None
    """What was counted before this is archived: nothing takes its place or corrects it any more."""

    def take(self, message: Accepted) -> Outcome | Refused:
        """Do what is to be done with one message whose identity may be known already."""
        return self._correct(message) if message.event.kind == "correction" else self._other_version(message)

    def _other_version(self, message: Accepted) -> Outcome | Refused:
        """A usage event whose identity was counted before this message."""
        identity = identity_of(message.event)
        stored = self.rows.stored_versions(identity)
        verdict = judge([version_of(row) for row in stored], arriving(message))
        if verdict is Verdict.DUPLICATE:
            return Outcome.DUPLICATE
        if verdict is Verdict.CONFLICT:
            return _conflict(message, stored)
        self._keep_young(message, stored)
        if verdict is Verdict.RETIMED:
            return Outcome.RETIMED
        counting = max(stored, key=lambda row: version_of(row).strength)
        if self._is_sealed(counting):
            return refuse(message, "too_old", "what it belongs to is archived")
        self.rows.add_version(message)
        self.rows.add_event(message)
        if verdict is Verdict.WEAKER:
            self.rows.supersede(self.rows.source, message.record.position, counting.source, counting.position)
            engine_sums.note_weaker(self.rows.connection, [message.event])
        else:
            self._take_the_place(message, counting)
        return Outcome.APPLIED

    def _take_the_place(self, message: Accepted, counting: Any) -> None:
        """What counted, with its corrections, leaves the windows; the arrival enters under its own keys and time."""
        mine = (self.rows.source, message.record.position)
        replaced = [
            row
            for row in self.rows.counting(identity_of(message.event), counting.completed_at)
            if (row.source, row.position) != mine
        ]
        for row in replaced:
            self.rows.count(row, -1)
            self.rows.supersede(row.source, row.position, *mine)
            engine_sums.note_superseded(self.rows.connection, decode(replaced[0].raw), decode(row.raw))
        engine_sums.note_new(self.rows.connection, [message.event])
        (entered,) = [
            row
            for row in self.rows.counting(identity_of(message.event), message.completed_at)
            if (row.source, row.position) == mine
        ]
        self.rows.count(entered, +1)
        strength = arriving(message).strength
        staying = [row for row in replaced if row.kind == "correction" and _told(row).strength >= strength]
        if staying:
            moved_corrections.take_along(self.rows, message, entered, staying)

    def _correct(self, message: Accepted) -> Outcome | Refused:
        """A correction: signed deltas, counted where the event that it corrects counts (rule 1.3)."""
        event = message.event
        original = original_of(event)
        stored = self.rows.stored_versions(original)
        if event.corrects != str(event_id_of(original)):
            return refuse(message, "invalid", "corrects: not the event_id of this tenant, request and attempt")
        if not stored:
            return refuse(message, "orphan", "what it corrects has not arrived yet")
        known = self.rows.stored_versions(identity_of(event))
        verdict = judge([version_of(row) for row in known], arriving(message)) if known else None
        if verdict is Verdict.DUPLICATE:
            return Outcome.DUPLICATE
        if verdict is Verdict.CONFLICT:
            return _conflict(message, known)
        if verdict is Verdict.RETIMED:
            self._keep_young(message, known)
            return Outcome.RETIMED
        counting = max(stored, key=lambda row: version_of(row).strength)
        if self._is_sealed(counting):
            return refuse(message, "too_old", "what it corrects is archived")
        rows = self.rows.counting(original, counting.completed_at)
        # The same correction as a weaker source told it leaves, as with an event (rule 1.5)
        told = [row for row in rows if row.kind == "correction" and row.correction_no == event.correction_no]
        stronger = _stronger(message, [*known, counting])
        if stronger is None and (why := impossible([row for row in rows if row not in told], event)):
            return refuse(message, "invalid", why)
        if known:
            self.rows.add_version(message)
            self._keep_young(message, known)
        else:
            self.rows.add_identity(message)
        mine = (self.rows.source, message.record.position)
        if stronger is not None:
            self.rows.add_correction(message, rows[0])
            self.rows.supersede(*mine, stronger.source, stronger.position)
            engine_sums.note_weaker(self.rows.connection, [event])
            return Outcome.APPLIED
        for row in told:
            self.rows.count(row, -1)
            self.rows.supersede(row.source, row.position, *mine)
            engine_sums.note_superseded(self.rows.connection, decode(rows[0].raw), decode(row.raw))
        self.rows.enter_correction(message, rows[0])
        engine_sums.note_corrections(self.rows.connection, [(decode(rows[0].raw), event)])
        return Outcome.APPLIED

    def _keep_young(self, message: Accepted, stored: Sequence[Any]) -> None:
        if makes_younger(message, [version_of(row) for row in stored]):
            self.rows.keep_young([(identity_key(identity_of(message.event)), message.completed_at)])

    def _is_sealed(self, counting: Any) -> bool:
        return self.sealed_before is not None and counting.completed_at < self.sealed_before


def _told(row: Any) -> Version:
    """A stored correction as its own source told it: its row has the keys of what it corrects."""
    event, completed_at = decode_completed(row.raw)
    return Version(content_digest_of(event), event.usage_source, completed_at, None)


def _stronger(message: Accepted, versions: Sequence[Any]) -> Any:
    """The row of the strongest version that leaves a correction uncounted; None if it counts."""
    strongest = max(versions, key=lambda row: version_of(row).strength)
    return strongest if version_of(strongest).strength > arriving(message).strength else None


def _conflict(message: Accepted, stored: Sequence[Any]) -> Refused:
    versions, arrived = [version_of(row) for row in stored], arriving(message)
    beside = compared_with(versions, arrived)
    held = stored[versions.index(beside)]
    detail = f"same identity as {held.source}@{held.position}, {why_conflict(beside, arrived)}"
    return refuse(message, "conflict", detail)
