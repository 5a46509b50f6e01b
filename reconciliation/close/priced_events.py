"""Single events of tenants that are priced by them: kept when what they come to is put before a person, since sums of
usage do not say what a percentage, or a price that depends on the time of day, comes to."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, select

from billing import tables
from billing.ledger.journal_chain import canonical
from billing.periods import BillingPeriod
from reconciliation.close.freezing import Cut
from reconciliation.close.gates.contracts import RawUsageReader, contracts
from reconciliation.close.gates.second_rating import TOKENS, Used, priced_by_event

FILE: Final = "priced_events.jsonl"


@dataclass(frozen=True, slots=True)
class KeptEvents:
    """The events of a tenant's cut as JSON lines, and the digest over these, which is in what is signed."""

    cut_id: int
    tenant_id: str
    body: bytes
    digest: str


def keep(connection: Connection, cuts: Iterable[Cut]) -> None:
    """Keep what is not there yet of cuts' tenants that are priced by single events. Raises EventsArchived."""
    for cut in cuts:
        agreements = contracts(connection, cut)
        known = digests(connection, cut.cut_id).keys()
        wanted = {t for t, contract in agreements.items() if t in cut.tenants and priced_by_event(contract)} - known
        if not wanted:
            continue
        reader = RawUsageReader(connection, cut)
        for tenant_id in sorted(wanted):
            used = reader.of(tenant_id).used
            body = written(used, agreements[tenant_id])
            connection.execute(
                tables.close_events.insert().values(
                    cut_id=cut.cut_id, tenant_id=tenant_id, events=len(used), body=gzip.compress(body, mtime=0),
                    digest=digest(body),
                )
            )  # fmt: skip


def of_cut(connection: Connection, cut_id: int) -> Iterator[KeptEvents]:
    """What is kept of a cut, by tenant."""
    table = tables.close_events
    query = select(table).where(table.c.cut_id == cut_id).order_by(table.c.tenant_id)
    for row in connection.execute(query):
        yield KeptEvents(row.cut_id, row.tenant_id, gzip.decompress(row.body), row.digest)


def digests(connection: Connection, cut_id: int) -> dict[str, str]:
    """By tenant the digest of what is kept of a cut."""
    table = tables.close_events
    query = select(table.c.tenant_id, table.c.digest).where(table.c.cut_id == cut_id)
    return {row[0]: row[1] for row in connection.execute(query)}


def digest(body: bytes) -> str:
    """SHA-256 of JSON lines, in hex."""
    return hashlib.sha256(body).hexdigest()


def written(used: Iterable[Used], contract: Mapping[str, Any]) -> bytes:
    """Events as JSON lines; of their labels those alone that something is priced by."""
    charges = [c for plan in contract["plans"].values() for version in plan for c in version["charges"]]
    priced = {name for c in charges for name in (c.get("metric"), c.get("base")) if name} - set(TOKENS)
    return b"".join(
        canonical(asdict(replace(each, labels={k: v for k, v in each.labels.items() if k in priced}))) + b"\n"
        for each in used
    )


def read(lines: Iterable[Mapping[str, Any]]) -> list[Used]:
    """Events as they were written. Raises TypeError for what is none."""
    return [Used(**line) for line in lines]


def in_pack(kept: KeptEvents, period: BillingPeriod) -> bytes:
    """A tenant's events for a pack: a line for all of them, so that a reader has those of one tenant at a time."""
    events = [json.loads(line) for line in kept.body.splitlines()]
    return canonical({"tenant_id": kept.tenant_id, "period": period.name, "events": events}) + b"\n"


def of_pack(line: Mapping[str, Any]) -> tuple[str, list[Used]]:
    """Of a pack's line the digest of its events, and these."""
    body = b"".join(canonical(each) + b"\n" for each in line["events"])
    return digest(body), read(line["events"])
