"""Having one change done in Stripe once: frozen parameters, a deterministic key, and what to do without an answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from sqlalchemy import Connection

from billing.errors import BillingError, StripeBusy, StripeLater, StripeOutcomeUnknown, StripeRefused, StripeServerError
from billing.invoicing.sending import Operation, Request
from billing.stripe import stripe_request_store
from billing.stripe.stripe_gateway import StripeGateway
from billing.stripe.stripe_request_store import FrozenRequest

TRIES: Final = 5
"""A request is tried so often in a row, then left to a later run."""
EPOCH_LIMIT: Final = 10
"""So many keys for one change: a forgotten key or a stored refusal needs a second one, more is not our doing."""

T = TypeVar("T")


class Parked(BillingError):
    """This invoice needs a person. The others go on."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What sending needs from outside.

    `checkpoint` is called with a name around each request and after each stored step: tests crash there.
    `pause_s`, in seconds, is the first pause before a request is repeated; it doubles each time.
    """

    gateway: StripeGateway
    now: datetime
    actor: str
    checkpoint: Callable[[uuid.UUID, str], None]
    pause_s: float


class RequestSender:
    """Sends the requests of one invoice."""

    def __init__(self, connection: Connection, invoice_id: uuid.UUID, account: str, given: Circumstances) -> None:
        self._connection = connection
        self._invoice_id = invoice_id
        self._account = account
        self._given = given
        self._ahead: dict[str, FrozenRequest] = {}

    def freeze_ahead(self, requests: Iterable[Request]) -> None:
        """Freeze the first epoch of what is asked for next, in the caller's transaction: it needs none of its own."""
        for request in requests:
            if (frozen := self._freeze(request)) is not None:
                self._ahead[request.idempotency_key] = frozen

    def answered(self, make: Callable[[int], Request]) -> bool:
        """Whether Stripe's answer to a change is stored already."""
        return self._newest(make).reply_id is not None

    def ask(
        self, make: Callable[[int], Request], send: Callable[[Request], T], look: Callable[[], T | None]
    ) -> tuple[str, T]:
        """Have a change done once: its key and the reply (docs/spec/money.md 10).

        `make` builds the request of an epoch of its key. The same key and parameters are sent again until there is
        an answer. A key that Stripe may have forgotten, or that by now only repeats a stored refusal or 5xx, is not:
        then `look` finds what is there, which is adopted, and only if there is nothing the key's next epoch is used.
        So it is when parameters are refused that would be others by now. Ahead of the look nothing is sent for so long
        that nothing can be under way: raises StripeLater.
        """
        frozen = self._newest(make)
        while True:
            if not frozen.expired:
                if frozen.fading:
                    raise StripeLater("its reply is missing for almost 23 h: in ten minutes it is looked up")
                try:
                    return frozen.request.idempotency_key, self._try(frozen.request, send)
                except (StripeServerError, StripeRefused) as error:
                    refused = isinstance(error, StripeRefused)
                    if not (frozen.settled or (refused and self._outdated(make, frozen.request))):
                        raise
            found = look()
            if found is not None:
                return frozen.request.idempotency_key, found
            frozen = self._next(make, frozen.request.epoch + 1)

    def pause(self, attempt: int) -> None:
        """Wait before the next attempt."""
        time.sleep(self._given.pause_s * 2 ** (attempt - 1))

    def _newest(self, make: Callable[[int], Request]) -> FrozenRequest:
        """The request that was frozen last, or a first one, frozen now."""
        first = make(0)
        if (ahead := self._ahead.get(first.idempotency_key)) is not None:
            return ahead
        with self._connection.begin():
            keys = [first.key_at(epoch) for epoch in range(EPOCH_LIMIT)]
            return self._freeze(first) or stripe_request_store.newest(self._connection, keys)

    def _next(self, make: Callable[[int], Request], epoch: int) -> FrozenRequest:
        if epoch >= EPOCH_LIMIT:
            raise Parked(f"Stripe gave no usable answer under {epoch} keys: ask Stripe what hinders it")
        with self._connection.begin():
            request = make(epoch)
            return self._freeze(request) or stripe_request_store.newest(self._connection, [request.idempotency_key])

    @staticmethod
    def _outdated(make: Callable[[int], Request], request: Request) -> bool:
        return make(request.epoch).parameters != request.parameters

    def _freeze(self, request: Request) -> FrozenRequest | None:
        # A customer outlives the invoice that it was made for.
        invoice_id = None if request.operation is Operation.CREATE_CUSTOMER else self._invoice_id
        return stripe_request_store.freeze(
            self._connection, request, billing_account=self._account, invoice_id=invoice_id
        )

    def _try(self, request: Request, send: Callable[[Request], T]) -> T:
        name = f"{request.operation} {request.chunk}"
        for attempt in range(1, TRIES + 1):
            self._given.checkpoint(self._invoice_id, f"sending {name}")
            try:
                reply = send(request)
            except (StripeBusy, StripeOutcomeUnknown):
                if attempt == TRIES:
                    raise
                self.pause(attempt)
            else:
                self._given.checkpoint(self._invoice_id, f"unrecorded {name}")
                return reply
        raise AssertionError("the last try returns or raises")
