"""What invoices bill, in the database: the digest, each tenant's sums and root, and how far usage was applied then."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from sqlalchemy import ARRAY, UUID, Connection, any_, cast, select

from billing import tables
from billing.usage.billed_events import Attempt
from billing.usage.usage_digest import TenantUsage, usage_digest


@dataclass(frozen=True, slots=True)
class UsageCounted:
    """The events that an invoice bills, by tenant in order.

    `below`: up to which position of each source. `passed_over`: by tenant the attempts of the period that do not bill,
    because another of their request does.
    """

    tenants: tuple[TenantUsage, ...]
    below: Mapping[str, int] = field(default_factory=dict)
    passed_over: Mapping[str, Collection[Attempt]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The invoice's usage digest, in hex."""
        return usage_digest(self.tenants)


def save(connection: Connection, invoice_id: uuid.UUID, counted: UsageCounted) -> None:
    """Keep what an invoice bills that is not frozen; nothing is written where its events are still the same."""
    known = of_invoices(connection, [invoice_id]).get(invoice_id)
    if known is not None and known.tenants == counted.tenants:
        return
    for table in (tables.passed_over_attempts, tables.usage_counts, tables.usage_digests):
        connection.execute(table.delete().where(table.c.invoice_id == invoice_id))
    connection.execute(
        tables.usage_digests.insert().values(
            invoice_id=invoice_id, digest=bytes.fromhex(counted.digest), below=dict(counted.below)
        )
    )
    rows = [usage.document() | {"invoice_id": invoice_id, "root": usage.root} for usage in counted.tenants]
    if rows:
        connection.execute(tables.usage_counts.insert(), rows)
    attempts = [
        {"invoice_id": invoice_id, "tenant_id": tenant_id, "request_id": request_id, "attempt": attempt}
        for tenant_id, listed in counted.passed_over.items()
        for request_id, attempt in sorted(listed)
    ]
    if attempts:
        connection.execute(tables.passed_over_attempts.insert(), attempts)


def of_invoices(connection: Connection, invoice_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, UsageCounted]:
    """What invoices bill, by invoice; nothing for one that was drawn up before there was a digest."""
    ids = cast(list(invoice_ids), ARRAY(UUID))
    digests, counts, attempts = tables.usage_digests, tables.usage_counts, tables.passed_over_attempts
    tenants: dict[uuid.UUID, list[TenantUsage]] = {}
    query = select(counts).where(counts.c.invoice_id == any_(ids)).order_by(counts.c.tenant_id.collate("C"))
    for row in connection.execute(query):
        usage = TenantUsage(
            row.tenant_id, row.events, row.requests, row.input_tokens, row.cache_hit_tokens, row.output_tokens,
            row.gpu_us, bytes(row.root),
        )  # fmt: skip
        tenants.setdefault(row.invoice_id, []).append(usage)
    passed_over: dict[uuid.UUID, dict[str, set[Attempt]]] = {}
    for row in connection.execute(select(attempts).where(attempts.c.invoice_id == any_(ids))):
        passed_over.setdefault(row.invoice_id, {}).setdefault(row.tenant_id, set()).add((row.request_id, row.attempt))
    return {
        row.invoice_id: UsageCounted(
            tuple(tenants.get(row.invoice_id, ())), row.below, passed_over.get(row.invoice_id, {})
        )
        for row in connection.execute(select(digests).where(digests.c.invoice_id == any_(ids)))
    }
