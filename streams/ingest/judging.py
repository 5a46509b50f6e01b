"""Which messages may enter, before anything is known of what is stored: decoding, tenants, the horizon."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import psycopg

from streams import tenants
from streams.rules.chunks import Accepted, Record, Refused, read
from streams.rules.horizon import Horizon, TooOld
from streams.rules.ingest_rules import IngestRules


class Judged(NamedTuple):
    """What may enter, with its rating band, what is refused, and the horizon that it was judged by.

    Behind the horizon are usage events, with their band as well, that only a replay may bring in.
    """

    accepted: list[Accepted]
    refused: list[Refused]
    behind: list[TooOld]
    horizon: Horizon


class Judge:
    """Judges messages over one connection; remembers tenants, which are never deleted."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._known_tenants: set[str] = set()
        self._rules = IngestRules(connection)

    def judge(self, records: Sequence[Record], judged_at: datetime | None) -> Judged:
        """Part messages into those that may enter and those that may not. `judged_at` as a chunk's."""
        accepted, refused = self._alone(records, judged_at)
        horizon, bands = self._rules.current()
        accepted, too_old = horizon.sift(accepted)
        # What corrects something that may be archived does not enter: nothing there changes any more
        refused += [each.refused for each in too_old if each.message.event.kind != "usage"]
        behind = [each for each in too_old if each.message.event.kind == "usage"]
        marked = bands.mark([each.message for each in behind])
        behind = [each._replace(message=message) for each, message in zip(behind, marked, strict=True)]
        return Judged(bands.mark(accepted), refused, behind, horizon)

    def _alone(
        self, records: Sequence[Record], judged_at: datetime | None
    ) -> tuple[list[Accepted], list[Refused]]:  # fmt: skip
        """Decode each message; refuse what is broken or belongs to nobody."""
        accepted: list[Accepted] = []
        refused: list[Refused] = []
        for record in records:
            message = read(record, judged_at)
            if isinstance(message, Accepted):
                accepted.append(message)
            else:
                refused.append(message)
        strangers = self._strangers({message.event.tenant_id for message in accepted})
        if strangers:
            for message in accepted:
                tenant_id = message.event.tenant_id
                if tenant_id in strangers:
                    detail = f"tenant {tenant_id} is not registered"
                    refused.append(Refused(message.record, "unknown_tenant", detail, tenant_id, message.event))
            accepted = [message for message in accepted if message.event.tenant_id not in strangers]
        return accepted, refused

    def _strangers(self, tenant_ids: set[str]) -> set[str]:
        """Ids that are not registered."""
        unsure = {t for t in tenant_ids if t not in self._known_tenants and not t.startswith("_")}
        if not unsure:
            return unsure
        known = tenants.known_among(self._connection, sorted(unsure))
        self._known_tenants |= known
        return unsure - known
