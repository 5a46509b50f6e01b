"""An invoice's lines, one by one and in bulk.

Sources: docs.stripe.com/api/invoice-line-item, docs.stripe.com/invoicing/bulk-update-line-item. Lines change
only while the invoice is a draft; a bulk request is applied whole or not at all.
"""

from __future__ import annotations

from typing import Any

from stripe.params._invoice_add_lines_params import InvoiceAddLinesParams
from stripe.params._invoice_line_item_list_params import InvoiceLineItemListParams
from stripe.params._invoice_line_item_update_params import InvoiceLineItemUpdateParams
from stripe.params._invoice_remove_lines_params import InvoiceRemoveLinesParams
from stripe.params._invoice_update_lines_params import InvoiceUpdateLinesParams

from devstack.stripe_twin.errors import invalid, parameters_exclusive, resource_missing, unsupported
from devstack.stripe_twin.resources import invoice_item_object, invoice_object
from devstack.stripe_twin.resources.attributes import PAGE_PARAMS
from devstack.stripe_twin.resources.invoice_item_object import ITEM_PARAMS, render_line
from devstack.stripe_twin.resources.rendering import render
from devstack.stripe_twin.routing import Call, Route
from devstack.stripe_twin.rules.invoice_status import check_draft
from devstack.stripe_twin.rules.metadata import merge
from devstack.stripe_twin.rules.pagination import list_object, page_of, paginate
from devstack.stripe_twin.session import State

_BULK = frozenset({"lines", "invoice_metadata"})
_LINE = ITEM_PARAMS - {"unit_amount_decimal"}


def add_lines(call: Call) -> dict[str, Any]:
    invoice = _draft(call)
    for index, line in enumerate(call.params["lines"]):
        prefix = f"lines[{index}]"
        if "invoice_item" in line:
            _assign(call, invoice, line, prefix)
        else:
            _check_supported(line, prefix)
            invoice_item_object.require_amount(line, prefix)
            item = invoice_item_object.new_item(call.ids.new("ii"), call.now, invoice["customer"], invoice["currency"])
            invoice_item_object.apply(item, line, prefix)
            invoice_object.attach(call.ids, invoice, item)
            call.session.insert(item, call.now)
    return _saved(call, invoice)


def _assign(call: Call, invoice: State, line: dict[str, Any], prefix: str) -> None:
    """Put an existing pending item on the invoice."""
    name = f"{prefix}[invoice_item]"
    if len(line) > 1:
        other = next(key for key in line if key != "invoice_item")
        raise parameters_exclusive((name, f"{prefix}[{other}]"))
    item = call.session.get("invoiceitem", line["invoice_item"], name)
    if item["invoice"] is not None:
        raise invalid(f"The invoice item {item['id']} is already attached to an invoice.", name)
    if (item["customer"], item["currency"]) != (invoice["customer"], invoice["currency"]):
        raise invalid("The invoice item must have the customer and the currency of the invoice.", name)
    invoice_object.attach(call.ids, invoice, item)
    item["_was_pending"] = True
    call.session.update(item)


def update_lines(call: Call) -> dict[str, Any]:
    invoice = _draft(call)
    lines = _items_by_line(call, invoice)
    for index, line in enumerate(call.params["lines"]):
        prefix = f"lines[{index}]"
        item = _item(lines, line["id"], f"{prefix}[id]")
        _update(call, invoice, item, {name: line[name] for name in line if name != "id"}, prefix)
    return _saved(call, invoice)


def remove_lines(call: Call) -> dict[str, Any]:
    """``behavior`` is ``delete``, or ``unassign``, which makes the item pending."""
    invoice = _draft(call)
    lines = _items_by_line(call, invoice)
    for index, line in enumerate(call.params["lines"]):
        item = _item(lines, line["id"], f"lines[{index}][id]")
        del lines[line["id"]]
        invoice_object.detach(invoice, item)
        if line["behavior"] == "delete":
            call.session.delete(item)
        else:
            call.session.update(item)
    return _saved(call, invoice)


def list_lines(call: Call) -> dict[str, Any]:
    invoice = call.session.get("invoice", call.target["invoice"])
    lines = [render_line(item) for item in call.session.items_of_invoice(invoice["id"])]
    page, has_more = paginate(lines, page_of(call.params), "line_item")
    return {
        **list_object(f"/v1/invoices/{invoice['id']}/lines", page, has_more),
        "total_count": len(lines),
    }


def update_line(call: Call) -> dict[str, Any]:
    """One line; "updates on this endpoint will propagate to the invoice item"."""
    invoice = _draft(call)
    lines = _items_by_line(call, invoice)
    line_id = call.target["line"]
    if line_id not in lines:
        raise resource_missing("line_item", line_id)
    item = lines[line_id]
    _update(call, invoice, item, {name: call.params[name] for name in call.params if name != "expand"}, "")
    call.session.update(invoice)
    return render_line(item)


def _update(call: Call, invoice: State, item: State, params: dict[str, Any], prefix: str) -> None:
    _check_supported(params, prefix)
    before = item["amount"]
    invoice_item_object.apply(item, params, prefix)
    invoice_object.add_to_totals(invoice, item["amount"] - before)
    call.session.update(item)


def _check_supported(params: dict[str, Any], prefix: str) -> None:
    for name in params:
        if name not in _LINE:
            raise unsupported(f"{prefix}[{name}]" if prefix else name)


def _draft(call: Call) -> State:
    invoice = call.session.get("invoice", call.target["invoice"])
    check_draft(invoice_object.status(invoice))
    return invoice


def _items_by_line(call: Call, invoice: State) -> dict[str, State]:
    return {item["_line_id"]: item for item in call.session.items_of_invoice(invoice["id"])}


def _item(lines: dict[str, State], line_id: str, param: str) -> State:
    if line_id not in lines:
        raise resource_missing("line_item", line_id, param)
    return lines[line_id]


def _saved(call: Call, invoice: State) -> dict[str, Any]:
    """Bulk requests answer with the whole invoice, as it is stored."""
    invoice["metadata"] = merge(invoice["metadata"], call.params.get("invoice_metadata"))
    call.session.update(invoice)
    return render(call.session, invoice)


_INVOICE = "/v1/invoices/{invoice}"

ROUTES = (
    Route("POST", f"{_INVOICE}/add_lines", add_lines, InvoiceAddLinesParams, _BULK, event="invoice.updated"),
    Route("POST", f"{_INVOICE}/update_lines", update_lines, InvoiceUpdateLinesParams, _BULK, event="invoice.updated"),
    Route("POST", f"{_INVOICE}/remove_lines", remove_lines, InvoiceRemoveLinesParams, _BULK, event="invoice.updated"),
    Route("GET", f"{_INVOICE}/lines", list_lines, InvoiceLineItemListParams, PAGE_PARAMS),
    Route("POST", f"{_INVOICE}/lines/{{line}}", update_line, InvoiceLineItemUpdateParams, _LINE),
)
