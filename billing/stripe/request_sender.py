"""Having one change done in Stripe once: frozen parameters, a deterministic key, and what to do without an answer."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

from sqlalchemy import Connection

from billing.errors import (
    BillingError,
    StripeBusy,
    StripeLater,
    StripeOutcomeUnknown,
    StripeRefused,
    StripeRefusedBefore,
    StripeServerError,
)
from billing.invoicing.sending import Operation, Request
from billing.stripe import stripe_request_store
from billing.stripe.stripe_gateway import StripeGateway
from billing.stripe.stripe_request_store import Answer, FrozenRequest

TRIES: Final = 5
"""A request is tried so often in a row, then left to a later run."""
EPOCH_LIMIT: Final = 100
"""So many keys for one change of what may begin anew: a forgotten key or a stored refusal needs another one, and a new
beginning has the next hundred (docs/decisions/0035-asking-anew.md)."""
AGAIN_AFTER: Final = timedelta(hours=1)
AGAIN_MAX: Final = timedelta(days=1)
"""What Stripe has refused is asked for again, if nobody asks, after an hour, then two, four, and so on up to a day."""

OF_CUSTOMERS: Final = (Operation.CREATE_CUSTOMER, Operation.UPDATE_CUSTOMER)

T = TypeVar("T")


class Parked(BillingError):
    """This invoice needs a person. The others go on."""


class Differs(Parked):
    """What Stripe has is not what was asked for."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What sending needs from outside.

    `checkpoint` is called with a name around each request and after each stored step: tests crash there.
    `pause_s`, in seconds, is the first pause before a request is repeated; it doubles each time. `again`: a person
    asks, so that what Stripe has refused is asked for at once.
    """

    gateway: StripeGateway
    now: datetime
    actor: str
    checkpoint: Callable[[uuid.UUID, str], None]
    pause_s: float
    again: bool = False


class RequestSender:
    """Sends the requests of one invoice."""

    def __init__(self, connection: Connection, invoice_id: uuid.UUID, account: str, given: Circumstances) -> None:
        self._connection = connection
        self._invoice_id = invoice_id
        self._account = account
        self._given = given
        self._ahead: dict[str, FrozenRequest] = {}

    def freeze_ahead(self, requests: Iterable[Request]) -> None:
        """Freeze what is asked for next, under its first key, in the caller's transaction: it needs none of its own."""
        for request in requests:
            if (frozen := self._freeze(request)) is not None:
                self._ahead[request.idempotency_key] = frozen

    def answered(self, make: Callable[[int], Request], first: int) -> bool:
        """Whether Stripe's answer to a change is stored already."""
        return self._newest(make, first).reply_id is not None

    def ask(
        self, make: Callable[[int], Request], send: Callable[[Request], T], look: Callable[[], T | None],
        first: int | None = None,
    ) -> tuple[str, T]:  # fmt: skip
        """Have a change done once: its key and the reply (docs/spec/money.md 10).

        `make` builds the request of an epoch of its key. The same key and parameters are sent again until there is
        an answer. A key that Stripe may have forgotten, or that it answered with a refusal or a 5xx, which it may
        repeat, is not: then `look` finds what is there, which is adopted, and only if there is nothing the key's next
        epoch is used (from the `first` on, EPOCH_LIMIT of them, where it may begin anew). So it is when parameters are
        refused that would be others by now. A refusal is none where what was asked for is there. Unless Stripe has
        refused it, nothing is looked up before it went out so long ago, the last time, that it cannot be under way:
        raises StripeLater. Raises StripeRefusedBefore where it is too early to ask again.
        """
        frozen = self._newest(make, first)
        refused_before = frozen.answer is Answer.REFUSED and not self._outdated(make, frozen.request)
        if refused_before and not self._due(frozen, first):
            if (found := look()) is not None:
                return frozen.request.idempotency_key, found
            raise StripeRefusedBefore("Stripe has refused it before")
        while True:
            refused: StripeRefused | None = None
            if frozen.answer is None and not frozen.expired:
                if frozen.fading:
                    raise StripeLater("its reply is missing for almost 23 h: in ten minutes it is looked up")
                try:
                    return frozen.request.idempotency_key, self._try(frozen, send)
                except StripeRefused as error:
                    refused = error
            elif frozen.answer is not Answer.REFUSED and not frozen.quiet:
                raise StripeLater("Stripe failed at it a moment ago: in two minutes what it has done is looked up")
            found = look()
            if found is not None:
                return frozen.request.idempotency_key, found
            if refused is not None and not self._outdated(make, frozen.request):
                raise refused
            frozen = self._next(make, frozen.request.epoch + 1, first)

    def pause(self, attempt: int) -> None:
        """Wait before the next attempt."""
        time.sleep(self._given.pause_s * 2 ** (attempt - 1))

    def _due(self, frozen: FrozenRequest, first: int | None) -> bool:
        """Whether it is time to ask again for what Stripe refused."""
        times = frozen.request.epoch - (first or 0)
        return self._given.again or frozen.silent >= min(AGAIN_AFTER * 2 ** min(times, 10), AGAIN_MAX)

    def _newest(self, make: Callable[[int], Request], first: int | None) -> FrozenRequest:
        """The request that was frozen last, or a first one, frozen now."""
        request = make(first or 0)
        if (ahead := self._ahead.get(request.idempotency_key)) is not None:
            return ahead
        with self._connection.begin():
            if (fresh := self._freeze(request)) is not None:
                return fresh
            newest = None
            for start in itertools.count(request.epoch, EPOCH_LIMIT):
                keys = [request.key_at(epoch) for epoch in range(start, start + EPOCH_LIMIT)]
                if (found := stripe_request_store.newest(self._connection, keys)) is not None:
                    newest = found
                if first is not None or found is None:
                    break
            assert newest is not None, "one is frozen under the first key"
            return newest

    def _next(self, make: Callable[[int], Request], epoch: int, first: int | None) -> FrozenRequest:
        if first is not None and epoch >= first + EPOCH_LIMIT:
            raise Parked(
                f"Stripe gave no usable answer under {EPOCH_LIMIT} keys: ask Stripe what hinders it, delete there what"
                " there is of the invoice, and `tollbook invoice restart`"
            )
        with self._connection.begin():
            request = make(epoch)
            found = self._freeze(request) or stripe_request_store.newest(self._connection, [request.idempotency_key])
            assert found is not None, "it is frozen, now or before"
            return found

    @staticmethod
    def _outdated(make: Callable[[int], Request], request: Request) -> bool:
        return make(request.epoch).parameters != request.parameters

    def _freeze(self, request: Request) -> FrozenRequest | None:
        # A customer outlives the invoice that it was made for.
        invoice_id = None if request.operation in OF_CUSTOMERS else self._invoice_id
        return stripe_request_store.freeze(
            self._connection, request, billing_account=self._account, invoice_id=invoice_id
        )

    def _try(self, frozen: FrozenRequest, send: Callable[[Request], T]) -> T:
        """Send it until there is an answer, a few times. What it was frozen for counts as the first time: that spares
        telling the database."""
        request, unknown = frozen.request, not (frozen.fresh or frozen.quiet)
        name, key = f"{request.operation} {request.chunk}", request.idempotency_key
        for attempt in range(1, TRIES + 1):
            if attempt > 1 or not frozen.fresh:
                with self._connection.begin():
                    stripe_request_store.sent_again(self._connection, key)
            self._given.checkpoint(self._invoice_id, f"sending {name}")
            try:
                reply = send(request)
            except StripeRefused:
                self._keep(key, Answer.FAILED if unknown else Answer.REFUSED)
                raise
            except (StripeBusy, StripeOutcomeUnknown) as error:
                unknown = unknown or isinstance(error, StripeOutcomeUnknown)
                if attempt == TRIES:
                    if isinstance(error, StripeServerError):
                        self._keep(key, Answer.FAILED)
                    raise
                self.pause(attempt)
            else:
                self._given.checkpoint(self._invoice_id, f"unrecorded {name}")
                return reply
        raise AssertionError("the last try returns or raises")

    def _keep(self, key: str, answer: Answer) -> None:
        with self._connection.begin():
            stripe_request_store.keep_answer(self._connection, key, answer)
