"""R2 and R3: a cut against the raw events below it, and against the second rating of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

from billing.invoicing import rated_line_store
from billing.ledger.journal_chain import written_time
from billing.periods import BillingPeriod
from billing.plans import account_store, plan_store
from billing.plans.subscriptions import pieces
from billing.rating import is_billable
from billing.rating.differences import net
from billing.rating.lines import Naming, RatedLine
from billing.usage.billed_events import Billed
from reconciliation.agreement import Check, Made, compare
from reconciliation.close import freezing
from reconciliation.close.freezing import COUNTS, Cut
from reconciliation.close.gates.contracts import RawUsageReader, contracts
from reconciliation.close.gates.rated_twice import RATED_TWICE, RatedTwice, Told
from reconciliation.comparison import Difference, Value
from streams.errors import EventsArchived
from streams.rules.windows import UsageQuantity

FROZEN: Final = "raw events are frozen"
KEYS: Final = ("model", "adapter", "region", "tier", "status", "fault", "usage_source")


class CutChecks:
    """Compares cuts one after another; what it found is in `checks`. `made` is told after each part of a tenant."""

    def __init__(self, connection: Connection, made: Made) -> None:
        self._connection = connection
        self._made = made
        self._digests: tuple[dict[str, Value], dict[str, Value]] = ({}, {})
        self._usage: tuple[dict[str, Value], dict[str, Value]] = ({}, {})
        self._payers: tuple[dict[str, set[str]], dict[str, set[str]]] = (defaultdict(set), defaultdict(set))
        self._altered: list[Difference] = []
        self._rated = RatedTwice()

    def add(self, cut: Cut) -> None:
        """Compare a cut, of its tenants."""
        rows = freezing.frozen_rows(self._connection, cut)
        self._add_digests(cut, rows)
        agreements = contracts(self._connection, cut.period, cut.tenants)
        self._add_frozen(rows, agreements)
        reader = RawUsageReader(self._connection, cut.period, cut.below)
        lines = rated_line_store.posted(self._connection, cut.period, up_to_line=cut.last_line)
        naming = namings(self._connection, cut.period, cut.tenants)
        for tenant_id in sorted(cut.tenants):
            where = f"{tenant_id}/{cut.period.name}"
            try:
                used = reader.of(tenant_id)
            except EventsArchived as error:
                self._rated.hinder(where, error)
                continue
            self._altered += used.altered
            self._add_billed(tenant_id, used.billed)
            self._made(FROZEN)
            told = _told(lines.get(tenant_id, ()), naming[tenant_id])
            self._rated.add(where, agreements[tenant_id], used.used, told)
            self._made(RATED_TWICE)

    @property
    def checks(self) -> list[Check]:
        """All that was compared."""
        frozen = compare(FROZEN, "raw events below the cut", "frozen usage", *self._usage)
        return [
            compare("frozen usage is as it was cut", "digests", "digests of what is there", *self._digests),
            Check(
                frozen.name, frozen.left, frozen.right, frozen.compared,
                (*frozen.differences, *self._altered, *self._other_payers()),
            ),
            self._rated.check("second rating"),
        ]  # fmt: skip

    def _other_payers(self) -> Iterator[Difference]:
        """Segments for which another account pays by the subscriptions than by the cut."""
        pays, paid = self._payers
        for key in sorted(pays.keys() & paid.keys()):
            if pays[key] != paid[key]:
                yield Difference(f"{key}/payer", ", ".join(sorted(pays[key])), ", ".join(sorted(paid[key])))

    def _add_digests(self, cut: Cut, rows: Iterable[Mapping[str, Any]]) -> None:
        stored, there = self._digests
        stored[f"cut {cut.cut_id}"] = cut.digest
        there[f"cut {cut.cut_id}"] = freezing.cut_digest(
            cut.coordinates, freezing.digests_of(self._connection, cut.cut_id)
        )
        for key, digest, now in freezing.tax_rules_then_and_now(self._connection, cut):
            stored[key] = digest
            there |= {} if now is None else {key: now}
        left_out = freezing.left_out(self._connection, cut.cut_id)
        there |= {f"{tenant_id}/cut {cut.cut_id}/not named": "rows" for tenant_id in left_out}
        for row in rows:
            key = f"{row['tenant_id']}/cut {cut.cut_id}/row {row['row_no']}"
            stored[key], there[key] = row["digest"], freezing.row_digest(row)

    def _add_frozen(self, rows: Iterable[Mapping[str, Any]], agreements: Mapping[str, Mapping[str, Any]]) -> None:
        for row in rows:
            quantity = UsageQuantity(row["tenant_id"], *(row[name] for name in (*KEYS, "rating_band", *COUNTS)))
            if is_billable(quantity, _statuses(agreements.get(quantity.tenant_id), row["service_start"])):
                key = "/".join(str(row[name]) for name in ("tenant_id", "segment_no", "version", *KEYS))
                self._payers[1][f"{row['tenant_id']}/{row['segment_no']}/{row['version']}"].add(row["billing_account"])
                _add(self._usage[1], key, {name: row[name] for name in COUNTS})

    def _add_billed(self, tenant_id: str, billed: Iterable[Billed]) -> None:
        for each in billed:
            event, piece = each.event, each.piece
            names = (getattr(event, name) for name in KEYS)
            of = f"{tenant_id}/{piece.segment_no}/{piece.version.version}"
            self._payers[0][of].add(piece.subscription.billing_account)
            key = "/".join((of, *names))
            counts = {name: getattr(event, name) for name in COUNTS if name != "requests"}
            _add(self._usage[0], key, counts | {"requests": int(event.kind == "usage")})


def _statuses(contract: Mapping[str, Any] | None, at: datetime) -> tuple[str, ...]:
    """What bills of a segment that begins at a moment: the terms of the subscription that holds then."""
    held = [] if contract is None else [s for s in contract["subscriptions"] if s["starts_at"] <= written_time(at)]
    return tuple(max(held, key=lambda each: str(each["starts_at"]))["terms"]["bill_statuses"]) if held else ()


def _add(into: dict[str, Value], key: str, counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        if value := int(into.get(f"{key}/{name}", 0)) + count:
            into[f"{key}/{name}"] = value
        else:
            into.pop(f"{key}/{name}", None)


def namings(connection: Connection, period: BillingPeriod, tenants: Collection[str]) -> dict[str, Naming]:
    """How each tenant's lines of a period are called: by how many segments and versions there are."""
    plans = plan_store.plans(connection)
    versions = {name: plan.versions for name, plan in plans.items()}
    counts = {name: len(listed) for name, listed in versions.items()}
    subscribed = account_store.subscriptions_in(connection, period)
    found = {}
    for tenant_id in tenants:
        cut = pieces(subscribed.get(tenant_id, ()), versions, period)
        found[tenant_id] = Naming({tenant_id: max((p.segment_no for p in cut), default=1)}, counts)
    return found


def _told(lines: Iterable[RatedLine], naming: Naming) -> Iterator[Told]:
    for line in net(lines).values():
        quantity = None if line.unit_price is None else line.quantity
        of = line.identity
        charge = of.plan, of.version, of.charge_key
        key, metric = naming.key(of), str(line.metric)
        yield Told(of.kind, key, line.tax_group, line.amount, quantity, charge, metric, line.where)
