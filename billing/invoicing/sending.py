"""What goes to Stripe for an invoice: the steps, their idempotency keys and parameters, and the comparison.

Pure: the shell (`billing/commands/send_invoices.py`) freezes what is made here before it sends it.
"""

from __future__ import annotations

import hashlib
import json
from calendar import timegm
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

from billing.bills.tax import TaxMode
from billing.errors import IllegalTransition
from billing.invoicing.invoices import Invoice, InvoiceIdentity, InvoiceLine
from billing.money import plain, to_stripe
from billing.rating import LineKind

LINES_PER_REQUEST: Final = 100
"""`add_lines` documents no limit; a request of a hundred lines stays near 40 kB."""
LINES_MAX: Final = 250
"""Stripe holds at most 250 lines an invoice. Grouping more of them is not built: they are parked."""
PERIOD_END_IS_INCLUSIVE_S: Final = 1
DESCRIPTION_MAX: Final = 250
COLLECTION_METHOD: Final = "send_invoice"
METADATA: Final = "metadata "
KEY_PART_MAX: Final = 127
"""Stripe takes keys of 255 characters; a longer part is replaced by its hash."""


class SendingStep(StrEnum):
    """How far the sending of an invoice has come. Each is stored before the next one begins."""

    NOT_BEGUN = "not_begun"
    FROZEN = "frozen"
    CUSTOMER_KNOWN = "customer_known"
    DRAFT_CREATED = "draft_created"
    LINES_ADDED = "lines_added"
    COMPARED = "compared"
    RELEASED = "released"
    NUMBERED = "numbered"
    FINALIZED = "finalized"


_ORDER: Final = tuple(SendingStep)


def following(step: SendingStep) -> SendingStep:
    """The step after one. Raises IllegalTransition after the last."""
    if step is _ORDER[-1]:
        raise IllegalTransition(f"nothing follows {step}")
    return _ORDER[_ORDER.index(step) + 1]


class Operation(StrEnum):
    """The requests that change something in Stripe."""

    CREATE_CUSTOMER = "customer"
    CREATE_DRAFT = "draft"
    ADD_LINES = "lines"
    SET_NUMBER = "number"
    FINALIZE = "finalize"


@dataclass(frozen=True, slots=True)
class Request:
    """One request that changes something. `target` is the Stripe id it is about, '' for a creation."""

    idempotency_key: str
    operation: Operation
    chunk: int
    epoch: int
    target: str
    parameters: str

    def key_at(self, epoch: int) -> str:
        """The key of the same change in another epoch."""
        return f"{self.idempotency_key.removesuffix(_epoch(self.epoch))}{_epoch(epoch)}"

    @property
    def decoded(self) -> dict[str, Any]:
        """The parameters for the SDK."""
        found: dict[str, Any] = json.loads(self.parameters)
        return found


@dataclass(frozen=True, slots=True)
class DraftSeen:
    """What Stripe says of an invoice, read back."""

    status: str
    number: str | None
    customer: str
    currency: str
    total: int
    amount_due: int
    starting_balance: int
    auto_advance: bool
    collection_method: str
    automatic_tax: bool
    default_tax_rates: int
    discounts: int
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LineSeen:
    """What Stripe says of a line, read back."""

    line_key: str
    amount: int
    currency: str
    discounts: int = 0
    taxes: int = 0


@dataclass(frozen=True, slots=True)
class StripeLine:
    """An amount on an invoice in Stripe, in minor units, for a service period."""

    key: str
    amount_minor: int
    description: str
    period: tuple[datetime, datetime]
    metadata: Mapping[str, str] = field(default_factory=dict)


def customer_request(legal_entity: str, billing_account: str, name: str, epoch: int = 0) -> Request:
    """Create the customer of a billing account."""
    key = _key(legal_entity, billing_account, "customer", epoch=epoch)
    metadata = {"legal_entity": legal_entity, "billing_account": billing_account}
    return _request(key, Operation.CREATE_CUSTOMER, "", {"name": name, "metadata": metadata}, epoch=epoch)


def draft_request(invoice: Invoice, *, customer: str, payment_terms_days: int, epoch: int = 0) -> Request:
    """Create the draft: nothing advances by itself, nothing pending is swept in, Stripe adds no tax or discount."""
    parameters = {
        "customer": customer,
        "currency": invoice.identity.currency.lower(),
        "auto_advance": False,
        "pending_invoice_items_behavior": "exclude",
        "collection_method": COLLECTION_METHOD,
        "days_until_due": payment_terms_days,
        "discounts": "",
        "automatic_tax": {"enabled": False},
        "metadata": invoice_metadata(invoice),
    }
    return _invoice_request(invoice.identity, Operation.CREATE_DRAFT, "", parameters, epoch=epoch)


def lines_requests(invoice: Invoice, *, stripe_invoice: str, epoch: int = 0) -> list[Request]:
    """Add the lines, in chunks."""
    lines = stripe_lines(invoice)
    chunks = [lines[i : i + LINES_PER_REQUEST] for i in range(0, len(lines), LINES_PER_REQUEST)]
    return [
        _invoice_request(
            invoice.identity,
            Operation.ADD_LINES,
            stripe_invoice,
            {"lines": [_line(invoice, line) for line in chunk]},
            chunk=number,
            epoch=epoch,
        )
        for number, chunk in enumerate(chunks)
    ]


def number_request(invoice: Invoice, *, stripe_invoice: str, number: str, epoch: int = 0) -> Request:
    """Give the draft our number."""
    return _invoice_request(invoice.identity, Operation.SET_NUMBER, stripe_invoice, {"number": number}, epoch=epoch)


def finalize_request(invoice: Invoice, *, stripe_invoice: str, epoch: int = 0) -> Request:
    """Finalize the draft, and nothing more."""
    return _invoice_request(invoice.identity, Operation.FINALIZE, stripe_invoice, {"auto_advance": False}, epoch=epoch)


def invoice_metadata(invoice: Invoice) -> dict[str, str]:
    """What tells, in Stripe, which invoice of ours it is."""
    identity = invoice.identity
    return {
        "legal_entity": identity.legal_entity,
        "billing_account": identity.billing_account,
        "kind": identity.kind.value,
        "period": identity.period.name,
        "revision": str(identity.revision),
        "invoice_id": str(invoice.invoice_id),
        "lines_hash": invoice.lines_hash,
    }


def draft_differences(
    invoice: Invoice, *, customer: str, found: DraftSeen, lines: Sequence[LineSeen], status: str = "draft",
    number: str | None = None,
) -> list[str]:  # fmt: skip
    """What Stripe's invoice says otherwise than ours, to the cent and the line; empty if they are equal."""
    wanted = wanted_header(invoice, customer=customer, status=status, number=number)
    seen = seen_header(found, wanted)
    different = [f"{name} is {seen[name]!r}, not {value!r}" for name, value in wanted.items() if seen[name] != value]
    ours, theirs = wanted_lines(invoice), Counter(lines)
    different += [f"line {told(line)} is not in Stripe" for line in (ours - theirs).elements()]
    different += [f"line {told(line)} is only in Stripe" for line in (theirs - ours).elements()]
    return different


def wanted_header(
    invoice: Invoice, *, customer: str, status: str = "draft", number: str | None = None
) -> dict[str, Any]:
    """What Stripe must say of an invoice besides its lines; a metadata field as `metadata NAME`."""
    due = to_stripe(invoice.amount_due_minor, invoice.identity.money)
    wanted: dict[str, Any] = {
        "status": status,
        "customer": customer,
        "currency": invoice.identity.currency.lower(),
        "total": due,
        "amount_due": due,
        "starting_balance": 0,
        "auto_advance": False,
        "collection_method": COLLECTION_METHOD,
        "automatic_tax": False,
        "default_tax_rates": 0,
        "discounts": 0,
    }
    if number is not None:
        wanted["number"] = number
    return wanted | {f"{METADATA}{name}": value for name, value in invoice_metadata(invoice).items()}


def seen_header(found: DraftSeen, names: Iterable[str]) -> dict[str, Any]:
    """What Stripe says under the names of `wanted_header`."""
    return {
        name: found.metadata.get(name.removeprefix(METADATA)) if name.startswith(METADATA) else getattr(found, name)
        for name in names
    }


def wanted_lines(invoice: Invoice) -> Counter[LineSeen]:
    """The lines that Stripe must have."""
    identity = invoice.identity
    return Counter(
        LineSeen(line.key, to_stripe(line.amount_minor, identity.money), identity.currency.lower())
        for line in stripe_lines(invoice)
    )


def due_date(issued: date, payment_terms_days: int) -> date:
    """When an invoice issued on a day is due."""
    return date.fromordinal(issued.toordinal() + payment_terms_days)


def told(line: LineSeen) -> str:
    """A line of Stripe's in words."""
    extra = " with a discount or tax of its own" if line.discounts or line.taxes else ""
    return f"{line.line_key or '(without key)'} {line.amount} {line.currency}{extra}"


def stripe_lines(invoice: Invoice) -> list[StripeLine]:
    """All that makes up what is due, as amounts: lines, tax on top of them, payments by credit, what is carried in.

    Tax is computed here and nowhere else; Stripe is told how much it is (docs/spec/money.md 5). In the key of a line a
    colon stands only behind an @, so those of the others never meet one.
    """
    period = invoice.identity.period
    whole = (period.start, period.end)
    found = [
        StripeLine(line.line_key, line.amount_minor, describe(line), (line.rated.service_start, line.rated.service_end),
                   _metadata(line))
        for line in invoice.lines
    ]  # fmt: skip
    if invoice.tax_mode is TaxMode.EXCLUSIVE:
        found += [
            StripeLine(f"tax:{row.group}", row.tax_minor, f"Tax {row.group}, {percent(row.rate)}", whole)
            for row in invoice.taxes
            if row.tax_minor
        ]
    found += [
        StripeLine(f"credit:{credit.grant_id}", -credit.amount_minor, f"Paid by credit {credit.grant_id}", whole)
        for credit in invoice.credits
        if credit.pays
    ]
    found += [
        StripeLine(f"carried:{each.number}", each.amount_minor, f"Carried over from {each.number}", whole)
        for each in invoice.carried
    ]
    return found


def percent(rate: Decimal) -> str:
    """A rate as people write it: 0.19 is 19 %."""
    return f"{plain(rate.scaleb(2))} %"


def _line(invoice: Invoice, line: StripeLine) -> dict[str, Any]:
    start, end = line.period
    return {
        "amount": to_stripe(line.amount_minor, invoice.identity.money),
        "description": line.description,
        "discountable": False,
        "period": {
            "start": timegm(start.utctimetuple()),
            "end": timegm(end.utctimetuple()) - PERIOD_END_IS_INCLUSIVE_S,
        },
        "metadata": {"line_key": line.key, **line.metadata},
    }


def _metadata(line: InvoiceLine) -> dict[str, str]:
    rated = line.rated
    return {
        "tenant_id": rated.identity.tenant_id,
        "quantity": plain(rated.quantity),
        **({} if rated.unit_price is None else {"unit_price": plain(rated.unit_price)}),
        "amount_exact": plain(rated.amount),
    }


def describe(line: InvoiceLine) -> str:
    """A line in words: what, how much, at which price."""
    rated = line.rated
    where = " ".join(value for value in rated.where if value)
    kind = rated.identity.kind
    named = rated.metric if kind in (LineKind.USAGE, LineKind.OVERAGE) else f"{rated.identity.charge_key} {kind}"
    text = f"{where + ': ' if where else ''}{named.replace('_', ' ')}"
    if rated.unit_price is not None:
        text += f", {plain(rated.quantity)} × {plain(rated.unit_price)} {rated.currency}"
    return text if len(text) <= DESCRIPTION_MAX else text[: DESCRIPTION_MAX - 1] + "…"


def _invoice_request(
    identity: InvoiceIdentity, operation: Operation, target: str, parameters: Mapping[str, Any], *, chunk: int = 0,
    epoch: int,
) -> Request:  # fmt: skip
    key = _key(
        identity.legal_entity,
        identity.billing_account,
        identity.kind.value,
        identity.period.name,
        f"r{identity.revision}",
        operation.value,
        str(chunk),
        epoch=epoch,
    )
    return _request(key, operation, target, parameters, chunk=chunk, epoch=epoch)


def _request(
    key: str, operation: Operation, target: str, parameters: Mapping[str, Any], *, chunk: int = 0, epoch: int
) -> Request:
    return Request(key, operation, chunk, epoch, target, json.dumps(parameters, ensure_ascii=False))


def _key(*parts: str, epoch: int) -> str:
    # Parts are quoted because an account's id may hold a colon; the parameters are no part of the key, so that
    # other parameters under the same key are an error and not a second invoice.
    return ":".join(["tollbook", *map(_key_part, parts)]) + _epoch(epoch)


def _key_part(part: str) -> str:
    quoted = quote(part, safe="")
    return quoted if len(quoted) <= KEY_PART_MAX else hashlib.sha256(part.encode()).hexdigest()


def _epoch(epoch: int) -> str:
    return f":e{epoch}"
