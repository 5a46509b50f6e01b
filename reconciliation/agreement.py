"""Do all records of a period agree? From messages to Stripe, each stage against the one before, without tolerance.

positions passed = events + duplicates + quarantine   per partition
raw events = 1-minute windows = 1-hour windows        per tenant and rating key
billable events = rated quantities                    per tenant and metric; none without a subscription
rated lines = accruals in the ledger                  per tenant
rated lines = lines of invoices and credit notes      per billing account and line; late ones may wait for the next
invoices = ledger                                     per account
fees in advance, by the second = ledger 2110          per tenant
rated lines, invoices of all periods = ledger         per account, over entries of all kinds
what is left of paid credits = ledger 2100            per credit
what is expected never to be used = ledger 2105       per credit
credits on invoices = what was drawn                  per invoice and credit
invoices = what was drawn up, issued, adding up       per invoice
finalized invoices = Stripe, both ways                per invoice and line
trial balance = 0                                     per currency
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from billing.bills.credits import GrantKind
from billing.bills.tax import TaxMode
from billing.invoicing.invoices import Invoice
from billing.money import ZERO, currency, exactly, from_minor, total
from billing.periods import BillingPeriod, parse_period
from billing.plans.charge_models import Percentage
from billing.plans.price_plans import BILL_STATUSES, PlanVersion, PricePlan, version_at
from billing.plans.subscriptions import in_force_since
from billing.posting.deferrals import deferred, deferred_by_tenant, earned_by_tenant, tax_on_reductions
from billing.rating import LineKind, RatedLine, is_billable, quantities
from reconciliation.comparison import Difference, Value, differences
from streams.rules.rating_bands import parse_band
from streams.rules.windows import UsageQuantity


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


Made = Callable[[str], None]
"""Told the name of a comparison when it, or a further part of it, is made."""


def told(checks: Iterable[Check], made: Made) -> Iterator[Check]:
    """The same checks, each told of when it is made."""
    for check in checks:
        made(check.name)
        yield check


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


@dataclass(frozen=True, slots=True)
class Terms:
    """What bills in a part of a tenant's period: statuses, metrics that its price version prices, which attempts."""

    bill_statuses: tuple[str, ...]
    priced: frozenset[str]
    every_attempt: bool = False
    at_start: tuple[PlanVersion, ...] = ()
    """The plan's versions where requests go by the one at their start, not by the piece's."""

    def prices(self, usage: UsageQuantity) -> frozenset[str]:
        """The metrics that usage is priced by."""
        if not self.at_start:
            return self.priced
        first = min(version.valid_from for version in self.at_start)
        name = parse_band(usage.rating_band).price_version
        return version_at(self.at_start, max(in_force_since(name), first) if name else first).metrics


FREE = Terms((), frozenset())
"""Of a trial: nothing bills."""


def billable_by_metric(used: Iterable[tuple[Terms | None, Iterable[UsageQuantity]]]) -> dict[str, Value]:
    """`tenant/metric` → units that should have been rated.

    Usage comes with the terms of the part of the period in which it was completed. None: no subscription held, so
    nobody said what it costs; its requests are expected to be rated all the same, and are found not to be.
    """
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for terms, usage in used:
        for u in usage:
            if not is_billable(u, BILL_STATUSES if terms is None else terms.bill_statuses):
                continue
            if terms is None:
                found[f"{u.tenant_id}/without a subscription/requests"] += u.requests
                continue
            priced = terms.prices(u)
            for metric, quantity in quantities(u).items():
                if metric in priced:
                    found[f"{u.tenant_id}/{metric.value}"] += quantity
    return {key: quantity for key, quantity in found.items() if quantity}


def gaps(
    bounds: Iterable[tuple[datetime, datetime]], start: datetime, end: datetime
) -> list[tuple[datetime, datetime]]:
    """The parts of [start, end) that no pair of bounds covers; the pairs do not overlap."""
    found = []
    for begins, ends in sorted(bounds):
        if start < begins:
            found.append((start, begins))
        start = max(start, ends)
    return [*found, (start, end)] if start < end else found


def rated_by_metric(lines: Iterable[RatedLine]) -> dict[str, Value]:
    """`tenant/metric` → units that were rated."""
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for line in lines:
        found[f"{line.identity.tenant_id}/{line.metric}"] += line.counted
    return {key: quantity for key, quantity in found.items() if quantity}


def priced_by_event(plans: Mapping[str, Iterable[PricePlan]]) -> frozenset[str]:
    """`tenant/metric` of what sums of usage cannot witness, by tenant and its plans: percentages, declared metrics."""
    return frozenset(
        f"{tenant}/{charge.metric}"
        for tenant, listed in plans.items()
        for plan in listed
        for version in plan.versions
        for charge in version.charges
        if isinstance(charge.pricing, Percentage) or charge.metric in plan.declared_metrics
    )


def rated_by_tenant(lines: Iterable[RatedLine]) -> dict[str, Value]:
    """`tenant/currency` → exact amount that was rated."""
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for line in lines:
        found[f"{line.identity.tenant_id}/{line.currency}"] += line.amount
    return {key: amount for key, amount in found.items() if amount}


def rated_by_line(lines: Iterable[RatedLine]) -> dict[str, Value]:
    """`account/tenant/charge/…/metric=…` → exact amount, over everything that was posted."""
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for line in lines:
        found[_line_key(line)] += line.amount
    return {key: amount for key, amount in found.items() if amount}


def rated_is_invoiced(
    rated: Iterable[RatedLine],
    waiting: Iterable[RatedLine],
    invoiced: Iterable[RatedLine],
    late: Collection[tuple[str, str]],
) -> Check:
    """Rated lines, but those that wait for the next invoice, are on documents; credits and top-ups are none of it.

    `late`: (billing account, tax group) of what came after the invoice. What nets to nothing in one is on no document.
    """
    used = [line for line in invoiced if line.identity.kind not in (LineKind.CREDIT, LineKind.TOP_UP)]
    taken = [replace(line, amount=-line.amount) for line in waiting]
    ours, theirs = list(rated) + taken, used
    balance: dict[tuple[str, str], list[Decimal]] = defaultdict(list)
    for sign, lines in ((1, ours), (-1, theirs)):
        for line in lines:
            balance[line.billing_account, line.tax_group].append(sign * line.amount)
    even = {of for of in late if not total(balance[of])}
    by_line = [
        rated_by_line(line for line in lines if (line.billing_account, line.tax_group) not in even)
        for lines in (ours, theirs)
    ]
    check = compare("rated lines are invoiced", "rated lines", "invoice lines", *by_line)
    return Check(check.name, check.left, check.right, check.compared + len(even), check.differences)


def invoice_sums(invoices: Iterable[Invoice]) -> tuple[dict[str, Value], dict[str, Value]]:
    """What each invoice says in total, beside the sums of its lines, taxes and credits: minor units, exact."""
    said: dict[str, Value] = {}
    summed: dict[str, Value] = {}
    for invoice in invoices:
        key, lines = str(invoice.invoice_id), sum(line.amount_minor for line in invoice.lines)
        exact = total(line.rated.amount for line in invoice.lines)
        said |= {
            f"{key}/net": invoice.net_minor,
            f"{key}/tax": invoice.tax_minor,
            f"{key}/exact": invoice.exact_total,
            f"{key}/rounding": invoice.rounding,
            f"{key}/total": invoice.total_minor,
            f"{key}/due": invoice.amount_due_minor,
        }
        rounded, tax = from_minor(lines, invoice.identity.money), sum(row.tax_minor for row in invoice.taxes)
        within = tax if invoice.tax_mode is TaxMode.INCLUSIVE else 0
        paid = sum(credit.amount_minor for credit in invoice.credits if credit.pays) + invoice.received_minor
        summed |= {
            f"{key}/net": lines - within,
            f"{key}/tax": tax,
            f"{key}/exact": exact,
            f"{key}/rounding": total([exact, -rounded]),
            f"{key}/total": lines - within + tax,
            f"{key}/due": lines - within + tax - paid + sum(each.amount_minor for each in invoice.carried),
        }
    return said, summed


REVENUE: Final = "revenue"
_REVENUE_CODES: Final = (4000, 4010, 4050, 4900, 4910)


def account(code: int, subledger: str, currency_code: str) -> str:
    """`code/subledger/currency`; income and what reduces it are one: tax within prices comes out of all of it."""
    return f"{REVENUE if code in _REVENUE_CODES else code}/{subledger}/{currency_code}"


def booked(*moved: Mapping[tuple[int, str, str], Decimal]) -> dict[str, Value]:
    """What the journal moved, in the same keys."""
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for each in moved:
            for key, amount in each.items():
                found[account(*key)] += amount
    return {key: amount for key, amount in found.items() if amount}


def invoices_in_ledger(invoices: Iterable[Invoice]) -> dict[str, Value]:
    """What the given issued invoices must have moved in the journal."""
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for invoice in invoices:
            identity = invoice.identity
            money, code = identity.money, identity.currency
            tax = from_minor(invoice.tax_minor, money)
            found[f"1100/{identity.billing_account}/{code}"] += from_minor(invoice.receivable_minor, money)
            found[f"5900//{code}"] += invoice.rounding
            found[f"2200//{code}"] -= tax
            in_advance = invoice.in_advance
            if invoice.tax_mode is TaxMode.INCLUSIVE:
                found[f"{REVENUE}//{code}"] += total(tax_on_reductions(invoice).values()) if in_advance else tax
            for credit in invoice.credits:
                owed = credit.kind is GrantKind.PAID
                found[f"2100/{credit.grant_id}/{code}" if owed else f"{REVENUE}//{code}"] += credit.amount
            if in_advance:
                for tenant_id, amount in deferred_by_tenant(invoice).items():
                    found[f"2110/{tenant_id}/{code}"] -= amount
                continue
            for line in invoice.lines:
                if line.rated.identity.kind == LineKind.TOP_UP:
                    found[f"2100/{line.rated.identity.charge_key}/{code}"] -= line.rated.amount
                elif line.rated.identity.kind != LineKind.CREDIT:
                    found[f"1150/{line.rated.identity.tenant_id}/{code}"] -= line.rated.amount
    return {key: amount for key, amount in found.items() if amount}


def earned(invoices: Iterable[Invoice], month: BillingPeriod) -> dict[str, Value]:
    """What of fees in advance is earned in a month, as the journal must have moved it."""
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for invoice in invoices:
            code = invoice.identity.currency
            for tenant_id, amount in earned_by_tenant(invoice, month).items():
                found[f"2110/{tenant_id}/{code}"] += amount
                found[f"{REVENUE}//{code}"] -= amount
    return {key: amount for key, amount in found.items() if amount}


def unearned(invoices: Iterable[Invoice], months: Mapping[str, Collection[str]]) -> dict[tuple[str, str], Decimal]:
    """What of fees in advance is not recognised yet: (tenant, currency) → exact.

    `months` are those of each invoice that were.
    """
    found: dict[tuple[str, str], Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for invoice in invoices:
            done = [parse_period(name) for name in months.get(str(invoice.invoice_id), ())]
            for each in deferred(invoice):
                found[each.tenant_id, invoice.identity.currency] += each.amount - total(map(each.earned_in, done))
    return found


@dataclass(frozen=True, slots=True)
class Issued:
    """All invoices ever issued of a billing account, currency and service end, summed: minor units; exact `rounding`.

    `tax_within` is the part of `tax` that prices contained.
    """

    billing_account: str
    currency: str
    service_end: datetime
    receivable: int
    rounding: Decimal
    tax: int
    tax_within: int


def explained(
    rated: Mapping[tuple[str, str], Decimal],
    invoiced: Mapping[tuple[str, str], Decimal],
    issued: Iterable[Issued],
    reduced: Mapping[str, Decimal],
    by_hand: Mapping[tuple[int, str, str], Decimal],
    in_advance: Mapping[str, Decimal],
    not_earned: Mapping[tuple[str, str], Decimal],
) -> dict[str, Value]:
    """The balances that follow from everything ever rated, invoiced, and posted by hand.

    `rated` and `invoiced`: (tenant, currency) → exact; `reduced`: currency → what credits took off that nobody paid
    for; `in_advance`: currency → what fees in advance came to, of which `not_earned` (tenant, currency) is deferred.
    Whatever else was booked, by whatever kind of entry, is explained by nothing.
    """
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for (tenant, code), amount in rated.items():
            found[f"1150/{tenant}/{code}"] += amount
            found[f"{REVENUE}//{code}"] -= amount
        for (tenant, code), amount in invoiced.items():
            found[f"1150/{tenant}/{code}"] -= amount
        for each in issued:
            code, money = each.currency, currency(each.currency, each.service_end.date())
            found[f"1100/{each.billing_account}/{code}"] += from_minor(each.receivable, money)
            found[f"5900//{code}"] += each.rounding
            found[f"2200//{code}"] -= from_minor(each.tax, money)
            found[f"{REVENUE}//{code}"] += from_minor(each.tax_within, money)
        for code, amount in reduced.items():
            found[f"{REVENUE}//{code}"] += amount
        for code, amount in in_advance.items():
            found[f"{REVENUE}//{code}"] -= amount
        for (tenant, code), amount in not_earned.items():
            found[f"{REVENUE}//{code}"] += amount
            found[f"2110/{tenant}/{code}"] -= amount
        for key, amount in by_hand.items():
            found[account(*key)] += amount
    return {key: amount for key, amount in found.items() if amount}


def credits_owed(left: Mapping[tuple[str, str], Decimal], liability: Mapping[tuple[str, str], Decimal]) -> Check:
    """What is left of paid, settled credits, (credit, currency) → amount, is what account 2100 holds (money 6, R7)."""
    owed: dict[str, Value] = {"/".join(key): amount for key, amount in left.items() if amount}
    held: dict[str, Value] = {"/".join(key): -amount for key, amount in liability.items() if amount}
    owed["how many"], held["how many"] = len(owed), len(held)
    return compare("credits are owed", "what is left of paid credits", "ledger 2100", owed, held)


def breakage_expected(
    expected: Mapping[tuple[str, str], Decimal | None], booked: Mapping[tuple[str, str], Decimal]
) -> Check:
    """What is expected never to be used of paid credits, (credit, currency) → amount, is what account 2105 holds.

    None: of a credit whose next month takes in what became known since; it is not compared.
    """
    left: dict[str, Value] = {"/".join(key): amount for key, amount in expected.items() if amount}
    right: dict[str, Value] = {
        "/".join(key): amount for key, amount in booked.items() if amount and expected.get(key, ZERO) is not None
    }
    left["how many"], right["how many"] = len(left), len(right)
    return compare("breakage is as estimated", "credits and estimates", "ledger 2105", left, right)


def credits_drawn(
    on_invoices: Mapping[tuple[str, str], Decimal], drawn: Mapping[tuple[str, str], Decimal], invoices: int
) -> Check:
    """What issued invoices say they draw of credits, (invoice, credit) → amount, is what was taken of the credits."""
    left: dict[str, Value] = {"/".join(key): amount for key, amount in on_invoices.items() if amount}
    right: dict[str, Value] = {"/".join(key): amount for key, amount in drawn.items()}
    check = compare("credits are drawn as invoiced", "issued invoices", "movements of credits", left, right)
    return Check(check.name, check.left, check.right, max(check.compared, invoices), check.differences)


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
    names = zip(("metric", "model", "adapter", "region", "tier"), (str(line.metric), *line.where), strict=True)
    return "/".join([*map(str, parts), *(f"{name}={value}" for name, value in names if value)])
