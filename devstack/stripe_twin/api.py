"""One request to ``/v1`` from bytes to bytes: everything but HTTP itself.

    key → version → URL → rate limit → form → idempotency → parameter check → ‖ execute, one transaction ‖ → reply

What fails before ‖ has not run and is not stored under an idempotency key; what fails inside has, and is
(docs.stripe.com/error-low-level). The object change, the stored reply and the log entry commit together.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from devstack.stripe_twin import request_log
from devstack.stripe_twin.acts import ACTS
from devstack.stripe_twin.authentication import API_VERSION, account_of, account_of_key, check_version
from devstack.stripe_twin.checkpoints import Checkpoint, Checkpoints
from devstack.stripe_twin.clock import Clock
from devstack.stripe_twin.errors import StripeError, internal_error, invalid
from devstack.stripe_twin.events import emit
from devstack.stripe_twin.faults import (
    BEFORE,
    Dropped,
    Fault,
    FaultKind,
    Faults,
    RateLimits,
    error_of,
    refusal,
)
from devstack.stripe_twin.ids import Ids
from devstack.stripe_twin.request_log import LogEntry
from devstack.stripe_twin.resources import ROUTES, test_clocks
from devstack.stripe_twin.resources.expansion import expand
from devstack.stripe_twin.resources.invoice_transitions import finalization_refused, finalize
from devstack.stripe_twin.routing import Call, Route, Router
from devstack.stripe_twin.rules import idempotency
from devstack.stripe_twin.rules.forms import Form, decode
from devstack.stripe_twin.rules.idempotency import StoredReply
from devstack.stripe_twin.session import Session
from devstack.stripe_twin.store import Store
from devstack.stripe_twin.webhooks import Webhooks

_FORM = "application/x-www-form-urlencoded"

_PRUNE_INTERVAL_SECONDS = 60 * 60
"""Expired keys are ignored at once; their rows go once an hour, since that reads the whole table."""


@dataclass(frozen=True)
class HttpRequest:
    """``headers`` with names in lower case; ``query`` and ``body`` undecoded."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class HttpReply:
    status: int
    body: bytes
    headers: dict[str, str]


@dataclass
class _Request:
    """What is known of a request so far; the log entry is made of it, however early it fails."""

    http: HttpRequest
    id: str
    now: int
    account: str | None = None
    form: Form = field(default_factory=dict)
    key: str | None = None
    fault: Fault | None = None

    def log_entry(self, status: int, replayed: bool = False) -> LogEntry:
        http = self.http
        return LogEntry(self.id, self.now, self.account, http.method, http.path, self.form, self.key, replayed, status)


class Api:
    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: Ids,
        checkpoints: Checkpoints,
        faults: Faults,
        limits: RateLimits,
        webhooks: Webhooks,
        base_url: str,
    ) -> None:
        self._webhooks = webhooks
        self._store = store
        self._faults = faults
        self._limits = limits
        self._clock = clock
        self._ids = ids
        self._checkpoints = checkpoints
        self._base_url = base_url
        self._router = Router(ROUTES)
        self._running: set[tuple[str | None, str | None]] = set()
        self._late: set[asyncio.Task[None]] = set()
        self._pruned_at = 0

    async def answer(self, http: HttpRequest) -> HttpReply:
        """The reply to a request. Raises Dropped where a fault leaves it without one."""
        request = _Request(http, self._ids.new("req"), self._clock.now())
        try:
            request.account = account_of(http.headers)
            check_version(http.headers)
            route, target = self._router.match(http.method, http.path)
            self._limits.check(request.account, f"{http.method} {route.path}")
            await self._meet_fault(request)
            request.form = _form_of(http)
            if http.method == "POST":
                request.key = http.headers.get("idempotency-key") or None
            replayed = self._replay(request)
            if request.fault is not None and request.fault.kind is FaultKind.COMMIT_LATE:
                if replayed is None:
                    self._run_later(request, route, target)
                raise Dropped
            reply = replayed or await self._run(request, route, target)
            if request.fault is not None and request.fault.kind is FaultKind.LOSE_REPLY:
                raise Dropped
            if request.fault is not None and request.fault.kind is FaultKind.SLOW:
                # All is done by now: a webhook that tells of it comes before the reply.
                await asyncio.sleep(request.fault.seconds)
            return reply
        except StripeError as error:
            return self._refuse(request, error)
        except Dropped:
            raise
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return self._refuse(request, internal_error())

    async def _meet_fault(self, request: _Request) -> None:
        """A fault, if one waits for this request: what it does before anything is done. Raises Dropped, StripeError."""
        assert request.account is not None, "authenticated before"
        request.fault = fault = self._faults.next(request.account, request.http.method, request.http.path)
        if fault is None:
            return
        if fault.seconds and fault.kind not in (FaultKind.SLOW, FaultKind.COMMIT_LATE):
            await asyncio.sleep(fault.seconds)
        if fault.kind in (FaultKind.REFUSE, FaultKind.TIMEOUT):
            raise Dropped
        if fault.kind in BEFORE:
            raise error_of(fault.kind, request.http.headers.get("idempotency-key"))

    def _refuse(self, request: _Request, error: StripeError) -> HttpReply:
        """Answer a request that did not run."""
        with self._store.transaction() as connection:
            request_log.append(connection, request.log_entry(error.status))
        return self._reply(request, error.status, self._error_body(request, error), error.should_retry)

    def _replay(self, request: _Request) -> HttpReply | None:
        """The stored reply of the request's idempotency key, if there is one. Raises StripeError (400)."""
        if request.account is None or request.key is None:
            return None
        idempotency.check_key(request.key)
        with self._store.transaction() as connection:
            stored = request_log.stored_reply(connection, request.account, request.key)
            if stored is None or idempotency.has_expired(stored, request.now):
                return None
            fingerprint = idempotency.fingerprint(request.form)
            idempotency.check_same_request(stored, request.key, request.http.path, fingerprint)
            request_log.append(connection, request.log_entry(stored.status, replayed=True))
        reply = self._reply(request, stored.status, stored.body, None if stored.status < 400 else False)
        reply.headers["Idempotent-Replayed"] = "true"
        reply.headers["Original-Request"] = stored.request_id
        return reply

    @property
    def under_way(self) -> int:
        """How many requests that nobody waits for any more are still to be done."""
        return len(self._late)

    def _run_later(self, request: _Request, route: Route, target: dict[str, str]) -> None:
        """Run the request though its client is gone."""

        async def run() -> None:
            with suppress(StripeError):
                await self._run(request, route, target)

        task = asyncio.create_task(run())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _run(self, request: _Request, route: Route, target: dict[str, str]) -> HttpReply:
        """Run the request, at most one at a time under one idempotency key."""
        http = request.http
        claim = (request.account, request.key)
        if request.key is not None:
            if claim in self._running:
                raise idempotency.key_in_use(request.key)
            self._running.add(claim)
        try:
            params = route.check(request.form)
            if request.fault is not None and request.fault.kind is FaultKind.COMMIT_LATE:
                await asyncio.sleep(request.fault.seconds)
            await self._checkpoints.reach(Checkpoint.BEFORE_EXECUTE, http.method, http.path)
            reply = self._execute(request, route, target, params)
        finally:
            self._running.discard(claim)
        await self._checkpoints.reach(Checkpoint.AFTER_COMMIT, http.method, http.path)
        return reply

    def _execute(self, request: _Request, route: Route, target: dict[str, str], params: dict[str, Any]) -> HttpReply:
        """Run the handler and record its outcome, in one transaction."""
        assert request.account is not None, "authenticated above"
        with self._store.transaction() as connection:
            session = Session(connection, request.account)
            call = self._call(session, target, params, request.id, request.key)
            status, body, should_retry = self._outcome(request, route, call)
            self._remember(connection, request, status, body)
            request_log.append(connection, request.log_entry(status))
        self._webhooks.tell(request.account, session.events)
        return self._reply(request, status, body, should_retry)

    def _call(
        self, session: Session, target: dict[str, str], params: dict[str, Any], request_id: str | None = None,
        key: str | None = None,
    ) -> Call:  # fmt: skip
        told_at = self._clock.now()
        frozen = test_clocks.time_of(session, {**params, **target})
        now = told_at if frozen is None else frozen
        return Call(session, self._ids, now, self._base_url, target, params, request_id, key, told_at)

    def _outcome(self, request: _Request, route: Route, call: Call) -> tuple[int, bytes, bool | None]:
        """Run the handler: status, body and whether to retry. What is refused leaves nothing, or all (``keeps``)."""
        kind = None if request.fault is None else request.fault.kind
        refused: StripeError | None = None
        result: dict[str, Any] = {}
        try:
            with call.session.savepoint():
                try:
                    if request.fault is not None and kind is FaultKind.REFUSED:
                        refused = refusal(request.fault.code)
                        if route.handler is finalize:
                            finalization_refused(call, refused)
                        raise refused
                    result = route.handler(call)
                    if route.event is not None:
                        emit(call, route.event, result)
                    result = expand(call.session, result, call.params.get("expand") or [])
                except StripeError as error:
                    if not error.keeps:
                        raise
                    refused = error
                if kind is FaultKind.ERROR_STORED:
                    raise error_of(kind)
        except StripeError as error:
            refused = error
        except Exception:
            traceback.print_exc(file=sys.stderr)
            refused = internal_error()
        else:
            if kind is FaultKind.ERROR_COMMITTED:
                refused = error_of(kind)
        if refused is None:
            return 200, _encode(result), None
        return refused.status, self._error_body(request, refused), False

    def act(self, name: str, key: str, params: dict[str, Any]) -> dict[str, Any]:
        """Let a customer, a bank or Stripe itself do something. Raises StripeError, KeyError."""
        act = ACTS[name]
        with self._store.transaction() as connection:
            session = Session(connection, account_of_key(key))
            done = act(self._call(session, {}, params))
        self._webhooks.tell(session.account, session.events)
        return done

    def _remember(self, connection: sqlite3.Connection, request: _Request, status: int, body: bytes) -> None:
        if request.account is None or request.key is None:
            return
        fingerprint = idempotency.fingerprint(request.form)
        reply = StoredReply(request.http.path, fingerprint, status, body, request.id, request.now)
        request_log.store_reply(connection, request.account, request.key, reply)
        if request.now - self._pruned_at >= _PRUNE_INTERVAL_SECONDS:
            request_log.prune_replies(connection, request.now - idempotency.LIFETIME_SECONDS)
            self._pruned_at = request.now

    def _reply(self, request: _Request, status: int, body: bytes, should_retry: bool | None) -> HttpReply:
        headers = {"Content-Type": "application/json", "Request-Id": request.id, "Stripe-Version": API_VERSION}
        if request.key is not None:
            headers["Idempotency-Key"] = request.key
            headers["Original-Request"] = request.id
        if should_retry is not None:
            headers["Stripe-Should-Retry"] = "true" if should_retry else "false"
        return HttpReply(status, body, headers)

    def _error_body(self, request: _Request, error: StripeError) -> bytes:
        return _encode(error.body(f"{self._base_url}/_twin/requests?id={request.id}"))


def _form_of(http: HttpRequest) -> Form:
    """Parameters of the query and, for POST, of the body."""
    form = decode(http.query)
    if http.method != "POST" or not http.body:
        return form
    content_type = http.headers.get("content-type", _FORM).partition(";")[0].strip().lower()
    if content_type != _FORM:
        raise invalid(f"Invalid request (check that your POST content type is {_FORM}).")
    try:
        return {**form, **decode(http.body.decode())}
    except UnicodeDecodeError:
        raise invalid("Invalid request: the body is not a valid form.") from None


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
