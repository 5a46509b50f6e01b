"""What goes to Stripe for an invoice: the steps, their idempotency keys and parameters, and the comparison.

Pure: the shell (`billing/stripe/request_sender.py`) freezes what is made here before it sends it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

from billing.errors import IllegalTransition
from billing.invoicing.invoices import Invoice, InvoiceIdentity
from billing.invoicing.parties import Party
from billing.invoicing.stripe_lines import LineSeen, line_parameters, stripe_lines, told, wanted_lines
from billing.money import to_stripe

LINES_PER_REQUEST: Final = 100
"""`add_lines` documents no limit; a request of a hundred lines stays near 40 kB."""
COLLECTION_METHOD: Final = "send_invoice"
METADATA: Final = "metadata "
OURS: Final = "tollbook:"
"""Every idempotency key of ours begins so."""
ADDRESS: Final = ("line1", "line2", "postal_code", "city", "state", "country")
"""The fields of an address in Stripe (https://docs.stripe.com/api/customers/object)."""
CUSTOM_FIELD_MAX: Final = 140
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
    return _ORDER[position(step) + 1]


def position(step: SendingStep) -> int:
    """How many steps come before one."""
    return _ORDER.index(step)


class Operation(StrEnum):
    """The requests that change something in Stripe."""

    CREATE_CUSTOMER = "customer"
    UPDATE_CUSTOMER = "customer_update"
    CREATE_DRAFT = "draft"
    ADD_LINES = "lines"
    SET_NUMBER = "number"
    FINALIZE = "finalize"
    CREDIT_NOTE = "credit_note"
    VOID = "void"
    MARK_UNCOLLECTIBLE = "mark_uncollectible"
    PAY_ELSEWHERE = "pay_elsewhere"
    REFUND = "refund"
    MOVE_BALANCE = "move_balance"
    SUBMIT_EVIDENCE = "submit_evidence"


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


def customer_data(payer: Party) -> dict[str, Any]:
    """What Stripe is told of a payer, and has on its invoices; an address with all its fields, or "" for none."""
    fields = (payer.street, payer.street_2, payer.postal_code, payer.city, payer.region, payer.country)
    address = dict(zip(ADDRESS, fields, strict=True)) if any(fields) else ""
    return {"name": payer.name, "email": payer.email, "address": address}


def customer_shown(data: Mapping[str, Any]) -> dict[str, str]:
    """The same as texts, of what Stripe was told or has; "" where there is none."""
    address = data.get("address") or {}
    lines = ", ".join(filter(None, (address.get(name) for name in ADDRESS)))
    return {"name": data.get("name") or "", "email": data.get("email") or "", "address": lines}


def customer_changes(data: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What of a payer's data Stripe has not been told; not that it has no e-mail address any more."""
    now, before = customer_shown(data), customer_shown(told)
    changed = {name: value for name, value in data.items() if now[name] != before[name]}
    return {name: value for name, value in changed.items() if value or name == "address"}


def customer_request(legal_entity: str, billing_account: str, data: Mapping[str, Any], epoch: int = 0) -> Request:
    """Create the customer of a billing account; without an e-mail address Stripe sends it no invoice."""
    key = key_of(legal_entity, billing_account, "customer", epoch=epoch)
    told = {name: value for name, value in data.items() if value}
    parameters = {**told, "metadata": customer_metadata(legal_entity, billing_account)}
    return request_of(key, Operation.CREATE_CUSTOMER, "", parameters, epoch=epoch)


def customer_update_request(
    legal_entity: str, billing_account: str, customer: str, changed: Mapping[str, Any], times: int, epoch: int = 0
) -> Request:
    """Tell Stripe what has changed of a customer's data; `times`: how often it was told so before."""
    key = key_of(legal_entity, billing_account, "customer_update", customer, str(times), epoch=epoch)
    return request_of(key, Operation.UPDATE_CUSTOMER, customer, changed, epoch=epoch)


def customer_metadata(legal_entity: str, billing_account: str) -> dict[str, str]:
    """What tells, in Stripe, whose customer it is."""
    return {"legal_entity": legal_entity, "billing_account": billing_account}


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
            {"lines": [line_parameters(invoice, line) for line in chunk]},
            chunk=number,
            epoch=epoch,
        )
        for number, chunk in enumerate(chunks)
    ]


def number_request(invoice: Invoice, *, stripe_invoice: str, number: str, payer: Party, epoch: int = 0) -> Request:
    """Give the draft our number, and what of its payer stands on the document (docs/spec/money.md 8).

    A tax id is a field in our words: Stripe's own kinds refuse what a country writes otherwise, and with it the draft.
    """
    said = {"Tax ID": payer.tax_id, "Purchase order": payer.purchase_order, "Reference": payer.reference}
    fields = [{"name": name, "value": value[:CUSTOM_FIELD_MAX]} for name, value in said.items() if value]
    parameters = {"number": number, **({"custom_fields": fields} if fields else {})}
    return _invoice_request(invoice.identity, Operation.SET_NUMBER, stripe_invoice, parameters, epoch=epoch)


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
    invoice: Invoice, *, customer: str, found: DraftSeen, lines: Sequence[LineSeen] | None, status: str = "draft",
    number: str | None = None,
) -> list[str]:  # fmt: skip
    """What Stripe's invoice says otherwise than ours, to the cent and the line; empty if they are equal.

    `lines` None compares all but the lines.
    """
    wanted = wanted_header(invoice, customer=customer, status=status, number=number)
    seen = seen_header(found, wanted)
    different = [f"{name} is {seen[name]!r}, not {value!r}" for name, value in wanted.items() if seen[name] != value]
    if lines is None:
        return different
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


def due_date(issued: date, payment_terms_days: int) -> date:
    """When an invoice issued on a day is due."""
    return date.fromordinal(issued.toordinal() + payment_terms_days)


def _invoice_request(
    identity: InvoiceIdentity, operation: Operation, target: str, parameters: Mapping[str, Any], *, chunk: int = 0,
    epoch: int,
) -> Request:  # fmt: skip
    key = key_of(
        identity.legal_entity,
        identity.billing_account,
        identity.kind.value,
        identity.period.name,
        f"r{identity.revision}",
        operation.value,
        str(chunk),
        epoch=epoch,
    )
    return request_of(key, operation, target, parameters, chunk=chunk, epoch=epoch)


def request_of(
    key: str, operation: Operation, target: str, parameters: Mapping[str, Any], *, chunk: int = 0, epoch: int
) -> Request:
    """A request with its parameters as they are frozen."""
    return Request(key, operation, chunk, epoch, target, json.dumps(parameters, ensure_ascii=False))


def key_of(*parts: str, epoch: int) -> str:
    """A key of ours from its parts."""
    # Parts are quoted because an account's id may hold a colon; the parameters are no part of the key, so that
    # other parameters under the same key are an error and not a second invoice.
    return OURS + ":".join(map(_key_part, parts)) + _epoch(epoch)


def _key_part(part: str) -> str:
    quoted = quote(part, safe="")
    return quoted if len(quoted) <= KEY_PART_MAX else hashlib.sha256(part.encode()).hexdigest()


def _epoch(epoch: int) -> str:
    return f":e{epoch}"
