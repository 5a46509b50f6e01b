"""Do all records of a period agree? From messages to Stripe, each stage against the one before, without tolerance.

positions passed = events + duplicates + quarantine   per partition
raw events = 1-minute windows = 1-hour windows        per tenant and rating key
billable windows = rated quantities                   per tenant and metric
rated lines = accruals in the ledger                  per tenant
rated lines = invoice lines                           per billing account and line
invoices = ledger                                     per account
finalized invoices = Stripe, both ways                per invoice and line
trial balance = 0                                     per currency
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from billing.invoices import Invoice
from billing.money import ZERO, from_minor, total
from billing.rating import RatedLine, is_billable, quantities
from reconciliation.comparison import Difference, Value, differences
from streams.windows import UsageQuantity


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: what was compared, how many values, and where the two records differ."""

    name: str
    left: str
    right: str
    compared: int
    differences: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        """Whether there is no difference."""
        return not self.differences


def compare(name: str, left: str, right: str, ours: Mapping[str, Value], theirs: Mapping[str, Value]) -> Check:
    """A check over two records of the same keys."""
    return Check(name, left, right, len(ours.keys() | theirs.keys()), tuple(differences(ours, theirs)))


def usage_by_key(usage: Iterable[UsageQuantity]) -> dict[str, Value]:
    """`tenant/model/…/measure` → count, zeros left out."""
    found: dict[str, Value] = {}
    for u in usage:
        key = "/".join(
            (u.tenant_id, u.model, u.adapter, u.region, u.tier, u.status, u.fault, u.usage_source, u.rating_band)
        )
        for measure in ("requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us"):
            if count := getattr(u, measure):
                found[f"{key}/{measure}"] = count
    return found


def billable_by_metric(
    usage: Iterable[UsageQuantity],
    bill_statuses: Mapping[str, frozenset[str]],
    priced: Mapping[str, frozenset[str]],
) -> dict[str, Value]:
    """`tenant/metric` → units that should have been rated.

    `bill_statuses` and `priced` say, by tenant, which statuses bill and which metrics its plan prices; tenants
    that are in neither were not rated.
    """
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for u in usage:
        if not is_billable(u, sorted(bill_statuses.get(u.tenant_id, frozenset()))):
            continue
        for metric, quantity in quantities(u).items():
            if metric.value in priced.get(u.tenant_id, frozenset()):
                found[f"{u.tenant_id}/{metric.value}"] += quantity
    return {key: quantity for key, quantity in found.items() if quantity}


def rated_by_metric(lines: Iterable[RatedLine]) -> dict[str, Value]:
    """`tenant/metric` → units that were rated."""
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for line in lines:
        found[f"{line.identity.tenant_id}/{line.metric.value}"] += line.quantity
    return {key: quantity for key, quantity in found.items() if quantity}


def rated_by_tenant(lines: Iterable[RatedLine]) -> dict[str, Value]:
    """`tenant/currency` → exact amount that was rated."""
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for line in lines:
        found[f"{line.identity.tenant_id}/{line.currency}"] += line.amount
    return {key: amount for key, amount in found.items() if amount}


def rated_by_line(lines: Iterable[RatedLine]) -> dict[str, Value]:
    """`account/tenant/charge/…` → exact amount, over everything that was posted."""
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for line in lines:
        found[_line_key(line)] += line.amount
    return {key: amount for key, amount in found.items() if amount}


def invoiced_by_line(invoices: Iterable[Invoice]) -> dict[str, Value]:
    """The same from invoice lines."""
    return rated_by_line(line.rated for invoice in invoices for line in invoice.lines)


def invoice_sums(invoices: Iterable[Invoice]) -> tuple[dict[str, Value], dict[str, Value]]:
    """What each invoice says in total, beside the sums of its lines: net in minor units, exact, rounding."""
    said: dict[str, Value] = {}
    summed: dict[str, Value] = {}
    for invoice in invoices:
        key, net = str(invoice.invoice_id), sum(line.amount_minor for line in invoice.lines)
        exact = total(line.rated.amount for line in invoice.lines)
        said |= {
            f"{key}/net": invoice.net_minor,
            f"{key}/exact": invoice.exact_total,
            f"{key}/rounding": invoice.rounding,
        }
        rounded = from_minor(net, invoice.identity.money)
        summed |= {f"{key}/net": net, f"{key}/exact": exact, f"{key}/rounding": total([exact, -rounded])}
    return said, summed


def invoices_in_ledger(invoices: Iterable[Invoice]) -> dict[str, Value]:
    """`code/subledger/currency` → what the given issued invoices must have moved in the journal."""
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for invoice in invoices:
        identity = invoice.identity
        due = from_minor(invoice.total_minor, identity.money)
        found[f"1100/{identity.billing_account}/{identity.currency}"] += due
        found[f"5900//{identity.currency}"] += invoice.rounding
        for line in invoice.lines:
            found[f"1150/{line.rated.identity.tenant_id}/{identity.currency}"] -= line.rated.amount
    return {key: amount for key, amount in found.items() if amount}


def positions(sources: Mapping[str, tuple[int, int]], chunks: Iterable[tuple[str, int, int, int]]) -> Check:
    """Each source's chunks follow one another from its beginning to its position, and each message has an outcome.

    `sources` gives (first, next) position; `chunks` (source, first, next, outcomes) in order.
    """
    reached = {source: first for source, (first, _) in sources.items()}
    found: list[Difference] = []
    for source, first, after, outcomes in chunks:
        if first != reached.get(source):
            found.append(Difference(f"{source}@{first}", reached.get(source), first))
        if after - first != outcomes:
            found.append(Difference(f"{source}@{first}/outcomes", after - first, outcomes))
        reached[source] = after
    expected: dict[str, Value] = {source: after for source, (_, after) in sources.items()}
    ended: dict[str, Value] = dict(reached)
    check = compare("every message has one outcome", "positions passed", "chunks applied", expected, ended)
    return Check(check.name, check.left, check.right, check.compared, (*found, *check.differences))


def _line_key(line: RatedLine) -> str:
    i = line.identity
    parts = (line.billing_account, i.tenant_id, i.plan, i.version, i.charge_key, i.tier_no, i.kind, line.unit_price)
    return "/".join(map(str, parts))
