"""R2 and R3: a cut against the raw events below it, and against the second rating of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

from billing.invoicing import rated_line_store
from billing.ledger.journal_chain import written_time
from billing.periods import rfc3339
from billing.rating import is_billable
from billing.rating.differences import net
from billing.rating.lines import LineKind, Naming, RatedLine
from billing.usage.billed_events import Billed
from reconciliation.agreement import Check, Made, compare
from reconciliation.close import freezing
from reconciliation.close.freezing import COUNTS, Cut
from reconciliation.close.gates.contracts import RawUsageReader, contracts
from reconciliation.close.gates.rated_twice import RATED_TWICE, RatedTwice, Told
from reconciliation.close.gates.second_rating import bills
from reconciliation.comparison import Difference, Value
from streams.errors import EventsArchived
from streams.rules.windows import UsageQuantity

FROZEN: Final = "raw events are frozen"
_AS_CUT: Final = "frozen usage is as it was cut", "digests", "digests of what is there"
KEYS: Final = ("model", "adapter", "region", "tier", "status", "fault", "usage_source")


class CutChecks:
    """Compares cuts one after another, tenant by tenant. `made` is told after each part of a tenant.

    `parts`: what was compared of each tenant's cut, by `tenant/period/cut 7`.
    """

    def __init__(self, connection: Connection, made: Made) -> None:
        self._connection = connection
        self._made = made
        self.parts: dict[str, list[Check]] = {}

    def add(self, cut: Cut) -> None:
        """Compare a cut, of its tenants."""
        rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in freezing.frozen_rows(self._connection, cut):
            rows[row["tenant_id"]].append(row)
        stored, there = self._digests(cut)
        agreements = contracts(self._connection, cut)
        reader = RawUsageReader(self._connection, cut)
        lines = rated_line_store.posted(self._connection, cut.period, until=cut.accrued_to, up_to_line=cut.last_line)
        until = None if cut.accrued_to is None else written_time(cut.accrued_to)
        for tenant_id in sorted(cut.tenants):
            where, ends = f"{tenant_id}/{cut.period.name}", f"{tenant_id}/cut {cut.cut_id}/ends"
            said = {ends: cut.coordinates["ends"]}
            part = _OfTenant(tenant_id, stored | said, there | {ends: rfc3339(cut.until)})
            part.add_frozen(cut, rows[tenant_id], agreements)
            try:
                used = reader.of(tenant_id)
            except EventsArchived as error:
                part.rated.hinder(where, error)
            else:
                part.altered += used.altered
                part.add_billed(used.billed)
                self._made(FROZEN)
                told = _told(lines.get(tenant_id, ()), naming(tenant_id, agreements[tenant_id]))
                part.rated.add(where, agreements[tenant_id], used.used, told, until)
                self._made(RATED_TWICE)
            self.parts[f"{where}/cut {cut.cut_id}"] = part.checks

    def add_left_out(self, month: str) -> None:
        """What a month's cuts have of tenants that they do not name."""
        for tenant_id, period, cut_id in freezing.left_out(self._connection, month):
            found = Difference(f"{tenant_id}/cut {cut_id}/not named", None, "rows")
            self.parts[f"{tenant_id}/{period.name}/cut {cut_id}"] = [Check(*_AS_CUT, 1, (found,))]

    @property
    def checks(self) -> list[Check]:
        """All that was compared; what several parts have found is one difference."""
        found: dict[str, Check] = {}
        for each in (check for part in self.parts.values() for check in part):
            so_far = found.get(each.name, Check(each.name, each.left, each.right, 0, ()))
            differences = tuple(dict.fromkeys((*so_far.differences, *each.differences)))
            found[each.name] = Check(each.name, each.left, each.right, so_far.compared + each.compared, differences)
        return list(found.values())

    def _digests(self, cut: Cut) -> tuple[dict[str, Value], dict[str, Value]]:
        """What is of the cut as a whole: digests as they were stored, and of what is there now."""
        key = f"cut {cut.cut_id}"
        stored: dict[str, Value] = {key: cut.digest}
        digests = freezing.digests_of(self._connection, cut.cut_id)
        there: dict[str, Value] = {key: freezing.cut_digest(cut.coordinates, digests)}
        for rule, digest, now in freezing.tax_rules_then_and_now(self._connection, cut):
            stored[rule] = digest
            there |= {} if now is None else {rule: now}
        return stored, there


class _OfTenant:
    """What is compared of a tenant's cut."""

    def __init__(self, tenant_id: str, stored: dict[str, Value], there: dict[str, Value]) -> None:
        self._tenant_id = tenant_id
        self._digests = stored, there
        self._usage: tuple[dict[str, Value], dict[str, Value]] = ({}, {})
        self._payers: tuple[dict[str, set[str]], dict[str, set[str]]] = (defaultdict(set), defaultdict(set))
        self.altered: list[Difference] = []
        self.rated = RatedTwice()

    @property
    def checks(self) -> list[Check]:
        """All that was compared of it."""
        frozen = compare(FROZEN, "raw events below the cut", "frozen usage", *self._usage)
        return [
            compare(*_AS_CUT, *self._digests),
            Check(
                frozen.name, frozen.left, frozen.right, frozen.compared,
                (*frozen.differences, *self.altered, *self._other_payers()),
            ),
            self.rated.check("second rating"),
        ]  # fmt: skip

    def _other_payers(self) -> Iterator[Difference]:
        """Segments for which another account pays by the subscriptions than by the cut."""
        pays, paid = self._payers
        for key in sorted(pays.keys() & paid.keys()):
            if pays[key] != paid[key]:
                yield Difference(f"{key}/payer", ", ".join(sorted(pays[key])), ", ".join(sorted(paid[key])))

    def add_frozen(
        self, cut: Cut, rows: Iterable[Mapping[str, Any]], agreements: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Its rows of the cut."""
        stored, there = self._digests
        for row in rows:
            key = f"{row['tenant_id']}/cut {cut.cut_id}/row {row['row_no']}"
            stored[key], there[key] = row["digest"], freezing.row_digest(row)
            quantity = UsageQuantity(row["tenant_id"], *(row[name] for name in (*KEYS, "rating_band", *COUNTS)))
            if is_billable(quantity, _statuses(agreements.get(quantity.tenant_id), row["service_start"])):
                key = "/".join(str(row[name]) for name in ("tenant_id", "segment_no", "version", *KEYS))
                self._payers[1][f"{row['tenant_id']}/{row['segment_no']}/{row['version']}"].add(row["billing_account"])
                _add(self._usage[1], key, {name: row[name] for name in COUNTS})

    def add_billed(self, billed: Iterable[Billed]) -> None:
        """Its raw events below the cut that bill."""
        for each in billed:
            event, piece = each.event, each.piece
            names = (getattr(event, name) for name in KEYS)
            of = f"{self._tenant_id}/{piece.segment_no}/{piece.version.version}"
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


def naming(tenant_id: str, contract: Mapping[str, Any] | None) -> Naming:
    """How a tenant's lines of a period are called: by how many segments and versions its contract has."""
    if contract is None:
        return Naming({tenant_id: 1}, {})
    segments = sum(bills(each) and each["bills_from"] < contract["end"] for each in contract["subscriptions"])
    return Naming({tenant_id: segments}, {name: len(versions) for name, versions in contract["plans"].items()})


def _told(lines: Iterable[RatedLine], naming: Naming) -> Iterator[Told]:
    for line in net(lines).values():
        of = line.identity
        quantity = line.quantity if line.unit_price is not None or of.kind == LineKind.USAGE else None
        charge = of.plan, of.version, of.charge_key
        key, metric = naming.key(of), str(line.metric)
        yield Told(of.kind, key, line.tax_group, line.amount, quantity, charge, metric, line.where)
