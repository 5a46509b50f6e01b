"""Stripe: the only module that imports `stripe`. Every change carries our idempotency key; replies become our types.

The SDK sends, authenticates and raises; its objects are left out (`raw_request`): making them of every line of a reply
costs more time than the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Final, NoReturn

import stripe

from billing.errors import (
    StripeAccessRefused,
    StripeBusy,
    StripeError,
    StripeOutcomeUnknown,
    StripeRefused,
    StripeServerError,
)
from billing.invoicing.sending import DraftSeen, Operation, Request
from billing.invoicing.stripe_lines import LineSeen
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY
from billing.settings import StripeSettings
from billing.stripe.rate_limits import LIVE_PER_S, SANDBOX_PER_S, Limits, RateLimiter

API_VERSION: Final = "2026-10-28.endive"
"""Pinned: the shapes below are those of this version."""
TIMEOUT_S: Final = (5.0, 30.0)
"""To connect, to answer. A timeout is an unknown outcome, not a failure."""
PAGE: Final = 100
TOO_MANY: Final = 429

_CHANGES: Final[Mapping[Operation, str]] = {
    Operation.CREATE_CUSTOMER: "/v1/customers",
    Operation.UPDATE_CUSTOMER: "/v1/customers/{}",
    Operation.CREATE_DRAFT: "/v1/invoices",
    Operation.ADD_LINES: "/v1/invoices/{}/add_lines",
    Operation.SET_NUMBER: "/v1/invoices/{}",
    Operation.FINALIZE: "/v1/invoices/{}/finalize",
    Operation.CREDIT_NOTE: "/v1/credit_notes",
    Operation.VOID: "/v1/invoices/{}/void",
    Operation.MARK_UNCOLLECTIBLE: "/v1/invoices/{}/mark_uncollectible",
    Operation.PAY_ELSEWHERE: "/v1/invoices/{}/pay",
    Operation.REFUND: "/v1/refunds",
    Operation.MOVE_BALANCE: "/v1/customers/{}/balance_transactions",
    Operation.SUBMIT_EVIDENCE: "/v1/disputes/{}",
}

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StripeInvoice:
    """An invoice in Stripe. Amounts in Stripe's integers; `lines` None where they were not all in the reply.

    `paid_off_stripe`: what somebody has marked as paid in another way. `overpaid`: what was paid beyond what was due,
    and is the customer's balance. `seen.amount_due` is before credit notes. `replayed`: the reply is the stored one of
    an earlier request, so that the invoice may have changed since.
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
    paid_off_stripe: int = 0
    replayed: bool = False
    amount_paid: int = 0
    amount_remaining: int = 0
    overpaid: int = 0
    attempts: int = 0
    next_attempt_s: int | None = None


def limits_of(settings: StripeSettings) -> Limits | None:
    """What Stripe lets a key do; a twin sets its own."""
    if settings.api is not None:
        return None
    return Limits(LIVE_PER_S if settings.is_live else SANDBOX_PER_S)


class StripeGateway:
    """An account of Stripe's, or of a twin. Safe to use from several threads. Raises the StripeErrors of
    billing/errors.py.

    `legal_entity`: whose account it is; to its books goes what belongs to no customer. By itself it is all of Stripe
    (`stripe_accounts.Stripe`): an account that every legal entity shares.
    """

    def __init__(
        self, settings: StripeSettings, limits: Limits | None = None, legal_entity: str = DEFAULT_LEGAL_ENTITY
    ) -> None:
        self.legal_entity = legal_entity
        self.limiter = RateLimiter(limits or limits_of(settings))
        self.live = settings.is_live
        self._client = stripe.StripeClient(
            settings.key,
            stripe_version=API_VERSION,
            base_addresses={"api": settings.api.rstrip("/")} if settings.api else {},
            # Retrying is ours: with the same key, and knowing what is known.
            max_network_retries=0,
            http_client=stripe.RequestsClient(timeout=TIMEOUT_S),
        )

    @cached_property
    def account_id(self) -> str:
        """The id of the account that the key is of; asked for once."""
        return str(self.get("/v1/account")["id"])

    def of(self, legal_entity: str) -> StripeGateway:
        """Whoever invoices: this account."""
        return self

    @property
    def each(self) -> tuple[StripeGateway, ...]:
        """Every account: this one."""
        return (self,)

    def wrapped(self, wrap: Callable[[StripeGateway], StripeGateway]) -> StripeGateway:
        """The same account through another gateway."""
        return wrap(self)

    def create_customer(self, request: Request) -> str:
        """Create a customer as the frozen request says; its id."""
        assert request.operation is Operation.CREATE_CUSTOMER, request.operation
        return str(self.change(request)["id"])

    def change_invoice(self, request: Request) -> StripeInvoice:
        """Do to an invoice what the frozen request says; the invoice as it is then."""
        if request.operation is Operation.CREATE_CUSTOMER:
            raise ValueError("a customer is no invoice")
        reply = self._change(request)
        return _invoice(reply.data, (reply.headers or {}).get("Idempotent-Replayed") == "true")

    def change(self, request: Request) -> Json:
        """Do what the frozen request says; Stripe's JSON of what it made or changed."""
        made: Json = self._change(request).data
        return made

    def invoice(self, invoice_id: str) -> tuple[StripeInvoice, list[LineSeen]]:
        """An invoice with all its lines, as Stripe has it now."""
        found = _invoice(self.get("/v1/invoices/{}", invoice_id))
        if found.lines is not None:
            return found, list(found.lines)
        return found, [_line(line) for line in self.pages("/v1/invoices/{}/lines", invoice_id)]

    def invoices(self, *, customer: str | None = None) -> Iterator[StripeInvoice]:
        """Every invoice in Stripe, or of one customer; the newest first."""
        chosen = {"customer": customer} if customer else {}
        return (_invoice(found) for found in self.pages("/v1/invoices", **chosen))

    def customers(self, since: datetime | None) -> Iterator[Json]:
        """The customers that were made since a moment and are not deleted, as Stripe's JSON; the newest first."""
        chosen: dict[str, Any] = {} if since is None else {"created": {"gte": int(since.timestamp())}}
        return self.pages("/v1/customers", **chosen)

    def _change(self, request: Request) -> Any:
        # The parameters are the frozen ones, as they are.
        return self._call(
            "post", _CHANGES[request.operation], request.target, idempotency_key=request.idempotency_key,
            **request.decoded,
        )  # fmt: skip

    def pages(self, path: str, target: str = "", **parameters: Any) -> Iterator[Json]:
        """What a list has, to its end, as Stripe's JSON."""
        for page in self.each_page(path, target, **parameters):
            yield from page

    def each_page(
        self, path: str, target: str = "", *, after: str | None = None, **parameters: Any
    ) -> Iterator[Sequence[Json]]:
        """A list page by page, those after an object's id, as Stripe's JSON."""
        parameters["limit"] = PAGE
        while True:
            page = self.get(path, target, **parameters, **({"starting_after": after} if after else {}))
            if page["data"]:
                yield page["data"]
            if not page["has_more"]:
                return
            after = next(each["id"] for each in reversed(page["data"]) if isinstance(each, Mapping) and each.get("id"))

    def get(self, path: str, target: str = "", **parameters: Any) -> Json:
        """An object or a page, as Stripe's JSON; `target` takes the place of the path's braces."""
        found: Json = self._call("get", path, target, **parameters).data
        return found

    def _call(self, method: str, path: str, target: str, **parameters: Any) -> Any:
        if "{}" in path and not target:
            raise ValueError(f"{method.upper()} {path} without an id: Stripe would take it for another address")
        endpoint = f"{method.upper()} {path.replace('{}', ':id')}"
        self.limiter.wait(endpoint)
        refused = False
        try:
            return self._client.raw_request(method, path.format(target), **parameters)
        except stripe.StripeError as error:
            refused = error.http_status == TOO_MANY
            _raise(error)
        finally:
            self.limiter.answered(endpoint, refused=refused)


def _invoice(found: Json, replayed: bool = False) -> StripeInvoice:
    lines = found["lines"]
    return StripeInvoice(
        invoice_id=found["id"],
        seen=DraftSeen(
            status=found["status"] or "",
            number=found["number"],
            customer=_id(found["customer"]),
            currency=found["currency"],
            total=found["total"],
            amount_due=found["amount_due"] + found["pre_payment_credit_notes_amount"],
            starting_balance=found["starting_balance"],
            auto_advance=bool(found["auto_advance"]),
            collection_method=found["collection_method"] or "",
            automatic_tax=found["automatic_tax"]["enabled"],
            default_tax_rates=len(found["default_tax_rates"] or []),
            discounts=len(found["discounts"] or []),
            metadata=dict(found["metadata"] or {}),
        ),
        lines=None if lines["has_more"] else tuple(map(_line, lines["data"])),
        hosted_invoice_url=found.get("hosted_invoice_url"),
        invoice_pdf_url=found.get("invoice_pdf"),
        created_s=found["created"],
        finalized_s=found["status_transitions"]["finalized_at"],
        due_s=found["due_date"],
        paid_off_stripe=found.get("amount_paid_off_stripe") or 0,
        replayed=replayed,
        amount_paid=found["amount_paid"],
        amount_remaining=found["amount_remaining"],
        overpaid=found.get("amount_overpaid") or 0,
        attempts=found["attempt_count"],
        next_attempt_s=found["next_payment_attempt"],
    )


def _line(line: Json) -> LineSeen:
    return LineSeen(
        line_key=(line["metadata"] or {}).get("line_key", ""),
        amount=line["amount"],
        currency=line["currency"],
        discounts=len(line.get("discounts") or []),
        taxes=len(line.get("taxes") or []),
    )


def _id(found: Any) -> str:
    """The id of what a reply names by its id, or holds whole."""
    return found if isinstance(found, str) else str((found or {}).get("id", ""))


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
