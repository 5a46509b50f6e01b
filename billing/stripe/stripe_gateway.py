"""Stripe: the only module that imports `stripe`. Every change carries our idempotency key; replies become our types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, TypeVar, cast

import stripe

from billing.errors import (
    StripeAccessRefused,
    StripeBusy,
    StripeError,
    StripeOutcomeUnknown,
    StripeRefused,
    StripeServerError,
)
from billing.invoicing.sending import DraftSeen, LineSeen, Operation, Request
from billing.settings import StripeSettings

API_VERSION: Final = "2026-10-28.endive"
"""Pinned: the shapes below are those of this version."""
TIMEOUT_S: Final = (5.0, 30.0)
"""To connect, to answer. A timeout is an unknown outcome, not a failure."""
PAGE: Final = 100

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StripeInvoice:
    """An invoice in Stripe. Amounts in Stripe's integers; `lines` None where they were not all in the reply.

    `…_s` are Unix seconds of Stripe's clock.
    """

    invoice_id: str
    seen: DraftSeen
    lines: tuple[LineSeen, ...] | None
    hosted_invoice_url: str | None
    invoice_pdf_url: str | None
    created_s: int
    finalized_s: int | None
    due_s: int | None


class StripeGateway:
    """Stripe, or a twin of it. Safe to use from several threads. Raises the StripeErrors of billing/errors.py."""

    def __init__(self, settings: StripeSettings) -> None:
        self._client = stripe.StripeClient(
            settings.key,
            stripe_version=API_VERSION,
            base_addresses={"api": settings.api.rstrip("/")} if settings.api else {},
            # Retrying is ours: with the same key, and knowing what is known.
            max_network_retries=0,
            http_client=stripe.RequestsClient(timeout=TIMEOUT_S),
        )

    def create_customer(self, request: Request) -> str:
        """Create a customer as the frozen request says; its id."""
        assert request.operation is Operation.CREATE_CUSTOMER, request.operation
        return _call(lambda: self._client.v1.customers.create(*_arguments(request))).id

    def change_invoice(self, request: Request) -> StripeInvoice:
        """Do to an invoice what the frozen request says; the invoice as it is then."""
        parameters, options = _arguments(request)
        invoices = self._client.v1.invoices
        match request.operation:
            case Operation.CREATE_DRAFT:
                return _invoice(_call(lambda: invoices.create(parameters, options)))
            case Operation.ADD_LINES:
                return _invoice(_call(lambda: invoices.add_lines(request.target, parameters, options)))
            case Operation.SET_NUMBER:
                return _invoice(_call(lambda: invoices.update(request.target, parameters, options)))
            case Operation.FINALIZE:
                return _invoice(_call(lambda: invoices.finalize_invoice(request.target, parameters, options)))
            case Operation.CREATE_CUSTOMER:
                raise ValueError("a customer is no invoice")

    def invoice(self, invoice_id: str) -> tuple[StripeInvoice, list[LineSeen]]:
        """An invoice with all its lines, as Stripe has it now."""
        found = _invoice(_call(lambda: self._client.v1.invoices.retrieve(invoice_id)))
        if found.lines is not None:
            return found, list(found.lines)
        return found, list(self._lines(invoice_id))

    def invoices(self, *, customer: str | None = None) -> Iterator[StripeInvoice]:
        """Every invoice in Stripe, or of one customer; the newest first."""
        parameters: dict[str, Any] = {"limit": PAGE} | ({"customer": customer} if customer else {})
        while True:
            page = _call(partial(self._client.v1.invoices.list, cast(Any, dict(parameters))))
            yield from (_invoice(invoice) for invoice in page.data)
            if not page.has_more:
                return
            parameters["starting_after"] = page.data[-1].id

    def _lines(self, invoice_id: str) -> Iterator[LineSeen]:
        parameters: dict[str, Any] = {"limit": PAGE}
        while True:
            page = _call(partial(self._client.v1.invoices.line_items.list, invoice_id, cast(Any, dict(parameters))))
            yield from (_line(line) for line in page.data)
            if not page.has_more:
                return
            parameters["starting_after"] = page.data[-1].id


def _arguments(request: Request) -> tuple[Any, Any]:
    # The parameters are the frozen ones, as they are; the SDK's types are for parameters written by hand.
    return request.decoded, {"idempotency_key": request.idempotency_key}


def _invoice(found: stripe.Invoice) -> StripeInvoice:
    return StripeInvoice(
        invoice_id=found.id,
        seen=DraftSeen(
            status=found.status or "",
            number=found.number,
            customer=_id(found.customer),
            currency=found.currency,
            total=found.total,
            amount_due=found.amount_due,
            starting_balance=found.starting_balance,
            auto_advance=bool(found.auto_advance),
            collection_method=found.collection_method or "",
            automatic_tax=found.automatic_tax.enabled,
            default_tax_rates=len(found.default_tax_rates or []),
            discounts=len(found.discounts or []),
            metadata=dict(found.metadata.to_dict()) if found.metadata else {},
        ),
        lines=None if found.lines.has_more else tuple(_line(line) for line in found.lines.data),
        hosted_invoice_url=found.hosted_invoice_url,
        invoice_pdf_url=found.invoice_pdf,
        created_s=found.created,
        finalized_s=found.status_transitions.finalized_at,
        due_s=found.due_date,
    )


def _line(line: stripe.InvoiceLineItem) -> LineSeen:
    metadata = dict(line.metadata.to_dict()) if line.metadata else {}
    return LineSeen(
        line_key=metadata.get("line_key", ""),
        amount=line.amount,
        currency=line.currency,
        discounts=len(line.discounts or []),
        taxes=len(line.taxes or []),
    )


def _id(found: Any) -> str:
    return found if isinstance(found, str) else str(getattr(found, "id", ""))


def _call(request: Callable[[], T]) -> T:
    try:
        return request()
    except stripe.StripeError as error:
        _raise(error)


def _raise(error: stripe.StripeError) -> NoReturn:
    text = f"Stripe: {error.user_message or error}"
    if isinstance(error, stripe.APIConnectionError):
        text = "Stripe: no answer; run it again later"  # the SDK's own words fill a page
    code, request_id = error.code or "", error.request_id or ""
    kind: type[StripeError]
    if isinstance(error, stripe.APIConnectionError) or error.http_status is None or error.http_status < 400:
        # No answer, or a success that cannot be read (a proxy's page): it may well have been done.
        kind = StripeOutcomeUnknown
    elif error.http_status >= 500:
        kind = StripeServerError
    elif isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        kind = StripeAccessRefused
    elif error.http_status in (409, 429):
        kind = StripeBusy
    else:
        kind = StripeRefused
    raise kind(text, code=code, request_id=request_id) from None
