"""Whether an invoice's document adds up, and whether it bills the events in hand. Values in, values out; no database.

All that is needed is the document (and the events): any other program can do the same by docs/usage-digest.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from billing.errors import EventsRefused, NotAnAmount
from billing.invoicing.invoice_file import InvoiceFile, LineFile, number_of
from billing.invoicing.invoices import InvoiceKind
from billing.money import LINE_STEP, ZERO, exactly, from_minor, plain, spread, to_minor, total
from billing.plans.price_plans import Metric
from billing.rating import LineKind
from billing.rating.usage import GPU_MICROSECOND, by_metric
from billing.usage.usage_digest import TenantCount, TenantUsage, event_of_line, usage_digest

METERED: Final = (LineKind.USAGE, LineKind.OVERAGE)
"""Kinds of lines whose amount is quantity × unit price."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What an invoice says, and what it would have to say."""

    what: str
    stated: str
    found: str


def check_document(of: InvoiceFile) -> list[Difference]:
    """Where the document contradicts itself: sums, rounding, quantity × price, identity, digest over its tenants."""
    return [
        *_different("invoice_id, by its identity", of.invoice_id, str(of.identity.invoice_id)),
        *_sums(of),
        *_rounding(of),
        *_tax(of),
        *_prices(of),
        *_usage(of),
    ]


def check_events(of: InvoiceFile, lines: Iterable[bytes]) -> list[Difference]:
    """Where an export of billed events, in the order of its lines, is not what the invoice says it bills.

    A tenant's events are together, by completion. Raises EventsRefused for a line that cannot be read.
    """
    stated = of.tenants
    if stated is None:
        return [Difference("usage", "none", "an invoice that says nothing of its events cannot be compared with any")]
    counted = {usage.tenant_id: usage for usage in _counted(lines)}
    found: list[Difference] = []
    for usage in stated:
        own = counted.pop(usage.tenant_id, TenantCount(usage.tenant_id).usage)
        before, after = usage.document(), own.document()
        for name, value in before.items():
            found += _different(f"{usage.tenant_id}: {name}", str(value), str(after[name]))
    found += [Difference(f"{name}: events", "none", str(usage.events)) for name, usage in counted.items()]
    return found


def _counted(lines: Iterable[bytes]) -> Iterator[TenantUsage]:
    counts: dict[str, TenantCount] = {}
    for number, line in enumerate(lines, start=1):
        event = event_of_line(line, number)
        count = counts.setdefault(event.tenant_id, TenantCount(event.tenant_id))
        try:
            count.add(event)
        except EventsRefused as error:
            raise EventsRefused(f"line {number}: {error}") from None
    return (count.usage for count in counts.values())


def _sums(of: InvoiceFile) -> Iterator[Difference]:
    lines, tax = sum(line.amount for line in of.lines), sum(row.amount for row in of.tax)
    inclusive = any(row.inclusive for row in of.tax)
    yield from _different("total, by net and tax", str(of.total), str(of.net + tax))
    if inclusive:
        yield from _different("total, by lines", str(of.total), str(lines))
    else:
        yield from _different("net, by lines", str(of.net), str(lines))
    received = of.total if of.kind is InvoiceKind.TOP_UP and of.received else 0  # all of it, or it is still due
    yield from _different("received, by its kind", str(of.received), str(received))
    due = of.total - sum(credit.amount for credit in of.payments) - of.received + of.carried_in
    yield from _different("amount_due, by total and payments", str(of.amount_due), str(due))
    exact = total(line.amount_exact for line in of.lines)
    yield from _different("exact_total, by lines", plain(of.exact_total), plain(exact))
    with exactly():
        residue = of.exact_total - from_minor(lines, of.money)
    yield from _different("rounding", plain(of.rounding), plain(residue))


def _rounding(of: InvoiceFile) -> Iterator[Difference]:
    """Each line rounded again by largest remainder (docs/spec/money.md 5): by tax group where prices contain tax.

    A credit note's lines are rounded against those that they take back from, which are not on it (13.17).
    """
    if of.is_credit_note:
        return
    inclusive = any(row.inclusive for row in of.tax)
    groups: dict[str, list[LineFile]] = defaultdict(list)
    for line in of.lines:
        groups[line.tax_group if inclusive else ""].append(line)
    for lines in groups.values():
        if len({line.line_key for line in lines}) < len(lines):
            yield Difference("line_key", "one line each", "a key is there twice")
            continue
        rounded = from_minor(sum(line.amount for line in lines), of.money)
        try:
            shares = spread(rounded, {line.line_key: line.amount_exact for line in lines}, of.money.quantum)
        except NotAnAmount as error:
            yield Difference("rounding", plain(rounded), str(error))
            continue
        for line in lines:
            amount = to_minor(shares[line.line_key], of.money)
            yield from _different(f"line {line.line_key}: amount", str(line.amount), str(amount))


def _tax(of: InvoiceFile) -> Iterator[Difference]:
    """Each row's base by its lines, and its amount by base and rate, a half either way: on a credit note, which is the
    difference of two amounts, twice that."""
    lines: dict[str, int] = defaultdict(int)
    for line in of.lines:
        lines[line.tax_group] += line.amount
    for row in of.tax:
        yield from _different(f"tax group {row.tax_group}: mode, by tax_mode", row.mode, of.tax_mode)
        gross = row.base + row.amount if row.inclusive else row.base
        yield from _different(f"tax group {row.tax_group}: base, by lines", str(gross), str(lines[row.tax_group]))
        with exactly():
            exact = from_minor(row.base, of.money) * row.rate
            off = from_minor(row.amount, of.money) - exact
            # Gross is rounded, and its tax: the net that is left lies up to half a quantum × rate off.
            within = of.money.quantum / 2 * (1 + row.rate if row.inclusive else 1) * (2 if of.is_credit_note else 1)
        if abs(off) > within:
            yield Difference(f"tax group {row.tax_group}: amount", str(row.amount), f"{plain(exact)} before rounding")


def _prices(of: InvoiceFile) -> Iterator[Difference]:
    for line in of.lines:
        quantity, price = number_of(line.quantity), number_of(line.unit_price or "n/d")
        if line.kind in METERED and quantity is not None and price is not None:
            exact = Fraction(quantity) * Fraction(price)
            if abs(Fraction(line.amount_exact) - exact) > Fraction(LINE_STEP):
                yield Difference(
                    f"line {line.line_key}: amount_exact",
                    plain(line.amount_exact),
                    f"{line.quantity} × {line.unit_price}",
                )


def _usage(of: InvoiceFile) -> Iterator[Difference]:
    """The digest over the tenants' roots, and the units on the lines against the tenants' sums."""
    tenants = of.tenants
    if tenants is None:
        if of.usage_digest is not None:
            yield Difference("usage_digest", of.usage_digest, "no usage that it is over")
        return
    yield from _different("usage_digest, by usage", str(of.usage_digest), usage_digest(tenants))
    known = {usage.tenant_id: usage for usage in tenants}
    for tenant_id, metric, counted, whole in _units(of):
        if tenant_id not in known:
            yield Difference(f"usage of {tenant_id}", "none", f"{plain(counted)} {metric} on its lines")
            continue
        used = _metrics(known[tenant_id])[metric]
        # Where plans or versions change in the period, one of them may have no price for a metric: it is free there.
        if counted > used or (whole and counted != used):
            yield Difference(f"{tenant_id}: {metric} on its lines", plain(counted), f"{plain(used)} by its events")


def _units(of: InvoiceFile) -> Iterator[tuple[str, Metric, Decimal, bool]]:
    """By tenant and metric the units on the period's own lines, and whether one price version holds throughout."""
    own = [line for line in of.lines if line.original_period == of.identity.period.name]
    versions: dict[str, set[tuple[str, str]]] = defaultdict(set)
    units: dict[tuple[str, Metric], Decimal] = defaultdict(lambda: ZERO)
    for line in own:
        counted = number_of(line.counted)
        if line.kind not in METERED or line.token_class not in list(Metric) or counted is None:
            continue
        versions[line.tenant_id].add((line.plan, line.price_version))
        with exactly():
            units[line.tenant_id, Metric(line.token_class)] += counted
    for (tenant_id, metric), counted in units.items():
        yield tenant_id, metric, counted, len(versions[tenant_id]) == 1


def _metrics(usage: TenantUsage) -> dict[Metric, Decimal]:
    gpu_seconds = usage.gpu_us * GPU_MICROSECOND
    return by_metric(usage.input_tokens, usage.cache_hit_tokens, usage.output_tokens, gpu_seconds, usage.requests)


def _different(what: str, stated: str, found: str) -> Iterator[Difference]:
    if stated != found:
        yield Difference(what, stated, found)
