"""Credit notes: docs.stripe.com/api/credit_notes, docs.stripe.com/invoicing/integration/programmatic-credit-notes."""

from __future__ import annotations

from typing import Any

from stripe.params._credit_note_create_params import CreditNoteCreateParams
from stripe.params._credit_note_line_item_list_params import CreditNoteLineItemListParams
from stripe.params._credit_note_list_params import CreditNoteListParams
from stripe.params._credit_note_preview_params import CreditNotePreviewParams
from stripe.params._credit_note_retrieve_params import CreditNoteRetrieveParams
from stripe.params._credit_note_update_params import CreditNoteUpdateParams
from stripe.params._credit_note_void_credit_note_params import CreditNoteVoidCreditNoteParams

from devstack.stripe_twin.errors import invalid, parameter_missing, parameters_exclusive, unsupported
from devstack.stripe_twin.events import emit
from devstack.stripe_twin.resources import credit_note_object, customer_object, money_objects
from devstack.stripe_twin.resources.attributes import PAGE_PARAMS, filters, unset_to_none
from devstack.stripe_twin.resources.rendering import render, rendered_page
from devstack.stripe_twin.routing import Call, Route
from devstack.stripe_twin.rules import credit_note_arithmetic
from devstack.stripe_twin.rules.invoice_status import InvoiceStatus
from devstack.stripe_twin.rules.metadata import merge
from devstack.stripe_twin.rules.pagination import list_object, page_of, paginate
from devstack.stripe_twin.session import State

_KIND = "credit_note"
_COLLECTION = "/v1/credit_notes"
_PARAMS = frozenset({
    "amount", "credit_amount", "effective_at", "email_type", "invoice", "lines", "memo", "metadata",
    "out_of_band_amount", "reason", "refund_amount", "refunds",
})  # fmt: skip
_LINE = frozenset({"amount", "description", "invoice_line_item", "metadata", "quantity", "type", "unit_amount"})
_FILTERS = frozenset({"created", "customer", "invoice"})
_CREDITABLE = (InvoiceStatus.OPEN, InvoiceStatus.PAID)


def create(call: Call) -> dict[str, Any]:
    note, invoice = _made(call)
    _link_refunds(call, note, invoice)
    if amount := call.params.get("refund_amount"):
        _refund(call, note, invoice, amount)
    if amount := call.params.get("credit_amount"):
        _credit_customer(call, note, invoice, amount)
    _lower(call, invoice, note, 1)
    call.session.insert(note, call.now)
    became_paid = invoice["status"] == InvoiceStatus.OPEN and invoice["amount_remaining"] == 0
    if became_paid:
        invoice["status"] = InvoiceStatus.PAID.value
        invoice["status_transitions"]["paid_at"] = call.now
    call.session.update(invoice)
    emit(call, "invoice.paid" if became_paid else "invoice.updated", render(call.session, invoice))
    return render(call.session, note)


def preview(call: Call) -> dict[str, Any]:
    """What `create` would make; nothing is kept."""
    note, _ = _made(call)
    return render(call.session, note)


def _made(call: Call) -> tuple[State, State]:
    """The note that the parameters say, checked, and its invoice; nothing is moved yet."""
    params = call.params
    invoice = call.session.get("invoice", params["invoice"], "invoice")
    if invoice["status"] not in _CREDITABLE:
        raise invalid(
            f"You can only create credit notes for open or paid invoices. This invoice is {invoice['status']}.",
            "invoice",
        )
    lines = _lines(call, invoice)
    amount = sum(line["amount"] for line in lines)
    credit_note_arithmetic.check_creditable(
        amount, invoice["total"], _credited(invoice), invoice.get("_refunded", 0) - _linked(params)
    )
    pre, post = credit_note_arithmetic.split(amount, invoice["amount_remaining"])
    given = sum(params.get(name, 0) for name in ("refund_amount", "credit_amount", "out_of_band_amount"))
    credit_note_arithmetic.check_post_payment(post, given + _linked(params))
    count = 1 + sum(1 for each in call.session.all(_KIND) if each["invoice"] == invoice["id"])
    number = f"{invoice['number']}-CN-{count:02d}"
    note = credit_note_object.new_credit_note(call.ids.new("cn"), call.now, invoice, amount, number)
    note |= {
        "_lines": lines,
        "effective_at": params.get("effective_at", call.now),
        "memo": unset_to_none(params.get("memo")),
        "metadata": merge({}, params.get("metadata")),
        "out_of_band_amount": params.get("out_of_band_amount"),
        "pdf": f"{call.base_url}/_twin/objects/{_KIND}/{note['id']}",
        "post_payment_amount": post,
        "pre_payment_amount": pre,
        "reason": unset_to_none(params.get("reason")),
        "type": "mixed" if pre and post else "post_payment" if post else "pre_payment",
    }
    return note, invoice


def _lines(call: Call, invoice: State) -> list[State]:
    params = call.params
    if "lines" in params and "amount" in params:
        raise parameters_exclusive(("amount", "lines"))
    if "lines" in params:
        return [_line(call, invoice, line, f"lines[{i}]") for i, line in enumerate(params["lines"])]
    if "amount" not in params:
        raise parameter_missing("amount")
    return [credit_note_object.new_line(call.ids.new("cnli"), params["amount"], None, 1, None, {})]


def _line(call: Call, invoice: State, given: dict[str, Any], prefix: str) -> State:
    for name in given:
        if name not in _LINE:
            raise unsupported(f"{prefix}[{name}]")
    metadata, quantity = merge({}, given.get("metadata")), given.get("quantity", 1)
    if quantity < 1:
        raise invalid("Invalid quantity: it must be at least 1.", f"{prefix}[quantity]")
    if given["type"] == "invoice_line_item":
        wanted = given.get("invoice_line_item")
        if wanted is None:
            raise parameter_missing(f"{prefix}[invoice_line_item]")
        items = {item["_line_id"]: item for item in call.session.items_of_invoice(invoice["id"])}
        if wanted not in items:
            raise invalid(f"No such invoice line item: '{wanted}'", f"{prefix}[invoice_line_item]", "resource_missing")
        amount: int = given["amount"] if "amount" in given else items[wanted]["amount"]
        text = items[wanted]["description"]
        return credit_note_object.new_line(call.ids.new("cnli"), amount, text, quantity, wanted, metadata)
    for name in ("description", "unit_amount"):
        if name not in given:
            raise parameter_missing(f"{prefix}[{name}]")
    if "amount" in given:
        raise invalid("amount is only valid when the type is invoice_line_item.", f"{prefix}[amount]")
    amount = given["unit_amount"] * quantity
    return credit_note_object.new_line(call.ids.new("cnli"), amount, given["description"], quantity, None, metadata)


def _credited(invoice: State) -> int:
    amount: int = invoice["pre_payment_credit_notes_amount"] + invoice["post_payment_credit_notes_amount"]
    return amount


def _linked(params: dict[str, Any]) -> int:
    """What the existing refunds that a note names pay of it, where that is said; a link without is counted later."""
    return sum(each.get("amount_refunded", 0) for each in params.get("refunds", []))


def _link_refunds(call: Call, note: State, invoice: State) -> None:
    for index, each in enumerate(call.params.get("refunds", [])):
        name = f"refunds[{index}]"
        for part in ("refund", "amount_refunded"):
            if part not in each:
                raise unsupported(name, f" without {part}")
        refund = call.session.get("refund", each["refund"], f"{name}[refund]")
        charge = call.session.get("charge", refund["charge"])
        if charge.get("_invoice") != invoice["id"] or each["amount_refunded"] > refund["amount"]:
            raise invalid("The refund is of another invoice, or less than this.", name)
        invoice["_refunded"] -= each["amount_refunded"]
        _add_refund(note, refund["id"], each["amount_refunded"])


def _refund(call: Call, note: State, invoice: State, amount: int) -> None:
    charges = [c for c in call.session.all("charge") if c.get("_invoice") == invoice["id"] and c["paid"]]
    charge = next((c for c in charges if money_objects.refundable(c) >= amount), None)
    if charge is None:
        raise invalid("No payment of this invoice can be refunded by so much.", "refund_amount")
    refund = money_objects.refund_charge(call, charge, amount, None, {})
    emit(call, "refund.created", money_objects.public(refund))
    _add_refund(note, refund["id"], amount)


def _add_refund(note: State, refund: str, amount: int) -> None:
    note["refunds"].append(
        {"amount_refunded": amount, "payment_record_refund": None, "refund": refund, "type": "refund"}
    )


def _credit_customer(call: Call, note: State, invoice: State, amount: int) -> None:
    customer = call.session.get("customer", invoice["customer"], "invoice")
    moved = customer_object.move_balance(
        call.session, call.ids, call.now, customer, invoice["currency"], -amount, "credit_note", invoice=invoice["id"]
    )
    moved["credit_note"] = note["id"]
    call.session.update(moved)
    note["customer_balance_transaction"] = moved["id"]


def _lower(call: Call, invoice: State, note: State, sign: int) -> None:
    """Let a note, or (−1) its end, tell on what is due of its invoice."""
    for name in ("amount_due", "amount_remaining"):
        invoice[name] -= sign * note["pre_payment_amount"]
    for part in ("pre", "post"):
        invoice[f"{part}_payment_credit_notes_amount"] += sign * note[f"{part}_payment_amount"]


def update(call: Call) -> dict[str, Any]:
    note = _note(call)
    if "memo" in call.params:
        note["memo"] = unset_to_none(call.params["memo"])
    note["metadata"] = merge(note["metadata"], call.params.get("metadata"))
    call.session.update(note)
    return render(call.session, note)


def void(call: Call) -> dict[str, Any]:
    """Only where nothing was given back, and the invoice is still open."""
    note = _note(call)
    invoice = call.session.get("invoice", note["invoice"])
    if note["status"] == "void":
        raise invalid("This credit note is already void.")
    if note["post_payment_amount"] or invoice["status"] != InvoiceStatus.OPEN:
        raise invalid("You can only void a pre-payment credit note of an open invoice.")
    _lower(call, invoice, note, -1)
    note["status"], note["voided_at"] = "void", call.now
    call.session.update(invoice)
    call.session.update(note)
    emit(call, "invoice.updated", render(call.session, invoice))
    return render(call.session, note)


def list_lines(call: Call) -> dict[str, Any]:
    note = _note(call)
    page, has_more = paginate(note["_lines"], page_of(call.params), "credit_note_line_item")
    return list_object(f"{_COLLECTION}/{note['id']}/lines", page, has_more)


def _note(call: Call) -> State:
    return call.session.get(_KIND, call.target["id"])


_NOTE = f"{_COLLECTION}/{{id}}"

ROUTES = (
    Route("POST", _COLLECTION, create, CreditNoteCreateParams, _PARAMS, event="credit_note.created"),
    Route(
        "GET", _COLLECTION, lambda call: rendered_page(call, _KIND, filters(call.params, _FILTERS), _COLLECTION),
        CreditNoteListParams, _FILTERS | PAGE_PARAMS,
    ),
    Route("GET", f"{_COLLECTION}/preview", preview, CreditNotePreviewParams, _PARAMS),
    Route("GET", _NOTE, lambda call: render(call.session, _note(call)), CreditNoteRetrieveParams),
    Route(
        "POST", _NOTE, update, CreditNoteUpdateParams, frozenset({"memo", "metadata"}), event="credit_note.updated"
    ),
    Route("POST", f"{_NOTE}/void", void, CreditNoteVoidCreditNoteParams, event="credit_note.voided"),
    Route("GET", f"{_NOTE}/lines", list_lines, CreditNoteLineItemListParams, PAGE_PARAMS),
)  # fmt: skip
